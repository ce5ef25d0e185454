"""JSON lines on this machine: the default while no Elasticsearch is configured, and what an edge site keeps.

A record is one line, its document with `_index` and `_id` in front, so that it can be sent on later under the same id.
A batch is on disk when it is acknowledged. After a crash a batch may be there twice, under the same ids.
"""

import asyncio
import errno
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import orjson

from dsobs.logs.metrics import LOST
from dsobs.logs.sinks import Answer, SinkSettings, records_path

_ACTION = len(b'{"create":{')
_HEAD = b'{"_index":'
_TORN_BYTES = 8 * 1024 * 1024


class FileSink:
    """`NAME`, which is written to, and `NAME.1` to `NAME.N`, older ones; together no larger than was set."""

    def __init__(self, settings: SinkSettings) -> None:
        wanted = settings.logs.file
        self.path = records_path(settings.logs, settings.directory)
        self._most = wanted.max_bytes // wanted.files
        self._files = wanted.files
        self._counted_elsewhere = settings.logs.edge.enabled
        """Who forwards the files knows what was sent of them."""
        self._fd = -1
        self._lock = asyncio.Lock()

    async def send(self, index: str, body: Sequence[bytes], count: int) -> Answer:
        """Appends the records and waits until they are on disk."""
        del count
        async with self._lock:
            try:
                await asyncio.to_thread(self._append, sink_lines(index, body))
            except OSError as error:
                return Answer(None, detail=f"{self.path}: {error.strerror or error}")
        return Answer(200)

    def _append(self, lines: list[bytes]) -> None:
        while lines:
            fd = self._opened(len(lines[0]))
            size = os.fstat(fd).st_size
            ends = list(accumulate(map(len, lines), initial=size))
            fit = max(1, bisect_right(ends, self._most) - 1)
            try:
                view = memoryview(b"".join(lines[:fit]))
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise
            lines = lines[fit:]

    def _opened(self, more: int) -> int:
        """The descriptor to write to, with room for `more` bytes, unless that is more than a whole file."""
        if self._fd >= 0 and not self._is_there():
            # Somebody deleted it or put it elsewhere; what is written to it would be found by nobody.
            os.close(self._fd)
            self._fd = -1
        if self._fd < 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._check(fd)
                cut_torn_line(fd)
            except OSError:
                os.close(fd)
                raise
            self._fd = fd
        size = os.fstat(self._fd).st_size
        if size and size + more > self._most:
            os.close(self._fd)
            self._fd = -1
            self._rotate()
            return self._opened(more)
        return self._fd

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), self.path.stat())
        except FileNotFoundError:
            return False

    def _check(self, fd: int) -> None:
        """OSError where it is a file of another kind, such as a log that was named by mistake."""
        head = os.pread(fd, len(_HEAD), 0)
        if not _HEAD.startswith(head):
            raise OSError(errno.EINVAL, "it holds other things than records; give another file", str(self.path))

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _rotate(self) -> None:
        oldest = self._numbered(self._files - 1)
        if oldest.exists():
            if not self._counted_elsewhere:
                LOST.labels("file_sink_full").inc(oldest.stat().st_size)
            oldest.unlink()
        for number in range(self._files - 2, 0, -1):
            if self._numbered(number).exists():
                self._numbered(number).rename(self._numbered(number + 1))
        self.path.rename(self._numbered(1))

    async def close(self) -> None:
        """Closes the file; legal twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sink_lines(index: str, body: Sequence[bytes]) -> list[bytes]:
    """A line a record, with its line feed."""
    head = _HEAD + orjson.dumps(index) + b","
    lines = b"".join(body).split(b"\n")
    return [
        b"%b%b,%b\n" % (head, action[_ACTION:-2], document[1:])
        for action, document in zip(lines[0:-1:2], lines[1:-1:2], strict=True)
    ]


def cut_torn_line(fd: int) -> None:
    """A crash in the middle of a write leaves half a line, of what was not acknowledged: it is sent again. OSError."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        tail = os.pread(fd, _TORN_BYTES, max(0, size - _TORN_BYTES))
        os.ftruncate(fd, size - len(tail) + tail.rfind(b"\n") + 1)
