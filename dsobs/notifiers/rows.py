"""The outbox's tables, and what stands in them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from dsobs.model.notification import Event, Notification
from dsobs.notifiers.json_bytes import json_bytes
from dsobs.notifiers.messages import SEVERITIES, severity_of

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        notifier TEXT NOT NULL,
        queued_at REAL NOT NULL,
        notification TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'pending',
        reason TEXT NOT NULL DEFAULT '',
        done_at REAL
    )""",
    "CREATE INDEX IF NOT EXISTS outbox_pending ON outbox (id) WHERE state = 'pending'",
    """CREATE TABLE IF NOT EXISTS outbox_open_keys (
        notifier TEXT NOT NULL,
        dedup_key TEXT NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (notifier, dedup_key)
    )""",
)
"""Tables for `StateDb`."""


class RowState(StrEnum):
    """What became of a row; also the label values `outcome` of `dsobs_notifications_total`."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    DEAD = "dead"
    """Refused for good (HTTP 4xx): a person must look."""
    COLLAPSED = "collapsed"
    """A later event of the same key made it moot before it left."""
    COALESCED = "coalesced"
    """Went out as a line of a page for many, because of the limit of pages a minute."""
    DROPPED = "dropped"
    """Too many rows, no such notifier any more, or unreadable."""


class KeyState(StrEnum):
    """What the receiver may know of a dedup key. A key that is not listed is surely not open there."""

    MAYBE = "maybe"
    """A trigger was sent, or was about to be."""
    OPEN = "open"
    """A trigger was accepted."""
    COALESCED = "coalesced"
    """Not open by itself; its trigger was told of in the coalesced page."""
    COALESCED_CRITICAL = "coalesced_critical"
    """The same, in the coalesced page of critical alerts."""


@dataclass(slots=True)
class Item:
    """One notification on its way through one notifier."""

    row: int | None
    """None: in memory only."""
    notification: Notification
    queued_at: float
    attempts: int = 0
    next_at: float = 0.0

    @property
    def is_trigger(self) -> bool:
        """It opens an incident."""
        return self.notification.event is Event.TRIGGER

    @property
    def rank(self) -> int:
        """0 for critical."""
        return SEVERITIES.index(severity_of(self.notification.severity))

    @property
    def urgency(self) -> tuple[bool, int, float]:
        """To sort by: triggers first, the most severe first, the oldest first."""
        return (not self.is_trigger, self.rank, self.queued_at)


def row_text(notification: Notification) -> str:
    """As it stands in a row."""
    fields = {
        "at": notification.at,
        "event": notification.event.value,
        "dedup_key": notification.dedup_key,
        "summary": notification.summary,
        "severity": notification.severity,
        "source": notification.source,
        "component": notification.component,
        "details": dict(notification.details),
        "links": [list(link) for link in notification.links],
        "started_at": notification.started_at,
        "labels": dict(notification.labels),
        "annotations": dict(notification.annotations),
    }
    return json_bytes(fields).decode()


def notification_of_row(text: str) -> Notification:
    """What `row_text` wrote; ValueError, KeyError or TypeError where it is unreadable."""
    fields: dict[str, Any] = orjson.loads(text)
    return Notification(
        **{**fields, "event": Event(fields["event"]), "links": tuple((href, text) for href, text in fields["links"])}
    )
