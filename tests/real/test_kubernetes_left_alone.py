"""Busy, slow, starved and talkative engines in a real cluster: no restart, no eviction. The engine is the simulator.

LONG_TESTS=1 has the engine log at full speed for ten minutes, and the rest go on for longer.
"""

import json
import os
import signal
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.scenes import Stage, scene
from tests.real.kubernetes.serving import PORT, Readiness, clients, event, left_alone, pod, said, up, watched
from tests.real.test_k8s_inject import pod as injected

pytestmark = pytest.mark.real("kubernetes")
LONG = os.environ.get("LONG_TESTS") == "1"
SECONDS = 240.0 if LONG else 90.0
"""How long a fault lasts: well beyond the time from a hang to its restart."""
MI = 2**20


def not_repaired(namespace: Namespace, name: str = "vllm") -> None:
    """No restart was made, none was asked for."""
    left_alone(namespace, name)
    assert event(namespace, "restart-begun", name) is None


def cgroup(cluster: Cluster, namespace: Namespace, name: str, controller: str) -> Path:
    """The folder of the engine's container in this hierarchy."""
    identity = namespace.status(name, "engine")["containerID"].rpartition("/")[2]
    (found,) = (Path("/sys/fs/cgroup") / controller / cluster.cgroup).rglob(identity)
    return found


@scene
def test_server_that_is_too_busy_to_answer_is_left_alone(stage: Stage) -> str:
    """Its event loop is blocked for nine seconds of ten, so it misses the deadline of each check; it works on."""
    namespace = stage.namespace
    up(stage.cluster, namespace, stage.paged)
    with clients(stage.cluster, namespace, number=2):
        end = time.monotonic() + SECONDS
        blocked = 0
        while time.monotonic() < end:
            # Not its core.
            namespace.signal("vllm", "engine", signal.SIGSTOP, command="python3 -m dsobs.simulator")
            time.sleep(9)
            namespace.signal("vllm", "engine", signal.SIGCONT, command="python3 -m dsobs.simulator")
            time.sleep(1)
            blocked += 1
        time.sleep(15)
    not_repaired(namespace)
    seen = [line for line in said(namespace) if "scrape" in str(line.get("message", ""))]
    return f"busy server: blocked {blocked} times for 9 s, {len(seen)} lines of the sidecar about scrapes"


@scene
def test_one_long_prefill_is_left_alone(stage: Stage) -> str:
    """10 s a step, in which nothing moves but the KV usage at its end."""
    cluster, namespace = stage.cluster, stage.namespace
    speed = ("--prefill-tokens-per-second", "100", "--max-num-batched-tokens", "1000")
    up(cluster, namespace, stage.paged, *speed)
    address = cluster.forwarded(f"{namespace.address('vllm')}:{PORT}")
    tokens = int(SECONDS) * 100
    body = {"model": "deepseek-r1-7b", "prompt": "four" * tokens, "max_tokens": 2}
    request = urllib.request.Request(
        f"http://{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    begun = time.monotonic()
    with urllib.request.urlopen(request, timeout=SECONDS * 4) as answer:
        assert json.loads(answer.read())["usage"]["completion_tokens"] == 2
    took = time.monotonic() - begun
    assert took >= SECONDS - 10
    not_repaired(namespace)
    assert "EngineHung" not in stage.paged.names()
    return f"long prefill: answered after {took:.0f} s"


@scene
def test_engine_that_has_two_percent_of_a_processor_is_left_alone(stage: Stage) -> str:
    """Its probes have no more: they run in its cgroup."""
    cluster, namespace = stage.cluster, stage.namespace
    up(cluster, namespace, stage.paged)
    group = cgroup(cluster, namespace, "vllm", "cpu")
    with clients(cluster, namespace, number=2):
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("2000")
        time.sleep(SECONDS)
        told = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
        (group / "cpu.cfs_quota_us").write_text("-1")
        time.sleep(10)
    assert int(told["nr_throttled"]) > SECONDS
    not_repaired(namespace)
    return f"2 % of a processor: throttled {told['nr_throttled']} times in {SECONDS:.0f} s"


MEMORY_LIMIT = 256 * MI
NEEDED = 64 * MI
"""What is left beside the engine and what fills it: its probes run in its cgroup too."""
FILE = 128 * MI
PAGE = os.sysconf("SC_PAGE_SIZE")
FILLER = """
import sys, time
size, seconds = int(sys.argv[1]), float(sys.argv[2])
held = bytearray(b"x") * size
end = time.monotonic() + seconds
while time.monotonic() < end:
    with open("/cache/fill", "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    time.sleep(0.5)
"""
"""Memory that can't be taken back, and a file that is read over and over and does not fit beside it."""


@scene
def test_engine_at_its_memory_limit_is_left_alone(stage: Stage) -> str:
    """The kernel takes back from it all the time, and kills nobody."""
    cluster, namespace = stage.cluster, stage.namespace
    manifest = pod(cluster, settings={"notifiers.webhook.url": stage.paged.url})
    engine = manifest["spec"]["containers"][0]
    engine["resources"] = {"limits": {"memory": str(MEMORY_LIMIT)}}
    # On a disk: what a container writes to its own root lies in memory here, and can't be taken back.
    manifest["spec"]["volumes"].append({"name": "cache", "emptyDir": {}})
    engine["volumeMounts"].append({"name": "cache", "mountPath": "/cache"})
    namespace.apply(manifest)
    watched(namespace, "vllm")
    group = cgroup(cluster, namespace, "vllm", "memory")
    used: list[int] = []
    with clients(cluster, namespace, number=1), Readiness(lambda: namespace.ready("vllm")) as readiness:
        # Written through: who writes faster than the disk is killed.
        written = ("if=/dev/zero", "of=/cache/fill", "bs=1M", f"count={FILE // MI}", "oflag=dsync")
        namespace.exec("vllm", "engine", "dd", *written)
        own = _of(group / "memory.stat", "total_rss")
        before = _of(group / "memory.stat", "total_pgpgout")
        filler = ("python3", "-c", FILLER, str(MEMORY_LIMIT - own - NEEDED), str(SECONDS / 2))
        with ThreadPoolExecutor(1) as threads:
            filled = threads.submit(namespace.exec, "vllm", "engine", *filler, seconds=SECONDS + 60)
            while not wait([filled], 1.0).done:
                used.append(int((group / "memory.usage_in_bytes").read_text()))
        filled.result()
        taken_back = (_of(group / "memory.stat", "total_pgpgout") - before) * PAGE
    assert int((group / "memory.max_usage_in_bytes").read_text()) == MEMORY_LIMIT
    assert sorted(used)[len(used) // 2] > 0.97 * MEMORY_LIMIT
    # All of the file at least, so that there was room for what is held for good.
    assert taken_back > FILE
    assert _of(group / "memory.oom_control", "oom_kill") == 0
    not_repaired(namespace)
    assert readiness.lost == []
    return (
        f"memory limit: {max(used) / MI:.0f} of {MEMORY_LIMIT / MI:.0f} MiB used, {NEEDED / MI:.0f} of them not "
        f"for good; {taken_back / MI:.0f} MiB taken back"
    )


def _of(file: Path, name: str) -> int:
    """A value of one of the group's files."""
    return int(dict(line.split() for line in file.read_text().splitlines())[name])


WRITER = """
import json, logging.config, multiprocessing, os, sys, time
def write(seconds, enough):
    logging.config.dictConfig(json.load(open(os.environ["VLLM_LOGGING_CONFIG_PATH"])))
    log, end, number = logging.getLogger("vllm.core"), time.monotonic() + seconds, 0
    while time.monotonic() < end or number < enough:
        log.info("%s %d", "a line as long as a traceback that engines write " * 45, number)
        number += 1
    print(number, file=sys.stderr, flush=True)
writers = [multiprocessing.Process(target=write, args=(float(sys.argv[1]), int(sys.argv[2]))) for _ in range(2)]
[each.start() for each in writers]; [each.join() for each in writers]
"""
"""Two processes that write to the engine's log as fast as they can."""
LOG_SECONDS = 600 if LONG else 20
LOG_LINES = 60_000
"""Each, at least: together more than the volume's limit."""


@scene
def test_engine_that_logs_at_full_speed_beside_a_dead_sidecar_is_not_evicted(stage: Stage) -> str:
    cluster, namespace = stage.cluster, stage.namespace
    namespace.apply(injected(cluster))
    namespace.wait_ready("p", seconds=180)
    namespace.signal("p", "dsobs", signal.SIGSTOP)
    # That the cluster evicts a pod whose volume is over its limit.
    namespace.apply(_over_its_limit(cluster))
    command = ("python3", "-c", WRITER, str(LOG_SECONDS), str(LOG_LINES))
    begun = time.monotonic()
    namespace.kubectl("exec", "p", "--container=engine", "--", *command, seconds=LOG_SECONDS + 600)
    took = time.monotonic() - begun
    namespace.wait("eviction of the other", lambda: _reason(namespace, "over") == "Evicted", 120)
    # kubelet looks every ten seconds.
    time.sleep(15)
    assert _reason(namespace, "p") == ""
    left_alone(namespace, "p")
    assert (namespace.get("pods", "p") or {})["status"]["phase"] == "Running"
    volume = next(each for each in injected_volumes(namespace) if each["name"] == "dsobs-logs")
    assert volume["emptyDir"]["sizeLimit"] == "256Mi"
    uid = (namespace.get("pods", "p") or {})["metadata"]["uid"]
    folder = cluster.folder / "kubelet/pods" / uid / "volumes/kubernetes.io~empty-dir/dsobs-logs"
    kept = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert 20 * MI < kept < 128 * MI
    return f"engine's log: {2 * LOG_LINES:,} lines or more in {took:.0f} s, {kept / MI:.0f} MiB kept of 256"


def injected_volumes(namespace: Namespace) -> list[dict[str, Any]]:
    return list((namespace.get("pods", "p") or {})["spec"]["volumes"])


def _over_its_limit(cluster: Cluster) -> dict[str, Any]:
    words = "dd if=/dev/zero of=/full/file bs=1M count=8; sleep 1000"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "over"},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "full", "emptyDir": {"sizeLimit": "1Mi"}}],
            "containers": [
                {
                    "name": "full",
                    "image": cluster.busybox.name,
                    "command": ["sh", "-c", words],
                    "volumeMounts": [{"name": "full", "mountPath": "/full"}],
                }
            ],
        },
    }


def _reason(namespace: Namespace, name: str) -> str:
    return str((namespace.get("pods", name) or {"status": {}})["status"].get("reason", ""))
