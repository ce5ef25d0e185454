"""Restarts of the engine in the last 24 hours, an integer, whoever made them, over restarts of dsobs too.

The literal `increase(…[24h]) > 3` fires at three, since Prometheus extrapolates; so instances are counted one by one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dsobs.model.observation import RuntimeView, Unknown

DAY = 86400.0
SAME_INSTANCE_SECONDS = 2.0
"""Two start times closer than this are one start: clocks of container, process and page differ by rounding."""


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
    """Counts instances by start times (the runtime's, the page's), by the starts that the runtime remembers and by its
    counter, each restart once.

    The runtime's memory and counter tell of what happened while dsobs was away. Either may fall short (Docker's daemon
    remembers the last 256 events of all containers, and its counter leaves manual restarts out): the greater number
    counts, one at least.
    """

    def __init__(self, restarts: Iterable[Restart] = (), known: Known | None = None) -> None:
        self._restarts = list(restarts)
        self.known = known or Known()
        self._own_until = float("-inf")
        self._looked_at = float("-inf")
        """When the runtime was asked last: what is new since then began since then, whatever the wall clock says."""
        self._page_owed = False
        """The runtime's new instance has yet to show its page."""
        self._before: tuple[float, ...] = ()
        """Restarts of what the engine's pod stands in for, by the runtime's word."""
        counted_last = self._restarts[-1].at if self._restarts else None
        self._page_ahead = counted_last if counted_last == self.known.page_start else None
        """Start, by the page, of an instance that the runtime has yet to tell of."""

    @property
    def restarts(self) -> tuple[Restart, ...]:
        """Those of the last 24 hours as of the last call."""
        return tuple(self._restarts)

    def expect_own(self, until: float) -> None:
        """dsobs itself is restarting the engine: the next instance, if it begins before `until`, is its own."""
        self._own_until = until

    def expect_own_longer(self, until: float) -> None:
        """The engine has ended, and the new instance takes longer to begin; nothing where it has begun."""
        if self._own_until > float("-inf"):
            self._own_until = max(self._own_until, until)

    def observe(
        self, now: float, runtime: RuntimeView | Unknown, page_start: float | None, *, was_away: bool = False
    ) -> list[Restart]:
        """Takes what is known now; returns the restarts that were new. `was_away`: the port refused since the page was
        seen last."""
        known = self.known
        fresh: list[Restart] = []
        runtime_start, count = known.runtime_start, known.count
        if isinstance(runtime, RuntimeView):
            self._before = runtime.restarts_before
            if runtime.running and runtime.started_at is not None:
                runtime_start = runtime.started_at
            count = runtime.restart_count if runtime.restart_count is not None else count
            fresh += self._by_runtime(now, known, runtime_start, count, runtime.started_history)
            self._looked_at = now
        if page_start is not None:
            fresh += self._by_page(now, known.page_start, page_start, was_away)
        else:
            page_start = known.page_start
        self.known = Known(runtime_start, page_start, count)
        # After a step of the wall clock while dsobs was away they may lie in the future, and would count too long.
        self._restarts = [replace(r, at=min(r.at, now)) for r in self._restarts if r.at > now - DAY]
        return fresh

    def _by_runtime(
        self, now: float, known: Known, start: float | None, count: int | None, history: tuple[float, ...]
    ) -> list[Restart]:
        if start is None:
            return []
        if known.runtime_start is None:
            if not self._restarts:
                self._recall(now, history, count)
            return []
        # A start before the known one is new too: the wall clock was set back.
        if abs(start - known.runtime_start) <= SAME_INSTANCE_SECONDS:
            return []
        starts = [*_between(known.runtime_start, start, history), start]
        if count is not None and known.count is not None:
            # Docker's counter begins anew when a person starts the container.
            told = count - known.count if count >= known.count else count + 1
            starts += [start] * (told - len(starts))
        # The page may have shown the new instance before the runtime could be asked.
        seen = self._page_ahead is not None and self._page_ahead >= start - SAME_INSTANCE_SECONDS
        self._page_owed = not seen
        self._page_ahead = None
        moments = [min(max(at, self._looked_at), now) for at in starts]
        return self._count(moments[:-1] if seen else moments)

    def _recall(self, now: float, history: tuple[float, ...], count: int | None) -> None:
        """dsobs knows nothing yet: what the runtime remembers. Its oldest start is no restart, unless there were more
        restarts than it remembers starts."""
        first = 0 if count is not None and count >= len(history) else 1
        self._restarts += [Restart(min(at, now)) for at in sorted(history)[first:] if at > now - DAY]

    def _by_page(self, now: float, before: float | None, start: float, was_away: bool) -> list[Restart]:
        if before is None or start == before:
            return []
        owed, self._page_owed = self._page_owed, False
        if abs(start - before) <= SAME_INSTANCE_SECONDS or owed:
            return []
        if start < before:
            # Several processes may serve the page in turn, so an older start is no news; but where nobody listened in
            # between the server is another one, and the wall clock was set back.
            return self._count([now]) if was_away else []
        # A container that started again shows a new page some time after the runtime said so.
        if any(before < restart.at <= start + SAME_INSTANCE_SECONDS for restart in self._restarts):
            return []
        self._page_ahead = start
        return self._count([min(start, now)])

    def _count(self, moments: list[float]) -> list[Restart]:
        # dsobs makes one; what came after it in the same look is the new instance's own doing.
        fresh = [Restart(at, by_dsobs=at <= self._own_until and not index) for index, at in enumerate(moments)]
        if fresh:
            self._own_until = float("-inf")
        self._restarts.extend(fresh)
        return fresh

    def own_in_24h(self, now: float) -> int:
        """How many of them dsobs made."""
        return sum(1 for restart in self._restarts if restart.by_dsobs and restart.at > now - DAY)

    def in_24h(self, now: float) -> int:
        """How many there were in (now − 24 h, now]."""
        return sum(1 for at in (*self._before, *(restart.at for restart in self._restarts)) if at > now - DAY)


def _between(known: float, start: float, history: tuple[float, ...]) -> list[float]:
    """The starts after the known one and before `start`: by their order, since a wall clock that was set puts later
    ones before earlier ones; by their times where the known one is not remembered."""
    same = [index for index, at in enumerate(history) if abs(at - known) <= SAME_INSTANCE_SECONDS]
    after = history[same[-1] + 1 :] if same else tuple(at for at in history if known < at < start)
    return [at for at in after if abs(at - start) > SAME_INSTANCE_SECONDS]
