"""How often dsobs restarts in a real cluster: by all restarts of the last 24 hours, whoever made them."""

import functools
import signal
import time

import pytest

from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.scenes import Stage, scene
from tests.real.kubernetes.serving import clients, event, held_back, metric, said, stop_at_work, up
from tests.real.kubernetes.workloads import actions, level, names, workload
from tests.real.kubernetes.workloads import up as all_up

pytestmark = pytest.mark.real("kubernetes")
SOON = {"remediation.confirm_hang": "5", "remediation.cooldown": "5"}
"""A hang is certain after a quarter of a minute, and the next one does not wait."""
COUNTED = "dsobs_container_restarts_24h"


def made(namespace: Namespace, name: str = "vllm") -> int:
    """Restarts that dsobs has made."""
    return sum(1 for line in said(namespace, name) if line.get("event.action") == "restart-done")


def ends_by_itself(cluster: Cluster, namespace: Namespace, times: int) -> None:
    """The engine's container ends, and kubelet has started it for the so-manieth time."""
    namespace.signal("vllm", "engine", signal.SIGKILL)
    namespace.wait("kubelet's restart", lambda: namespace.restarts("vllm", "engine") == times)
    namespace.wait("ready engine", lambda: namespace.status("vllm", "engine")["ready"], 120)
    namespace.wait("count", lambda: metric(cluster, namespace, "vllm", COUNTED) == times, 120)


def hangs(namespace: Namespace, name: str = "vllm") -> None:
    """The engine's core stands still once it has worked, and dsobs knows what runs."""
    namespace.wait("ready engine", lambda: namespace.status(name, "engine")["ready"], 120)
    time.sleep(8)
    stop_at_work(namespace, name)


@scene
def test_hangs_are_repaired_until_all_restarts_of_a_day_are_three_and_then_paged(stage: Stage) -> str:
    """The first of them is the engine's own."""
    namespace, paged = stage.namespace, stage.paged
    up(stage.cluster, namespace, paged, settings=SOON)
    ends_by_itself(stage.cluster, namespace, 1)
    with clients(stage.cluster, namespace, number=2):
        for times in (2, 3):
            hangs(namespace)
            _repaired(namespace, times)
        hangs(namespace)
        found = functools.partial(held_back, stage.cluster, namespace)
        namespace.wait("refusal", lambda: any("budget used: 3 restarts in 24 h, limit 3" in w for w in found()), 180)
        namespace.wait("page of the refusal", lambda: _told(stage, "budget used: 3 restarts in 24 h"), 120)
        # It was refused when it was due. Longer than kubelet takes for a request.
        time.sleep(20)
    assert namespace.restarts("vllm", "engine") == 3
    assert made(namespace) == 2
    assert "ContainerRestartsHigh" not in paged.names()
    return f"hangs: 1 restart by kubelet and 2 by dsobs, then a page; {paged.names().count('EngineHung')} hangs paged"


def _repaired(namespace: Namespace, times: int) -> None:
    namespace.wait("dsobs's restart", lambda: namespace.restarts("vllm", "engine") == times, 180)
    namespace.wait("verification", lambda: _verified(namespace) == times - 1, 120)


def _verified(namespace: Namespace) -> int:
    return sum(1 for line in said(namespace) if line.get("event.action") == "verified")


def _told(stage: Stage, text: str) -> bool:
    return any(text in str(page) for page in stage.paged.pages if page["event"] == "trigger")


@scene
def test_engine_that_crashes_by_itself_is_kubelets_and_the_fourth_restart_is_told(stage: Stage) -> None:
    namespace, paged = stage.namespace, stage.paged
    up(stage.cluster, namespace, paged)
    for times in (1, 2, 3):
        ends_by_itself(stage.cluster, namespace, times)
    # Longer than a rule takes to be evaluated.
    time.sleep(20)
    assert "ContainerRestartsHigh" not in paged.names()
    ends_by_itself(stage.cluster, namespace, 4)
    namespace.wait("ContainerRestartsHigh", lambda: "ContainerRestartsHigh" in paged.names(), 120)
    time.sleep(20)
    assert namespace.restarts("vllm", "engine") == 4
    assert event(namespace, "restart-begun") is None


@scene
def test_restarts_of_a_pod_that_was_replaced_count_for_its_successor_by_the_lease(stage: Stage) -> None:
    cluster, namespace = stage.cluster, stage.namespace
    level(namespace, "lease")
    settings = {**SOON, "remediation.max_restarts_24h": "1", "notifiers.webhook.url": stage.paged.url}
    namespace.apply(workload(cluster, "Deployment", 1, settings=settings))
    (old,) = all_up(namespace, 1)
    with clients(cluster, namespace, old, number=1):
        hangs(namespace, old)
        namespace.wait("dsobs's restart", lambda: namespace.restarts(old, "engine") == 1, 180)
        namespace.wait("record", lambda: made(namespace, old) == 1, 120)
    assert [action["pod"] for action in actions(namespace, "dsobs-deployment-vllm")] == [old]
    namespace.kubectl("delete", "pod", old, "--wait=false")
    namespace.wait("another pod", lambda: names(namespace) not in ([old], []), 120)
    (new,) = all_up(namespace, 1)
    namespace.wait("restart of the pod before", lambda: metric(cluster, namespace, new, COUNTED) == 1, 120)
    with clients(cluster, namespace, new, number=1):
        hangs(namespace, new)
        found = functools.partial(held_back, cluster, namespace, new)
        namespace.wait("refusal", lambda: any("budget used: 1 restarts in 24 h, limit 1" in w for w in found()), 180)
    namespace.wait("page of the refusal", lambda: _told(stage, "budget used: 1 restarts in 24 h"), 120)
    assert namespace.restarts(new, "engine") == 0
