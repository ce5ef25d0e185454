"""The page that stands for many, where there are more than may be sent one by one."""

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass

from dsobs.model.notification import Event, Notification
from dsobs.notifiers.messages import SEVERITIES
from dsobs.notifiers.rows import Item, KeyState

COALESCE_EVERY_SECONDS = 12.0
COALESCED_LINES = 100


@dataclass(slots=True)
class Coalesced:
    """The page that stands for many, where there are more than may be sent one by one."""

    critical: bool
    dedup_key: str
    member: KeyState
    last_at: float = float("-inf")

    def page(self, items: Sequence[Item], source: str, now: float) -> Notification:
        """For these triggers, one line each, up to a hundred."""
        names = Tally(item.notification.labels.get("alertname") or item.notification.summary for item in items)
        word = SEVERITIES[min(item.rank for item in items)]
        told = ", ".join(f"{name} ({count})" for name, count in names.most_common(5))
        more = f" and {len(names) - 5} other kinds" if len(names) > 5 else ""
        details = {f"{n:03d}": item.notification.summary for n, item in enumerate(items[:COALESCED_LINES], 1)}
        return Notification(
            at=now,
            event=Event.TRIGGER,
            dedup_key=self.dedup_key,
            summary=f"[{word}] {len(items)} alerts on {source} in one page, beyond the limit of pages: {told}{more}",
            severity=word,
            source=source,
            details={"count": str(len(items)), **details},
            started_at=min(item.notification.at for item in items),
        )

    def end(self, source: str, now: float) -> Notification:
        """Once none of its alerts is left."""
        return Notification(
            at=now,
            event=Event.RESOLVE,
            dedup_key=self.dedup_key,
            summary=f"[resolved] all alerts on {source} that were in one page have ended",
            severity="critical" if self.critical else "warning",
            source=source,
        )
