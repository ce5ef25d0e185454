"""From a fault to the end of the engine's container, in a real cluster: `python -m tests.benchmarks.kubernetes [RUNS]`.

Pods of the simulator with dsobs beside them, without any right, at the default settings but for the random wait and
what would end a series of runs (cooldown, budget). Several pods go at once. Times are real ones, in seconds.
"""

import json
import signal
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime

from tests.real.kubernetes import Cluster, Namespace
from tests.real.kubernetes.serving import CORE, clients, gone, pod, said, watched

RUNS = 20
PODS = 4
LOAD_SECONDS = 5
SETTINGS = {"remediation.cooldown": "0", "remediation.max_restarts_24h": "1000"}


@dataclass(frozen=True, slots=True)
class Times:
    """Of one run, seconds."""

    stop_to_killed: float
    """The core stopped → the container's first process has ended."""
    request_to_killed: float
    """The same from the restart's beginning in dsobs."""
    killed_to_ready: float
    """LOAD_SECONDS of them are the engine's own."""


def main(runs: int) -> int:
    """The exit status; prints one JSON object."""
    with Cluster(crash_loop_seconds=1) as cluster, cluster.namespace() as namespace:
        names = [f"vllm-{number}" for number in range(PODS)]
        for name in names:
            engine = ("--load-seconds", str(LOAD_SECONDS))
            namespace.apply(pod(cluster, name=name, settings=SETTINGS, engine=engine))
        left = iter(range(runs))
        turn = threading.Lock()

        def series(name: str) -> list[Times]:
            watched(namespace, name)
            found: list[Times] = []
            with clients(cluster, namespace, name, number=2):
                while True:
                    with turn:
                        if next(left, None) is None:
                            return found
                    found.append(_run(cluster, namespace, name, len(found) + 1))

        with ThreadPoolExecutor(PODS) as threads:
            times = [each for found in threads.map(series, names) for each in found]
    told: dict[str, object] = {"runs": len(times), "pods_at_a_time": PODS}
    for field in Times.__dataclass_fields__:
        values = sorted(asdict(each)[field] for each in times)
        told[field] = {
            "least": round(values[0], 1),
            "median": round(statistics.median(values), 1),
            "most": round(values[-1], 1),
            "all": [round(value, 1) for value in values],
        }
    print(json.dumps(told))
    return 0


def _run(cluster: Cluster, namespace: Namespace, name: str, restarts: int) -> Times:
    time.sleep(8)
    processes = cluster.pids(namespace.status(name, "engine")["containerID"])
    namespace.signal(name, "engine", signal.SIGSTOP, command=CORE)
    stopped = time.time()
    killed = gone(processes, 180)
    namespace.wait("the new container", lambda: namespace.restarts(name, "engine") == restarts)
    namespace.wait_ready(name, seconds=120)
    ready = time.time()
    namespace.wait("verification", lambda: len(_moments(namespace, name, "verified")) == restarts, 120)
    begun = _moments(namespace, name, "restart-begun")[-1]
    return Times(killed - stopped, killed - begun, ready - killed)


def _moments(namespace: Namespace, name: str, action: str) -> list[float]:
    lines = [line for line in said(namespace, name) if line.get("event.action") == action]
    return [datetime.fromisoformat(line["@timestamp"]).timestamp() for line in lines]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else RUNS))
