"""Which autoscaler a workload has, and how many replicas: pure reading; the API server's own word is in tests/real."""

import copy
import json
from typing import Any

import pytest

from dsobs.runtimes.kubernetes.scaling import RAISED, autoscaler_of, replicas_of
from tests.kubernetes_stand_in import pod_json


def hpa(name: str = "vllm", target: str = "vllm", kind: str = "Deployment", **annotations: str) -> dict[str, Any]:
    return {
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"scaleTargetRef": {"kind": kind, "name": target}, "minReplicas": 2, "maxReplicas": 6},
    }


def scaled_object(target: str = "vllm") -> dict[str, Any]:
    return {
        "kind": "ScaledObject",
        "metadata": {"name": "vllm"},
        "spec": {"scaleTargetRef": {"name": target}, "maxReplicaCount": 8},
    }


def test_autoscaler_is_the_one_whose_target_is_the_workload() -> None:
    others = [hpa("a", target="other"), hpa("b", kind="StatefulSet")]
    assert autoscaler_of(others, "Deployment", "vllm") is None
    found = autoscaler_of([*others, hpa("c")], "Deployment", "vllm")
    assert found is not None
    assert (str(found), found.minimum, found.maximum) == ("HorizontalPodAutoscaler c", 2, 6)


def test_scaled_object_goes_before_the_autoscaler_that_it_owns_and_targets_deployments_unless_it_says_else() -> None:
    found = autoscaler_of([hpa("keda-hpa-vllm"), scaled_object()], "Deployment", "vllm")
    assert found is not None
    assert (found.kind, found.minimum, found.maximum) == ("ScaledObject", 0, 8)
    assert autoscaler_of([scaled_object()], "StatefulSet", "vllm") is None


def test_raised_minimum_is_read_from_its_annotation() -> None:
    noted = json.dumps({"from": 1, "until": 1_795_000_000.0, "by": "pod-a"})
    found = autoscaler_of([hpa(**{RAISED: noted})], "Deployment", "vllm")
    assert found is not None
    assert (found.raised_from, found.raised_until) == (1, 1_795_000_000.0)


@pytest.mark.parametrize(
    "text", ["", "no JSON", "{}", '{"from": 1, "until": "NaN"}', "[1]", '{"from": null, "until": 1}']
)
def test_annotation_that_can_not_be_read_says_nothing(text: str) -> None:
    found = autoscaler_of([hpa(**{RAISED: text})], "Deployment", "vllm")
    assert found is not None
    assert found.raised_until is None


def other(name: str, *, ready: bool = True, going: bool = False) -> dict[str, Any]:
    pod = copy.deepcopy(pod_json())
    pod["metadata"] |= {"name": name, "uid": f"uid-{name}"}
    pod["status"] |= {"podIP": f"10.0.0.{len(name)}", "conditions": [{"type": "Ready", "status": str(ready)}]}
    if going:
        pod["metadata"]["deletionTimestamp"] = "2026-11-23T12:00:00Z"
    return pod


def test_pods_that_load_or_end_are_there_and_take_no_requests() -> None:
    me = pod_json()
    stranger = other("zzzzzzz")
    stranger["metadata"]["ownerReferences"][0]["name"] = "web-7d9f8c6b5"
    pods = [me, other("a"), other("bb", ready=False), other("ccc", going=True), stranger]
    found = replicas_of({"spec": {"replicas": 3}}, pods, me, None)
    assert (found.workload, found.wanted, found.ready, found.pods) == ("Deployment vllm", 3, 2, 4)
    assert found.peers == ("10.0.0.1",)
