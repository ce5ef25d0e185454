"""One dsobs to a state folder: two would page twice and restart twice, each with a ledger that the other fills."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

LOCK_FILE = "lock"


class FolderInUseError(Exception):
    """Another dsobs works on the folder; the message names both and what to do."""


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Holds the folder while the context lasts; FolderInUseError at once if somebody else does.

    The lock (flock(2)) is the kernel's: it ends with the process that holds it, however that ends. A folder that can't
    be written to or locked is not held: nothing is kept in it, so there is nothing to keep apart.
    """
    descriptor = _open(folder / LOCK_FILE)
    if descriptor is None:
        yield
        return
    try:
        _take(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        # What this means for the state is said where the state is opened.
        log.debug("no lock on the state folder: %s", error)
        return None


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 300, 0).decode(errors="replace").strip() or "a process that has not said its pid"
        raise FolderInUseError(
            f"the state folder {folder} is in use by another dsobs: {holder}; end that one, or give this one a folder "
            "of its own (state.directory)"
        ) from None
    except OSError as error:
        log.warning(
            "the state folder %s can't be locked, so a second dsobs on it would not be noticed: %s", folder, error
        )
        return
    # Only for the message above: it may not fit on a full disk.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
