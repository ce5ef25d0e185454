"""The main job with real vLLM in a pod of a real cluster, beside dsobs as `dsobs k8s inject` puts it there."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsobs.runtimes.control_folder import MOUNT_PATH
from tests.real import vllm
from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.serving import PORT, clients, event, gone, left_alone, pager, said, stop_at_work

pytestmark = pytest.mark.real("vllm")
SETTINGS = {
    "remediation.mode": "enforce",
    "remediation.coordination": "single",
    # The random wait of up to a minute is no part of what is measured.
    "remediation.random_delay": "0",
    "log.format": "json",
}
KILLED_SECONDS = 180.0
"""From the stop on. Who holds dsobs to a minute is the scene with the simulator, which leaves it a processor."""


def manifest(cluster: Cluster) -> dict[str, Any]:
    """A pod of vLLM, as a user would write it: its image is this machine's files, and so are vLLM's libraries."""
    command = vllm.command(PORT, "--host", "0.0.0.0")
    folders = {f"files-{number}": path for number, path in enumerate(dict.fromkeys(["/usr", *command.folders]))}
    # Of its own a container has 64 MiB, and vLLM with a worker process ends where it has less than 160.
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}
    mounts = [{"name": name, "mountPath": path, "readOnly": True} for name, path in folders.items()]
    # What vLLM remembers of its models from one start to the next, as beside a pod.
    cache = str(Path.home() / ".cache/vllm")
    mounts += [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "cache", "mountPath": cache}]
    volumes = [{"name": name, "hostPath": {"path": path}} for name, path in folders.items()]
    volumes += [shm, {"name": "cache", "hostPath": {"path": cache, "type": "DirectoryOrCreate"}}]
    environment = {**command.environment, "VLLM_CACHE_ROOT": cache}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "vllm"},
        "spec": {
            "terminationGracePeriodSeconds": 30,
            # What it reads here is root's.
            "securityContext": {"runAsUser": 0},
            "volumes": volumes,
            "containers": [
                {
                    "name": "engine",
                    "image": cluster.dsobs_image,
                    "command": command.words,
                    "env": [{"name": name, "value": value} for name, value in environment.items()],
                    "volumeMounts": mounts,
                }
            ],
        },
    }


def injected(text: str, image: str, settings: dict[str, str]) -> str:
    """What the command makes of a manifest."""
    words = ["k8s", "inject", "--no-diff", "--image", image]
    words += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "dsobs.cli", *words, "-"], input=text, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hung_vllm_is_restarted_by_kubelet_once_and_not_before_it_hangs(
    cluster: Cluster, namespace: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with pager(cluster) as paged:
        settings = {**SETTINGS, "notifiers.webhook.url": paged.url}
        namespace.apply(injected(yaml.safe_dump(manifest(cluster)), cluster.dsobs_image, settings))
        begun = time.time()
        _up(namespace, 0)
        started = time.time() - begun
        namespace.wait("ready engine", lambda: event(namespace, "engine-ready"), 120)
        with clients(cluster, namespace):
            left_alone(namespace)
            assert event(namespace, "restart-begun") is None
            assert not {"EngineHung", "EngineDown"} & set(paged.names())
            main = cluster.pids(namespace.status("vllm", "engine")["containerID"])
            stopped = stop_at_work(namespace)
            killed = gone(main, KILLED_SECONDS)
            requested = event(namespace, "restart-begun")
            assert requested is not None
            _up(namespace, 1)
            ready = time.time()
            namespace.wait("verification", lambda: event(namespace, "verified"), 180)
            namespace.wait("end of the page", lambda: "resolve" in [page["event"] for page in paged.pages], 120)
    # By now a request would have ended long ago, and kubelet acted on it.
    assert namespace.restarts("vllm", "engine") == 1
    assert namespace.restarts("vllm", "dsobs") == 0
    assert "restart" not in namespace.exec("vllm", "engine", "ls", MOUNT_PATH).split()
    assert paged.names().count("EngineHung") == 1
    assert [line for line in said(namespace) if line.get("log.level") == "error"] == []
    with capsys.disabled():
        print(
            f"\nvLLM in a pod: ready {started:.0f} s after it was applied; hang: killed {killed - stopped:.1f} s after "
            f"the stop, {killed - requested:.1f} s after the request; ready again {ready - killed:.1f} s later"
        )


def _up(namespace: Namespace, restarts: int) -> None:
    """The pod is ready, after so many restarts of its engine."""

    def is_up() -> bool:
        assert namespace.restarts("vllm", "engine") <= restarts, namespace.logs("vllm", "engine", previous=True)[-6000:]
        return namespace.restarts("vllm", "engine") == restarts and namespace.ready("vllm")

    namespace.wait(f"ready vLLM after {restarts} restarts", is_up, vllm.START_SECONDS)
