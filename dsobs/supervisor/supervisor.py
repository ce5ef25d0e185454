"""One engine and its successors: started, watched, ended, cleared away, started again."""

import collections
import math
import os
import selectors
import signal
import time
from collections.abc import Callable
from typing import Any

from dsobs.supervisor.control import Control, Refusal
from dsobs.supervisor.linux import SIGINFO, become_subreaper, give_back_memory, open_signals
from dsobs.supervisor.output import LogFile, Output, Ring, Stream, write_all
from dsobs.supervisor.processes import (
    CpuTime,
    Process,
    command_name,
    descendants,
    kill,
    left_of_session,
    process,
    process_table,
    send,
    sender,
)
from dsobs.supervisor.state import StateFile

REQUESTS_REMEMBERED = 64
HISTORY_SECONDS = 24 * 3600.0
HISTORY_STARTS = 2000
BACKOFF_FIRST = 1.0
BACKOFF_MOST = 60.0
BACKOFF_FORGOTTEN_AFTER = 600.0
CLEAR_DEADLINE = 10.0
"""At the very end, how long processes that SIGKILL does not end (stuck in a driver) are waited for."""
SIGNAL_EFFECT_SECONDS = 10.0
"""An end by a forwarded signal that is no stop signal is ascribed to it for so long."""
SAME_START_SECONDS = 0.05

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
FORWARDED = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT)

COULD_NOT_SUPERVISE = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127


class Supervisor:
    """One engine and its successors. `run` returns when the last one has ended and none is to follow."""

    def __init__(
        self, command: list[str], *, socket_path: str, restart: str, stop_grace: float, log_file: LogFile | None
    ) -> None:
        # Before any thread is made, which would otherwise take the signals. Under nohup SIGHUP is ignored, here and in
        # the engine, and stays so. SIGCHLD inherited as ignored would have the kernel reap, and lose the exit code.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._handled = {each for each in FORWARDED if signal.getsignal(each) is not signal.SIG_IGN} | {signal.SIGCHLD}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handled)
        self._command = command
        self._name = command_name(command)
        self._policy = restart
        self._stop_grace = stop_grace
        self._ring = Ring()
        self._outputs: dict[str, Output] = {"stdout": Output(lambda data: write_all(1, data))}
        self._one_stream = os.path.sameopenfile(1, 2)
        self._outputs["stderr"] = (
            self._outputs["stdout"] if self._one_stream else Output(lambda data: write_all(2, data))
        )
        self._log = Output(log_file.write) if log_file is not None else None
        self._log_path = log_file.path if log_file is not None else None
        if self._log is not None:
            self._outputs["log_file"] = self._log
        self._streams: list[Stream] = []
        self._selector = selectors.DefaultSelector()
        self._control = Control(socket_path, self._selector, self._request_answer)
        self._state = StateFile(socket_path)
        self._signals: int | None = None

        self._phase = "starting"
        """starting, running, stopping (asked to end), clearing (its main process ended), waiting (to start), done."""
        self._pid: int | None = None
        self._start_ticks = 0
        self._started_at: float | None = None
        self._started = 0.0
        self._ended_at: float | None = None
        self._exit_code: int | None = None
        self._exit_signal: int | None = None
        self._planned_stop: str | None = None
        self._restart_count = 0
        self._history: list[float] = []
        self._cpu = CpuTime()
        self._remaining: list[Process] = []
        self._started_once = False
        self._final = False
        """A stop signal came: no engine is started any more."""
        self._forwarded: tuple[int, float, str] | None = None
        self._due = math.inf
        """Monotonic time of the phase's next step: SIGKILL, another look at what is left, the next start."""
        self._clear_deadline = math.inf
        self._clear_pause = 0.0
        self._backoff = BACKOFF_FIRST
        self._request: str | None = None
        """The restart that is under way."""
        self._requests: collections.OrderedDict[str, dict[str, Any] | None] = collections.OrderedDict()
        """Answers by request id; None: it was begun and its end is not known (yet)."""

    def run(self) -> int:
        """Supervises to the end; returns the exit code: the engine's, 128 + n if signal n ended it, or 125 to 127."""
        try:
            self._open()
        except OSError as error:
            self._say(f"cannot supervise: {error}; choose another place with --socket PATH")
            self._close()
            return COULD_NOT_SUPERVISE
        try:
            give_back_memory()
            if self._clear_earlier_engine():
                self._start(time.monotonic())
            while self._phase != "done":
                timeout = None if self._due == math.inf else max(0.0, self._due - time.monotonic())
                for key, events in self._selector.select(timeout):
                    key.data(events)
                self._advance(time.monotonic())
            self._save()
        finally:
            self._close()
        if self._exit_code is not None:
            return self._exit_code
        # Asked to stop before the first engine was started.
        return 128 + self._forwarded[0] if self._forwarded is not None else COULD_NOT_SUPERVISE

    def status(self) -> dict[str, Any]:
        """What is known now; times in seconds since the Unix epoch, None where there is nothing to know.

        `started_at`, `pid`: of the present engine or the last one. `exit_code` (128 + n for signal n), `signal`,
        `ended_at`: of the one that ended last. `planned_stop`: who was seen to stop the present engine, or the one that
        ended last. `history`: starts of the last 24 h. `cpu_seconds`: of all processes of the engine, ended ones too.
        `log_file`: what the output is written to as well, its path in full.
        """
        if self._phase in ("running", "stopping", "clearing"):
            self._look()
        oldest = time.time() - HISTORY_SECONDS
        return {
            "supervisor_pid": os.getpid(),
            "command": self._name,
            "phase": self._phase,
            "running": self._phase in ("running", "stopping"),
            "pid": self._pid,
            "started_at": self._started_at,
            "ended_at": self._ended_at,
            "exit_code": self._exit_code,
            "signal": self._exit_signal,
            "planned_stop": self._planned_stop,
            "restart_count": self._restart_count,
            "history": [start for start in self._history if start >= oldest],
            "cpu_seconds": self._cpu.seconds,
            "pids": [each.pid for each in self._remaining],
            "log_file": self._log_path,
            "dropped_bytes": {name: output.dropped_bytes for name, output in self._outputs.items()},
        }

    # Set-up and end

    def _open(self) -> None:
        become_subreaper()
        self._signals = open_signals(self._handled)
        self._selector.register(self._signals, selectors.EVENT_READ, lambda _: self._on_signals())
        self._control.open()

    def _close(self) -> None:
        self._control.close()
        for stream in self._streams:
            stream.close()
        self._streams = []
        self._selector.close()
        if self._signals is not None:
            os.close(self._signals)
        self._control.unlock()
        for output in set(self._outputs.values()):
            output.flush(2.0)

    def _say(self, message: str) -> None:
        line = f"dsobs supervise: {message}".encode()
        self._outputs["stderr"].put(line + b"\n")
        self._line(line)

    def _line(self, line: bytes) -> None:
        self._ring.put(line)
        if self._log is not None:
            self._log.put(line + b"\n")

    def _save(self) -> None:
        try:
            self._state.save(self.status(), self._start_ticks, self._requests)
        except OSError as error:
            self._say(f"cannot write the state: {error}")

    def _clear_earlier_engine(self) -> bool:
        """Takes over an earlier supervisor's history and ends the engine it may have left; False: asked to stop."""
        try:
            earlier = self._state.load()
        except ValueError as error:
            self._say(f"the state of an earlier supervisor is unreadable and set aside: {error}")
            self._state.set_aside()
            return True
        if earlier is None:
            return True
        self._history = earlier.history
        self._restart_count = earlier.restart_count
        self._requests.update(earlier.requests)
        if not earlier.same_boot:
            return True
        if earlier.ended:
            # Still true of the engine that ended last, for a dsobs that has not asked meanwhile.
            self._planned_stop, self._ended_at = earlier.planned_stop, earlier.ended_at
            return True
        asked = False
        deadline = time.monotonic() + self._stop_grace
        while left := left_of_session(earlier.pid, earlier.start_ticks):
            if not asked:
                asked = True
                self._say(f"stopping what an earlier supervisor left running: {', '.join(str(e.pid) for e in left)}")
                kill([each for each in left if each.pid == earlier.pid] or left, signal.SIGTERM)
            if time.monotonic() >= deadline or all(each.pid != earlier.pid for each in left):
                kill(left, signal.SIGKILL)
            for key, events in self._selector.select(0.05):
                key.data(events)
            if self._final:
                return False
        return True

    # Signals

    def _on_signals(self) -> None:
        assert self._signals is not None
        try:
            data = os.read(self._signals, 64 * SIGINFO.size)
        except BlockingIOError:
            return
        for signo, _, _, pid, uid in SIGINFO.iter_unpack(data):
            if signo == signal.SIGCHLD:
                self._reap()
            else:
                self._forward(signo, f"{signal.Signals(signo).name} from {sender(pid, uid)}")

    def _forward(self, signo: int, what: str) -> None:
        now = time.monotonic()
        running = self._phase in ("running", "stopping")
        planned = f"{what}, forwarded by dsobs supervise"
        self._forwarded = (signo, now, planned)
        if signo in STOP_SIGNALS and not self._final:
            self._say(f"{what}: stopping {self._name}, at most {self._stop_grace:g} s")
            self._planned_stop = planned
            self._final = True
            if self._phase == "running":
                self._phase = "stopping"
                self._due = now + self._stop_grace
            elif self._phase == "clearing":
                self._clear_deadline = now + CLEAR_DEADLINE
            elif self._phase in ("waiting", "starting"):
                self._phase = "done"
            self._save()
        if running and self._pid is not None:
            # To the main process only: it knows in which order its own children end.
            send(self._pid, signo)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid and self._phase in ("running", "stopping"):
                self._on_end(os.waitstatus_to_exitcode(status))
            elif self._phase == "clearing":
                self._due = time.monotonic()

    # The engine

    def _start(self, now: float) -> None:
        self._streams = [Stream(self._outputs["stdout"], self._line)]
        if not self._one_stream:
            self._streams.append(Stream(self._outputs["stderr"], self._line))
        first, last = self._streams[0], self._streams[-1]
        assert first.write_end is not None
        assert last.write_end is not None
        self._started_at = time.time()
        self._started = now
        self._cpu = CpuTime()
        self._remaining = []
        try:
            self._pid = os.posix_spawnp(
                self._command[0],
                self._command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, first.write_end, 1), (os.POSIX_SPAWN_DUP2, last.write_end, 2)],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        except OSError as error:
            self._pid = None
            self._exit_code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            self._exit_signal = None
            self._ended_at = time.time()
            self._say(f"cannot start {self._command[0]}: {error.strerror}")
            self._answer({"ok": False, "error": "failed", "detail": f"cannot start: {error.strerror}"})
            self._next(now)
            return
        spawned = process(self._pid)
        self._start_ticks = spawned.start_ticks if spawned is not None else 0
        for stream in self._streams:
            stream.close_write_end()
            self._selector.register(stream.read_end, selectors.EVENT_READ, self._reader(stream))
        if self._history:
            self._restart_count += 1
        oldest = self._started_at - HISTORY_SECONDS
        recent = [start for start in self._history if start >= oldest]
        self._history = [*recent[-HISTORY_STARTS:], self._started_at]
        self._started_once = True
        self._phase = "running"
        self._due = math.inf
        self._answer({"ok": True, "started_at": self._started_at})
        self._save()

    def _reader(self, stream: Stream) -> Callable[[int], None]:
        def read(_events: int) -> None:
            if not stream.read():
                # Closed by the engine, which may well live on.
                self._selector.unregister(stream.read_end)

        return read

    def _on_end(self, code: int) -> None:
        now = time.monotonic()
        self._exit_signal = -code if code < 0 else None
        self._exit_code = 128 - code if code < 0 else code
        self._ended_at = time.time()
        if not self._final:
            self._planned_stop = None
            if self._forwarded is not None and self._request is None:
                signo, at, planned = self._forwarded
                if now - at <= SIGNAL_EFFECT_SECONDS and signo in (signal.SIGHUP, self._exit_signal):
                    self._planned_stop = planned
                    self._final = signo == signal.SIGHUP
        self._phase = "clearing"
        self._due = now
        self._clear_deadline = math.inf if self._goes_on() else now + CLEAR_DEADLINE
        self._clear_pause = 0.01
        self._save()
        how = f"by {signal.Signals(self._exit_signal).name}" if self._exit_signal else f"with exit code {code}"
        # What it wrote last comes before the word of its end.
        for stream in self._streams:
            stream.drain()
        self._say(f"{self._name} (pid {self._pid}) has ended {how}")

    def _look(self) -> None:
        """Finds all processes of the engine, and their CPU time."""
        table = process_table()
        found = {each.pid: each for each in descendants(table, os.getpid())}
        found |= {each.pid: each for each in table.values() if each.session == self._pid}
        self._remaining = list(found.values())
        self._cpu.add(self._remaining)

    def _kill_all(self) -> None:
        self._look()
        kill(self._remaining, signal.SIGKILL)

    def _advance(self, now: float) -> None:
        """Does what is due."""
        if now < self._due:
            return
        if self._phase == "stopping":
            self._kill_all()
            self._due = now + 0.2
        elif self._phase == "clearing":
            self._kill_all()
            self._reap()
            self._look()
            if not self._remaining:
                self._finish_streams()
                self._next(now)
            elif now >= self._clear_deadline:
                left = ", ".join(str(each.pid) for each in self._remaining)
                self._say(f"SIGKILL does not end {left}: leaving them behind")
                self._finish_streams()
                self._phase = "done"
            else:
                self._clear_pause = min(2 * self._clear_pause, 1.0)
                self._due = now + self._clear_pause
        elif self._phase == "waiting":
            self._start(now)

    def _finish_streams(self) -> None:
        for stream in self._streams:
            stream.drain()
            if stream.read_end in self._selector.get_map():
                self._selector.unregister(stream.read_end)
            stream.close()
        self._streams = []

    def _goes_on(self) -> bool:
        """Another engine is to follow the one that has ended."""
        if self._final or not self._started_once:
            return False
        by_policy = self._policy == "always" or (self._policy == "on-failure" and self._exit_code != 0)
        return by_policy or self._request is not None

    def _next(self, now: float) -> None:
        """Nothing of the engine is left: what comes now."""
        if self._streams:
            self._finish_streams()
        if not self._goes_on():
            self._answer({"ok": False, "error": "failed", "detail": "the engine was stopped for good meanwhile"})
            self._phase = "done"
            self._due = math.inf
            return
        self._phase = "waiting"
        if self._request is not None:
            self._due = now
            return
        if now - self._started >= BACKOFF_FORGOTTEN_AFTER:
            self._backoff = BACKOFF_FIRST
        self._due = now + self._backoff
        self._say(f"starting {self._name} again in {self._backoff:g} s")
        self._backoff = min(2 * self._backoff, BACKOFF_MOST)
        self._save()

    # Requests

    def _request_answer(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer, or None where it comes later."""
        match request.get("op"):
            case "status":
                return {"ok": True, "status": self.status()}
            case "log_tail":
                lines = request.get("lines")
                if not isinstance(lines, int):
                    raise Refusal("bad_request", "lines must be a whole number")
                return {"ok": True, "lines": self._ring.tail(lines)}
            case "restart":
                return self._restart(request)
            case other:
                raise Refusal("bad_request", f"no operation {other!r}; there are status, log_tail, restart")

    def _restart(self, request: dict[str, Any]) -> dict[str, Any] | None:
        match request:
            case {"id": str(key), "grace_seconds": int() | float() as grace} if 0 <= grace < math.inf and key:
                expected = request.get("expect_started_at")
            case _:
                raise Refusal("bad_request", "a restart has an id and grace_seconds, a number >= 0")
        if expected is not None and not isinstance(expected, int | float):
            raise Refusal("bad_request", "expect_started_at must be a number or null")
        if key in self._requests:
            if key == self._request:
                return None
            unknown = {
                "ok": False,
                "error": "failed",
                "detail": "begun under an earlier supervisor; the end is unknown",
            }
            return (self._requests[key] or unknown) | {"repeated": True}
        if self._final:
            raise Refusal("refused", "the engine is being stopped for good")
        if self._request is not None:
            raise Refusal("refused", "another restart is under way")
        if expected is not None and (self._started_at is None or abs(self._started_at - expected) > SAME_START_SECONDS):
            raise Refusal("refused", f"the engine did not start at {expected} but at {self._started_at}")
        now = time.monotonic()
        self._request = key
        self._requests[key] = None
        while len(self._requests) > REQUESTS_REMEMBERED:
            self._requests.popitem(last=False)
        self._say(f"restart requested, {grace:g} s of grace")
        if self._phase == "running":
            assert self._pid is not None
            self._phase = "stopping"
            self._due = now + grace
            send(self._pid, signal.SIGTERM)
        elif self._phase == "waiting":
            self._due = now
        # Before anything can be the outcome it is on record, so that a supervisor that follows does not repeat it.
        self._save()
        return None

    def _answer(self, answer: dict[str, Any]) -> None:
        """Ends the restart that is under way, if there is one."""
        if self._request is None:
            return
        key, self._request = self._request, None
        self._requests[key] = answer
        self._control.settle(answer)
