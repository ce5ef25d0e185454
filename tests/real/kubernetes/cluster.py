"""A cluster of one node, with nothing of it outside a folder, a group of cgroups and namespaces of its own."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.real.kubernetes import configuration, images
from tests.real.kubernetes.configuration import ADDRESS, NODE, PODS, SERVICES
from tests.real.kubernetes.host import PrivateHost
from tests.real.kubernetes.images import Image
from tests.real.kubernetes.namespace import Namespace
from tests.real.kubernetes.tools import KubernetesUnavailable, home, run

START_SECONDS = 180.0
STOP_SECONDS = 30.0
_POLL_SECONDS = 0.2
_CGROUPS = Path("/sys/fs/cgroup")
T = TypeVar("T")


class Cluster:
    """API server, controllers, scheduler, kubelet, kube-proxy and containerd, as a context.

    KubernetesUnavailable if it does not come up. Several may be up at a time. No pod, and no part of the cluster, can
    reach anything outside it; tests reach it by `kubeconfig`, and servers in a test can be reached by `listener`.
    """

    address = ADDRESS
    """Of the node, as pods see it."""

    def __init__(self, *, crash_loop_seconds: int | None = None) -> None:
        """`crash_loop_seconds`: the longest wait before a crashing container is started again, 1 s or more; kubelet's
        own is 300 s, reached by doubling 10 s."""
        self._crash_loop_seconds = crash_loop_seconds
        self.folder = Path(tempfile.mkdtemp(prefix="kubernetes-"))
        self.cgroup = self.folder.name
        """Below which the pods are, in each of the machine's hierarchies."""
        self.kubeconfig = self.folder / "host.kubeconfig"
        """Of a cluster administrator, for clients on this machine."""
        self.url = ""
        """The API server, for clients on this machine."""
        self.host: PrivateHost | None = None
        self.given_up = threading.Event()
        """Set where nobody wants any more what others, in other threads, still wait for."""

    @classmethod
    def of(cls, folder: Path) -> "Cluster":
        """One whose process was killed, to `close` it."""
        cluster = cls()
        cluster.folder.rmdir()
        cluster.folder, cluster.cgroup = folder, folder.name
        return cluster

    def __enter__(self) -> Self:
        try:
            self._bin = home()
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        folder = self.folder
        (folder / "images").mkdir()
        self.busybox, pause = images.busybox_and_pause(folder / "images")
        configuration.write(folder, cgroup=self.cgroup, pause=pause.name, crash_loop_seconds=self._crash_loop_seconds)
        self.host = PrivateHost(folder, ADDRESS, SERVICES)
        for hierarchy in self._hierarchies():
            if hierarchy.name != "unified":
                (hierarchy / self.cgroup).mkdir()
        self.host.start("containerd", "containerd", "--config", str(folder / "containerd.toml"))
        self.host.start("etcd", "etcd", "--data-dir", str(self.host.memory / "etcd"), "--unsafe-no-fsync")
        self._start_api_server()
        self.url = f"https://{self.host.forwarded(f'{ADDRESS}:6443')}"
        configuration.kubeconfig(folder, self.kubeconfig, self.url, token="admin")
        self.wait("containerd", lambda: (folder / "containerd.sock").exists())
        for image in (pause, self.busybox):
            self.load(image)
        self.wait("the API server", self._api_ready)
        self._start_others()
        self.wait("the node", self._node_ready)

    def _start_api_server(self) -> None:
        pki = self.folder / "pki"
        self._host.start(
            "kube-apiserver",
            *(str(self._bin / "kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379", "--allow-privileged=true"),
            *(f"--bind-address={ADDRESS}", f"--advertise-address={ADDRESS}", f"--service-cluster-ip-range={SERVICES}"),
            *(f"--tls-cert-file={pki}/api.crt", f"--tls-private-key-file={pki}/api.key"),
            *(f"--kubelet-client-certificate={pki}/kubelet-client.crt", "--kubelet-preferred-address-types=InternalIP"),
            f"--kubelet-client-key={pki}/kubelet-client.key",
            *(f"--service-account-{use}key-file={pki}/accounts.key" for use in ("", "signing-")),
            *("--service-account-issuer=https://kubernetes.default.svc", "--authorization-mode=Node,RBAC"),
            *("--enable-admission-plugins=NodeRestriction", f"--token-auth-file={self.folder}/tokens.csv"),
            *(f"--audit-policy-file={self.folder}/audit.json", f"--audit-log-path={self.folder}/audit.log"),
        )

    def _start_others(self) -> None:
        folder, start = self.folder, self._host.start
        for name, words in (
            (
                "kube-controller-manager",
                (
                    f"--service-account-private-key-file={folder}/pki/accounts.key",
                    f"--root-ca-file={folder}/pki/ca.crt",
                    *("--use-service-account-credentials=true", "--horizontal-pod-autoscaler-sync-period=2s"),
                    # Its default, 20 requests a second, is for clusters that others use too.
                    *("--kube-api-qps=500", "--kube-api-burst=1000"),
                ),
            ),
            ("kube-scheduler", ()),
        ):
            given = [
                f"--{use}kubeconfig={folder}/{name}.kubeconfig" for use in ("", "authentication-", "authorization-")
            ]
            start(name, str(self._bin / name), *given, "--leader-elect=false", "--bind-address=127.0.0.1", *words)
        start(
            "kubelet",
            *(
                str(self._bin / "kubelet"),
                f"--config={folder}/kubelet.json",
                f"--kubeconfig={folder}/kubelet.kubeconfig",
            ),
            *(f"--hostname-override={NODE}", f"--node-ip={ADDRESS}"),
            *(f"--root-dir={folder}/kubelet", f"--cert-dir={folder}/kubelet-pki"),
        )
        start(
            "kube-proxy",
            *(str(self._bin / "kube-proxy"), f"--kubeconfig={folder}/kube-proxy.kubeconfig"),
            *(f"--hostname-override={NODE}", "--proxy-mode=iptables", f"--cluster-cidr={PODS}"),
            *(f"--bind-address={ADDRESS}", f"--nodeport-addresses={ADDRESS}/32", "--conntrack-max-per-core=0"),
        )

    @property
    def _host(self) -> PrivateHost:
        assert self.host is not None, "the cluster is not up"
        return self.host

    def _api_ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def _node_ready(self) -> bool:
        status, node = self.request("GET", f"/api/v1/nodes/{NODE}")
        if status != 200:
            return False
        conditions = {entry["type"]: entry["status"] for entry in node["status"].get("conditions", ())}
        return conditions.get("Ready") == "True" and not node["spec"].get("taints")

    def wait(self, what: str, check: Callable[[], T], seconds: float = START_SECONDS) -> T:
        """What `check` returns, once that is true; AssertionError with `what` after `seconds`, KubernetesUnavailable if
        a part of the cluster has ended by itself."""
        deadline = time.monotonic() + seconds
        while not (found := check()):
            for name in self._host.ended():
                raise KubernetesUnavailable(f"{name} ended:\n{self._host.said(name)}")
            assert time.monotonic() < deadline, f"no {what} after {seconds:.0f} s"
            assert not self.given_up.is_set(), f"no {what} yet, and the run was ended"
            time.sleep(_POLL_SECONDS)
        return found

    def request(
        self, method: str, path: str, body: Any = None, *, token: str = "admin", seconds: float = 30.0
    ) -> tuple[int, Any]:
        """Status and JSON (or text) of one request to the API server; OSError where nothing answers."""
        address = self.url.removeprefix("https://")
        context = ssl.create_default_context(cafile=str(self.folder / "pki/ca.crt"))
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        connection = http.client.HTTPSConnection(address, context=context, timeout=seconds)
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(text) if is_json else text
        except http.client.HTTPException as problem:
            raise ConnectionError(str(problem)) from problem
        finally:
            connection.close()

    def kubectl(self, *words: str, stdin: str = "", seconds: float = 120.0) -> str:
        """Standard output of a `kubectl` of the administrator; AssertionError where it failed."""
        return run(str(self._bin / "kubectl"), f"--kubeconfig={self.kubeconfig}", *words, stdin=stdin, seconds=seconds)

    def helm(self, *words: str, seconds: float = 300.0) -> str:
        """The same for `helm`; its own files are the cluster's."""
        places = [f"HELM_{kind}_HOME={self.folder}/helm" for kind in ("CACHE", "CONFIG", "DATA")]
        return run("env", *places, f"KUBECONFIG={self.kubeconfig}", str(self._bin / "helm"), *words, seconds=seconds)

    def load(self, image: Image) -> str:
        """Puts an image where pods find it; returns its name."""
        repository = image.name.rpartition(":")[0]
        self._ctr("images", "import", "--base-name", repository, str(image.archive))
        return image.name

    @cached_property
    def dsobs_image(self) -> str:
        """Name of an image with this working tree's dsobs and simulator, made and loaded at first use."""
        return self.load(images.dsobs())

    def _ctr(self, *words: str) -> str:
        return self._host.run("ctr", f"--address={self.folder}/containerd.sock", "--namespace=k8s.io", *words)

    @contextlib.contextmanager
    def namespace(self) -> Iterator[Namespace]:
        """A namespace of its own, ready for pods; afterwards its pods are killed, and it goes in the background."""
        name = f"test-{uuid.uuid4().hex[:8]}"
        base = f"/api/v1/namespaces/{name}"
        self.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        try:
            needed = [f"{base}/{name}" for name in ("serviceaccounts/default", "configmaps/kube-root-ca.crt")]
            self.wait("account", lambda: all(self.request("GET", path)[0] == 200 for path in needed))
            yield Namespace(self, name)
        finally:
            running = [pid for pod in self.request("GET", f"{base}/pods")[1]["items"] for pid in self._pids_of_pod(pod)]
            self.request("DELETE", base)
            self.request("DELETE", f"{base}/pods?gracePeriodSeconds=0")
            # kubelet would give each its grace period, and what is stopped takes all of it.
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _pids_of_pod(self, pod: dict[str, Any]) -> list[int]:
        kinds = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
        entries = [entry for kind in kinds for entry in pod["status"].get(kind, ())]
        return [pid for entry in entries if entry.get("containerID") for pid in self.pids(entry["containerID"])]

    def pids(self, container_id: str) -> list[int]:
        """Processes of a container, as this machine numbers them. `container_id` as a pod's status has it."""
        identity = container_id.rpartition("/")[2]
        for place in (_CGROUPS / "pids" / self.cgroup).rglob(identity):
            return sorted(map(int, (place / "cgroup.procs").read_text().split()))
        return []

    def listener(self, port: int = 0) -> socket.socket:
        """A listening socket on the node's address, for a server in this process that pods are to reach."""
        return self._host.listener(port)

    def forwarded(self, address: str) -> str:
        """An `address:port` of a pod, a service or the node → one on this machine's loopback that leads to it."""
        return self._host.forwarded(address)

    def client_config(self, token: str, namespace: str = "default") -> Path:
        """A kubeconfig for a client on this machine."""
        file = self.folder / f"{uuid.uuid4().hex[:8]}.kubeconfig"
        configuration.kubeconfig(self.folder, file, self.url, token=token, namespace=namespace)
        return file

    def requests(self, user: str) -> list[dict[str, Any]]:
        """What this user asked the API server, in its order: events of the audit log (verb, objectRef, responseStatus
        …), two for a watch: at its start and at its end. Those that said not yet, or wrongly, who they are have no
        user name there."""
        # The last line may be written just now.
        lines = (self.folder / "audit.log").read_text().rpartition("\n")[0].splitlines()
        events = [json.loads(line) for line in lines]
        return [event for event in events if event["user"].get("username") == user]

    @contextlib.contextmanager
    def api_server_away(self) -> Iterator[None]:
        """Killed; up and ready again afterwards. What its clients see first is a refused connection."""
        self._host.kill("kube-apiserver")
        try:
            yield
        finally:
            self._start_api_server()
            self.wait("the API server", self._api_ready)

    @contextlib.contextmanager
    def silent(self, part: str) -> Iterator[None]:
        """A part (kube-apiserver, kubelet, containerd …) stopped by SIGSTOP: connections open, nothing answers."""
        pid = self._host.pid(part)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            self._host.resume(part)

    def close(self) -> None:
        """Ends all of it and removes what it made on this machine. Legal twice."""
        if self.host is not None:
            self.host.close()
            self.host = None
        deadline = time.monotonic() + STOP_SECONDS
        for place in (hierarchy / self.cgroup for hierarchy in self._hierarchies()):
            while place.exists():
                for below, _, _ in os.walk(place, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(below).rmdir()
                assert time.monotonic() < deadline, f"{place} is still in use"
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _hierarchies() -> list[Path]:
        return [place for place in _CGROUPS.iterdir() if place.is_dir()]
