"""What the host gives the engine: shared memory, disk, and the memory and CPU of its cgroup (v1 and v2).

The cgroup and /dev/shm are the engine's, found through its process ids; where they can't be told to be its own they are
unknown, and dsobs's own are never taken for them. A file system may hang: a thread of its own reads, and what has not
come by its deadline is unknown.
"""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dsobs.config.models import Host as HostSettings
from dsobs.model.clock import Clock
from dsobs.model.observation import HostView, RuntimeView, Unknown
from dsobs.model.samples import Sample, labels

LOG = logging.getLogger(__name__)

DEADLINE_SECONDS = 2.0
STALE_SECONDS = 30.0
"""A view older than this, and than three intervals, gives no samples any more."""
NO_LIMIT = 1 << 60
"""cgroup v1 says a number near 2^63 where there is no limit."""

_HOST = (
    ("dsobs_host_shm_used_bytes", "shm_used_bytes"),
    ("dsobs_host_shm_size_bytes", "shm_size_bytes"),
)
_CONTAINER = (
    ("dsobs_container_memory_usage_bytes", "memory_usage_bytes"),
    ("dsobs_container_memory_working_set_bytes", "memory_working_set_bytes"),
    ("dsobs_container_memory_limit_bytes", "memory_limit_bytes"),
    ("dsobs_container_oom_kills_total", "oom_kills"),
    ("dsobs_container_cpu_pressure_waiting_seconds_total", "cpu_waiting_seconds"),
    ("dsobs_container_cpu_pressure_stalled_seconds_total", "cpu_stalled_seconds"),
    ("dsobs_container_cpu_throttled_seconds_total", "cpu_throttled_seconds"),
)


class HostCollector:
    """Reads when asked, `settings.interval` seconds apart at least; in between it gives the last view again.

    `state_folder`: its file system is watched besides `settings.mountpoints`. `root`: where /proc and /sys are; for
    tests.
    """

    def __init__(
        self,
        settings: HostSettings,
        state_folder: Path,
        clock: Clock,
        root: Path = Path("/"),
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self._settings = settings
        self._mountpoints = tuple(dict.fromkeys(path.absolute() for path in (state_folder, *settings.mountpoints)))
        self._clock = clock
        self._root = root
        self._deadline = deadline
        self._pending: asyncio.Future[HostView] | None = None
        self._latest: HostView | Unknown = Unknown("not read yet")
        self._asked_at = float("-inf")
        self._said: set[str] = set()

    async def read(self, runtime: RuntimeView | Unknown) -> HostView | Unknown:
        """What is known now of the engine that `runtime` tells of. Never raises; waits for the deadline at most. One
        call at a time."""
        if not self._settings.enabled:
            return Unknown("host.enabled is false")
        now = self._clock.now()
        if self._pending is None:
            if now - self._asked_at < self._settings.interval:
                return self._latest
            self._asked_at = now
            pid = runtime.pids[0] if isinstance(runtime, RuntimeView) and runtime.running and runtime.pids else None
            self._pending = self._ask(pid, now)
            await asyncio.wait({self._pending}, timeout=self._deadline)
        if not self._pending.done():
            self._latest = Unknown("a file system does not answer")
            self._say("host signals are unknown: a file system does not answer")
            return self._latest
        pending, self._pending = self._pending, None
        self._latest = pending.result()
        return self._latest

    def _ask(self, pid: int | None, now: float) -> asyncio.Future[HostView]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[HostView] = loop.create_future()

        def work() -> None:
            view = self._view(pid, now)
            # A loop that is closed waits for nothing any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, answer, view)

        # A daemon: a file system that hangs must not keep the process from ending.
        threading.Thread(target=work, name="dsobs-host", daemon=True).start()
        return answer

    def _view(self, pid: int | None, now: float) -> HostView:
        values: dict[str, Any] = {"filesystems": tuple(self._filesystems())}
        shm = self._shm(pid)
        if shm is not None:
            try:
                told = os.statvfs(shm)
                values["shm_size_bytes"] = told.f_blocks * told.f_frsize
                values["shm_used_bytes"] = (told.f_blocks - told.f_bfree) * told.f_frsize
            except OSError as error:
                self._say(f"shared memory is unknown: {shm}: {error.strerror}")
        if pid is not None and shares_cgroup(pid, os.getpid(), self._root):
            self._say(
                "memory and CPU of the engine's cgroup are unknown: dsobs runs in the same one; start one of them in a "
                "container, a service or a scope of its own"
            )
        elif pid is not None:
            values |= cgroup_values(pid, self._root)
        return HostView(at=now, **values)

    def _filesystems(self) -> Iterator[tuple[str, int, int]]:
        for path in self._mountpoints:
            try:
                told = os.statvfs(path)
            except OSError as error:
                self._say(f"disk space is unknown: {path}: {error.strerror}")
                continue
            # A squashfs or an image is full by nature, and nobody writes to what is mounted read-only.
            if told.f_flag & os.ST_RDONLY:
                continue
            yield str(path), told.f_bavail * told.f_frsize, told.f_blocks * told.f_frsize

    def _shm(self, pid: int | None) -> Path | None:
        """The engine's /dev/shm: the one that the settings name, else the one in its process's mount namespace."""
        if self._settings.shm is not None:
            return self._settings.shm
        if pid is None:
            return None
        path = self._root / "proc" / str(pid) / "root/dev/shm"
        try:
            return path if path.is_dir() else None
        except OSError:
            # Another user's process; the settings can name the place.
            return None

    def _say(self, text: str) -> None:
        """Each thing once."""
        if text not in self._said:
            self._said.add(text)
            LOG.warning("%s", text)


def _settle(answer: "asyncio.Future[HostView]", view: HostView) -> None:
    if not answer.done():
        answer.set_result(view)


def host_samples(view: HostView | Unknown, now: float, interval: float, runtime: str, name: str) -> list[Sample]:
    """Canonical `dsobs_host_*` samples and the cgroup's part of `dsobs_container_*`; none for what is unknown or
    old.
    """
    if isinstance(view, Unknown) or now - view.at > max(STALE_SECONDS, 3 * interval):
        return []
    out = []
    for signal, field in _HOST:
        value = getattr(view, field)
        if value is not None:
            out.append(Sample(labels(signal), float(value)))
    if view.shm_size_bytes and view.shm_used_bytes is not None:
        out.append(Sample(labels("dsobs_host_shm_used_ratio"), view.shm_used_bytes / view.shm_size_bytes))
    for mountpoint, avail, size in view.filesystems:
        out.append(Sample(labels("dsobs_host_filesystem_avail_bytes", mountpoint=mountpoint), float(avail)))
        out.append(Sample(labels("dsobs_host_filesystem_size_bytes", mountpoint=mountpoint), float(size)))
    for signal, field in _CONTAINER:
        value = getattr(view, field)
        if value is not None:
            out.append(Sample(labels(signal, runtime=runtime, name=name), float(value)))
    return out


def cgroup_values(pid: int, root: Path = Path("/")) -> dict[str, Any]:
    """Fields of `HostView` from the cgroup of process `pid`; those that can't be read are not there.

    Linux: Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, scheduler/sched-bwc.rst.
    """
    try:
        paths = _paths((root / "proc" / str(pid) / "cgroup").read_text())
    except OSError:
        return {}
    readers: Sequence[tuple[str, Callable[[Path, Path], dict[str, Any]]]]
    # A controller that is in v1 is not in v2, where both are mounted.
    readers = [("memory", _memory_v1), ("cpu", _cpu_v1)]
    found: dict[str, Any] = {}
    for controller, read in readers:
        if controller in paths:
            folder = _folder(pid, paths[controller], f"sys/fs/cgroup/{controller}", root)
            found |= read(*folder) if folder is not None else {}
    if "" in paths and "memory" not in paths:
        folder = _folder(pid, paths[""], "sys/fs/cgroup", root)
        found |= {**_memory_v2(*folder), **_cpu_v2(*folder)} if folder is not None else {}
    return {field: value for field, value in found.items() if value is not None}


def shares_cgroup(pid: int, other: int, root: Path = Path("/")) -> bool:
    """Whether what the cgroup of process `pid` uses, memory or CPU, is that of `other` too: it is in the same one or
    further down in it. False where it can't be told."""
    try:
        one, two = (_paths((root / "proc" / str(each) / "cgroup").read_text()) for each in (pid, other))
    except OSError:
        return False
    # Where v1 counts, the one tree of v2 beside it says nothing.
    counted: list[str] = [name for name in ("memory", "cpu") if name in one] or [""]
    return any(name in one and name in two and _is_within(two[name], one[name]) for name in counted)


def _is_within(path: str, top: str) -> bool:
    """From a cgroup namespace, what is above its own is written `/..`, and others beside it `/../other`."""
    parts = PurePosixPath(top).parts[1:]
    return set(parts) <= {".."} or PurePosixPath(path).parts[1 : len(parts) + 1] == parts


def _paths(text: str) -> dict[str, str]:
    """Controller → path, and "" → path in v2; of a /proc/PID/cgroup."""
    paths = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _folder(pid: int, path: str, mount: str, root: Path) -> tuple[Path, Path] | None:
    """The cgroup's folder and the top that is shown of its tree; None if neither we nor the process itself show it.

    From a container, another's cgroup is not under our /sys; it is under the process's own, if that can be looked into.
    """
    for top, inner in ((root / mount, path), (root / "proc" / str(pid) / "root" / mount, "/")):
        folder = top / inner.lstrip("/")
        if ".." in folder.parts:
            continue
        try:
            members = (folder / "cgroup.procs").read_text().split()
            # The whole machine's is no one's: v2 has no memory.current there, v1 has a release_agent.
            if str(pid) in members and not (folder / "release_agent").exists():
                return folder, top
        except OSError:
            continue
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    """A file of names and numbers; empty if it can't be read."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
        return {words[0]: int(words[1]) for words in lines if len(words) == 2}
    except (OSError, ValueError):
        return {}


def _memory_v1(folder: Path, _top: Path) -> dict[str, Any]:
    usage = _number(folder / "memory.usage_in_bytes")
    stat = _table(folder / "memory.stat")
    limit = stat.get("hierarchical_memory_limit")
    return {
        "memory_usage_bytes": usage,
        "memory_working_set_bytes": _working_set(usage, stat.get("total_inactive_file")),
        "memory_limit_bytes": limit if limit is not None and limit < NO_LIMIT else None,
        "oom_kills": _table(folder / "memory.oom_control").get("oom_kill"),
    }


def _cpu_v1(folder: Path, _top: Path) -> dict[str, Any]:
    return {"cpu_throttled_seconds": _seconds(_table(folder / "cpu.stat").get("throttled_time"), 10**9)}


def _memory_v2(folder: Path, top: Path) -> dict[str, Any]:
    usage = _number(folder / "memory.current")
    limits: list[int] = []
    level = folder
    while True:
        limit = _number(level / "memory.max")
        limits += [limit] if limit is not None else []
        if level == top:
            break
        level = level.parent
    return {
        "memory_usage_bytes": usage,
        "memory_working_set_bytes": _working_set(usage, _table(folder / "memory.stat").get("inactive_file")),
        "memory_limit_bytes": min(limits, default=None),
        "oom_kills": _table(folder / "memory.events").get("oom_kill"),
    }


def _cpu_v2(folder: Path, _top: Path) -> dict[str, Any]:
    pressure = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "cpu.pressure").read_text().splitlines():
            kind, *pairs = line.split()
            pressure[kind] = int(dict(pair.split("=", 1) for pair in pairs)["total"])
    # Without a memory controller here this is the whole machine's.
    if not (folder / "memory.current").exists() and not (folder / "cpu.max").exists():
        return {}
    return {
        "cpu_waiting_seconds": _seconds(pressure.get("some"), 10**6),
        "cpu_stalled_seconds": _seconds(pressure.get("full"), 10**6),
        "cpu_throttled_seconds": _seconds(_table(folder / "cpu.stat").get("throttled_usec"), 10**6),
    }


def _working_set(usage: int | None, inactive: int | None) -> int | None:
    return None if usage is None or inactive is None else max(usage - inactive, 0)


def _seconds(value: int | None, units: int) -> float | None:
    return None if value is None else value / units
