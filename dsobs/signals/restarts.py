"""Restarts of the engine in the last 24 hours, an integer, whoever made them, over restarts of dsobs too.

The literal `increase(…[24h]) > 3` fires at three, since Prometheus extrapolates; so instances are counted one by one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dsobs.model.observation import RuntimeView, Unknown

DAY = 86400.0
SAME_INSTANCE_SECONDS = 2.0
"""Two start times closer than this are one start: clocks of container, process and page differ by rounding."""


def same_instance(start: float, other: float) -> bool:
    """Two start times are of one instance. A wall clock that was set puts the later instance before the earlier."""
    return abs(start - other) <= SAME_INSTANCE_SECONDS


@dataclass(frozen=True, slots=True)
class Restart:
    """One restart."""

    at: float
    by_dsobs: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """The last instance seen, kept over restarts of dsobs."""

    runtime_start: float | None = None
    page_start: float | None = None
    count: int | None = None
    """The runtime's own counter."""


class RestartWindow:
    """Counts instances by start times (the runtime's, the page's) and by the runtime's counter, each restart once."""

    def __init__(self, restarts: Iterable[Restart] = (), known: Known | None = None) -> None:
        self._restarts = list(restarts)
        self.known = known or Known()
        self._own_until = float("-inf")
        self._shift = 0.0
        """What is added to the runtime's start times: its wall clock was set since dsobs began."""

    @property
    def restarts(self) -> tuple[Restart, ...]:
        """Those of the last 24 hours as of the last call."""
        return tuple(self._restarts)

    def expect_own(self, until: float) -> None:
        """dsobs itself is restarting the engine: the next instance, if it begins before `until`, is its own."""
        self._own_until = until

    def observe(self, now: float, runtime: RuntimeView | Unknown, page_start: float | None) -> list[Restart]:
        """Takes what is known now; returns the restarts that were new."""
        known = self.known
        fresh: list[Restart] = []
        runtime_start, count = known.runtime_start, known.count
        if isinstance(runtime, RuntimeView):
            if runtime.running and runtime.started_at is not None:
                runtime_start = runtime.started_at
            count = runtime.restart_count if runtime.restart_count is not None else count
            fresh += self._by_runtime(now, known, runtime_start, count)
        if page_start is not None:
            fresh += self._by_page(known.page_start, page_start)
        else:
            page_start = known.page_start
        self.known = Known(runtime_start, page_start, count)
        self._restarts = [restart for restart in self._restarts if restart.at > now - DAY]
        return fresh

    def _by_runtime(self, now: float, known: Known, start: float | None, count: int | None) -> list[Restart]:
        if start is None or known.runtime_start is None or same_instance(start, known.runtime_start):
            return []
        if start < known.runtime_start or start + self._shift > now + SAME_INSTANCE_SECONDS:
            # The wall clock was set back, or forward: the new instance began after the last look.
            self._shift = now - start
        start += self._shift
        times = 1
        if count is not None and known.count is not None:
            times = max(times, count - known.count)
        # The page may have shown the new instance before the runtime could be asked.
        told = sum(1 for r in self._restarts if r.at >= start - SAME_INSTANCE_SECONDS)
        return self._count(start, times - min(told, times))

    def _by_page(self, before: float | None, start: float) -> list[Restart]:
        if before is None or start - before <= SAME_INSTANCE_SECONDS:
            return []
        # A container that started again shows a new page some time after the runtime said so.
        if any(before < restart.at <= start + SAME_INSTANCE_SECONDS for restart in self._restarts):
            return []
        return self._count(start, 1)

    def _count(self, at: float, times: int) -> list[Restart]:
        fresh = [Restart(at, by_dsobs=at <= self._own_until and times == 1)] * times
        if fresh:
            self._own_until = float("-inf")
        self._restarts.extend(fresh)
        return fresh

    def in_24h(self, now: float) -> int:
        """How many there were in (now − 24 h, now]."""
        return sum(1 for restart in self._restarts if restart.at > now - DAY)
