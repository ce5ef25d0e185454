"""One process ships with one state directory: a lock that the kernel lets go of however that process ends."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class LockedError(Exception):
    """Another process ships with this state directory; the message names it."""


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds the directory for this process; the kernel lets go of it when the process ends, however it ends."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "r+") as file:
        _lock(file, directory)
        yield


def owner(directory: Path) -> int | None:
    """Id of the process that ships with this directory now; None: nobody does."""
    try:
        with (directory / "lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read(20) or 0)
    except (OSError, ValueError):
        pass
    return None


def _lock(file: IO[str], directory: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = file.read(20).strip() or "unknown"
        raise LockedError(
            f"{directory} is in use by process {owner}; stop that one, or give another --state directory"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
