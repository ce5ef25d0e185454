"""A namespace of a cluster, and the few questions that tests ask about what is in it."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

if TYPE_CHECKING:
    from tests.real.kubernetes.cluster import Cluster

T = TypeVar("T")
WAIT_SECONDS = 120.0
_GROUPS = {
    "deployments": "apis/apps/v1",
    "replicasets": "apis/apps/v1",
    "statefulsets": "apis/apps/v1",
    "daemonsets": "apis/apps/v1",
    "leases": "apis/coordination.k8s.io/v1",
    "poddisruptionbudgets": "apis/policy/v1",
    "horizontalpodautoscalers": "apis/autoscaling/v2",
    "roles": "apis/rbac.authorization.k8s.io/v1",
    "rolebindings": "apis/rbac.authorization.k8s.io/v1",
}
"""Of resources that are not of the core group."""


class Namespace:
    """Manifests need no namespace: what is applied here is here."""

    def __init__(self, cluster: "Cluster", name: str) -> None:
        self.cluster = cluster
        self.name = name

    def kubectl(self, *words: str, stdin: str = "", seconds: float = 120.0) -> str:
        """Standard output of `kubectl` in this namespace; AssertionError where it failed."""
        return self.cluster.kubectl(f"--namespace={self.name}", *words, stdin=stdin, seconds=seconds)

    def apply(self, *manifests: str | Mapping[str, Any]) -> None:
        """`kubectl apply` of YAML texts or objects."""
        texts = [text if isinstance(text, str) else yaml.safe_dump(dict(text)) for text in manifests]
        self.kubectl("apply", "--filename=-", stdin="\n---\n".join(texts))

    def path(self, resource: str, name: str = "") -> str:
        """Of a resource (plural, `pods`, `deployments` …) in the API, for `Cluster.request`."""
        base = f"/{_GROUPS.get(resource, 'api/v1')}/namespaces/{self.name}/{resource}"
        return f"{base}/{name}" if name else base

    def get(self, resource: str, name: str) -> dict[str, Any] | None:
        """The object, None if there is none."""
        status, found = self.cluster.request("GET", self.path(resource, name))
        assert status in (200, 404), found
        return dict(found) if status == 200 else None

    def all(self, resource: str, selector: str = "") -> list[dict[str, Any]]:
        """Those with the labels of the selector (`app=web`), oldest first."""
        status, found = self.cluster.request("GET", f"{self.path(resource)}?labelSelector={selector}")
        assert status == 200, found
        return sorted(
            found["items"], key=lambda item: (item["metadata"]["creationTimestamp"], item["metadata"]["name"])
        )

    def wait(self, what: str, check: Callable[[], T], seconds: float = WAIT_SECONDS) -> T:
        """What `check` returns, once that is true; AssertionError with `what` and the namespace's pods after that."""
        try:
            return self.cluster.wait(what, check, seconds)
        except AssertionError as problem:
            pods = self.kubectl("describe", "pods")[-6000:]
            raise AssertionError(f"{problem}\n{pods}\n{self._last_lines()}") from None

    def _last_lines(self) -> str:
        """Of each pod's containers, and of those before their last restart."""
        found = []
        for pod in self.all("pods"):
            spec = pod["spec"]
            for container in [*spec.get("initContainers", ()), *spec["containers"]]:
                for previous in (True, False):
                    text = self.logs(pod["metadata"]["name"], container["name"], previous=previous)[-6000:]
                    found.append(f"{pod['metadata']['name']} {container['name']}{' before' * previous}:\n{text}")
        return "\n".join(found)

    def status(self, pod: str, container: str) -> dict[str, Any]:
        """Of a container (of an init container, a sidecar, too): restartCount, ready, state, lastState, containerID …;
        empty while there is none."""
        status = (self.get("pods", pod) or {}).get("status", {})
        for kind in ("containerStatuses", "initContainerStatuses"):
            for entry in status.get(kind, ()):
                if entry["name"] == container:
                    return dict(entry)
        return {}

    def restarts(self, pod: str, container: str) -> int:
        """How often kubelet has started it anew."""
        return int(self.status(pod, container).get("restartCount", 0))

    def ready(self, pod: str) -> bool:
        """Whether the pod has the condition Ready."""
        status = (self.get("pods", pod) or {}).get("status", {})
        return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in status.get("conditions", ()))

    def wait_ready(self, *pods: str, seconds: float = WAIT_SECONDS) -> None:
        """Until all are ready."""
        self.wait(f"ready pods {', '.join(pods)}", lambda: all(map(self.ready, pods)), seconds)

    def address(self, pod: str) -> str:
        """Of the pod in the cluster's network."""
        found = self.get("pods", pod)
        assert found is not None
        return str(found["status"]["podIP"])

    def exec(self, pod: str, container: str, *command: str, seconds: float = 60.0) -> str:
        """Standard output of a command in a container; AssertionError where it failed."""
        return self.kubectl("exec", pod, f"--container={container}", "--", *command, seconds=seconds)

    def logs(self, pod: str, container: str, *, previous: bool = False) -> str:
        """What the container has printed, nothing before it was made; `previous`: the one before its last restart."""
        query = f"container={container}&previous={str(previous).lower()}"
        status, found = self.cluster.request("GET", f"{self.path('pods', pod)}/log?{query}")
        assert status in (200, 400, 404), found
        return str(found) if status == 200 else ""

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events about an object of that name, in their order."""
        status, found = self.cluster.request("GET", f"{self.path('events')}?fieldSelector=involvedObject.name%3D{name}")
        assert status == 200, found
        return sorted(found["items"], key=lambda item: item["metadata"]["resourceVersion"].zfill(20))

    def signal(self, pod: str, container: str, number: signal.Signals, *, command: str = "") -> list[int]:
        """Sends a signal from outside to the container's processes, to those alone whose command line has `command`;
        returns their ids on this machine. Where the signal is one that ends, a container's first process has it too."""
        identity = self.status(pod, container)["containerID"]
        sent = [pid for pid in self.cluster.pids(identity) if command in _command_line(pid)]
        assert sent, f"{container} in {pod} has no process {command}"
        for pid in sent:
            os.kill(pid, number)
        return sent

    def token(self, account: str, *, seconds: int = 3600) -> str:
        """Of a service account here, for `Cluster.request` and `Cluster.client_config`."""
        return self.kubectl("create", "token", account, f"--duration={seconds}s").strip()


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
