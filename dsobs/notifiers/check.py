"""`dsobs notify test`: whether each notifier would reach somebody."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Answer, Notifier
from dsobs.notifiers.messages import dedup_key


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one notifier answered to a test."""

    notifier: str
    trigger: Answer
    resolve: Answer | None
    """None: not sent, since the trigger surely never arrived."""

    @property
    def ok(self) -> bool:
        """Both were accepted."""
        return _taken(self.trigger) and self.resolve is not None and _taken(self.resolve)

    @property
    def why(self) -> str:
        """`accepted (HTTP 202)`, or why not, in one line."""
        if self.ok:
            return f"accepted (HTTP {self.trigger.status})"
        if not _taken(self.trigger) or self.resolve is None:
            return f"not accepted: {_told(self.trigger)}"
        return f"accepted, but its resolve was not: {_told(self.resolve)}"


async def check_notifiers(notifiers: Sequence[Notifier], *, source: str, now: float) -> list[CheckResult]:
    """Sends a test trigger and its resolve through each of `notifiers`, past the outbox and the severities they take.

    One try each, at most 20 s in all. Whoever is on call may be notified: the incident is open for a moment.
    """
    trigger = Notification(
        at=now,
        event=Event.TRIGGER,
        dedup_key=dedup_key(source, f"test-{int(now)}"),
        summary=f"[test] dsobs on {source} can reach you; nothing is wrong, this resolves itself",
        severity="info",
        source=source,
        component="dsobs",
        details={"sent_by": "dsobs notify test"},
        started_at=now,
    )
    return list(await asyncio.gather(*(_check(notifier, trigger) for notifier in notifiers)))


async def _check(notifier: Notifier, trigger: Notification) -> CheckResult:
    opened = await notifier.send(trigger)
    if opened.surely_refused:
        return CheckResult(notifier.name, opened, None)
    # Where it may have arrived, it must not be left open.
    return CheckResult(notifier.name, opened, await notifier.send(replace(trigger, event=Event.RESOLVE)))


def _taken(answer: Answer) -> bool:
    return answer.status is not None and 200 <= answer.status < 300


def _told(answer: Answer) -> str:
    return f"HTTP {answer.status} {answer.detail}".rstrip() if answer.status is not None else answer.detail
