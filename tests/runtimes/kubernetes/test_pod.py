"""What the API server's objects say."""

import copy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dsobs.model.observation import Unknown
from dsobs.runtimes.kubernetes import pod as pods
from dsobs.runtimes.kubernetes.identity import Identity, read_identity
from tests.kubernetes_stand_in import ENGINE_STARTED, pod_json

START = datetime.fromisoformat(ENGINE_STARTED).timestamp()
NOW = START + 3600.0


def at(seconds: float) -> str:
    return datetime.fromtimestamp(START + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ended(begun: float, finished: float, code: int, reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"startedAt": at(begun), "finishedAt": at(finished), "exitCode": code, "reason": reason}}


def view(pod: dict[str, Any], now: float = NOW, held: str | None = None) -> Any:
    return pods.runtime_view(pod, "engine", now=now, held=held)


def test_running_container_is_told_as_it_is() -> None:
    seen = view(pod_json())
    assert (seen.runtime, seen.name, seen.running, seen.started_at) == ("kubernetes", "engine", True, START)
    assert (seen.exit_code, seen.oom_killed, seen.ended_at, seen.restart_count) == (None, None, None, 0)
    assert (seen.planned_stop, seen.stopping, seen.hold, seen.brings_back) == (None, None, None, True)
    assert seen.started_history == (START,)


def test_container_that_was_restarted_tells_of_its_last_end() -> None:
    pod = pod_json(
        restartCount=1,
        state={"running": {"startedAt": at(120)}},
        lastState=ended(0, 100, 137, "OOMKilled"),
    )
    seen = view(pod)
    assert (seen.running, seen.started_at, seen.ended_at) == (True, START + 120, START + 100)
    assert (seen.exit_code, seen.oom_killed, seen.restart_count) == (137, True, 1)
    assert seen.started_history == (START, START + 120)
    assert seen.planned_stop is None


@pytest.mark.parametrize(
    ("state", "last"),
    [
        ({"waiting": {"reason": "CrashLoopBackOff"}}, ended(0, 50, 1)),
        (ended(0, 50, 1), {}),
    ],
)
def test_container_in_its_back_off_does_not_run_and_keeps_its_exit_code(state: Any, last: Any) -> None:
    seen = view(pod_json(state=state, lastState=last, started=False, ready=False))
    assert (seen.running, seen.exit_code, seen.oom_killed, seen.ended_at) == (False, 1, False, START + 50)
    assert seen.started_at == START


def test_container_that_was_never_started_is_not_running_and_has_no_exit_code() -> None:
    pod = pod_json()
    del pod["status"]["containerStatuses"]
    seen = view(pod)
    assert (seen.running, seen.started_at, seen.exit_code, seen.restart_count) == (False, None, None, 0)
    assert seen.started_history == ()


def test_restarts_that_kubelet_only_counts_are_within_a_young_pods_life() -> None:
    pod = pod_json(restartCount=5, state={"running": {"startedAt": at(500)}}, lastState=ended(400, 490, 1))
    assert view(pod).started_history == (START + 400,) * 5 + (START + 500,)
    # Of an old pod nobody knows when they were.
    old = START + 86400 + 600
    pod["status"]["containerStatuses"][0]["state"] = {"running": {"startedAt": at(86400)}}
    pod["status"]["containerStatuses"][0]["lastState"] = ended(86000, 86400, 1)
    assert view(pod, old).started_history == (START + 86000, START + 86400)


def test_exit_code_never_makes_a_stop_planned_and_a_deletion_does() -> None:
    pod = pod_json(state=ended(0, 50, 0, "Completed"))
    assert view(pod).planned_stop is None
    pod["metadata"]["deletionTimestamp"] = at(80)
    seen = view(pod)
    assert (seen.planned_stop, seen.stopping) == ("the pod is being deleted", None)
    assert seen.hold == "the pod is being deleted"
    running = pod_json()
    running["metadata"]["deletionTimestamp"] = at(80)
    running["status"]["conditions"].append(
        {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "evicted"}
    )
    seen = view(running)
    assert seen.stopping == seen.planned_stop == "the pod is being deleted (EvictionByEvictionAPI)"


def test_who_is_at_work_on_the_pod_holds_dsobs_back() -> None:
    pod = pod_json()
    assert pods.hold(pod) is None
    pod["status"]["conditions"].append(
        {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": "node shutdown"}
    )
    assert pods.hold(pod) == "the pod is to be disrupted: TerminationByKubelet node shutdown"
    pod = pod_json()
    pod["status"]["ephemeralContainerStatuses"] = [
        {"name": "debugger-x", "state": {"terminated": {"exitCode": 0}}},
        {"name": "debugger-y", "state": {"running": {}}},
    ]
    assert pods.hold(pod) == "somebody debugs the pod (ephemeral container debugger-y)"
    assert view(pod_json(), held="a roll-out").hold == "a roll-out"


OWNED = ("ReplicaSet", "vllm-7d9f8c6b5")


@pytest.mark.parametrize(
    ("owner", "labels", "expected"),
    [
        (OWNED, {"pod-template-hash": "7d9f8c6b5"}, ("Deployment", "vllm", ("Deployment", "vllm"), True)),
        (OWNED, {}, ("ReplicaSet", "vllm-7d9f8c6b5", None, True)),
        (("StatefulSet", "vllm"), {}, ("StatefulSet", "vllm", ("StatefulSet", "vllm"), True)),
        (("DaemonSet", "vllm"), {}, ("DaemonSet", "vllm", None, True)),
        (
            ("StatefulSet", "r1-0"),
            {"leaderworkerset.sigs.k8s.io/name": "r1"},
            ("LeaderWorkerSet", "r1", ("StatefulSet", "r1-0"), True),
        ),
        (
            OWNED,
            {"pod-template-hash": "7d9f8c6b5", "serving.kserve.io/inferenceservice": "chat"},
            ("InferenceService", "chat", ("Deployment", "vllm"), True),
        ),
        (("RayCluster", "ray"), {}, ("RayCluster", "ray", None, False)),
        (None, {}, ("Pod", "vllm-7d9f8c6b5-x2x4q", None, True)),
    ],
)
def test_owner_chain_is_told_by_the_pod_alone(owner: Any, labels: dict[str, str], expected: Any) -> None:
    pod = pod_json()
    pod["metadata"]["labels"] = labels
    pod["metadata"]["ownerReferences"] = (
        [{"kind": owner[0], "name": owner[1], "controller": True}, {"kind": "Other", "name": "no controller"}]
        if owner
        else []
    )
    found = pods.workload(pod)
    assert (found.kind, found.name, found.rolled_out_by, found.known) == expected


def container(name: str, *, probe: str = "", port: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name}
    if probe:
        made["livenessProbe"] = {"exec": {"command": ["sh", "-c", f"x {probe}/restart 60"]}}
    if port:
        made["ports"] = [{"containerPort": port}]
    return made


@pytest.mark.parametrize(
    ("containers", "wanted", "found"),
    [
        ([container("a")], "", "a"),
        ([container("a"), container("b", probe="/run/dsobs")], "", "b"),
        ([container("a", port=9000), container("b", port=8000)], "", "b"),
        ([container("a", probe="/run/dsobs"), container("b", port=8000)], "", "a"),
        ([container("a"), container("b")], "a", "a"),
    ],
)
def test_engines_container_is_found(containers: list[Any], wanted: str, found: str) -> None:
    assert pods.engine_container({"spec": {"containers": containers}}, wanted, 8000, "/run/dsobs") == found


def test_engines_container_that_is_not_clear_is_asked_for() -> None:
    pod = {"spec": {"containers": [container("a"), container("b")]}}
    assert pods.engine_container(pod, "", 8000, "/run/dsobs") == Unknown(
        "the pod has the containers a, b, and none is clearly the engine's: set runtime.container"
    )
    assert pods.engine_container(pod, "vllm", 8000, "/run/dsobs") == Unknown(
        "the pod has no container vllm (runtime.container); it has a, b"
    )


def test_pod_that_a_request_can_t_restart_is_named_with_what_to_do() -> None:
    pod = pod_json()
    assert pods.cannot_restart(pod, "engine", "/run/dsobs") is None
    assert "`dsobs k8s inject` adds that probe" in (pods.cannot_restart(pod, "engine", "/elsewhere") or "")
    pod["spec"]["restartPolicy"] = "Never"
    assert "use Always" in (pods.cannot_restart(pod, "engine", "/run/dsobs") or "")


def deployment(**status: int) -> dict[str, Any]:
    return {
        "kind": "Deployment",
        "metadata": {"name": "vllm", "generation": 4},
        "spec": {"replicas": 3},
        "status": {"observedGeneration": 4, "replicas": 3, "updatedReplicas": 3, **status},
    }


def test_rollout_of_a_deployment_is_seen_until_the_last_old_pod_is_gone() -> None:
    assert pods.rollout(deployment()) is None
    assert pods.rollout(deployment(observedGeneration=3)) == "a change of Deployment vllm has just been made"
    assert pods.rollout(deployment(updatedReplicas=1)) == (
        "a roll-out of Deployment vllm is under way (1 of 3 updated)"
    )
    assert pods.rollout(deployment(replicas=4)) is not None
    # A sick replica is no roll-out.
    assert pods.rollout(deployment(unavailableReplicas=1)) is None


def test_rollout_of_a_stateful_set_heeds_its_strategy() -> None:
    found: dict[str, Any] = {
        "kind": "StatefulSet",
        "metadata": {"name": "vllm", "generation": 1},
        "spec": {"replicas": 3, "updateStrategy": {"type": "RollingUpdate"}},
        "status": {"observedGeneration": 1, "replicas": 3, "updateRevision": "b", "currentRevision": "a"},
    }
    assert pods.rollout(found) == "a roll-out of StatefulSet vllm is under way (0 of 3 updated)"
    part = copy.deepcopy(found)
    part["spec"]["updateStrategy"]["rollingUpdate"] = {"partition": 3}
    assert pods.rollout(part) is None
    part["spec"]["updateStrategy"] = {"type": "OnDelete"}
    assert pods.rollout(part) is None
    found["status"]["currentRevision"] = "b"
    assert pods.rollout(found) is None


def test_node_that_goes_down_is_seen() -> None:
    node: dict[str, Any] = {"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    assert pods.node_going_down(node) is None
    assert pods.node_going_down({**node, "spec": {"unschedulable": True}}) == "node n is cordoned"
    taint = {"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}
    assert pods.node_going_down({**node, "spec": {"taints": [taint]}}) == (
        "node n is tainted node.kubernetes.io/out-of-service:NoExecute"
    )
    node["status"]["conditions"][0] |= {"status": "False", "reason": "KubeletNotReady"}
    assert pods.node_going_down(node) == "node n is not ready: KubeletNotReady"


def test_event_is_one_line() -> None:
    event = {"type": "Warning", "reason": "Unhealthy", "message": "Liveness probe failed: ", "count": 2}
    assert pods.event_line({**event, "lastTimestamp": at(0)}) == (
        f"{at(0)} Warning Unhealthy: Liveness probe failed:  (x2)"
    )


def test_pod_is_named_by_variables_or_files_and_never_by_the_host_name(tmp_path: Path) -> None:
    told = {"POD_NAME": "vllm-0", "POD_NAMESPACE": "serving", "POD_UID": "u", "HOSTNAME": "vllm-0"}
    assert read_identity(told, tmp_path) == Identity("serving", "vllm-0", "u")
    for name, value in (("name", "vllm-1\n"), ("namespace", "serving")):
        (tmp_path / name).write_text(value)
    assert read_identity({"HOSTNAME": "x"}, tmp_path) == Identity("serving", "vllm-1", None)
    missing = read_identity({"HOSTNAME": "x", "POD_NAMESPACE": "serving"}, tmp_path / "none")
    assert missing == Unknown(
        "POD_NAME not set: which pod this is is not known; set it from the downward API (valueFrom.fieldRef: "
        "metadata.name, metadata.namespace)"
    )
