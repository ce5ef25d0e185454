"""Delivery of what stands: each receiver is told the present state again and again, on its own.

Nothing is queued. What is due follows from the alerts as they are now and from what this receiver took last, so one
that was away for an hour gets the present state when it is back, and one that was restarted gets it within a resend
delay. As in Prometheus (rules/alerting.go, notifier/) a firing alert is sent when it begins and then once a resend
delay, and only while its rule's evaluation goes on confirming it; a resolved one likewise, for as long as it is among
the alerts (15 minutes). Other than there, a failed request is tried again with back-off, not only a resend delay later.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from dsobs import telemetry
from dsobs.model.clock import Clock
from dsobs.model.notifier import Answer, Standing, StandingNotifier
from dsobs.model.samples import Labels
from dsobs.notifiers.alertmanager import valid_until
from dsobs.notifiers.retry import Accepted, GiveUp, RetryAt, decide
from dsobs.notifiers.rows import RowState
from dsobs.notifiers.wait import Wait, wait_on

log = logging.getLogger(__name__)

BATCH = 256
"""Alerts in one request (Prometheus: `--alertmanager.notification-batch-size`)."""
REFUSED_AGAIN_SECONDS = 900.0
"""An alert that the receiver refused by itself is offered again after this long."""

Before: TypeAlias = Callable[[bool], Awaitable[None]]


@dataclass(slots=True)
class _Taken:
    """What the receiver has of one alert."""

    at: float
    seen_at: float
    ended: bool
    refused: bool = False


class StandingLane:
    """One receiver's way out."""

    def __init__(
        self,
        notifier: StandingNotifier,
        clock: Clock,
        *,
        before: Before | None = None,
        wait: Wait | None = None,
        rng: Random | None = None,
    ) -> None:
        """`before` runs ahead of each sending, with whether the last one failed: silences must be there before the
        alerts that they silence."""
        self.notifier = notifier
        self._clock = clock
        self._before = before
        self._wait = wait or wait_on(clock)
        self._rng = rng or Random()
        self._alerts: dict[Labels, Standing] = {}
        self._taken: dict[Labels, _Taken] = {}
        self._due_since: dict[Labels, float] = {}
        self._not_before = float("-inf")
        self._attempt = 0
        self._told = ""
        self._changed = asyncio.Event()
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    def update(self, alerts: Sequence[Standing]) -> None:
        """All alerts as they stand now, those that ended lately among them."""
        wanted = {alert.key: alert for alert in alerts if self.notifier.wants(alert)}
        self._alerts = wanted
        for known in (self._taken, self._due_since):
            for key in known.keys() - wanted.keys():
                known.pop(key)
        now = self._clock.now()
        due = self._due(now)
        for key in self._due_since.keys() - {alert.key for alert in due}:
            # One that the receiver refuses was not told, and goes on waiting.
            if not self._is_refused(key):
                del self._due_since[key]
        for alert in due:
            self._due_since.setdefault(alert.key, now)
        if due:
            self._changed.set()

    def knows(self, key: Labels) -> bool:
        """The receiver has taken this alert as firing."""
        taken = self._taken.get(key)
        return taken is not None and not taken.ended and not taken.refused

    def _is_refused(self, key: Labels) -> bool:
        taken = self._taken.get(key)
        return taken is not None and taken.refused

    def oldest_seconds(self, now: float) -> float:
        """How long the oldest alert that is due, or refused, waits to be taken."""
        return max((now - since for since in self._due_since.values()), default=0.0)

    @property
    def pending(self) -> int:
        """Alerts that are due and not taken, refused ones among them."""
        return len(self._due_since)

    async def run(self) -> None:
        """Sends what is due until closed or cancelled."""
        while True:
            self._changed.clear()
            until = await self._send_due()
            telemetry.OUTBOX_PENDING.labels(self.notifier.name).set(self.pending)
            if self._closing:
                return
            await self._wait(self._changed, until)

    def close(self) -> None:
        """Ends after one more try."""
        self._closing = True
        self._not_before = float("-inf")
        self._changed.set()

    def _due(self, now: float) -> list[Standing]:
        found = []
        for key, alert in self._alerts.items():
            if is_due(alert, self._taken.get(key), self.notifier.resend_delay, now):
                found.append(alert)
        return sorted(found, key=lambda alert: (_RANKS.get(alert.severity, len(_RANKS)), alert.started_at))

    async def _send_due(self) -> float | None:
        """When to look again if nothing changes: None for never, since `update` says what is due."""
        now = self._clock.now()
        if now < self._not_before:
            return self._not_before
        due = self._due(now)
        if not due:
            return None
        if self._before is not None:
            try:
                await self._before(self._attempt > 0)
            except Exception:  # Alerts go out all the same: one too many is better than none.
                log.exception("%s: what comes before alerts failed", self.notifier.name)
        for start in range(0, len(due), BATCH):
            if not await self._send(due[start : start + BATCH]):
                return self._not_before
        return None

    async def _send(self, alerts: Sequence[Standing]) -> bool:
        """Whether the receiver answers; the next try is set where it does not."""
        answer = await self._try(alerts)
        now = self._clock.now()
        if answer.status in (400, 413) and len(alerts) > 1:
            # The valid ones of a mixed batch were stored; one by one it shows which was not, once.
            return all([await self._send([alert]) for alert in alerts])
        match decide(answer, self._attempt, now, self._rng):
            case Accepted():
                self._took(alerts, now)
                return True
            case GiveUp(reason):
                self._refused(alerts[0], reason, now)
                return True
            case RetryAt(reason=reason) if answer.status == 413:
                # There is no smaller one.
                self._refused(alerts[0], reason, now)
                return True
            case RetryAt(reason=reason, loud=True):
                # Wrong settings: said once, and tried as often as alerts are sent.
                self._failed(alerts, reason, now + self.notifier.resend_delay, logging.ERROR)
            case RetryAt() as retry:
                self._failed(alerts, retry.reason, retry.at, logging.WARNING)
        return False

    async def _try(self, alerts: Sequence[Standing]) -> Answer:
        try:
            return await self.notifier.send_standing(alerts)
        except Exception as error:  # A plugin's mistake must not end the delivery of all others.
            log.exception("notifier %s raised", self.notifier.name)
            return Answer(detail=f"the notifier raised {type(error).__name__}")

    def _took(self, alerts: Sequence[Standing], now: float) -> None:
        if self._told:
            log.info("%s takes alerts again", self.notifier.name)
        self._attempt, self._told = 0, ""
        for alert in alerts:
            before = self._taken.get(alert.key)
            if before is None or before.ended != (alert.ended_at is not None):
                since = alert.ended_at if alert.ended_at is not None else self._due_since.get(alert.key, now)
                telemetry.NOTIFICATION_SECONDS.labels(self.notifier.name).observe(max(0.0, now - since))
                word = "resolve" if alert.ended_at is not None else "trigger"
                log.info("%s accepted %s: %s", self.notifier.name, word, alert.labels.get("alertname", ""))
            self._taken[alert.key] = _Taken(now, alert.seen_at, alert.ended_at is not None)
            self._due_since.pop(alert.key, None)
            telemetry.NOTIFICATIONS.labels(self.notifier.name, RowState.ACCEPTED.value).inc()

    def _refused(self, alert: Standing, reason: str, now: float) -> None:
        before = self._taken.get(alert.key)
        self._taken[alert.key] = _Taken(now, alert.seen_at, alert.ended_at is not None, refused=True)
        telemetry.NOTIFICATIONS.labels(self.notifier.name, RowState.DEAD.value).inc()
        log.log(
            logging.DEBUG if before is not None and before.refused else logging.ERROR,
            "%s refuses %s; it is offered again in %.0f s: %s",
            self.notifier.name,
            alert.labels.get("alertname", "an alert"),
            REFUSED_AGAIN_SECONDS,
            reason,
        )

    def _failed(self, alerts: Sequence[Standing], reason: str, at: float, level: int) -> None:
        self._attempt += 1
        self._not_before = min(at, self._clock.now() + self.notifier.resend_delay)
        telemetry.NOTIFICATIONS.labels(self.notifier.name, "retried").inc(len(alerts))
        log.log(
            logging.DEBUG if self._told == reason else level,
            "%s did not take %d alerts, next try in %.1f s: %s",
            self.notifier.name,
            len(alerts),
            self._not_before - self._clock.now(),
            reason,
        )
        self._told = reason


_RANKS: Mapping[str, int] = {"critical": 0, "error": 1, "warning": 2, "info": 3}


def is_due(alert: Standing, taken: _Taken | None, resend_delay: float, now: float) -> bool:
    """Whether to send this alert now, after what the receiver took last."""
    ended = alert.ended_at is not None
    if taken is None:
        return ended or now < valid_until(alert, resend_delay)
    if taken.ended != ended:
        return True
    if taken.refused:
        return now - taken.at >= REFUSED_AGAIN_SECONDS
    if now - taken.at < resend_delay:
        return False
    # Not confirmed since: the receiver ends it by itself.
    return ended or alert.seen_at > taken.seen_at
