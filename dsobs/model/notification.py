"""What goes to a person."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Event(StrEnum):
    """What a notification does to the incident of its dedup key."""

    TRIGGER = "trigger"
    RESOLVE = "resolve"


@dataclass(frozen=True, slots=True)
class Notification:
    """One message about one alert, before a notifier gives it its own form."""

    at: float
    event: Event
    dedup_key: str
    """At most 255 characters; the same for trigger and resolve of one alert, over restarts too."""
    summary: str
    severity: str
    """critical, error, warning or info (PagerDuty Events API v2)."""
    source: str
    """Host or pod."""
    component: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    links: tuple[tuple[str, str], ...] = ()
    """(address, text) pairs: runbook, API."""
    started_at: float | None = None
    """When the condition began, seconds since the Unix epoch; None where nothing began (an escalation)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the alert, where there is one."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Of the alert, where there is one."""
