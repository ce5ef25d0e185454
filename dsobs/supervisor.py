"""`dsobs supervise -- COMMAND`: owns an engine process and outlives dsobs. Standard library only, one file.

It starts COMMAND in a session of its own, is the subreaper of everything below it (and works as PID 1), forwards
signals and restarts the engine by policy. When the main process ends, whatever is left of it is killed, so that no
orphan keeps the GPU's memory, and nothing is started before the last of it is gone.

Output: the engine writes to pipes which are read at once, so that it never stands still for a slow terminal. What is
read goes on unchanged to the supervisor's own stdout and stderr (one pipe for both where they are the same file, which
keeps their order), is kept in a bounded ring of lines, and is optionally written to a file. Each of these has a queue
of `QUEUE_BYTES`; what a stuck reader has no room for is dropped and counted in `dropped_bytes` of the status: losing
lines of a log is the lesser evil beside an engine that stands still.

Control: a UNIX socket (mode 0600), one JSON object a line each way, all with `"version": 1`:

- `{"version": 1, "op": "status"}` answers `{"version": 1, "ok": true, "status": {…}}`, see `Supervisor.status`.
- `{"version": 1, "op": "log_tail", "lines": 100}` answers `{…, "lines": ["…"]}`.
- `{"version": 1, "op": "restart", "id": "…", "grace_seconds": 10, "expect_started_at": 1.5}` answers
  `{…, "started_at": …}` once the new engine runs. The same id again gets the same answer and does nothing.
- Errors: `{"version": 1, "ok": false, "error": KIND, "detail": "…"}`; KIND is `bad_request` or `refused` (surely
  nothing was done) or `failed` (the engine was stopped, and did not start again).

Beside SOCKET lie SOCKET.lock (one supervisor a socket) and SOCKET.state: the status at the last change, as it is after
the supervisor has ended, with what the next one needs: the session of the engine, starts of the last 24 h, request ids.
"""

# pathlib and what it imports are 1 MiB of memory beside every engine, so paths are strings here.
# ruff: noqa: PTH103, PTH105, PTH108, PTH119, PTH120, PTH123, PTH208

import argparse
import collections
import contextlib
import ctypes
import fcntl
import json
import math
import os
import select
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

VERSION = 1
DEFAULT_SOCKET = "/run/dsobs/supervise.sock"
QUEUE_BYTES = 1 << 20
RING_LINES = 2000
RING_BYTES = 512 * 1024
RING_LINE_BYTES = 8 * 1024
LINE_BYTES = 64 * 1024
"""An unfinished line longer than this is passed on in parts to the ring and the log file."""
REQUEST_BYTES = 64 * 1024
UNREAD_BYTES = 2 << 20
"""A client that asks on without reading that many bytes of answers is cut off."""
CONNECTIONS = 16
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

_PR_SET_CHILD_SUBREAPER = 36
_SIGNALFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_SIGINFO = struct.Struct("=IiiII108x")  # struct signalfd_siginfo, signalfd(2): signo, errno, code, pid, uid


class Process(NamedTuple):
    """One line of the process table, from /proc/PID/stat (proc(5))."""

    pid: int
    parent: int
    session: int
    state: str
    start_ticks: int
    """Clock ticks from boot to its start; with the pid it names a process for good."""
    cpu_ticks: int
    """User and system time of all its threads, without its children."""


def process(pid: int, proc: str = "/proc") -> Process | None:
    """The process `pid`, None if there is none (any more)."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may hold any character, parentheses too.
    field = text[text.rfind(b")") + 2 :].split()
    return Process(
        pid=pid,
        state=field[0].decode(),
        parent=int(field[1]),
        session=int(field[3]),
        cpu_ticks=int(field[11]) + int(field[12]),
        start_ticks=int(field[19]),
    )


def process_table(proc: str = "/proc") -> dict[int, Process]:
    """All processes that can be seen, by pid."""
    found = (process(int(name), proc) for name in os.listdir(proc) if name.isdigit())
    return {each.pid: each for each in found if each is not None}


def descendants(table: dict[int, Process], root: int) -> list[Process]:
    """All processes below `root`, parents before children; without `root` itself."""
    children = collections.defaultdict(list)
    for each in table.values():
        children[each.parent].append(each)
    found: list[Process] = []
    pending = [root]
    while pending:
        below = children.pop(pending.pop(), [])
        found += below
        pending += [each.pid for each in below]
    return found


class CpuTime:
    """CPU seconds of a changing set of processes; never goes back when one of them ends."""

    def __init__(self) -> None:
        self._ended_ticks = 0
        self._ticks: dict[tuple[int, int], int] = {}
        self._ticks_per_second = os.sysconf("SC_CLK_TCK")

    def add(self, processes: Iterable[Process]) -> float:
        """Takes in the processes there are now and returns the seconds of all that ever were."""
        now = {(each.pid, each.start_ticks): each.cpu_ticks for each in processes}
        self._ended_ticks += sum(ticks for key, ticks in self._ticks.items() if key not in now)
        self._ticks = {key: max(ticks, self._ticks.get(key, 0)) for key, ticks in now.items()}
        return self.seconds

    @property
    def seconds(self) -> float:
        """As last seen."""
        return (self._ended_ticks + sum(self._ticks.values())) / self._ticks_per_second


def boot_id(proc: str = "/proc") -> str:
    """What tells this boot of the machine from others."""
    with open(f"{proc}/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def command_name(command: list[str]) -> str:
    """What a command is called: its words before the first option. Options may hold secrets, so none is shown."""
    words = [os.path.basename(command[0])] if command else []
    rest = command[1:]
    if rest[:1] == ["-m"]:
        words += rest[:2]
        rest = rest[2:]
    for word in rest[:2]:
        if word.startswith("-"):
            break
        words.append(word)
    return " ".join(words)[:200]


class Output:
    """One place that output goes to: a bounded queue, and a thread that may be stuck for as long as it likes."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.dropped_bytes = 0
        self._write = write
        self._queue: collections.deque[bytes] = collections.deque()
        self._queued = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, data: bytes) -> None:
        """Queues `data`, or drops and counts it where there is no room. Never blocks."""
        with self._changed:
            if self._queued + len(data) > QUEUE_BYTES:
                self.dropped_bytes += len(data)
                return
            self._queue.append(data)
            self._queued += len(data)
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Waits until everything is written, `seconds` at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queued, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                data = b"".join(self._queue)
                self._queue.clear()
            lost = 0
            try:
                self._write(data)
            except OSError:
                # The reader has gone, or the disk is full: it may be back for what comes next.
                lost = len(data)
            with self._changed:
                self.dropped_bytes += lost
                self._queued -= len(data)
                self._changed.notify_all()


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            # Whoever shares this descriptor made it non-blocking; it is not ours to change back.
            select.select([], [fd], [])


class LogFile:
    """A file of at most about `max_bytes` and its predecessor (`.1`), rotated by rename between two lines."""

    def __init__(self, path: str, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._fd = self._open()

    def write(self, data: bytes) -> None:
        """Appends; OSError as the disk gives it."""
        while data:
            room = self._max_bytes - os.fstat(self._fd).st_size
            end = len(data) if len(data) <= room else data.find(b"\n", max(room, 0)) + 1 or len(data)
            _write_all(self._fd, data[:end])
            data = data[end:]
            if os.fstat(self._fd).st_size >= self._max_bytes:
                os.replace(self._path, f"{self._path}.1")
                os.close(self._fd)
                self._fd = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


class Ring:
    """The last lines of the output, bounded in number and bytes."""

    def __init__(self) -> None:
        self._lines: collections.deque[bytes] = collections.deque()
        self._bytes = 0

    def put(self, line: bytes) -> None:
        """Keeps `line` (without its end), cut to `RING_LINE_BYTES`."""
        line = line[:RING_LINE_BYTES]
        self._lines.append(line)
        self._bytes += len(line)
        while len(self._lines) > RING_LINES or self._bytes > RING_BYTES:
            self._bytes -= len(self._lines.popleft())

    def tail(self, lines: int) -> list[str]:
        """The last `lines` lines, oldest first; bytes that are no UTF-8 are replaced."""
        return [line.decode(errors="replace") for line in list(self._lines)[-lines:]] if lines > 0 else []


class Stream:
    """One pipe from the engine: passed on as it comes, and cut into lines."""

    def __init__(self, output: Output, line: Callable[[bytes], None]) -> None:
        self.read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self.write_end: int | None = write_end
        os.set_blocking(self.read_end, False)
        self._output = output
        self._line = line
        self._partial = b""

    def read(self) -> bool:
        """Takes what is there; False at the end of the pipe."""
        try:
            data = os.read(self.read_end, 1 << 16)
        except BlockingIOError:
            return True
        if not data:
            return False
        self._output.put(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self._partial) > LINE_BYTES:
            self._line(self._partial)
            self._partial = b""
        return True

    def drain(self) -> None:
        """Reads what is left, without waiting for more."""
        while select.select([self.read_end], [], [], 0)[0] and self.read():
            pass
        if self._partial:
            self._line(self._partial)
            self._partial = b""

    def close_write_end(self) -> None:
        """To be called when the engine has its copy."""
        if self.write_end is not None:
            os.close(self.write_end)
            self.write_end = None

    def close(self) -> None:
        """Gives the pipe back."""
        self.close_write_end()
        os.close(self.read_end)


class Refusal(Exception):
    """A request that is not carried out; `kind` is the answer's `error`."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind

    def answer(self) -> dict[str, Any]:
        """As it is sent."""
        return {"ok": False, "error": self.kind, "detail": str(self)}


class Connection:
    """One client of the control socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""
        self.to_send = b""


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
        self._socket_path = socket_path
        self._policy = restart
        self._stop_grace = stop_grace
        self._ring = Ring()
        self._outputs: dict[str, Output] = {"stdout": Output(lambda data: _write_all(1, data))}
        self._one_stream = os.path.sameopenfile(1, 2)
        self._outputs["stderr"] = (
            self._outputs["stdout"] if self._one_stream else Output(lambda data: _write_all(2, data))
        )
        self._log = Output(log_file.write) if log_file is not None else None
        if self._log is not None:
            self._outputs["log_file"] = self._log
        self._streams: list[Stream] = []
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._lock: int | None = None
        self._listener: socket.socket | None = None
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
        self._waiting: list[tuple[Connection, str]] = []

    def run(self) -> int:
        """Supervises to the end; returns the exit code: the engine's, 128 + n if signal n ended it, or 125 to 127."""
        try:
            self._open()
        except OSError as error:
            self._say(f"cannot supervise: {error}; choose another place with --socket PATH")
            self._close()
            return COULD_NOT_SUPERVISE
        try:
            _give_back_memory()
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
        """
        if self._phase in ("running", "stopping", "clearing"):
            self._look()
        oldest = time.time() - HISTORY_SECONDS
        return {
            "supervisor_pid": os.getpid(),
            "command": command_name(self._command),
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
            "dropped_bytes": {name: output.dropped_bytes for name, output in self._outputs.items()},
        }

    # Set-up and end

    def _open(self) -> None:
        _prctl_subreaper()
        self._signals = _signalfd(self._handled)
        self._selector.register(self._signals, selectors.EVENT_READ, lambda _: self._on_signals())

        os.makedirs(os.path.dirname(self._socket_path) or ".", mode=0o755, exist_ok=True)
        self._lock = os.open(f"{self._socket_path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            self._lock = None
            raise OSError(f"another supervisor owns {self._socket_path}") from error
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._socket_path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(self._socket_path)
        except OSError as error:
            listener.close()
            raise OSError(f"{self._socket_path}: {error}") from error
        finally:
            os.umask(mask)
        self._listener = listener
        listener.listen(CONNECTIONS)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, lambda _: self._on_connect())

    def _close(self) -> None:
        for connection in list(self._connections):
            self._hang_up(connection)
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._socket_path)
        for stream in self._streams:
            stream.close()
        self._streams = []
        self._selector.close()
        if self._signals is not None:
            os.close(self._signals)
        if self._lock is not None:
            os.close(self._lock)
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
        state = {
            "version": VERSION,
            "boot_id": boot_id(),
            "start_ticks": self._start_ticks,
            "requests": list(self._requests.items()),
            "status": self.status(),
        }
        temporary = f"{self._socket_path}.state.tmp"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump(state, file)
            os.replace(temporary, f"{self._socket_path}.state")
        except OSError as error:
            self._say(f"cannot write the state: {error}")

    def _clear_earlier_engine(self) -> bool:
        """Takes over an earlier supervisor's history and ends the engine it may have left; False: asked to stop."""
        path = f"{self._socket_path}.state"
        try:
            with open(path, "rb") as file:
                state = json.load(file)
            if state["version"] != VERSION:
                raise ValueError(f"version {state['version']}")
            status = state["status"]
            history = [float(start) for start in status["history"]]
            count, pid, ticks = int(status["restart_count"]), status["pid"], state["start_ticks"]
            ended, requests, boot = status["phase"] == "done", dict(state["requests"]), state["boot_id"]
            planned_stop, ended_at = status["planned_stop"], status["ended_at"]
        except FileNotFoundError:
            return True
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._say(f"the state of an earlier supervisor is unreadable and set aside: {error}")
            os.replace(path, f"{path}.unreadable")
            return True
        self._history = history
        self._restart_count = count
        self._requests.update(requests)
        if boot != boot_id():
            return True
        if ended:
            # Still true of the engine that ended last, for a dsobs that has not asked meanwhile.
            self._planned_stop, self._ended_at = planned_stop, ended_at
            return True
        asked = False
        deadline = time.monotonic() + self._stop_grace
        while left := _left_of_session(pid, ticks):
            if not asked:
                asked = True
                self._say(f"stopping what an earlier supervisor left running: {', '.join(str(e.pid) for e in left)}")
                _kill([each for each in left if each.pid == pid] or left, signal.SIGTERM)
            if time.monotonic() >= deadline or all(each.pid != pid for each in left):
                _kill(left, signal.SIGKILL)
            for key, events in self._selector.select(0.05):
                key.data(events)
            if self._final:
                return False
        return True

    # Signals

    def _on_signals(self) -> None:
        assert self._signals is not None
        try:
            data = os.read(self._signals, 64 * _SIGINFO.size)
        except BlockingIOError:
            return
        for signo, _, _, pid, uid in _SIGINFO.iter_unpack(data):
            if signo == signal.SIGCHLD:
                self._reap()
            else:
                self._forward(signo, f"{signal.Signals(signo).name} from {_sender(pid, uid)}")

    def _forward(self, signo: int, what: str) -> None:
        now = time.monotonic()
        running = self._phase in ("running", "stopping")
        planned = f"{what}, forwarded by dsobs supervise"
        self._forwarded = (signo, now, planned)
        if signo in STOP_SIGNALS and not self._final:
            self._say(f"{what}: stopping the engine, at most {self._stop_grace:g} s")
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
            _send(self._pid, signo)

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
        self._say(f"the engine (pid {self._pid}) has ended {how}")

    def _look(self) -> None:
        """Finds all processes of the engine, and their CPU time."""
        table = process_table()
        found = {each.pid: each for each in descendants(table, os.getpid())}
        found |= {each.pid: each for each in table.values() if each.session == self._pid}
        self._remaining = list(found.values())
        self._cpu.add(self._remaining)

    def _kill_all(self) -> None:
        self._look()
        _kill(self._remaining, signal.SIGKILL)

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
        self._say(f"starting the engine again in {self._backoff:g} s")
        self._backoff = min(2 * self._backoff, BACKOFF_MOST)
        self._save()

    # Control

    def _on_connect(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            # The client has gone again, or no descriptor is free; the next one may have more luck.
            return
        sock.setblocking(False)
        connection = Connection(sock)
        self._connections.append(connection)
        self._selector.register(sock, selectors.EVENT_READ, self._talker(connection))
        if len(self._connections) > CONNECTIONS:
            waiting = [each for each, _ in self._waiting]
            self._hang_up(next((each for each in self._connections if each not in waiting), connection))

    def _talker(self, connection: Connection) -> Callable[[int], None]:
        def talk(events: int) -> None:
            try:
                if events & selectors.EVENT_WRITE:
                    self._send(connection)
                if events & selectors.EVENT_READ:
                    self._receive(connection)
            except OSError:
                self._hang_up(connection)

        return talk

    def _hang_up(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)
            self._waiting = [each for each in self._waiting if each[0] is not connection]
            self._selector.unregister(connection.sock)
            connection.sock.close()

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(REQUEST_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._hang_up(connection)
            return
        *lines, connection.received = (connection.received + data).split(b"\n")
        if len(connection.received) > REQUEST_BYTES:
            self._hang_up(connection)
            return
        for line in lines:
            if len(connection.to_send) > UNREAD_BYTES:
                self._hang_up(connection)
                return
            try:
                answer = self._request_answer(connection, line)
            except Refusal as refusal:
                answer = refusal.answer()
            if answer is not None:
                self._reply(connection, answer)

    def _reply(self, connection: Connection, answer: dict[str, Any]) -> None:
        connection.to_send += json.dumps({"version": VERSION, **answer}).encode() + b"\n"
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        with contextlib.suppress(BlockingIOError):
            connection.to_send = connection.to_send[connection.sock.send(connection.to_send) :]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.to_send else 0)
        if connection in self._connections:
            self._selector.modify(connection.sock, events, self._talker(connection))

    def _request_answer(self, connection: Connection, line: bytes) -> dict[str, Any] | None:
        """The answer, or None where it comes later."""
        try:
            request = json.loads(line)
        except ValueError as error:
            raise Refusal("bad_request", f"no JSON: {error}") from error
        if not isinstance(request, dict) or request.get("version") != VERSION:
            raise Refusal("bad_request", f"this supervisor speaks version {VERSION}")
        match request.get("op"):
            case "status":
                return {"ok": True, "status": self.status()}
            case "log_tail":
                lines = request.get("lines")
                if not isinstance(lines, int):
                    raise Refusal("bad_request", "lines must be a whole number")
                return {"ok": True, "lines": self._ring.tail(lines)}
            case "restart":
                return self._restart(connection, request)
            case other:
                raise Refusal("bad_request", f"no operation {other!r}; there are status, log_tail, restart")

    def _restart(self, connection: Connection, request: dict[str, Any]) -> dict[str, Any] | None:
        match request:
            case {"id": str(key), "grace_seconds": int() | float() as grace} if 0 <= grace < math.inf and key:
                expected = request.get("expect_started_at")
            case _:
                raise Refusal("bad_request", "a restart has an id and grace_seconds, a number >= 0")
        if expected is not None and not isinstance(expected, int | float):
            raise Refusal("bad_request", "expect_started_at must be a number or null")
        if key in self._requests:
            if key == self._request:
                self._waiting.append((connection, key))
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
        self._waiting.append((connection, key))
        self._say(f"restart requested, {grace:g} s of grace")
        if self._phase == "running":
            assert self._pid is not None
            self._phase = "stopping"
            self._due = now + grace
            _send(self._pid, signal.SIGTERM)
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
        waiting, self._waiting = self._waiting, []
        for connection, _ in waiting:
            try:
                self._reply(connection, answer)
            except OSError:
                self._hang_up(connection)


def _give_back_memory() -> None:
    """What compiling and starting took: 1.8 MiB. Only glibc has the call."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _prctl_subreaper() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _signalfd(signals: set[signal.Signals]) -> int:
    """A descriptor that says who sent each signal, which a handler does not learn."""
    mask = sum(1 << (signo - 1) for signo in signals).to_bytes(8, sys.byteorder).ljust(128, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.signalfd(-1, mask, _SIGNALFD_FLAGS))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd


def _sender(pid: int, uid: int) -> str:
    if pid == 0:
        # The kernel itself (a terminal's ^C), or a process outside the container.
        return "the terminal or from outside the container"
    try:
        with open(f"/proc/{pid}/comm") as file:
            name = file.read().strip()
    except OSError:
        name = "ended"
    return f"pid {pid} ({name}), uid {uid}"


def _send(pid: int, signo: int) -> None:
    try:
        os.kill(pid, signo)
    except ProcessLookupError:
        # Ended between the look and the signal, which is what is waited for.
        return


def _kill(processes: Iterable[Process], signo: int) -> None:
    for each in processes:
        _send(each.pid, signo)


def _left_of_session(leader: int | None, start_ticks: int) -> list[Process]:
    """What lives of the session that `leader` (started at `start_ticks`) made, with all descendants."""
    if leader is None:
        return []
    table = process_table()
    if leader in table and table[leader].start_ticks != start_ticks:
        # The pid is another's by now; it could not be while the session lived.
        return []
    members = [e for e in table.values() if e.session == leader and e.start_ticks >= start_ticks and e.state != "Z"]
    found = {each.pid: each for each in members}
    for each in members:
        found |= {below.pid: below for below in descendants(table, each.pid)}
    return list(found.values())


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dsobs supervise",
        usage="dsobs supervise [options] -- COMMAND …",
        description="Runs an inference server and restarts it when it ends, or when dsobs asks for it.",
        allow_abbrev=False,
    )
    parser.add_argument("--socket", default=DEFAULT_SOCKET, help="where dsobs finds it (default %(default)s)")
    parser.add_argument(
        "--restart",
        choices=("always", "on-failure", "never"),
        default="always",
        help="when the engine ends by itself (default %(default)s; some crashed engines exit with 0)",
    )
    parser.add_argument(
        "--stop-grace",
        type=_seconds,
        default=30.0,
        metavar="S",
        help="seconds from a forwarded SIGTERM to SIGKILL (default %(default)g); inf: no SIGKILL",
    )
    parser.add_argument("--log-file", metavar="F", help="write the output to F as well")
    parser.add_argument(
        "--log-max-bytes",
        type=_size,
        default=64 << 20,
        metavar="N",
        help="rotate F to F.1 at this size (default %(default)d)",
    )
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds >= 0:
        raise ValueError(text)
    return seconds


def _size(text: str) -> int:
    size = int(text)
    if size < 1:
        raise ValueError(text)
    return size


def supervise(argv: list[str]) -> int:
    """`dsobs supervise`: runs to the engine's end and returns its exit code (128 + n for signal n).

    125: could not supervise; 126, 127: COMMAND can't be executed, or isn't there. SystemExit(2) on wrong options.
    """
    parser = _options()
    cut = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:cut])
    command = argv[cut + 1 :]
    if not command:
        parser.error("the command is missing: dsobs supervise [options] -- COMMAND …")
    # With one of 0 to 2 closed, a pipe would take its place.
    while (fd := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(fd)
    try:
        log_file = LogFile(options.log_file, options.log_max_bytes) if options.log_file else None
    except OSError as error:
        sys.stderr.write(f"dsobs supervise: {options.log_file}: {error.strerror}\n")
        return COULD_NOT_SUPERVISE
    return Supervisor(
        command,
        socket_path=options.socket,
        restart=options.restart,
        stop_grace=options.stop_grace,
        log_file=log_file,
    ).run()


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1:]))
