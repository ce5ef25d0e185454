"""Workloads of several pods of the simulator with sidecars that coordinate, and what is asked about them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dsobs.runtimes.kubernetes.lease import ACTIONS
from tests.real.kubernetes.cluster import Cluster
from tests.real.kubernetes.namespace import Namespace
from tests.real.kubernetes.serving import pod, stop_at_work, watched

ROOT = Path(__file__).parents[3]


def level(namespace: Namespace, name: str) -> dict[str, Any] | None:
    """Applies deploy/rbac/NAME.yaml; its Role."""
    text = (ROOT / f"deploy/rbac/{name}.yaml").read_text(encoding="utf-8")
    namespace.apply(text)
    return next((each for each in yaml.safe_load_all(text) if each["kind"] == "Role"), None)


def workload(
    cluster: Cluster,
    kind: str,
    replicas: int,
    *,
    settings: Mapping[str, str],
    labels: Mapping[str, str] | None = None,
    engine: tuple[str, ...] = (),
    command: list[str] | None = None,
) -> dict[str, Any]:
    """A Deployment or StatefulSet `vllm` of engines with sidecars that coordinate by the Lease."""
    template = pod(cluster, account="dsobs", engine=engine, settings={"remediation.coordination": "lease", **settings})
    spec = template["spec"]
    spec["terminationGracePeriodSeconds"] = 2
    if command is not None:
        spec["containers"][0]["command"] = command
    meta = {"labels": {"app": "vllm", **(labels or {})}}
    further = {"serviceName": "vllm", "podManagementPolicy": "Parallel"} if kind == "StatefulSet" else {}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "vllm"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "vllm"}},
            "template": {"metadata": meta, "spec": spec},
            **further,
        },
    }


def pods(namespace: Namespace) -> list[dict[str, Any]]:
    """The workload's, those that go left out."""
    return [each for each in namespace.all("pods", "app=vllm") if not each["metadata"].get("deletionTimestamp")]


def names(namespace: Namespace) -> list[str]:
    return [each["metadata"]["name"] for each in pods(namespace)]


def up(namespace: Namespace, replicas: int) -> list[str]:
    """Names of the pods, all ready and watched."""
    namespace.wait("pods", lambda: len(pods(namespace)) == replicas)
    found = names(namespace)
    for name in found:
        watched(namespace, name)
    return found


def actions(namespace: Namespace, name: str) -> list[dict[str, Any]]:
    """What the Lease remembers."""
    lease = namespace.get("leases", name)
    return json.loads(lease["metadata"]["annotations"][ACTIONS]) if lease is not None else []


def ready(namespace: Namespace) -> int:
    def is_ready(each: dict[str, Any]) -> bool:
        return any(c["type"] == "Ready" and c["status"] == "True" for c in each["status"].get("conditions", ()))

    return sum(map(is_ready, pods(namespace)))


def stop_cores(namespace: Namespace, found: list[str]) -> None:
    """In the middle of work: clients are there."""
    for name in found:
        stop_at_work(namespace, name)
