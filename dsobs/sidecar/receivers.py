"""What carries what is told: the outbox, lanes of standing alerts, mirrors of silences, the heartbeat."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import aiohttp

from dsobs.config import Config
from dsobs.model.clock import Clock
from dsobs.model.notifier import Notifier, Standing, StandingNotifier
from dsobs.notifiers.alertmanager import AlertmanagerNotifier
from dsobs.notifiers.heartbeat import HeartbeatSender
from dsobs.notifiers.mirror import SilenceMirror
from dsobs.notifiers.outbox import Outbox
from dsobs.notifiers.standing import StandingLane
from dsobs.notifiers.wait import wait_on
from dsobs.silences import Silence, holding
from dsobs.state import StateDb
from dsobs.telemetry import LOOP_ERRORS, OUTBOX_OLDEST

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
FALLBACK_SLACK_SECONDS = 2.0
"""Between an alert's way to the outbox and to Alertmanager."""


class _Way:
    """One receiver of standing alerts, with its silences where it is an Alertmanager."""

    def __init__(self, notifier: StandingNotifier, source: str, clock: Clock, *, complete: bool) -> None:
        self.mirror = (
            SilenceMirror(notifier, source, clock, complete=complete)
            if isinstance(notifier, AlertmanagerNotifier)
            else None
        )
        self.lane = StandingLane(notifier, clock, before=self.mirror.ahead if self.mirror is not None else None)
        self._wait = wait_on(clock)
        self._changed = asyncio.Event()
        self._tasks = [asyncio.create_task(self.lane.run(), name=notifier.name)]
        if self.mirror is not None:
            self._tasks.append(asyncio.create_task(self._keep_in_step(self.mirror), name=f"{notifier.name} silences"))

    async def _keep_in_step(self, mirror: SilenceMirror) -> None:
        while True:
            self._changed.clear()
            try:
                await mirror.sync()
            except Exception:
                LOOP_ERRORS.labels("silences").inc()
                log.exception("silences could not be mirrored")
                await asyncio.sleep(AGAIN_SECONDS)
            await self._wait(self._changed, mirror.look_at)

    def update(self, standing: Sequence[Standing], silences: Sequence[Silence], now: float) -> None:
        if self.mirror is not None and self.mirror.want(silences):
            self._changed.set()
        self.lane.update([alert for alert in standing if not self._hidden(alert, silences, now)])

    def _hidden(self, alert: Standing, silences: Sequence[Silence], now: float) -> bool:
        """Silenced here and not there: it must not arrive. One that is known there goes on, or it would resolve."""
        silence = holding(silences, alert.labels, now)
        if silence is None or self.lane.knows(alert.key):
            return False
        return self.mirror is None or not self.mirror.holds(silence)

    async def stop(self, seconds: float) -> None:
        self.lane.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._tasks[0])
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Receivers:
    """Built on the event loop; `use` sets or changes the notifiers."""

    def __init__(
        self,
        db: StateDb | None,
        session: aiohttp.ClientSession,
        clock: Clock,
        source: str,
        heart: Callable[[], str | None],
        *,
        silences_known: bool = True,
    ) -> None:
        """`heart`: None while dsobs is well, else why it is not. `silences_known`: those of the last run were read."""
        self.outbox = Outbox(db, [], clock, source=source)
        self._session = session
        self._clock = clock
        self._source = source
        self._heart = heart
        self._silences_known = silences_known
        self._ways: dict[str, _Way] = {}
        self._config: Config | None = None
        self._delivery: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def use(self, config: Config, notifiers: Sequence[Notifier]) -> None:
        """Delivers through these from now on. What waits for one that stays waits on; its settings may be others."""
        standing = {n.name: n for n in notifiers if isinstance(n, StandingNotifier)}
        self.outbox.use([n for n in notifiers if n.name not in standing])
        before = self._config
        self.outbox.leave_to_primary(config.notifiers.alertmanager is not None)
        if before is None or before.notifiers.alertmanager != config.notifiers.alertmanager:
            for name, way in self._ways.items():
                self._leave(way)
                OUTBOX_OLDEST.remove(name)
            self._ways = {
                name: _Way(n, self._source, self._clock, complete=self._silences_known) for name, n in standing.items()
            }
        if before is None or before.heartbeat != config.heartbeat:
            if self._beating is not None:
                self._beating.cancel()
            self._beating = None
            if config.heartbeat.url is not None:
                sender = HeartbeatSender(config.heartbeat, self._session, self._clock, self._source, self._heart)
                self._beating = asyncio.create_task(sender.run(), name="heartbeat")
        self._config = config
        if self._delivery is None:
            self._delivery = asyncio.create_task(self._deliver(), name="delivery")

    async def _deliver(self) -> None:
        while True:
            try:
                await self.outbox.run()
                return
            except Exception:
                # Nobody would be told of anything any more: it is counted, and begun anew from what is on disk.
                LOOP_ERRORS.labels("outbox").inc()
                log.exception("the outbox failed")
                await asyncio.sleep(AGAIN_SECONDS)

    def _leave(self, way: _Way) -> None:
        task = asyncio.create_task(way.stop(0.0))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def update(self, standing: Sequence[Standing], silences: Sequence[Silence], now: float) -> None:
        """The present state, each turn."""
        for name, way in self._ways.items():
            way.update(standing, silences, now)
            OUTBOX_OLDEST.labels(name).set(way.lane.oldest_seconds(now))
        settings = self._config.notifiers.alertmanager if self._config is not None else None
        takes = settings is not None and any(
            way.lane.oldest_seconds(now) < settings.fallback_after for way in self._ways.values()
        )
        # What is older than that and not waiting there was taken there.
        after = settings.fallback_after if settings is not None else 0.0
        self.outbox.leave_to_primary(takes, now - after - FALLBACK_SLACK_SECONDS)
        self.outbox.note_age(now)

    def others_silences(self) -> list[Silence]:
        """Silences that somebody made in an Alertmanager and that stop repair, by the settings."""
        settings = self._config.notifiers.alertmanager if self._config is not None else None
        if settings is None or not settings.silences_stop_repair:
            return []
        return [silence for way in self._ways.values() if way.mirror is not None for silence in way.mirror.others]

    async def stop(self, seconds: float) -> None:
        """Sends what can be sent at once, for at most so long."""
        await asyncio.gather(self.outbox.stop(seconds), *(way.stop(seconds) for way in self._ways.values()))
        tasks = [task for task in (self._delivery, self._beating, *self._leaving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
