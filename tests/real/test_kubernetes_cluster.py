"""The real cluster that other tests stand on: it is a Kubernetes, it leads nowhere, and nothing of it stays."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from aiohttp import web

from tests.real.kubernetes import Cluster, Namespace

pytestmark = pytest.mark.real("cluster")


def simulator(cluster: Cluster) -> dict[str, object]:
    """A pod of the engine simulator on port 8000, restarted on request by an exec probe."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "engine", "labels": {"app": "engine"}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "control", "emptyDir": {}}],
            "containers": [
                {
                    "name": "engine",
                    "image": cluster.dsobs_image,
                    "command": ["python3", "-m", "dsobs.simulator", "--host", "0.0.0.0", "--port", "8000"],
                    "volumeMounts": [{"name": "control", "mountPath": "/control"}],
                    "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
                    "livenessProbe": {
                        "exec": {"command": ["sh", "-c", "test ! -e /control/stop || { rm /control/stop; exit 1; }"]},
                        "periodSeconds": 1,
                        "failureThreshold": 1,
                    },
                }
            ],
        },
    }


def test_dsobs_runs_in_a_pod(cluster: Cluster, namespace: Namespace) -> None:
    namespace.kubectl("run", "version", f"--image={cluster.dsobs_image}", "--restart=Never", "--", "--version")
    namespace.wait("end", lambda: (namespace.get("pods", "version") or {})["status"]["phase"] == "Succeeded")
    namespace.wait("its word", lambda: namespace.logs("version", "version").startswith("dsobs "), 60)


def test_exec_probe_restarts_the_simulator_once_for_a_request(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(simulator(cluster))
    namespace.wait_ready("engine")
    way = cluster.forwarded(f"{namespace.address('engine')}:8000")
    with urllib.request.urlopen(f"http://{way}/metrics", timeout=10) as page:
        assert b"vllm:num_requests_running" in page.read()
    before = namespace.status("engine", "engine")
    namespace.exec("engine", "engine", "touch", "/control/stop")
    namespace.wait("restart", lambda: namespace.restarts("engine", "engine"))
    namespace.wait_ready("engine")
    after = namespace.status("engine", "engine")
    assert (after["restartCount"], after["containerID"] != before["containerID"]) == (1, True)
    assert any(event["reason"] == "Killing" for event in namespace.events("engine"))


def test_process_in_a_pod_is_stopped_from_outside(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(simulator(cluster))
    namespace.wait_ready("engine")
    (core,) = namespace.signal("engine", "engine", signal.SIGSTOP, command="VLLM::EngineCore")
    stat = Path(f"/proc/{core}/stat")
    namespace.wait("standstill", lambda: stat.read_text().rpartition(") ")[2].startswith("T"), 60)


async def test_pods_reach_each_other_by_a_service_and_servers_of_the_test(
    cluster: Cluster, namespace: Namespace
) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=f"asked by {request.remote}")

    runner = web.AppRunner(web.Application())
    runner.app.router.add_get("/", answer)
    await runner.setup()
    listener = cluster.listener()
    await web.SockSite(runner, listener).start()
    port = listener.getsockname()[1]

    def ask() -> str:
        namespace.apply(
            simulator(cluster),
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "engine"},
                "spec": {"selector": {"app": "engine"}, "ports": [{"port": 80, "targetPort": 8000}]},
            },
        )
        namespace.kubectl("run", "client", f"--image={cluster.busybox.name}", "--", "sleep", "1000")
        namespace.wait_ready("engine", "client")
        service = (namespace.get("services", "engine") or {})["spec"]["clusterIP"]
        models = namespace.wait(
            "answer of the service",
            lambda: namespace.exec("client", "client", "sh", "-c", f"wget -qO- http://{service}/v1/models || true"),
        )
        assert json.loads(models)["data"]
        return namespace.exec("client", "client", "wget", "-qO-", f"http://{cluster.address}:{port}/")

    try:
        said = await asyncio.to_thread(ask)
    finally:
        await runner.cleanup()
    assert said == f"asked by {namespace.address('client')}"


def test_pod_has_no_way_out(cluster: Cluster, namespace: Namespace) -> None:
    namespace.kubectl("run", "client", f"--image={cluster.busybox.name}", "--", "sleep", "1000")
    namespace.wait_ready("client")
    said = namespace.exec("client", "client", "sh", "-c", "nc -w 3 192.0.2.1 80 2>&1 || true")
    assert "Network is unreachable" in said


def test_api_server_is_away_and_back(cluster: Cluster, namespace: Namespace) -> None:
    namespace.apply(simulator(cluster))
    namespace.wait_ready("engine")
    with cluster.api_server_away(), pytest.raises(OSError):
        cluster.request("GET", "/readyz")
    assert namespace.ready("engine")
    with cluster.silent("kube-apiserver"), pytest.raises(TimeoutError):
        cluster.request("GET", "/readyz", seconds=1.0)
    assert cluster.request("GET", "/readyz")[0] == 200


def test_right_that_was_not_granted_is_refused(cluster: Cluster, namespace: Namespace) -> None:
    token = namespace.token("default")
    status, answer = cluster.request("GET", namespace.path("pods"), token=token)
    assert (status, answer["reason"]) == (403, "Forbidden")
    user = f"system:serviceaccount:{namespace.name}:default"
    asked = [(event["verb"], event["responseStatus"]["code"]) for event in cluster.requests(user)]
    assert asked == [("list", 403)]


def machine() -> dict[str, set[str]]:
    """What a cluster could leave behind."""
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout.splitlines()
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.splitlines()
    settings = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
    return {
        "mounts": {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()},
        "interfaces": {line.split()[1] for line in links},
        "rules": {line.split("[")[0] for line in rules if not line.startswith("#")},
        "settings": {f"{name}={Path('/proc/sys', name).read_text()}" for name in settings},
    }


def processes_of(folder: Path) -> list[str]:
    """Command lines of those that have to do with it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found += [words] if str(folder) in words else []
    return found


def cgroups_of(folder: Path) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"*/{folder.name}"))


def test_nothing_stays_of_a_cluster_with_a_running_pod(cluster: Cluster) -> None:
    """Beside another cluster, which it does not disturb."""
    before = machine()
    with Cluster() as second, second.namespace() as namespace:
        namespace.kubectl("run", "client", f"--image={second.busybox.name}", "--", "sleep", "1000")
        namespace.wait_ready("client")
        assert machine() == before
        assert len(processes_of(second.folder)) > 5
        assert cgroups_of(second.folder)
    assert machine() == before
    assert (processes_of(second.folder), cgroups_of(second.folder), second.folder.exists()) == ([], [], False)
    assert cluster.request("GET", "/readyz")[0] == 200


def test_cluster_ends_with_the_process_that_had_it(cluster: Cluster) -> None:
    script = (
        "import os; from tests.real.kubernetes import Cluster\n"
        "cluster = Cluster().__enter__(); print(cluster.folder, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False, timeout=300)
    left = Cluster.of(Path(done.stdout.strip()))
    try:
        cluster.wait("end of its processes", lambda: not processes_of(left.folder), 90)
    finally:
        left.close()
