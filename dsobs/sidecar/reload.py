"""When settings are read again: on a signal, on a request, and when one of their files changes."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from dsobs.config import Config, Loaded, ReloadError
from dsobs.model.clock import Clock
from dsobs.sidecar.settings import Plan, changed, reread_plan
from dsobs.telemetry import RELOAD_OK, RELOAD_TIME

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


class Reloader:
    """Reads the settings again, one time at once, and tells what came of it."""

    def __init__(
        self,
        reread: Callable[[], Loaded] | None,
        running: Callable[[], Config],
        paths: Callable[[], Iterable[Path]],
        use: Callable[[Plan], Awaitable[None]],
        clock: Clock,
    ) -> None:
        """`reread` gives the settings anew (ConfigError where they can't be used), `running` those in use, `paths` the
        files that both come from. `use` puts a plan to use, all or nothing, and raises ReloadError where it can't.
        """
        self.error = ""
        """Why the last reading was not used; empty where it was."""
        self._reread = reread
        self._running = running
        self._use = use
        self._clock = clock
        self._files = FileWatch(paths)
        self._one_at_a_time = asyncio.Lock()
        RELOAD_OK.set(1)
        RELOAD_TIME.set(clock.now())

    async def attempt(self) -> None:
        """`reload`; what goes wrong is in the log, on /metrics and in the status."""
        with contextlib.suppress(ReloadError):
            await self.reload()

    async def reload(self) -> dict[str, list[str]]:
        """Dotted names of settings that `changed`, and of those that `need_restart`; ReloadError where the settings
        can't be used, and what runs goes on as it was."""
        async with self._one_at_a_time:
            try:
                return await self._reload()
            except ReloadError as error:
                RELOAD_OK.set(0)
                self.error = str(error)
                log.error("the settings were not read again, those of before hold: %s", error)
                raise

    async def _reload(self) -> dict[str, list[str]]:
        if self._reread is None:
            raise ReloadError("this dsobs was started without a way to read its settings again")
        before = self._running()
        seen = await asyncio.to_thread(self._files.look)
        try:
            plan = await asyncio.to_thread(reread_plan, self._reread, before)
            await self._use(plan)
        finally:
            self._files.used(seen)
        RELOAD_OK.set(1)
        RELOAD_TIME.set(self._clock.now())
        self.error = ""
        names = list(changed(before, plan.config))
        log.info("settings and rules were read again; changed: %s", ", ".join(names) or "no setting")
        if plan.left:
            log.warning("changed, but only used after a restart of dsobs: %s", ", ".join(plan.left))
        return {"changed": names, "need_restart": list(plan.left)}

    async def follow_files(self, interval: float) -> None:
        """Reloads when a file has changed, looking each `interval` seconds, until cancelled; 0: never."""
        loop = asyncio.get_running_loop()
        due = loop.time() + interval
        while interval > 0:
            await asyncio.sleep(max(due - loop.time(), 0.0))
            due = max(due + interval, loop.time())
            if await asyncio.to_thread(self._files.changed):
                log.info("files of the settings have changed")
                await self.attempt()
