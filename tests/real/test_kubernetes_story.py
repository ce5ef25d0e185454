"""The main job in a pod of a real cluster, with dsobs as a sidecar without any right; the engine is the simulator."""

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dsobs.runtimes.control_folder import MOUNT_PATH
from tests.real.kubernetes import Namespace
from tests.real.kubernetes.accounts import FURTHER, READ, account
from tests.real.kubernetes.scenes import Stage, scene
from tests.real.kubernetes.serving import (
    CORE,
    DSOBS,
    Readiness,
    clients,
    event,
    gone,
    left_alone,
    pod,
    said,
    stop_at_work,
    up,
)

pytestmark = pytest.mark.real("kubernetes")
LONG = os.environ.get("LONG_TESTS") == "1"
KILLS = 10 if LONG else 5
"""dsobs comes back after 1, 2, 4 … 60 s: ten take five minutes."""
IDLE_SECONDS = 180 if LONG else 90


@scene
def test_sidecar_with_rights_sees_its_pod_asks_little_and_stays_small(stage: Stage) -> str:
    cluster, namespace = stage.cluster, stage.namespace
    account(namespace, "sidecar", READ, *FURTHER)
    namespace.apply(pod(cluster, account="sidecar"))
    namespace.wait_ready("vllm", seconds=120)
    namespace.wait("ready engine", lambda: event(namespace, "engine-ready"), 180)
    namespace.wait(
        "word of the pod",
        lambda: any(
            f"the engine is container engine of pod {namespace.name}/vllm" in str(line.get("message", ""))
            for line in said(namespace)
        ),
    )
    token = namespace.exec("vllm", "engine", "sh", "-c", "ls /var/run/secrets/kubernetes.io 2>&1 || true")
    assert "No such file" in token
    user = f"system:serviceaccount:{namespace.name}:sidecar"
    time.sleep(20)
    before = len(cluster.requests(user))
    time.sleep(IDLE_SECONDS)
    # The one watch is begun anew every five to ten minutes, and told of at its end and its start.
    asked = cluster.requests(user)[before:]
    others = [each for each in asked if each["verb"] != "watch"]
    identity = namespace.status("vllm", "dsobs")["containerID"]
    (process,) = [pid for pid in cluster.pids(identity) if DSOBS in _command_line(pid)]
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    resident = int(status["VmRSS"].split()[0]) / 1024
    assert len(others) <= IDLE_SECONDS // 60
    assert len(asked) - len(others) <= 2
    assert resident <= 112
    return f"idle sidecar: {len(asked)} requests in {IDLE_SECONDS} s, {resident:.0f} MiB resident"


def _command_line(pid: int) -> str:
    """Empty for one that has ended meanwhile."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


@scene
def test_hung_engine_is_restarted_by_kubelet_once_without_any_right(stage: Stage) -> str:
    cluster, namespace, paged = stage.cluster, stage.namespace, stage.paged
    up(cluster, namespace, paged, "--load-seconds", "5")
    with clients(cluster, namespace):
        main = cluster.pids(namespace.status("vllm", "engine")["containerID"])
        stopped = stop_at_work(namespace)
        killed = gone(main, 90)
        # What it has said is in its log a moment later.
        requested = namespace.wait("word of the restart", lambda: event(namespace, "restart-begun"), 60)
        assert requested is not None
        namespace.wait("the new container", lambda: namespace.restarts("vllm", "engine"))
        namespace.wait_ready("vllm")
        ready = time.time()
    namespace.wait("verification", lambda: event(namespace, "verified"), 180)
    assert killed - stopped <= 60
    assert killed - requested <= 15
    # Longer than a request lives, and than kubelet takes for one.
    time.sleep(25)
    assert namespace.restarts("vllm", "engine") == 1
    assert namespace.restarts("vllm", "dsobs") == 0
    assert "restart" not in namespace.exec("vllm", "engine", "ls", MOUNT_PATH).split()
    assert paged.names().count("EngineHung") == 1
    assert [line for line in said(namespace) if line.get("log.level") == "error"] == []
    return (
        f"hang: killed {killed - stopped:.1f} s after the stop, {killed - requested:.1f} s after the request; "
        f"ready again {ready - killed:.1f} s later (5 s of them loading)"
    )


@scene
def test_new_requests_are_kept_from_a_server_whose_other_engine_finishes_before_its_restart(stage: Stage) -> None:
    cluster, namespace, paged = stage.cluster, stage.namespace, stage.paged
    # kubelet takes a quarter of a minute to call a pod unready, on a busy machine longer.
    settings = {"remediation.confirm_hang": "5", "remediation.drain_timeout": "60"}
    up(cluster, namespace, paged, "--data-parallel-size=2", settings=settings)
    # Both engines have requests of minutes.
    with clients(cluster, namespace, number=8, tokens=6000):
        namespace.signal("vllm", "engine", signal.SIGSTOP, command=f"{CORE}_DP1")
        namespace.wait("drained pod", lambda: not namespace.ready("vllm"), 120)
        assert namespace.restarts("vllm", "engine") == 0
        assert "drain" in namespace.exec("vllm", "engine", "ls", MOUNT_PATH).split()
        namespace.wait("restart", lambda: namespace.restarts("vllm", "engine"), 120)
        namespace.wait_ready("vllm")
    namespace.wait("verification", lambda: event(namespace, "verified"), 60)
    drained, begun = event(namespace, "drained"), event(namespace, "restart-begun")
    assert drained is not None
    assert begun is not None
    assert begun - drained >= 55
    assert "drain" not in namespace.exec("vllm", "engine", "ls", MOUNT_PATH).split()
    assert namespace.restarts("vllm", "engine") == 1


def starts(namespace: Namespace, pod: str = "vllm") -> int:
    """How often dsobs has begun in the sidecar's present container."""
    return namespace.logs(pod, "dsobs").count("beside http://")


def wait_for_start(namespace: Namespace, times: int) -> None:
    namespace.wait(f"start {times} of dsobs", lambda: starts(namespace) >= times, 120)


def sidecar_comes_back(namespace: Namespace, restarts: int) -> None:
    def back() -> bool:
        status = namespace.status("vllm", "dsobs")
        return status["restartCount"] >= restarts and "running" in status["state"]

    namespace.wait(f"restart {restarts} of the sidecar", back, 120)


@scene
def test_dsobs_that_is_killed_again_and_again_takes_no_pod_down(stage: Stage) -> None:
    cluster, namespace, paged = stage.cluster, stage.namespace, stage.paged
    up(cluster, namespace, paged)
    with clients(cluster, namespace), Readiness(lambda: namespace.ready("vllm")) as readiness:
        for times in range(2, KILLS + 2):
            namespace.signal("vllm", "dsobs", signal.SIGKILL, command=DSOBS)
            wait_for_start(namespace, times)
        time.sleep(20)
    left_alone(namespace)
    assert namespace.restarts("vllm", "dsobs") == 0
    assert readiness.looks > 20
    assert readiness.lost == []


@scene
def test_sidecar_whose_whole_container_is_killed_restarts_no_engine(stage: Stage) -> str:
    cluster, namespace, paged = stage.cluster, stage.namespace, stage.paged
    up(cluster, namespace, paged)
    with clients(cluster, namespace), Readiness(lambda: namespace.ready("vllm")) as readiness:
        for restarts in range(1, 4):
            namespace.signal("vllm", "dsobs", signal.SIGKILL)
            sidecar_comes_back(namespace, restarts)
            namespace.wait_ready("vllm")
    left_alone(namespace)
    assert namespace.status("vllm", "engine")["ready"]
    return f"sidecar's container killed 3 times: the pod was not ready in {len(readiness.lost)} looks of 0.2 s"


@scene
def test_sidecar_that_stands_still_for_a_minute_takes_no_pod_down(stage: Stage) -> None:
    cluster, namespace, paged = stage.cluster, stage.namespace, stage.paged
    up(cluster, namespace, paged)
    with clients(cluster, namespace), Readiness(lambda: namespace.ready("vllm")) as readiness:
        namespace.signal("vllm", "dsobs", signal.SIGSTOP)
        time.sleep(60)
        namespace.signal("vllm", "dsobs", signal.SIGCONT)
        time.sleep(20)
    assert namespace.restarts("vllm", "dsobs") == 0
    left_alone(namespace)
    assert readiness.lost == []


@scene
def test_sidecar_that_is_killed_in_the_middle_of_a_request_leads_to_one_restart_at_most(stage: Stage) -> None:
    cluster, namespace, paged = stage.cluster, stage.namespace, stage.paged
    up(cluster, namespace, paged)
    with clients(cluster, namespace):
        stop_at_work(namespace)
        namespace.wait("request", lambda: event(namespace, "restart-begun"), 180)
        namespace.signal("vllm", "dsobs", signal.SIGKILL)
        sidecar_comes_back(namespace, 1)
        time.sleep(40)
    assert namespace.restarts("vllm", "engine") <= 1


@scene
def test_dsobs_that_runs_out_of_memory_again_and_again_takes_no_pod_down(stage: Stage) -> None:
    cluster, namespace = stage.cluster, stage.namespace
    namespace.apply(pod(cluster, memory="48Mi"))
    namespace.wait_ready("vllm")
    with Readiness(lambda: namespace.ready("vllm")) as readiness:
        namespace.wait("ends", lambda: namespace.logs("vllm", "dsobs").count("SIGKILL") >= (5 if LONG else 3), 300)
    left_alone(namespace)
    assert namespace.restarts("vllm", "dsobs") == 0
    assert readiness.lost == []


@scene
def test_dsobs_that_can_not_start_takes_no_pod_down(stage: Stage) -> None:
    cluster, namespace = stage.cluster, stage.namespace
    namespace.apply(pod(cluster, settings={"target.scrape_interval": "never"}))
    namespace.wait_ready("vllm")
    with Readiness(lambda: namespace.ready("vllm")) as readiness:
        namespace.wait("three ends", lambda: namespace.logs("vllm", "dsobs").count("scrape_interval") >= 3, 180)
    left_alone(namespace)
    assert readiness.lost == []


@scene
def test_bad_image_of_the_sidecar_rolled_out_to_all_replicas_takes_none_down(stage: Stage) -> None:
    cluster, namespace = stage.cluster, stage.namespace
    manifest = pod(cluster)
    template = {"metadata": {"labels": {"app": "vllm"}}, "spec": manifest["spec"]}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "vllm"}}, "template": template}
    namespace.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "vllm"}, "spec": spec})
    namespace.wait("two pods", lambda: len(namespace.all("pods", "app=vllm")) == 2)
    before = [str(found["metadata"]["name"]) for found in namespace.all("pods", "app=vllm")]
    namespace.wait_ready(*before, seconds=120)
    patch = {"spec": {"template": {"spec": {"initContainers": [{"name": "dsobs", "image": "dsobs.test/no:1"}]}}}}
    with Readiness(lambda: all(namespace.ready(name) for name in before)) as readiness:
        namespace.kubectl("patch", "deployment", "vllm", "--type=strategic", "--patch", json.dumps(patch))
        namespace.wait("a pod with the bad image", lambda: len(namespace.all("pods", "app=vllm")) == 3)
        time.sleep(40)
    for name in before:
        left_alone(namespace, name)
    assert readiness.lost == []


@scene
def test_pod_that_somebody_deletes_is_information_though_its_engine_takes_its_time(stage: Stage) -> None:
    deleted(stage, pod(stage.cluster, settings={"notifiers.webhook.url": stage.paged.url}))


@scene
def test_the_same_with_the_right_to_see_the_deletion(stage: Stage) -> None:
    account(stage.namespace, "sidecar", READ)
    deleted(stage, pod(stage.cluster, account="sidecar", settings={"notifiers.webhook.url": stage.paged.url}))


def deleted(stage: Stage, manifest: dict[str, Any]) -> None:
    """The pod goes, and nobody is paged."""
    # The engine closes its port at once and is a while about the rest.
    slow = "python3 -m dsobs.simulator --host 0.0.0.0 --port 8000 & trap 'kill $!; sleep 12; exit 0' TERM; wait; wait"
    manifest["spec"]["containers"][0]["command"] = ["sh", "-c", slow]
    namespace, paged = stage.namespace, stage.paged
    namespace.apply(manifest)
    namespace.wait_ready("vllm", seconds=120)
    namespace.wait("ready engine", lambda: event(namespace, "engine-ready"), 180)
    time.sleep(5)
    paged.pages.clear()
    namespace.kubectl("delete", "pod", "vllm", "--wait=true")
    assert "EngineDown" not in paged.names()
