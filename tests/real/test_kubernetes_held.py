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
from tests.real.kubernetes.serving import clients, event, held_back, left_alone, metric, pod, said, watched
from tests.real.kubernetes.workloads import level, names, stop_cores, workload
from tests.real.kubernetes.workloads import up as all_up

pytestmark = pytest.mark.real("kubernetes")
SOON = {"remediation.confirm_hang": "5"}
"""A hang is certain after a quarter of a minute."""


@contextlib.contextmanager
def hung(cluster: Cluster, namespace: Namespace, *found: str) -> Iterator[None]:
    """The engines' cores stand still in the middle of work."""
    with clients(cluster, namespace, *found, number=1):
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
            with contextlib.suppress(OSError):
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


CASES = {
    "no-right": 'no right to read pod {pod}; add to the Role: {{apiGroups: [""], resources: ["pods"], verbs: [get, ',
    "other-namespace": "no right to read pod default/other-namespace; add to the Role: ",
    "no-downward-api": "POD_NAME and POD_NAMESPACE not set: which pod this is is not known; set it from the downward",
    "unknown-kind": "a replica of ConfigMap owner, a kind that dsobs does not know, so its roll-outs are not seen",
    "two-sidecars": "the control folder /run/dsobs belongs to another dsobs of this pod",
}
"""Pod → the line that its sidecar says, once."""


@scene
def test_what_is_missing_is_one_line_and_pages_and_restarts_go_on_without_it(stage: Stage) -> None:
    cluster, namespace = stage.cluster, stage.namespace
    account(namespace, "nothing")
    account(namespace, "sidecar", READ)
    namespace.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}})
    owner = namespace.get("configmaps", "owner")
    assert owner is not None
    namespace.apply(*(_with_something_missing(stage, name, owner["metadata"]["uid"]) for name in CASES))
    for name in CASES:
        watched(namespace, name)

    def lines(name: str) -> list[str]:
        told = CASES[name].format(pod=f"{namespace.name}/{name}")
        # Either of two may have come first.
        containers = ("dsobs", "dsobs-2") if name == "two-sidecars" else ("dsobs",)
        found = [line for each in containers for line in said(namespace, name, each) if told in str(line["message"])]
        # Why it restarts nothing is one of its own incident.
        return [line["log.level"] for line in found if not line["message"].startswith("incident")]

    for name in CASES:
        namespace.wait(f"the line of {name}", functools.partial(lines, name), 180)
    sources = {*CASES, "two-sidecars-2"}
    with hung(cluster, namespace, *CASES):

        def hangs_paged() -> set[str]:
            pages = [page for page in stage.paged.pages if page["event"] == "trigger"]
            return {page["source"] for page in pages if page["labels"]["alertname"] == "EngineHung"}

        namespace.wait("pages of all", lambda: hangs_paged() == sources, 240)
        namespace.wait("restarts of all", lambda: all(namespace.restarts(name, "engine") for name in CASES), 240)
    for name in CASES:
        assert lines(name) == ["warning"]
        assert namespace.restarts(name, "engine") == 1
        for port in (9940, 9941) if name == "two-sidecars" else (9940,):
            page = functools.partial(metric, cluster, namespace, name, "dsobs_engine_up", port)
            namespace.wait(f"the page of {name}", lambda page=page: page() is not None, 60)  # type: ignore[misc]


def _with_something_missing(stage: Stage, name: str, owner: str) -> dict[str, Any]:
    settings = {**SOON, "notifiers.webhook.url": stage.paged.url, "target.name": name}
    holder = {"no-right": "nothing", "other-namespace": "sidecar", "unknown-kind": "sidecar"}.get(name)
    manifest = pod(stage.cluster, name=name, settings=settings, account=holder)
    spec = manifest["spec"]
    (sidecar,) = spec["initContainers"]
    if name == "other-namespace":
        sidecar["env"] = [each for each in sidecar["env"] if each["name"] == "POD_NAME"]
        sidecar["env"].append({"name": "POD_NAMESPACE", "value": "default"})
    elif name == "no-downward-api":
        sidecar["env"] = []
    elif name == "unknown-kind":
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner, "controller": True}
        manifest["metadata"]["ownerReferences"] = [reference]
    elif name == "two-sidecars":
        own = {
            "/var/lib/dsobs/keeper.sock": "/tmp/keeper.sock",
            "api.listen=0.0.0.0:9940": "api.listen=0.0.0.0:9941",
            f"target.name={name}": f"target.name={name}-2",
        }
        assert own.keys() <= set(sidecar["args"])
        words = [own.get(word, word) for word in sidecar["args"]]
        second = {**sidecar, "name": "dsobs-2", "args": [*words, "--set", "state.directory=/tmp/state"]}
        spec["initContainers"].append(second)
    return manifest


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
