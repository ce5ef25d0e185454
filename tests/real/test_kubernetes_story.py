"""The main job in a pod of a real cluster, with dsobs as a sidecar without any right; the engine is the simulator."""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from dsobs.runtimes.control_folder import MOUNT_PATH
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.serving import Pager, Readiness, clients, event, gone, pager, pod, said

pytestmark = pytest.mark.real("kubernetes")
CORE = "VLLM::EngineCore"


@pytest.fixture
def paged(cluster: Cluster) -> Iterator[Pager]:
    with pager(cluster) as found:
        yield found


def up(cluster: Cluster, namespace: Namespace, paged: Pager, *engine: str, **settings: str) -> None:
    """The pod, ready and watched."""
    settings = {key.replace("__", "."): value for key, value in settings.items()}
    namespace.apply(pod(cluster, engine=engine, settings={"notifiers.webhook.url": paged.url, **settings}))
    namespace.wait_ready("vllm")
    try:
        namespace.wait("ready engine", lambda: event(namespace, "engine-ready"), 30)
    except AssertionError as problem:
        raise AssertionError(f"{problem}\n{namespace.logs('vllm', 'dsobs')[-3000:]}") from None


def test_hung_engine_is_restarted_by_kubelet_once_without_any_right(
    cluster: Cluster, namespace: Namespace, paged: Pager, capsys: pytest.CaptureFixture[str]
) -> None:
    up(cluster, namespace, paged, "--load-seconds", "5")
    with clients(cluster, namespace):
        time.sleep(8)
        main = cluster.pids(namespace.status("vllm", "engine")["containerID"])
        namespace.signal("vllm", "engine", signal.SIGSTOP, command=CORE)
        stopped = time.time()
        killed = gone(main, 90)
        requested = event(namespace, "restart-begun")
        assert requested is not None
        namespace.wait("the new container", lambda: namespace.restarts("vllm", "engine"))
        namespace.wait_ready("vllm")
        ready = time.time()
    namespace.wait("verification", lambda: event(namespace, "verified"), 60)
    with capsys.disabled():
        print(
            f"\nhang: killed {killed - stopped:.1f} s after the stop, {killed - requested:.1f} s after the request; "
            f"ready again {ready - killed:.1f} s later (5 s of them loading)"
        )
    assert killed - stopped <= 60
    assert killed - requested <= 15
    # Longer than a request lives, and than kubelet takes for one.
    time.sleep(25)
    assert namespace.restarts("vllm", "engine") == 1
    assert namespace.restarts("vllm", "dsobs") == 0
    assert "restart" not in namespace.exec("vllm", "engine", "ls", MOUNT_PATH).split()
    assert paged.names().count("EngineHung") == 1
    assert [line for line in said(namespace) if line.get("log.level") == "error"] == []


def left_alone(namespace: Namespace, pod: str = "vllm") -> None:
    """Nobody has restarted the engine."""
    assert namespace.restarts(pod, "engine") == 0
    assert not [e for e in namespace.events(pod) if e["reason"] == "Killing" and "engine" in e["message"]]


def sidecar_comes_back(namespace: Namespace, restarts: int) -> None:
    def back() -> bool:
        status = namespace.status("vllm", "dsobs")
        return status["restartCount"] >= restarts and "running" in status["state"]

    namespace.wait(f"restart {restarts} of the sidecar", back, 120)


def test_sidecar_that_is_killed_again_and_again_takes_no_engine_down(
    cluster: Cluster, namespace: Namespace, paged: Pager
) -> None:
    up(cluster, namespace, paged)
    with clients(cluster, namespace), Readiness(lambda: namespace.ready("vllm")) as readiness:
        for restarts in range(1, 11):
            namespace.signal("vllm", "dsobs", signal.SIGKILL)
            sidecar_comes_back(namespace, restarts)
        time.sleep(20)
    assert namespace.restarts("vllm", "dsobs") == 10
    left_alone(namespace)
    assert readiness.looks > 20
    assert readiness.lost == []


def test_sidecar_that_stands_still_for_a_minute_takes_no_engine_down(
    cluster: Cluster, namespace: Namespace, paged: Pager
) -> None:
    up(cluster, namespace, paged)
    with clients(cluster, namespace), Readiness(lambda: namespace.ready("vllm")) as readiness:
        namespace.signal("vllm", "dsobs", signal.SIGSTOP)
        time.sleep(60)
        namespace.signal("vllm", "dsobs", signal.SIGCONT)
        time.sleep(20)
    assert namespace.restarts("vllm", "dsobs") == 0
    left_alone(namespace)
    assert readiness.lost == []


def test_sidecar_that_is_killed_in_the_middle_of_a_request_leads_to_one_restart_at_most(
    cluster: Cluster, namespace: Namespace, paged: Pager
) -> None:
    up(cluster, namespace, paged)
    with clients(cluster, namespace):
        time.sleep(5)
        namespace.signal("vllm", "engine", signal.SIGSTOP, command=CORE)
        namespace.wait("request", lambda: event(namespace, "restart-begun"), 90)
        namespace.signal("vllm", "dsobs", signal.SIGKILL)
        sidecar_comes_back(namespace, 1)
        time.sleep(40)
    assert namespace.restarts("vllm", "engine") <= 1


def test_sidecar_that_runs_out_of_memory_takes_no_engine_down(
    cluster: Cluster, namespace: Namespace, paged: Pager
) -> None:
    namespace.apply(pod(cluster, memory="40Mi"))
    with Readiness(lambda: namespace.status("vllm", "engine").get("ready") is not False) as readiness:
        namespace.wait("ready engine", lambda: namespace.status("vllm", "engine").get("ready"))
        readiness.lost.clear()
        sidecar_comes_back(namespace, 5)
    assert namespace.status("vllm", "dsobs")["lastState"]["terminated"]["reason"] == "OOMKilled"
    left_alone(namespace)
    assert readiness.lost == []


def test_sidecars_with_a_bad_image_take_no_engine_down(cluster: Cluster, namespace: Namespace, paged: Pager) -> None:
    up(cluster, namespace, paged)
    patch = {"spec": {"initContainers": [{"name": "dsobs", "image": "dsobs.test/not-there:1"}]}}
    with clients(cluster, namespace), Readiness(lambda: namespace.ready("vllm")) as readiness:
        namespace.kubectl("patch", "pod", "vllm", "--type=strategic", "--patch", json.dumps(patch))
        namespace.wait(
            "bad image", lambda: (namespace.status("vllm", "dsobs")["state"].get("waiting") or {}).get("reason")
        )
        time.sleep(40)
    left_alone(namespace)
    assert readiness.lost == []
