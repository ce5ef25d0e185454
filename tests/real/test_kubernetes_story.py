"""The main job in a pod of a real cluster, with dsobs as a sidecar without any right; the engine is the simulator."""

import signal
import time
from collections.abc import Iterator

import pytest

from dsobs.runtimes.control_folder import MOUNT_PATH
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.serving import Pager, clients, event, gone, pager, pod, said

pytestmark = pytest.mark.real
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
        namespace.wait("the new engine", lambda: namespace.status("vllm", "engine").get("ready"))
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
