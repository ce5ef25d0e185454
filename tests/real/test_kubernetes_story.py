"""The main job in a pod of a real cluster, with dsobs as a sidecar without any right; the engine is the simulator."""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from dsobs.runtimes.control_folder import MOUNT_PATH
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.serving import DSOBS, Pager, Readiness, clients, event, gone, pager, pod, said
from tests.real.test_kubernetes_api import READ, account

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


def test_dsobs_that_is_killed_ten_times_takes_no_pod_down(cluster: Cluster, namespace: Namespace, paged: Pager) -> None:
    up(cluster, namespace, paged)
    with clients(cluster, namespace), Readiness(lambda: namespace.ready("vllm")) as readiness:
        for times in range(2, 12):
            namespace.signal("vllm", "dsobs", signal.SIGKILL, command=DSOBS)
            wait_for_start(namespace, times)
        time.sleep(20)
    left_alone(namespace)
    assert namespace.restarts("vllm", "dsobs") == 0
    assert readiness.looks > 20
    assert readiness.lost == []


def test_sidecar_whose_whole_container_is_killed_restarts_no_engine(
    cluster: Cluster, namespace: Namespace, paged: Pager, capsys: pytest.CaptureFixture[str]
) -> None:
    up(cluster, namespace, paged)
    with clients(cluster, namespace), Readiness(lambda: namespace.ready("vllm")) as readiness:
        for restarts in range(1, 4):
            namespace.signal("vllm", "dsobs", signal.SIGKILL)
            sidecar_comes_back(namespace, restarts)
            namespace.wait_ready("vllm")
    left_alone(namespace)
    assert namespace.status("vllm", "engine")["ready"]
    with capsys.disabled():
        print(f"\nsidecar's container killed 3 times: the pod was not ready in {len(readiness.lost)} looks of 0.2 s")


def test_sidecar_that_stands_still_for_a_minute_takes_no_pod_down(
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


def test_dsobs_that_runs_out_of_memory_again_and_again_takes_no_pod_down(
    cluster: Cluster, namespace: Namespace, paged: Pager
) -> None:
    namespace.apply(pod(cluster, memory="48Mi"))
    namespace.wait_ready("vllm")
    with Readiness(lambda: namespace.ready("vllm")) as readiness:
        namespace.wait("five ends", lambda: namespace.logs("vllm", "dsobs").count("SIGKILL") >= 5, 120)
    left_alone(namespace)
    assert namespace.restarts("vllm", "dsobs") == 0
    assert readiness.lost == []


def test_dsobs_that_can_not_start_takes_no_pod_down(cluster: Cluster, namespace: Namespace, paged: Pager) -> None:
    namespace.apply(pod(cluster, settings={"target.scrape_interval": "never"}))
    namespace.wait_ready("vllm")
    with Readiness(lambda: namespace.ready("vllm")) as readiness:
        namespace.wait("three ends", lambda: namespace.logs("vllm", "dsobs").count("scrape_interval") >= 3, 60)
    left_alone(namespace)
    assert readiness.lost == []


def test_bad_image_of_the_sidecar_rolled_out_to_all_replicas_takes_none_down(
    cluster: Cluster, namespace: Namespace, paged: Pager
) -> None:
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


@pytest.mark.parametrize("rights", [False, True])
def test_pod_that_somebody_deletes_is_information_though_its_engine_takes_its_time(
    cluster: Cluster, namespace: Namespace, paged: Pager, rights: bool
) -> None:
    if rights:
        account(namespace, "sidecar", READ)
    manifest = pod(cluster, account="sidecar" if rights else None, settings={"notifiers.webhook.url": paged.url})
    # The engine closes its port at once and is a while about the rest.
    slow = "python3 -m dsobs.simulator --host 0.0.0.0 --port 8000 & trap 'kill $!; sleep 12; exit 0' TERM; wait; wait"
    manifest["spec"]["containers"][0]["command"] = ["sh", "-c", slow]
    namespace.apply(manifest)
    namespace.wait_ready("vllm")
    namespace.wait("ready engine", lambda: event(namespace, "engine-ready"), 30)
    time.sleep(5)
    paged.pages.clear()
    namespace.kubectl("delete", "pod", "vllm", "--wait=true")
    assert "EngineDown" not in paged.names()
