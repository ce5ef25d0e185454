"""A pod of the engine simulator with dsobs as its native sidecar, clients, and somebody who is paged."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Self

from dsobs.runtimes.control_folder import (
    MOUNT_PATH,
    SIZE_LIMIT,
    liveness_probe,
    readiness_probe,
    sidecar_pre_stop,
    startup_probe,
)
from tests.real.kubernetes.cluster import Cluster
from tests.real.kubernetes.namespace import Namespace

PORT = 8000
KEPT = ("supervise", "--socket", "/var/lib/dsobs/keeper.sock", "--stop-grace", "20", "--", "dsobs")
"""To Kubernetes a pod whose sidecar's container has ended is not ready, and gets no traffic. So dsobs has a small
process above it that starts it again, and the container lives on."""
DSOBS = "/usr/local/bin/dsobs run"
"""What the command line of dsobs itself has, and not that of the process above it."""
SETTINGS = {
    "runtime.name": "kubernetes",
    "remediation.mode": "enforce",
    "remediation.coordination": "single",
    # The random wait of up to a minute is no part of what is measured.
    "remediation.random_delay": "0",
    "log.format": "json",
}
FIELDS = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "POD_UID": "metadata.uid"}


def pod(
    cluster: Cluster,
    *,
    name: str = "vllm",
    settings: Mapping[str, str] | None = None,
    engine: tuple[str, ...] = (),
    account: str | None = None,
    memory: str = "176Mi",
) -> dict[str, Any]:
    """Its manifest. `settings`: besides SETTINGS; `engine`: flags of the simulator; `account`: the service account
    whose token the sidecar, and it alone, has. None: no right at all."""
    words = [f"{key}={value}" for key, value in {**SETTINGS, **(settings or {})}.items()]
    volumes: list[dict[str, Any]] = [
        {"name": "control", "emptyDir": {"sizeLimit": SIZE_LIMIT}},
        {"name": "state", "emptyDir": {"sizeLimit": "256Mi"}},
    ]
    mounts = [{"name": "control", "mountPath": MOUNT_PATH}, {"name": "state", "mountPath": "/var/lib/dsobs"}]
    if account is not None:
        volumes.append({"name": "token", "projected": {"sources": _TOKEN}})
        mounts.append({"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "automountServiceAccountToken": False,
            **({"serviceAccountName": account} if account is not None else {}),
            "terminationGracePeriodSeconds": 30,
            "volumes": volumes,
            "initContainers": [
                {
                    "name": "dsobs",
                    "image": cluster.dsobs_image,
                    "restartPolicy": "Always",
                    "args": [*KEPT, "run", *(part for word in words for part in ("--set", word))],
                    "env": [
                        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in FIELDS.items()
                    ],
                    "lifecycle": {"preStop": sidecar_pre_stop()},
                    "resources": {"limits": {"memory": memory}, "requests": {"memory": memory}},
                    "volumeMounts": mounts,
                }
            ],
            "containers": [
                {
                    "name": "engine",
                    "image": cluster.dsobs_image,
                    "command": ["python3", "-m", "dsobs.simulator", "--host", "0.0.0.0", "--port", str(PORT), *engine],
                    "ports": [{"containerPort": PORT}],
                    "startupProbe": startup_probe("/health", PORT),
                    "livenessProbe": liveness_probe(),
                    "readinessProbe": readiness_probe(f"http://127.0.0.1:{PORT}/health"),
                    "volumeMounts": [{"name": "control", "mountPath": MOUNT_PATH, "readOnly": True}],
                }
            ],
        },
    }


_TOKEN = [
    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
]


@contextlib.contextmanager
def clients(cluster: Cluster, namespace: Namespace, name: str = "vllm", number: int = 4) -> Iterator[None]:
    """So many, one request after the other each."""
    url = f"http://{cluster.forwarded(f'{namespace.address(name)}:{PORT}')}"
    words = (sys.executable, "-m", "dsobs.simulator.load", "--url", url, "--clients", str(number))
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def said(namespace: Namespace, name: str = "vllm") -> list[dict[str, Any]]:
    """The lines of the sidecar's log that are JSON, oldest first."""
    lines = namespace.logs(name, "dsobs").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def event(namespace: Namespace, action: str, name: str = "vllm") -> float | None:
    """When the sidecar first told of that `event.action`, Unix seconds; None: it has not."""
    for line in said(namespace, name):
        if line.get("event.action") == action:
            return datetime.fromisoformat(line["@timestamp"]).timestamp()
    return None


def gone(pids: list[int], seconds: float) -> float:
    """When the first of these processes of this machine had ended, Unix seconds; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pids[0]}").exists():
        assert time.monotonic() < deadline, f"process {pids[0]} lives {seconds:.0f} s later"
        time.sleep(0.05)
    return time.time()


@dataclass
class Pager:
    """Somebody who is paged, by a webhook."""

    url: str
    pages: list[dict[str, Any]] = field(default_factory=list)

    def names(self) -> list[str]:
        """Of the alerts that were triggered, in their order."""
        return [str(page["labels"]["alertname"]) for page in self.pages if page["event"] == "trigger"]


@contextlib.contextmanager
def pager(cluster: Cluster) -> Iterator[Pager]:
    """Listens where pods reach it."""
    listener = cluster.listener()
    found = Pager(f"http://{cluster.address}:{listener.getsockname()[1]}/")

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.pages.append(json.loads(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Receiver, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = listener
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield found
        server.shutdown()
        thread.join()


class Readiness(threading.Thread):
    """Looks five times a second whether the pod is ready, as a context; `lost` has the moments when it was not."""

    def __init__(self, look: Callable[[], bool]) -> None:
        super().__init__()
        self._look = look
        self._end = threading.Event()
        self.lost: list[float] = []
        self.looks = 0

    def run(self) -> None:
        while not self._end.wait(0.2):
            self.looks += 1
            if not self._look():
                self.lost.append(time.time())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join()
