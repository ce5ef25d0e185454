"""Files beside a file that were it, or came between it and its successor: found after rotations that nobody watched."""

import asyncio
import contextlib
import gzip
import logging
import os
import resource
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from dsobs.logs.checkpoint import Checkpoint
from dsobs.logs.identity import Fingerprint, fingerprint, stem
from dsobs.logs.metrics import LOST
from dsobs.logs.tail import FileId, Tail, file_id

log = logging.getLogger(__name__)


def open_tail(path: Path, max_line_bytes: int) -> Tail | None:
    """A reader of the regular file at `path`; None where there is none or none of that kind. OSError: not readable."""
    try:
        # O_NONBLOCK: a pipe of that name must not hold the loop.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        return None
    return Tail(fd, path, max_line_bytes=max_line_bytes)


def open_compressed(path: Path, max_line_bytes: int) -> Tail | None:
    """A reader of what the gzip file at `path` holds, unpacked into a file without a name; OSError.

    None where it is no whole gzip file: it is being written, and will be there at the next start.
    """
    with tempfile.TemporaryFile() as unpacked:
        try:
            with gzip.open(path) as packed:
                shutil.copyfileobj(packed, unpacked, 1024 * 1024)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return None
        unpacked.flush()
        return Tail(os.dup(unpacked.fileno()), path, max_line_bytes=max_line_bytes)


class Folders:
    """What stands in folders, by the names that files had before they were rotated; each is read once.

    To be made anew for each search: it knows nothing of what comes later.
    """

    def __init__(self) -> None:
        self._read: dict[Path, dict[str, list[tuple[Path, os.stat_result]]]] = {}

    def rotated(self, path: Path, *, compressed: bool = False) -> list[tuple[Path, os.stat_result]]:
        """Regular files in the folder of `path` that have its stem, it itself among them; that end in .gz or not."""
        folder = path.parent
        if folder not in self._read:
            self._read[folder] = {}
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        if entry.is_file():
                            found = folder / entry.name
                            self._read[folder].setdefault(stem(found), []).append((found, entry.stat()))
        return [one for one in self._read[folder].get(stem(path), []) if (one[0].suffix == ".gz") == compressed]


def is_of(tail: Tail, kept: Checkpoint) -> bool:
    """Whether the file is the generation that `kept` is of, whatever its name and inode. OSError."""
    return (
        tail.identify()
        and tail.fingerprint == kept.fingerprint
        and tail.size >= kept.acknowledged
        and tail.mark_at(kept.acknowledged) == kept.mark
    )


async def find_moved(
    kept: Checkpoint, taken: Callable[[FileId], bool], max_line_bytes: int, folders: Folders
) -> Tail | None:
    """The file that `kept` is of, under another name in its folder; None where there is none."""
    candidates = [(path, status) for path, status in folders.rotated(kept.path) if not taken(file_id(status))]
    # Its own inode first; a copy (copytruncate) has another.
    candidates.sort(key=lambda one: file_id(one[1]) != (kept.device, kept.inode))
    for path, _ in candidates:
        with contextlib.suppress(OSError):
            if (tail := _if_of(open_tail(path, max_line_bytes), kept)) is not None:
                return tail
    # Kubernetes and logrotate compress what they have rotated, with what was written after the last look at it.
    for path, status in folders.rotated(kept.path, compressed=True):
        if status.st_mtime_ns >= kept.modified and await asyncio.to_thread(_begins_as, path, kept.fingerprint):
            with contextlib.suppress(OSError):
                if (tail := _if_of(await _unpacked(path, max_line_bytes), kept)) is not None:
                    return tail
    return None


def _begins_as(path: Path, known: Fingerprint) -> bool:
    """Whether the gzip file begins with the line that `known` is of."""
    try:
        with gzip.open(path) as packed:
            head = packed.read(known.length)
    except (OSError, EOFError, zlib.error):
        return False
    return len(head) == known.length and fingerprint(head, complete=True) == known


async def _unpacked(path: Path, max_line_bytes: int) -> Tail | None:
    """As `open_compressed`, in a thread, for a large one takes seconds; OSError, which is told."""
    try:
        return await asyncio.to_thread(open_compressed, path, max_line_bytes)
    except OSError as error:
        log.error("%s can't be unpacked into %s: %s", path, tempfile.gettempdir(), error.strerror or error)
        raise


def _if_of(tail: Tail | None, kept: Checkpoint) -> Tail | None:
    """`tail` if it is of `kept`, else it is closed."""
    if tail is None or is_of(tail, kept):
        return tail
    tail.close()
    return None


def find_between(
    path: Path, modified: int, taken: Callable[[FileId], bool], max_line_bytes: int, folders: Folders
) -> Iterable[Tail]:
    """Rotated files of the stem of `path` that were written to after `modified` (nanoseconds), oldest first.

    They came and went while nobody looked. `path` itself is not among them.
    """
    between = [
        (status.st_mtime_ns, found)
        for found, status in folders.rotated(path)
        if found != path and status.st_mtime_ns >= modified and not taken(file_id(status))
    ]
    for _, found in sorted(between):
        with contextlib.suppress(OSError):
            tail = open_tail(found, max_line_bytes)
            if tail is not None:
                yield tail


async def find_compressed_between(
    path: Path, modified: int, but: Path | None, max_line_bytes: int, max_bytes: int, folders: Folders
) -> list[tuple[int, Tail]]:
    """(time of modification in nanoseconds, reader) of what came and went too, and was compressed since; without `but`.

    What they hold unpacked is `max_bytes` together at most; what is beyond counts as lost.
    """
    there = {found for found, _ in folders.rotated(path)}
    found = []
    held = 0
    for packed, status in sorted(folders.rotated(path, compressed=True), key=lambda one: one[1].st_mtime_ns):
        # One that is being compressed is there twice.
        if packed == but or status.st_mtime_ns < modified or packed.with_suffix("") in there:
            continue
        with contextlib.suppress(OSError):
            size = await asyncio.to_thread(_unpacked_bytes, packed)
            if held + size > max_bytes:
                LOST.labels("rotated_away").inc(size)
                log.error("%s is passed over, with %d bytes unpacked: logs.max_held_bytes", packed, size)
                continue
            tail = await _unpacked(packed, max_line_bytes)
            if tail is not None:
                held += tail.size
                found.append((status.st_mtime_ns, tail))
    return found


def _unpacked_bytes(path: Path) -> int:
    """As its last bytes say (RFC 1952, ISIZE): modulo 4 GiB, of the last member where there are several. OSError."""
    with path.open("rb") as packed:
        packed.seek(-4, os.SEEK_END)
        return int.from_bytes(packed.read(4), "little")


def raise_file_limit() -> None:
    """Each watched file is kept open: as many as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
