"""A real `dsobs supervise` in a folder of its own, over shell scripts as engines."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dsobs.supervisor import processes

ROOT = Path(__file__).parents[2]


class Supervised:
    """Starts and ends a supervisor. After `end` nothing of it lives."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "s.sock"
        self.output = folder / "output"
        self.process: subprocess.Popen[bytes] | None = None
        self._known: dict[int, int] = {}

    def start(self, *command: str, options: tuple[str, ...] = (), **popen: Any) -> None:
        """Starts `dsobs supervise OPTIONS -- COMMAND` and waits for its socket."""
        words = [sys.executable, "-m", "dsobs.supervisor", "--socket", str(self.socket), *options, "--", *command]
        with self.output.open("ab") as output:
            streams = {"stdout": output, "stderr": output, **popen}
            self.process = subprocess.Popen(words, cwd=ROOT, **streams)
        self.wait(lambda: self.phase() not in (None, "starting") or self.ended())

    def script(self, text: str, *options: str) -> None:
        """The same with a shell script as engine."""
        self.start("/bin/sh", "-c", text, options=options)

    def ask(self, **request: Any) -> dict[str, Any]:
        """One question to the control socket, and its answer."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(self.socket))
            client.sendall(json.dumps({"version": 1, **request}).encode() + b"\n")
            with client.makefile("rb") as file:
                answer: dict[str, Any] = json.loads(file.readline())
                return answer

    def status(self) -> dict[str, Any]:
        """What the supervisor tells now."""
        status: dict[str, Any] = self.ask(op="status")["status"]
        self.living()
        return status

    def phase(self) -> str | None:
        """The phase, None while the socket is not there."""
        try:
            return str(self.status()["phase"])
        except OSError:
            return None

    def last_state(self) -> dict[str, Any]:
        """The status that lies beside the socket."""
        state: dict[str, Any] = json.loads(Path(f"{self.socket}.state").read_bytes())["status"]
        return state

    def move_to_another_boot(self) -> None:
        """Has the state be one that was left before the machine was started anew."""
        state = Path(f"{self.socket}.state")
        state.write_text(state.read_text().replace('"boot_id": "', '"boot_id": "other-'))

    def ended(self) -> bool:
        """The supervisor has ended."""
        return self.process is not None and self.process.poll() is not None

    def living(self) -> set[int]:
        """Pids of the engine's processes that live, those too that were seen before."""
        table = processes.process_table()
        if self.process is not None:
            below = processes.descendants(table, self.process.pid)
            self._known |= {each.pid: each.start_ticks for each in below}
        return {
            pid
            for pid, ticks in self._known.items()
            if pid in table and table[pid].start_ticks == ticks and table[pid].state != "Z"
        }

    def wait(self, condition: Any, deadline: float = 90.0) -> None:
        """Until `condition()` holds."""
        end = time.monotonic() + deadline
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"not within {deadline} s: {self.output.read_text()}")
            # A process is waited for; there is nothing to be told by.
            signal.sigtimedwait([], 0.01)

    def wait_for_line(self, line: str, times: int = 1) -> None:
        """Until the engine wrote `line`, as log_tail gives it."""
        self.wait(lambda: self.ask(op="log_tail", lines=100)["lines"].count(line) >= times)

    def signal(self, signo: int) -> None:
        """To the supervisor itself."""
        assert self.process is not None
        self.process.send_signal(signo)

    def exit_code(self) -> int:
        """Waits for the supervisor's end."""
        assert self.process is not None
        return self.process.wait(90)

    async def ends(self) -> int:
        """The same, without holding the loop."""
        return await asyncio.to_thread(self.exit_code)

    def end(self) -> None:
        """Ends what is left, hard."""
        left = self.living()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(90)
        for pid in left | self.living():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait(lambda: not self.living())
