"""Starts a server process for tests and drills, waits until it is ready, finds its engine cores, ends all of it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

READY_LINE = "Application startup complete."
_KEPT_LINES = 2000
_CONNECT_SECONDS = 0.05


class StartFailed(Exception):
    """The server ended or stayed silent; the message has the end of its log."""


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert isinstance(port, int)
    return port


class ServerProcess:
    """One server, a vLLM or what looks like it, in a session of its own. Blocking; a thread reads its output.

    `stop` ends what is left of the session too: vLLM's workers outlive a crash.
    """

    def __init__(self, command: Sequence[str], port: int, environment: Mapping[str, str] | None = None) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._changed = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._thread = threading.Thread(target=self._read, name=f"output of {self.pid}", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """The API server's process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.poll()

    @property
    def core_pids(self) -> list[int]:
        """Its engine cores, by rank; found by their titles among its direct children."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [pid for pid in map(int, children) if "EngineCore" in _command_line(pid)]

    def wait_ready(self, seconds: float) -> Self:
        """Returns when the server accepts requests. Raises StartFailed."""
        deadline = time.monotonic() + seconds
        if not self.wait_for_line(READY_LINE, seconds) or not self._wait_connect(deadline):
            state = "is not ready" if self.exit_code is None else f"ended with {self.exit_code}"
            tail = "\n".join(list(self.lines)[-30:])
            self.stop()
            raise StartFailed(f"the server {state} after {seconds:.0f} s; its last lines:\n{tail}")
        return self

    def _wait_connect(self, deadline: float) -> bool:
        # uvicorn says that it is ready a moment before it listens.
        while self.exit_code is None and time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
            except OSError:
                with self._changed:
                    self._changed.wait(_CONNECT_SECONDS)
            else:
                return True
        return False

    def wait_for_line(self, text: str, seconds: float) -> bool:
        """Whether a line with `text` comes (or has come) within `seconds`, and before the output ends."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not any(text in line for line in self.lines):
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    return False
                self._changed.wait(left)
        return True

    def wait_exit(self, seconds: float) -> int | None:
        """The API server's exit code, None where it still runs after `seconds`."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_seconds: float = 5.0) -> None:
        """SIGTERM, then SIGKILL for all that is left of its session; legal twice."""
        if self.exit_code is None:
            self._process.terminate()
            self.wait_exit(grace_seconds)
        for pid in _session(self.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        self._thread.join(grace_seconds)
        if self._process.stdout is not None and not self._thread.is_alive():
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class SimulatorProcess(ServerProcess):
    """`python -m dsobs.simulator` with these options, ready when the constructor returns (unless `wait` is false)."""

    model = "deepseek-r1-7b"

    def __init__(self, *options: str, port: int | None = None, wait: bool = True) -> None:
        port = free_port() if port is None else port
        command = (sys.executable, "-m", "dsobs.simulator", "--port", str(port), "--exit-with-parent", *options)
        super().__init__(command, port)
        if wait:
            self.wait_ready(30.0)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _session(leader: int) -> list[int]:
    """Processes of a session, the leader among them while it lives (proc(5): field 6 of stat)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(entry.name))
    return found
