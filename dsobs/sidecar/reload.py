"""When settings are read again: on a signal, on a request, and when one of their files changes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeAlias

log = logging.getLogger(__name__)

State: TypeAlias = tuple[int, int, int, int] | None
"""What tells that a file is another or has changed: device, inode, time and size; None where it is missing."""


def states(paths: Iterable[Path]) -> dict[Path, State]:
    """Of these files as they are now.

    Links are followed: a ConfigMap's files change by a link that is put in another's place (`..data`).
    """
    found: dict[Path, State] = {}
    for path in paths:
        try:
            state = path.stat()
        except OSError:
            found[path] = None
        else:
            found[path] = (state.st_dev, state.st_ino, state.st_mtime_ns, state.st_size)
    return found


class FileWatch:
    """Notices that files have changed, once they no longer do: one that is being written is not read."""

    def __init__(self, paths: Callable[[], Iterable[Path]]) -> None:
        """`paths` is asked anew each time: other settings name other files."""
        self._paths = paths
        self._used = self._last = states(paths())

    def changed(self) -> bool:
        """Whether they differ from what was read, and are the same as at the last look."""
        now = states(self._paths())
        settled, self._last = now == self._last, now
        return settled and any(self._used.setdefault(path, state) != state for path, state in now.items())

    def look(self) -> dict[Path, State]:
        """Before they are read: for `used`."""
        return states(self._paths())

    def used(self, before: dict[Path, State]) -> None:
        """They were read, with whatever result."""
        self._used = dict(before)


async def follow_files(watch: FileWatch, interval: float, reload: Callable[[], Awaitable[object]]) -> None:
    """Looks each `interval` seconds until cancelled; 0: never."""
    loop = asyncio.get_running_loop()
    due = loop.time() + interval
    while interval > 0:
        await asyncio.sleep(max(due - loop.time(), 0.0))
        due = max(due + interval, loop.time())
        if await asyncio.to_thread(watch.changed):
            log.info("files of the settings have changed")
            await reload()
