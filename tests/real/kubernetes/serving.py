"""A pod of the engine simulator with dsobs as its native sidecar, clients, and somebody who is paged."""

import contextlib
import functools
import http.client
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Self

from dsobs.remediation import ledger
from dsobs.runtimes.control_folder import (
    MOUNT_PATH,
    SIZE_LIMIT,
    liveness_probe,
    readiness_probe,
    sidecar_pre_stop,
    startup_probe,
)
from dsobs.state import read_only
from tests.real.kubernetes.cluster import Cluster
from tests.real.kubernetes.namespace import Namespace

PORT = 8000
CORE = "VLLM::EngineCore"
"""In the command line of the engine's core, which hangs when it is stopped."""
SIMULATOR = ("python3", "-m", "dsobs.simulator", "--host=0.0.0.0", f"--port={PORT}", "--decode-step-seconds=0.05")
"""Slower than by itself: what its steps take, others on the machine lack."""
_SEEN_SECONDS = 3.0
"""dsobs looks once a second."""
START_SECONDS = 300.0
"""Within which a pod is up where many are started on a busy machine."""
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
    "api.listen": "0.0.0.0:9940",
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
                    "command": [*SIMULATOR, *engine],
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


def up(
    cluster: Cluster, namespace: Namespace, paged: "Pager", *engine: str, settings: Mapping[str, str] | None = None
) -> None:
    """The pod `vllm`, ready and watched."""
    namespace.apply(pod(cluster, engine=engine, settings={"notifiers.webhook.url": paged.url, **(settings or {})}))
    watched(namespace, "vllm")


def watched(namespace: Namespace, name: str) -> None:
    """Waits until the pod is ready and its sidecar has seen its engine."""
    namespace.wait_ready(name, seconds=START_SECONDS)
    try:
        namespace.wait("ready engine", lambda: event(namespace, "engine-ready", name), START_SECONDS)
    except AssertionError as problem:
        raise AssertionError(f"{problem}\n{namespace.logs(name, 'dsobs')[-3000:]}") from None


@contextlib.contextmanager
def clients(
    cluster: Cluster, namespace: Namespace, *names: str, number: int = 4, tokens: int | None = None
) -> Iterator[None]:
    """So many at each of these pods (`vllm`), one request after the other each, of so many tokens (the clients' own
    number); the engines have worked on them, and dsobs has seen it, when the context begins."""
    size = ("--max-tokens", str(tokens), str(tokens), "--timeout", "600") if tokens is not None else ()
    with contextlib.ExitStack() as stack:
        before = {}
        for name in names or ("vllm",):
            url = f"http://{cluster.forwarded(f'{namespace.address(name)}:{PORT}')}"
            words = (sys.executable, "-m", "dsobs.simulator.load", "--url", url)
            more = ("--clients", str(number), "--duration", "3600")
            process = subprocess.Popen([*words, *more, *size], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.kill)
            before[url] = namespace.wait("the engine's page", functools.partial(_tokens, url))
        for url, count in before.items():
            namespace.wait("work", functools.partial(_more, url, count + 99), 180)
        time.sleep(_SEEN_SECONDS)
        yield


def _more(url: str, than: float) -> bool:
    return _tokens(url) > than


def _lines(url: str) -> list[str]:
    """Of the metrics page; none where it can't be read."""
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as page:
            return list(page.read().decode().splitlines())
    except (OSError, http.client.HTTPException):
        return []


def _later(url: str, seconds: float) -> list[str]:
    time.sleep(seconds)
    return _lines(url)


def _sum(lines: list[str], name: str) -> float:
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


def _tokens(url: str) -> float:
    """Generated by the engine, one more than there are; 0 where its page can't be read."""
    lines = _lines(url)
    return 1.0 + _sum(lines, "vllm:generation_tokens_total") if lines else 0.0


def stop_at_work(namespace: Namespace, name: str = "vllm") -> float:
    """SIGSTOP to the engine's core in the middle of work; when. Not between two rounds of requests: its page says then
    that it is idle, and a hang while idle is found by probes only, much later."""
    url = f"http://{namespace.cluster.forwarded(f'{namespace.address(name)}:{PORT}')}"
    for _ in range(20):
        namespace.signal(name, "engine", signal.SIGSTOP, command=CORE)
        stopped = time.time()
        # What the core had sent is on the page after some looks, also on a machine that is busy.
        if all(_sum(_later(url, 0.3), "vllm:num_requests_running") > 0 for _ in range(4)):
            return stopped
        namespace.signal(name, "engine", signal.SIGCONT, command=CORE)
        time.sleep(0.2)
    raise AssertionError(f"the core of {name} was idle whenever it was stopped")


def left_alone(namespace: Namespace, name: str = "vllm") -> None:
    """Nobody has restarted the engine."""
    assert namespace.restarts(name, "engine") == 0
    assert not [e for e in namespace.events(name) if e["reason"] == "Killing" and "engine" in e["message"]]


def held_back(cluster: Cluster, namespace: Namespace, name: str = "vllm") -> list[str]:
    """Why no restart was made, by the sidecar's ledger, oldest first. Read beside the sidecar, from its volume."""
    pod = namespace.get("pods", name)
    if pod is None:
        return []
    volumes = cluster.folder / "kubelet/pods" / pod["metadata"]["uid"] / "volumes/kubernetes.io~empty-dir"
    with read_only(volumes / "state/state.db") as connection:
        entries = ledger.of_incident(connection, "")
    return [
        str(entry.detail.get("guard") or entry.detail.get("why"))
        for entry in entries
        if entry.kind == "restart" and entry.state in ("refused", "failed")
    ]


def metric(cluster: Cluster, namespace: Namespace, pod: str, name: str, port: int = 9940) -> float | None:
    """The greatest value of that metric on the sidecar's own page; None where it is not there, or no page."""
    lines = _lines(f"http://{cluster.forwarded(f'{namespace.address(pod)}:{port}')}")
    found = [float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} "))]
    return max(found, default=None)


def said(namespace: Namespace, name: str = "vllm", container: str = "dsobs") -> list[dict[str, Any]]:
    """The lines of the sidecar's log that are JSON, oldest first."""
    lines = namespace.logs(name, container).splitlines()
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


SILENT_SECONDS = 10.0
"""Who opened a connection to the pager may have been killed before it said anything."""


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
        timeout = SILENT_SECONDS

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
        try:
            yield found
        finally:
            # Else it would go on, on a closed socket and without a pause, and the process never end.
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
