"""Files beside a file that were it, or came between it and its successor: found after rotations that nobody watched."""

import asyncio
import contextlib
import gzip
import os
import resource
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from dsobs.logs.checkpoint import Checkpoint
from dsobs.logs.identity import stem
from dsobs.logs.tail import FileId, Tail, file_id


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
    # Kubernetes and logrotate compress what they have rotated.
    for path, status in folders.rotated(kept.path, compressed=True):
        if status.st_mtime_ns >= kept.modified and kept.size > kept.acknowledged:
            with contextlib.suppress(OSError):
                # To unpack a large one takes seconds.
                unpacked = await asyncio.to_thread(open_compressed, path, max_line_bytes)
                if (tail := _if_of(unpacked, kept)) is not None:
                    return tail
    return None


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


def raise_file_limit() -> None:
    """Each watched file is kept open: as many as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
