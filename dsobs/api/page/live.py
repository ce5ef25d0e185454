"""One look a second, written once, for all who have the page open; none while nobody has."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dsobs.model.status import Charts, Status

if TYPE_CHECKING:
    from markupsafe import Markup

    from dsobs.api.page.writing import Writer

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
MAX_VIEWERS = 16
"""Who have the page open at a time; another has the page and no events."""


class Looks(Protocol):
    """What a look is made of."""

    def status(self) -> Status:
        """As it stands."""
        ...

    def charts(self) -> Charts:
        """The last 30 minutes."""
        ...


@dataclass(frozen=True, slots=True)
class _Look:
    number: int
    status: Status
    parts: dict[str, "Markup"]
    events: dict[str, tuple[int, bytes]]
    """Part → (the look in which it changed last, the event that tells of it)."""
    beat: bytes


class Live:
    """Looks, viewers and what they are sent."""

    def __init__(self, source: Looks, seconds: float = LOOK_SECONDS) -> None:
        self._source = source
        self._seconds = seconds
        self._writer: Writer | None = None
        self._making = asyncio.Lock()
        self._run = secrets.token_hex(4)
        self._look: _Look | None = None
        self._looked_at = float("-inf")
        self._news = asyncio.Event()
        """Set, and made anew, with each look."""
        self._turning: asyncio.Task[None] | None = None
        self._closed = False
        self._failed = False
        self._charts: tuple[float, bytes] | None = None
        self.viewers = 0

    @property
    def is_full(self) -> bool:
        """No more viewers are taken."""
        return self.viewers >= MAX_VIEWERS or self._closed

    async def _ready(self) -> "Writer":
        async with self._making:
            if self._writer is None:
                # In a thread: imports and templates take longer than the event loop may be held.
                self._writer = await asyncio.to_thread(_writer)
            return self._writer

    async def page(self) -> bytes:
        """The whole page; of the last look where that is no older than a second."""
        writer = await self._ready()
        look = self._look
        if look is None or asyncio.get_running_loop().time() - self._looked_at > self._seconds:
            look = self._make(writer)
        return writer.page(look.status, look.parts, run=self._run, number=look.number)

    async def charts(self) -> bytes:
        """Of the last 30 minutes, as JSON; made once in each of their steps."""
        from dsobs.api.page.writing import charts_json

        status_at = self._look.status.at if self._look is not None else None
        if self._charts is None or status_at is None or status_at >= self._charts[0]:
            charts = self._source.charts()
            self._charts = charts.start + charts.count * charts.step, charts_json(charts)
        return self._charts[1]

    def _make(self, writer: "Writer") -> _Look:
        from dsobs.api.page.writing import event

        before = self._look
        number = before.number + 1 if before is not None else 1
        status = self._source.status()
        parts, changed = writer.parts(status)
        events = dict(before.events) if before is not None else {}
        for name in changed:
            events[name] = number, event("part", {"id": name, "html": str(parts[name])})
        beat = event(
            "beat",
            {
                "at": status.at,
                "run": self._run,
                "number": number,
                "assets": writer.assets,
                "state": status.state.value,
                "name": status.name,
                "points": {
                    tile.name: {reading.model: reading.value for reading in tile.readings}
                    for tile in status.indicators
                    if tile.readings
                }
                if before is None or int(before.status.at // 15) != int(status.at // 15)
                else None,
            },
        )
        self._look = _Look(number, status, parts, events, beat)
        self._looked_at = asyncio.get_running_loop().time()
        return self._look

    async def _turn(self) -> None:
        """A look each second while somebody has the page open."""
        writer = await self._ready()
        while self.viewers and not self._closed:
            due = asyncio.get_running_loop().time() + self._seconds
            try:
                self._make(writer)
                self._failed = False
            except Exception:
                # The page says that it is old; the sidecar goes on.
                if not self._failed:
                    log.exception("the status page can't be written")
                self._failed = True
            news, self._news = self._news, asyncio.Event()
            news.set()
            await asyncio.sleep(max(due - asyncio.get_running_loop().time(), self._seconds / 10))

    async def events(self, run: str, since: int, sent: Callable[[], None]) -> AsyncIterator[bytes]:
        """What a viewer who has look `since` of `run` does not have yet, until it goes away or dsobs ends.

        `sent` is called whenever the viewer has taken what was sent.
        """
        if run != self._run:
            since = 0
        self.viewers += 1
        try:
            if self._turning is None or self._turning.done():
                self._turning = asyncio.create_task(self._turn())
            yield b"retry: 1000\n\n"
            while not self._closed:
                sent()
                news = self._news
                look = self._look
                if look is not None and look.number > since:
                    yield b"".join(part for number, part in look.events.values() if number > since) + look.beat
                    since = look.number
                    continue
                await news.wait()
        finally:
            self.viewers -= 1

    def close(self) -> None:
        """Lets all viewers go: dsobs ends."""
        self._closed = True
        self._news.set()


def _writer() -> "Writer":
    from dsobs.api.page.writing import Writer

    return Writer()
