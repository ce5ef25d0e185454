"""Who else is at work on the pod holds dsobs back, with the reason in the ledger; what is missing is said in a line."""

import contextlib
import functools
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.accounts import READ, account
from tests.real.kubernetes.scenes import Stage, scene
from tests.real.kubernetes.serving import clients, event, held_back, left_alone, pod, watched
from tests.real.kubernetes.workloads import level, names, stop_cores, workload
from tests.real.kubernetes.workloads import up as all_up

pytestmark = pytest.mark.real("kubernetes")
SOON = {"remediation.confirm_hang": "5"}
"""A hang is certain after a quarter of a minute."""


@contextlib.contextmanager
def hung(cluster: Cluster, namespace: Namespace, *found: str) -> Iterator[None]:
    """The engines' cores stand still in the middle of work."""
    with contextlib.ExitStack() as stack:
        for name in found:
            stack.enter_context(clients(cluster, namespace, name, number=1))
        stop_cores(namespace, list(found))
        yield


def waits_because_of(cluster: Cluster, namespace: Namespace, name: str, reason: str) -> None:
    """The ledger has this reason, and nothing was done."""
    found = functools.partial(held_back, cluster, namespace, name)
    namespace.wait(f"{reason} in the ledger", lambda: any(reason in why for why in found()), 180)
    left_alone(namespace, name)
    assert event(namespace, "restart-done", name) is None


@scene
def test_pod_that_somebody_debugs_is_left_alone(stage: Stage) -> None:
    cluster, namespace = stage.cluster, stage.namespace
    account(namespace, "sidecar", READ)
    namespace.apply(pod(cluster, account="sidecar", settings=SOON))
    watched(namespace, "vllm")
    namespace.kubectl("debug", "vllm", f"--image={cluster.busybox.name}", "--container=look", "--", "sleep", "1000")

    def debugged() -> bool:
        found = (namespace.get("pods", "vllm") or {})["status"].get("ephemeralContainerStatuses") or ()
        return any("running" in each["state"] for each in found)

    namespace.wait("debugger", debugged)
    with hung(cluster, namespace, "vllm"):
        waits_because_of(cluster, namespace, "vllm", "somebody debugs the pod (ephemeral container look)")


@scene
def test_pod_that_is_being_deleted_is_left_alone(stage: Stage) -> None:
    cluster, namespace = stage.cluster, stage.namespace
    settings = {"remediation.confirm_hang": "20", "notifiers.webhook.url": stage.paged.url}
    manifest = pod(cluster, settings=settings)
    # It does not heed SIGTERM, so that it is there until the pod's grace is over.
    words = "trap '' TERM; python3 -m dsobs.simulator --host 0.0.0.0 --port 8000 & wait; sleep 1000"
    manifest["spec"]["containers"][0]["command"] = ["sh", "-c", words]
    manifest["spec"]["terminationGracePeriodSeconds"] = 90
    namespace.apply(manifest)
    watched(namespace, "vllm")
    with hung(cluster, namespace, "vllm"):
        namespace.wait("page", lambda: "EngineHung" in stage.paged.names(), 120)
        namespace.kubectl("delete", "pod", "vllm", "--wait=false")
        found = functools.partial(held_back, cluster, namespace)
        namespace.wait("reason in the ledger", lambda: any("the pod is being terminated" in w for w in found()), 80)
        assert namespace.restarts("vllm", "engine") == 0


@scene
def test_roll_out_under_way_holds_dsobs_back(stage: Stage) -> None:
    cluster, namespace = stage.cluster, stage.namespace
    level(namespace, "lease")
    namespace.apply(workload(cluster, "Deployment", 1, settings=SOON))
    (name,) = all_up(namespace, 1)
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "engine", "image": "dsobs.test/no:1"}]}}}}
    namespace.kubectl("patch", "deployment", "vllm", "--type=strategic", "--patch", json.dumps(patch))
    namespace.wait("the roll-out", lambda: len(names(namespace)) == 2)
    with hung(cluster, namespace, name):
        waits_because_of(cluster, namespace, name, "a roll-out of Deployment vllm is under way")


@scene
def test_another_sidecar_that_acts_is_waited_for(stage: Stage) -> None:
    """Its Lease is renewed by the test; once nobody renews it, dsobs acts."""
    cluster, namespace = stage.cluster, stage.namespace
    level(namespace, "lease")
    namespace.apply(workload(cluster, "Deployment", 1, settings=SOON))
    (name,) = all_up(namespace, 1)
    spec: dict[str, Any] = {"holderIdentity": "vllm-other_1", "leaseDurationSeconds": 15}
    made = {"metadata": {"name": "dsobs-deployment-vllm"}, "spec": spec}
    assert cluster.request("POST", namespace.path("leases"), made)[0] == 201
    end = threading.Event()

    def renew() -> None:
        while not end.wait(1.0):
            spec["renewTime"] = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
            cluster.request("PATCH", namespace.path("leases", "dsobs-deployment-vllm"), {"spec": spec})

    holder = threading.Thread(target=renew)
    holder.start()
    try:
        with hung(cluster, namespace, name):
            waits_because_of(cluster, namespace, name, "pod vllm-other acts on Deployment vllm")
            end.set()
            namespace.wait("restart", lambda: namespace.restarts(name, "engine") == 1, 120)
    finally:
        end.set()
        holder.join()


def test_node_that_goes_down_holds_dsobs_back(cluster: Cluster, namespace: Namespace) -> None:
    """After the scenes: on a cordoned node no pod begins."""
    account(namespace, "sidecar", READ, nodes=True)
    namespace.apply(pod(cluster, account="sidecar", settings=SOON))
    watched(namespace, "vllm")
    cluster.kubectl("cordon", "node")
    try:
        with hung(cluster, namespace, "vllm"):
            waits_because_of(cluster, namespace, "vllm", "node node is cordoned")
    finally:
        cluster.kubectl("uncordon", "node")
