"""What comes on stdin, put into files that are shipped as any others: so that it outlives a server that is away.

The files (segments) stand in a folder of the state directory. Each run begins one of its own, each has a name that no
other ever had, and what is acknowledged is deleted. While they are as large together as they may be, or the disk is
full, stdin is not read, and whoever writes there waits.
"""

import contextlib
import logging
import os
import secrets
import select
import threading
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "stdin"
"""Below the state directory."""
SEGMENTS = 16
"""So many make up what they may hold together."""
_SUFFIX = ".lines"
_BLOCK_BYTES = 256 * 1024
_LEFT_BYTES = 1024 * 1024
"""What is still read at a stop, if it is there: the largest pipe that an ordinary user can have."""
RETRY_SECONDS = 1.0
"""Between two attempts to write, and between two syncs."""


class Spool:
    """A reader of a descriptor, in a thread of its own: `start` once, then until its end or `stop`."""

    def __init__(self, fd: int, folder: Path, max_bytes: int) -> None:
        """`folder` is made by `start`; `fd` is not closed."""
        self.folder = folder
        self.trouble = ""
        """Why nothing can be written now."""
        self._fd, self._max_bytes = fd, max_bytes
        self._segment_bytes = max(1, max_bytes // SEGMENTS)
        self._held: dict[Path, int] = {}
        """Segment → its bytes, oldest first."""
        self._current: Path | None = None
        """The one that is written to; None: no more is written."""
        self._file = -1
        self._roll = False
        """The segment is full, and ends with a line."""
        self._unsynced = False
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="stdin", daemon=True)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    # For the shipper.

    def start(self) -> None:
        """Takes up what an earlier run left, and begins to read; OSError where the folder can't be used."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        left = sorted(path for path in self.folder.iterdir() if path.suffix == _SUFFIX)
        self._held = {path: path.stat().st_size for path in left}
        self._number = int(left[-1].name.partition("-")[0]) if left else 0
        self._begin()
        self._thread.start()

    @property
    def ended(self) -> bool:
        """Nothing will be written to any segment any more."""
        return self._current is None

    @property
    def empty(self) -> bool:
        """Every segment was released."""
        return not self._held

    @property
    def held_bytes(self) -> int:
        """Of all segments that are there."""
        with self._changed:
            return sum(self._held.values())

    def is_complete(self, path: Path) -> bool:
        """Nothing will be written to this segment any more."""
        return path != self._current

    def release(self, path: Path) -> None:
        """Deletes a segment whose lines are all acknowledged, and that is known on disk."""
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        with self._changed:
            self._held.pop(path, None)
            self._changed.notify_all()

    def stop(self) -> None:
        """Reads what the pipe holds at this moment, and ends; legal twice, and before `start`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")
        if self._thread.ident is not None:
            self._thread.join()

    def close(self) -> None:
        """After `stop`: gives the descriptors of its own back."""
        os.close(self._wake_read)
        os.close(self._wake_write)

    # The thread.

    def _run(self) -> None:
        try:
            self._read_all()
        finally:
            self._sync()
            os.close(self._file)
            self._current = None

    def _read_all(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            # Before it is read: what a killed process has in hand is lost.
            found = poll.poll(RETRY_SECONDS * 1000) if self._wait_for_room() else []
            if self._stopping:
                self._read_left()
                return
            if not found:
                self._sync()
                continue
            try:
                data = os.read(self._fd, _BLOCK_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                log.error("stdin can't be read: %s", error.strerror)
                return
            if not data or not self._put(data):
                return

    def _wait_for_room(self) -> bool:
        """Whether there is room now, or was within a while."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._stopping or sum(self._held.values()) < self._max_bytes, RETRY_SECONDS
            )

    def _read_left(self) -> None:
        """What was written to the pipe before the stop would be lost with it."""
        left = _LEFT_BYTES
        while left > 0 and select.select([self._fd], [], [], 0)[0]:
            try:
                data = os.read(self._fd, min(left, _BLOCK_BYTES))
            except OSError:
                return
            if not data or not self._put(data):
                return
            left -= len(data)

    def _put(self, data: bytes) -> bool:
        """Writes all of it, however long that takes; False where a stop came between."""
        while data:
            try:
                written = self._write(data)
            except OSError as error:
                if not self.trouble:
                    log.error("%s: %s; stdin is not read until there is room", self.folder, error.strerror)
                self.trouble = f"{self.folder}: {error.strerror}; stdin is not read until there is room"
                with self._changed:
                    if self._stopping:
                        log.error("%d bytes that were read from stdin could not be kept", len(data))
                        return False
                    self._changed.wait(RETRY_SECONDS)
                continue
            self.trouble = ""
            data = data[written:]
        return True

    def _write(self, data: bytes) -> int:
        """As much of it as the segment takes, and at most to the end of the line where that is full; OSError."""
        if self._roll:
            self._begin_next()
        assert self._current is not None
        size = self._held[self._current]
        end = len(data)
        if size >= self._segment_bytes:
            # A line that never ends must not keep the segment from being shipped and deleted.
            end = data.find(b"\n") + 1 or (end if size < 2 * self._segment_bytes else 1)
        written = os.write(self._file, data[:end])
        self._unsynced = True
        with self._changed:
            self._held[self._current] += written
        self._roll = written == end and size >= self._segment_bytes and (end < len(data) or data.endswith(b"\n"))
        return written

    def _begin_next(self) -> None:
        self._sync()
        before = self._file
        self._begin()
        os.close(before)
        self._roll = False

    def _begin(self) -> None:
        self._number += 1
        # The random part: a folder that was emptied begins with 1 again.
        path = self.folder / f"{self._number:08d}-{secrets.token_hex(8)}{_SUFFIX}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with self._changed:
            self._held[path] = 0
        self._current = path

    def _sync(self) -> None:
        """What is in a segment is nowhere else."""
        if self._unsynced:
            with contextlib.suppress(OSError):
                os.fdatasync(self._file)
            self._unsynced = False
