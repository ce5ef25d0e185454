"""A queue on a real cluster: a replica more where nothing else scales the workload; with an autoscaler only the metric,
or its minimum raised and put back."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsobs.runtimes.kubernetes.scaling import RAISED
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.scenes import Stage, scene
from tests.real.kubernetes.serving import PORT, event, metric
from tests.real.kubernetes.workloads import level, names, up, workload

pytestmark = pytest.mark.real("kubernetes")
SETTINGS = {
    "api.listen": "0.0.0.0:9940",
    "scaling.mode": "scale",
    "scaling.max_replicas": "3",
    "scaling.queue_per_replica": "1",
    "scaling.sustained_for": "3s",
    "scaling.cooldown": "5s",
    "scaling.raise_for": "25s",
    "hang.probe": "off",
}
ENGINE = ("--max-num-seqs", "1")
HPA = {
    "apiVersion": "autoscaling/v2",
    "kind": "HorizontalPodAutoscaler",
    "metadata": {"name": "vllm"},
    "spec": {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "vllm"},
        "minReplicas": 1,
        "maxReplicas": 3,
        # Nobody serves it here, so that the autoscaler itself only holds its limits.
        "metrics": [
            {"type": "External", "external": {"metric": {"name": "none"}, "target": {"type": "Value", "value": "1"}}}
        ],
    },
}


@contextlib.contextmanager
def queue(cluster: Cluster, namespace: Namespace, *pods: str) -> Iterator[None]:
    """More clients at each of these pods than it takes at a time."""
    with contextlib.ExitStack() as stack:
        for name in pods:
            url = f"http://{cluster.forwarded(f'{namespace.address(name)}:{PORT}')}"
            words = (sys.executable, "-m", "dsobs.simulator.load", "--url", url, "--clients", "5", "--duration", "3600")
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def replicas(namespace: Namespace) -> int:
    found = namespace.get("deployments", "vllm")
    assert found is not None
    return int(found["spec"]["replicas"])


def autoscaler(namespace: Namespace) -> tuple[int, dict[str, Any] | None]:
    """Its minimum, and what a sidecar noted at it."""
    found = namespace.get("horizontalpodautoscalers", "vllm")
    assert found is not None
    text = (found["metadata"].get("annotations") or {}).get(RAISED)
    return int(found["spec"]["minReplicas"]), json.loads(text) if text else None


def raised(namespace: Namespace, minimum: int) -> dict[str, Any] | None:
    """What was noted at the autoscaler while its minimum is this."""
    found, noted = autoscaler(namespace)
    return noted if found == minimum else None


@scene
def test_a_queue_adds_a_replica_and_raises_the_minimum_of_an_autoscaler_which_another_sidecar_puts_back(
    stage: Stage,
) -> str:
    cluster, namespace = stage.cluster, stage.namespace
    level(namespace, "scale")
    settings = {**SETTINGS, "scaling.raise_min_replicas": "true"}
    namespace.apply(workload(cluster, "Deployment", 1, settings=settings, engine=ENGINE))
    (first,) = up(namespace, 1)
    begun = time.time()
    with queue(cluster, namespace, first):
        namespace.wait("a second replica", lambda: replicas(namespace) >= 2, 180)
        took = time.time() - begun
        both = up(namespace, replicas(namespace))
    namespace.apply(HPA)
    with queue(cluster, namespace, *both):
        # As it was seen: it is put back after a while.
        noted = namespace.wait("a raised minimum", lambda: raised(namespace, 3), 180)
    assert noted is not None
    assert noted["from"] == 1
    raised_by = noted["by"]
    namespace.kubectl("delete", "pod", raised_by, "--wait=false")
    namespace.wait("what the autoscaler had before", lambda: autoscaler(namespace) == (1, None), 240)
    others = [name for name in names(namespace) if name != raised_by]
    # It is told once the API server has answered.
    namespace.wait("who put it back", lambda: any(event(namespace, "scale-done", name) for name in others), 120)
    return f"queue to a second replica in the spec: {took:.0f} s"


@scene
def test_with_an_autoscaler_there_is_the_metric_only(stage: Stage) -> None:
    cluster, namespace = stage.cluster, stage.namespace
    level(namespace, "scale")
    namespace.apply(HPA)
    namespace.apply(workload(cluster, "Deployment", 1, settings=SETTINGS, engine=ENGINE))
    (pod,) = up(namespace, 1)
    with queue(cluster, namespace, pod):
        namespace.wait(
            "the metric", lambda: (metric(cluster, namespace, pod, "dsobs_scaling_desired_replicas") or 0) > 1, 120
        )
        time.sleep(25)
        assert (metric(cluster, namespace, pod, "dsobs_engine_demand_ratio") or 0) > 1
    assert replicas(namespace) == 1
    assert autoscaler(namespace) == (1, None)
    assert event(namespace, "scale-begun", pod) is None


def test_keda_and_hpa_of_the_repository_are_taken_by_the_api_server(cluster: Cluster, namespace: Namespace) -> None:
    folder = Path(__file__).parents[2] / "deploy/keda"
    said = namespace.kubectl("apply", "--dry-run=server", "--filename", str(folder / "hpa.yaml"))
    assert "horizontalpodautoscaler.autoscaling/vllm created (server dry run)" in said
