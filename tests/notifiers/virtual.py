"""Virtual time for an outbox: it goes on only while nothing is in flight."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random

from dsobs.model.clock import ManualClock
from dsobs.model.notifier import Notifier
from dsobs.notifiers.outbox import Outbox
from dsobs.state import StateDb

START = 1_800_000_000.0


class VirtualTime:
    """A clock, and a wait on it for `Outbox`."""

    def __init__(self, now: float = START) -> None:
        self.clock = ManualClock(now)
        self._waiters: dict[int, tuple[asyncio.Event, float | None]] = {}
        self._moved = asyncio.Event()
        self._count = 0

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Until the event is set, or by `advance`."""
        self._count += 1
        ticket = self._count
        self._waiters[ticket] = (event, until)
        self._moved.set()
        try:
            if until is None or until > self.clock.now():
                await event.wait()
        finally:
            del self._waiters[ticket]

    def advance(self, seconds: float) -> None:
        """Goes on, and wakes whoever waited for that."""
        now = self.clock.advance(seconds)
        for event, until in self._waiters.values():
            if until is not None and until <= now:
                event.set()

    async def quiet(self, outbox: Outbox, seconds: float = 90.0) -> None:
        """Until the outbox waits for time or new events only; TimeoutError after so many real seconds."""
        loops = len(outbox._lanes) + 1
        async with asyncio.timeout(seconds):
            while not (
                len(self._waiters) == loops
                and not outbox._wake.is_set()
                and all(lane.idle for lane in outbox._lanes.values())
            ):
                self._moved.clear()
                await self._moved.wait()

    async def until(self, outbox: Outbox, condition: Callable[[], bool], seconds: float = 600.0) -> float:
        """Lets virtual time go on, from one deadline to the next, until the condition holds; how much went by."""
        start = self.clock.now()
        while True:
            await self.quiet(outbox)
            if condition():
                return self.clock.now() - start
            nexts = [until for _, until in self._waiters.values() if until is not None]
            assert nexts, "nothing more would ever happen"
            assert min(nexts) <= start + seconds, f"not within {seconds} s"
            self.advance(max(0.0, min(nexts) - self.clock.now()))

    async def pass_by(self, outbox: Outbox, seconds: float) -> None:
        """Lets so much time go by, with all that falls due in it."""
        end = self.clock.now() + seconds
        while True:
            await self.quiet(outbox)
            nexts = [until for _, until in self._waiters.values() if until is not None]
            if not nexts or min(nexts) >= end:
                self.clock.set(end)
                return
            self.advance(max(0.0, min(nexts) - self.clock.now()))

    @contextlib.asynccontextmanager
    async def running(
        self, db: StateDb | None, notifiers: Sequence[Notifier], **settings: int
    ) -> AsyncIterator[Outbox]:
        """An outbox that delivers; cancelled at the end, as a process that dies in order."""
        outbox = Outbox(db, notifiers, self.clock, source="gpu-1", wait=self.wait, rng=Random(7), **settings)
        task = asyncio.create_task(outbox.run())
        try:
            yield outbox
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
