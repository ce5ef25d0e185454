"""The lanes in which `make test-real` runs its tests side by side, a process each.

A test says its lane where it says that it is real: `pytest.mark.real("vllm")`; tests/conftest.py refuses one without.
Inside a lane one test follows another: two of a lane never disturb each other.
"""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

ROOT = Path(__file__).parents[2]
LANES = {"vllm": 0, "seconds": 0, "kubernetes": 0, "cluster": 0, "servers": 10, "faults": 10}
"""Name → niceness. vllm: what starts a vLLM, which takes all processors for a minute; the last of it in a cluster.
seconds: what measures how fast dsobs is beside the simulator, and mostly waits. kubernetes: scenes of a cluster, which
mostly wait too. cluster: what needs one and goes step by step, packaging above all; it has a second cluster. servers
and faults hold nobody to a time and take what the others leave: Elasticsearch, Prometheus and Alertmanager; and faults
at random for minutes, then what is counted or rendered rather than waited for."""
AFTER = {"cluster": "seconds"}
"""Lane → the one that has to end before it begins: two clusters are not started beside what measures seconds."""
PYTEST = (
    f"--rootdir={ROOT}",
    f"--config-file={ROOT}/pyproject.toml",
    "-o",
    "addopts=",
    "--strict-markers",
    "--import-mode=importlib",
    "-m",
    "real",
    "-v",
    "--durations=25",
)


def lane_of(item: pytest.Item) -> str | None:
    """The lane that a real test is of: what the mark nearest to it says; None where that is none that there is."""
    mark = item.get_closest_marker("real")
    return mark.args[0] if mark is not None and len(mark.args) == 1 and mark.args[0] in LANES else None


def misplaced(items: Iterable[pytest.Item]) -> list[str]:
    """What is wrong with the marks of these tests."""
    found = []
    for item in items:
        if item.get_closest_marker("real") is None:
            continue
        if lane_of(item) is None:
            found.append(f"{item.nodeid}: mark it pytest.mark.real(LANE) with one of {', '.join(LANES)}")
        elif item.path not in files_with_real_tests():
            found.append(f"{item.nodeid}: its own file has to say mark.real(LANE), that is how it is found")
    return found


@functools.cache
def files_with_real_tests() -> frozenset[Path]:
    """Those that mark a test so."""
    return frozenset(path for path in (ROOT / "tests").rglob("test_*.py") if "mark.real(" in path.read_text())


class NothingSkipped:
    """Turns a run with skipped or no tests into a failed one."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.skipped:
            print(f"\nskipped, and so failed: {', '.join(self.skipped)}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


class OneLane:
    """Runs the tests of a lane, and tells of each at once: a line of JSON with `test`, `outcome` and `seconds`."""

    def __init__(self, name: str, told: IO[str] | None = None) -> None:
        self.name = name
        self._told = told
        self._seconds: Counter[str] = Counter()
        self._outcome: dict[str, str] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        others = [item for item in items if lane_of(item) != self.name]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if lane_of(item) == self.name]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid
        self._seconds[test] += report.duration  # type: ignore[assignment]
        if report.outcome != "passed" or test not in self._outcome:
            self._outcome[test] = report.outcome
        if report.when == "teardown" and self._told is not None:
            line = {"test": test, "outcome": self._outcome[test], "seconds": self._seconds[test]}
            print(json.dumps(line), file=self._told, flush=True)


class _Running:
    """A lane's process; what it prints is kept in a file."""

    def __init__(self, name: str, niceness: int, paths: Sequence[str], output: IO[bytes]) -> None:
        self.name, self.output = name, output
        self.tests: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._begun = time.monotonic()
        read, write = os.pipe()
        words = (sys.executable, "-m", "tests.real", "--lane", name, "--tell", str(write), "-p", "no:cacheprovider")
        self.process = subprocess.Popen(
            ["nice", "-n", str(niceness), *words, *paths],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[write],
            start_new_session=True,
        )
        os.close(write)
        self._reader = threading.Thread(target=self._follow, args=(read,), daemon=True)
        self._reader.start()

    def _follow(self, read: int) -> None:
        with os.fdopen(read) as lines:
            for line in lines:
                told = json.loads(line)
                self.tests.append(told)
                print(f"{self.name:<10} {told['outcome']:<7} {told['seconds']:6.1f} s  {told['test']}", flush=True)

    def wait(self) -> None:
        """Until it has ended."""
        self.process.wait()
        # What it left behind may hold the pipe.
        self._reader.join(5.0)
        self.seconds = time.monotonic() - self._begun

    @property
    def failed(self) -> list[str]:
        """Tests that did not pass; a skipped one is among them."""
        return [told["test"] for told in self.tests if told["outcome"] != "passed"]

    def tell(self) -> None:
        """Its end; all that it printed, where it failed."""
        if self.process.returncode:
            self.output.seek(0)
            print(f"\n===== lane {self.name}, all that it said =====\n{self.output.read().decode(errors='replace')}")
        passed = len(self.tests) - len(self.failed)
        print(
            f"{self.name:<10} ended after {self.seconds:.0f} s with status {self.process.returncode}: "
            f"{passed} passed, {len(self.failed)} did not",
            flush=True,
        )


def run(lanes: Mapping[str, int], paths: Sequence[str]) -> int:
    """All lanes side by side; the exit status. An interrupt is passed on, and each lane ends what it has started."""
    begun = time.monotonic()
    running: list[_Running] = []
    ended = {name: threading.Event() for name in lanes}
    with contextlib.ExitStack() as stack, _interrupts(running) as interrupted:

        def follow(name: str, output: IO[bytes]) -> None:
            before = ended.get(AFTER.get(name, ""))
            if before is not None:
                before.wait()
            if not interrupted.is_set():
                lane = _Running(name, lanes[name], paths, output)
                running.append(lane)
                lane.wait()
                with _TELLING:
                    lane.tell()
            ended[name].set()

        following = [
            threading.Thread(target=follow, args=(name, stack.enter_context(tempfile.TemporaryFile())))
            for name in lanes
        ]
        for thread in following:
            thread.start()
        for thread in following:
            thread.join()
    slowest = sorted((told for lane in running for told in lane.tests), key=lambda told: -told["seconds"])
    print(
        "\nslowest: " + ", ".join(f"{told['test'].rpartition('::')[2]} {told['seconds']:.0f} s" for told in slowest[:8])
    )
    for lane in running:
        for test in lane.failed:
            print(f"FAILED {lane.name}: {test}")
        if lane.process.returncode and not lane.failed:
            print(f"FAILED {lane.name}: status {lane.process.returncode}")
    passed = sum(len(lane.tests) - len(lane.failed) for lane in running)
    print(f"{passed} passed in {time.monotonic() - begun:.0f} s")
    return int(len(running) < len(lanes) or any(lane.process.returncode for lane in running))


_TELLING = threading.Lock()


@contextlib.contextmanager
def _interrupts(running: list[_Running]) -> Iterator[threading.Event]:
    """While it lasts, SIGINT and SIGTERM become an interrupt of each lane, and set the event: none begins then."""
    interrupted = threading.Event()

    def interrupt(number: int, frame: object) -> None:
        interrupted.set()
        for lane in list(running):
            with contextlib.suppress(ProcessLookupError):
                lane.process.send_signal(signal.SIGINT)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
