"""What the engine writes: read at once, passed on, kept, and dropped and counted where a reader is stuck."""

# pathlib and what it imports are 1 MiB of memory beside every engine, so paths are strings here.
# ruff: noqa: PTH100, PTH105

import collections
import os
import select
import threading
from collections.abc import Callable

QUEUE_BYTES = 1 << 20
RING_LINES = 2000
RING_BYTES = 512 * 1024
RING_LINE_BYTES = 8 * 1024
LINE_BYTES = 64 * 1024
"""An unfinished line longer than this is passed on in parts to the ring and the log file."""


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


def write_all(fd: int, data: bytes) -> None:
    """Writes all of it, however long that takes."""
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
        self.path = os.path.abspath(path)
        self._max_bytes = max_bytes
        self._fd = self._open()

    def write(self, data: bytes) -> None:
        """Appends; OSError as the disk gives it."""
        while data:
            room = self._max_bytes - os.fstat(self._fd).st_size
            end = len(data) if len(data) <= room else data.find(b"\n", max(room, 0)) + 1 or len(data)
            write_all(self._fd, data[:end])
            data = data[end:]
            if os.fstat(self._fd).st_size >= self._max_bytes:
                os.replace(self.path, f"{self.path}.1")
                os.close(self._fd)
                self._fd = self._open()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


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
