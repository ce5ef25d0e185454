"""Pods that go on purpose, in a real cluster: nobody is paged, and their clients lose nothing.

The engine has what docs/kubernetes.md asks for: a moment before SIGTERM in which the service forgets the pod, and time
to finish what it has.
"""

from typing import Any

import pytest

from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.serving import PORT, Pager, held_back, pager
from tests.real.kubernetes.streams import Streams
from tests.real.kubernetes.workloads import level, names, up, workload

pytestmark = pytest.mark.real("kubernetes")
DRAIN_SECONDS = 20
CLIENTS = 12
TOLD_SECONDS = 3
"""From the pod's end to SIGTERM: kube-proxy has taken it out of the service by then."""


def service() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "vllm"},
        "spec": {"selector": {"app": "vllm"}, "ports": [{"port": 80, "targetPort": PORT}]},
    }


def budget() -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "vllm"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "vllm"}}},
    }


def serving(cluster: Cluster, paged: Pager) -> dict[str, Any]:
    """Two replicas that end in an orderly way."""
    settings = {"notifiers.webhook.url": paged.url}
    engine = ("--shutdown-timeout", str(DRAIN_SECONDS), "--load-seconds", "2")
    manifest = workload(cluster, "Deployment", 2, settings=settings, engine=engine)
    spec = manifest["spec"]["template"]["spec"]
    spec["terminationGracePeriodSeconds"] = TOLD_SECONDS + DRAIN_SECONDS + 10
    spec["containers"][0]["lifecycle"] = {"preStop": {"sleep": {"seconds": TOLD_SECONDS}}}
    manifest["spec"]["strategy"] = {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    return manifest


def test_rollout_deleted_pod_and_drained_node_page_nobody_and_lose_no_request(
    cluster: Cluster, namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    level(namespace, "lease")
    counted = {}
    with pager(cluster) as paged:
        namespace.apply(serving(cluster, paged), service(), budget())
        up(namespace, 2)
        address = f"{(namespace.get('services', 'vllm') or {})['spec']['clusterIP']}:80"
        with Streams(cluster.forwarded(address), CLIENTS) as streams:
            namespace.wait("answers", lambda: streams.whole >= CLIENTS, 180)

            def changed(what: str, begun: int) -> None:
                namespace.wait(f"answers: {what}", lambda: streams.whole - begun > 20, 120)
                counted[what] = streams.whole - begun
                assert streams.lost == [], f"{what}: {streams.lost}"

            begun = streams.whole
            namespace.kubectl("rollout", "restart", "deployment/vllm")
            namespace.kubectl("rollout", "status", "deployment/vllm", "--timeout=300s", seconds=330)
            settled(namespace)
            changed("roll-out", begun)

            begun = streams.whole
            namespace.kubectl("delete", "pod", names(namespace)[0], "--wait=true")
            settled(namespace)
            changed("deleted pod", begun)

            begun = streams.whole
            drain(cluster, namespace)
            changed("drained node", begun)
            held = {name: held_back(cluster, namespace, name) for name in names(namespace)}
    with capsys.disabled():
        print(f"\nanswers that came whole meanwhile, none lost: {counted}")
    assert min(counted.values()) > 20
    # Latency is what two busy processors give.
    assert set(paged.names()) <= {"LatencyP99High"}, paged.pages
    assert not any(held.values()), held


def settled(namespace: Namespace) -> None:
    """Those that end have ended, and two are up."""
    namespace.wait("old pods to go", lambda: len(namespace.all("pods", "app=vllm")) == 2, 90)
    up(namespace, 2)


def drain(cluster: Cluster, namespace: Namespace) -> None:
    """Of the two pods one goes; the budget keeps the other, as there is no second node for the first one's successor.
    Afterwards the node takes pods again."""
    before = set(names(namespace))
    words = ("drain", "node", "--pod-selector=app=vllm", "--ignore-daemonsets", "--delete-emptydir-data")
    try:
        with pytest.raises(AssertionError, match="disruption budget"):
            cluster.kubectl(*words, "--force", "--timeout=8s", seconds=60)
        assert len(before & set(names(namespace))) == 1
    finally:
        cluster.kubectl("uncordon", "node")
    settled(namespace)
