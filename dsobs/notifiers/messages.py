"""From an alert's transition to what a person reads."""

import hashlib
import math
from collections.abc import Sequence
from datetime import UTC, datetime

from dsobs.model.alert import AlertState, Transition
from dsobs.model.notification import Event, Notification

MAX_KEY_LENGTH = 255
"""PagerDuty Events API v2: `dedup_key` has at most 255 characters."""

SEVERITIES = ("critical", "error", "warning", "info")
"""Most urgent first; PagerDuty knows no others."""

_SEVERITY_OF = {"page": "critical", "fatal": "critical", "high": "error", "none": "info", "information": "info"}


def notification_of(
    transition: Transition,
    *,
    source: str,
    links: Sequence[tuple[str, str]] = (),
    next_step: str = "",
) -> Notification | None:
    """What to send for `transition`, or None for one that nobody is told of (pending).

    `source` is what alerts call the server (the target's name), `links` (address, text) pairs beside the alert's own
    `runbook_url`, `next_step` what dsobs does about it, in words.
    """
    alert = transition.alert
    if alert.state is AlertState.FIRING:
        event, word = Event.TRIGGER, severity_of(alert.severity)
    elif alert.state is AlertState.RESOLVED:
        event, word = Event.RESOLVE, "resolved"
    else:
        return None
    told = alert.annotations.get("summary") or alert.annotations.get("description") or ""
    details = {"started": iso_time(alert.active_at)}
    if not math.isnan(alert.value):
        details["value"] = f"{alert.value:.6g}"
    if alert.annotations.get("threshold"):
        details["threshold"] = alert.annotations["threshold"]
    if alert.fired_at is not None:
        details["fired"] = iso_time(alert.fired_at)
    if event is Event.RESOLVE:
        details["ended"] = iso_time(alert.resolved_at if alert.resolved_at is not None else transition.at)
    elif next_step:
        details["next"] = next_step
    runbook = alert.annotations.get("runbook_url", "")
    if runbook.startswith(("http://", "https://")):
        links = ((runbook, "Runbook"), *links)
    return Notification(
        at=transition.at,
        event=event,
        dedup_key=dedup_key(source, alert.fingerprint),
        summary=f"[{word}] {alert.name} on {source}" + (f": {told}" if told else ""),
        severity=severity_of(alert.severity),
        source=source,
        component=alert.labels.get("component", ""),
        details=details,
        links=tuple(links),
        started_at=alert.active_at,
        labels={**alert.labels, "alertname": alert.name},
        annotations=dict(alert.annotations),
    )


def dedup_key(source: str, name: str) -> str:
    """`dsobs/SOURCE/NAME`, at most 255 characters: a long source is cut and told apart by a hash."""
    return short_key(f"dsobs/{source}/{name}")


def short_key(key: str) -> str:
    """`key` itself, or where it is over 255 characters its start and a hash of the whole: stable, no two the same."""
    if len(key) <= MAX_KEY_LENGTH:
        return key
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{key[: MAX_KEY_LENGTH - len(digest) - 1]}~{digest}"


def severity_of(label: str) -> str:
    """A `severity` label in PagerDuty's words: critical, error, warning or info; unknown words are a warning."""
    word = label.strip().lower()
    return word if word in SEVERITIES else _SEVERITY_OF.get(word, "warning")


def known_severity(label: str) -> bool:
    """Whether a `severity` label means what it says, and is not a warning for want of a better word."""
    word = label.strip().lower()
    return word in SEVERITIES or word in _SEVERITY_OF


def iso_time(at: float) -> str:
    """ISO 8601 in UTC with milliseconds, `2026-01-31T12:00:00.000Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
