"""Alerts as rules raise them, notifiers send them and remediation reads them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class AlertState(StrEnum):
    """A rule's state for one label set (Prometheus' names; `resolved` is how an ended firing alert is handed on)."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert: one rule for one label set."""

    name: str
    labels: Mapping[str, str]
    """Rule labels over series labels, `alertname` included, values rendered."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    state: AlertState = AlertState.PENDING
    value: float = float("nan")
    active_at: float = 0.0
    """When the condition became true, seconds since the Unix epoch."""
    fired_at: float | None = None
    resolved_at: float | None = None
    seen_at: float = 0.0
    """Its rule's last evaluation that gave a result; 0 if there was none since the start."""
    interval: float = 15.0
    """Seconds between two evaluations of its rule."""
    confirmed: bool = True
    """False for one restored from disk until its rule has had the data to say again that it holds: shown and not
    resolved,
    but no reason to act."""

    @property
    def severity(self) -> str:
        """critical, warning or info."""
        return self.labels.get("severity", "warning")

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal characters that name this rule and label set; stable over restarts."""
        text = "\x00".join(f"{k}\x01{v}" for k, v in sorted({**self.labels, "alertname": self.name}.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Transition:
    """An alert that has just changed its state; `alert.state` is the new one, `before` None for a new alert."""

    at: float
    alert: Alert
    before: AlertState | None
