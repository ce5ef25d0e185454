"""How a server is, and how that is known: what the status page, its stream of events and `dsobs status` all show.

One model: `dsobs.sidecar.snapshot` makes it, `/api/v1/status` gives it as JSON, the page is written from it.
Times are seconds since the Unix epoch. What is not known is None or has its reason beside it, never 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """The server in one word."""

    HEALTHY = "healthy"
    """It is known to be well: its page is read, it is ready, nothing stalls, no alert fires."""
    DEGRADED = "degraded"
    """It serves, and a warning fires."""
    FAULTY = "faulty"
    """A critical alert fires, or it is known to be down or hung."""
    STARTING = "starting"
    """It has yet to become ready, and has time left for that."""
    STOPPED = "stopped"
    """Somebody stopped or paused it on purpose, or put it to sleep."""
    UNKNOWN = "unknown"
    """It can't be said; that is not healthy."""


class Verdict(StrEnum):
    """What a fact says about health."""

    GOOD = "good"
    BAD = "bad"
    UNKNOWN = "unknown"
    NOTE = "note"
    """Neither for it nor against it."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that the state is known by."""

    name: str
    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """An indicator's last value, of one model where it is told by model."""

    model: str
    """Empty where it is of the whole server."""
    value: float | None
    shown: str
    """For people: `480 ms`."""
    bad: bool | None
    """Beyond its threshold; None: there is none."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One key indicator (docs/indicators.md)."""

    name: str
    title: str
    about: str
    """resource use, inference performance, system health."""
    question: str
    unit: str
    better: str
    threshold: float | None
    threshold_shown: str
    """`> 500 ms`; empty where there is none."""
    bad_value: str
    """What a bad value means."""
    readings: tuple[Reading, ...]
    unknown: str
    """Why there is no reading; empty where there is one."""
    left_out: int = 0
    """Readings of further models."""

    @property
    def bad(self) -> bool:
        """One of its readings is beyond the threshold."""
        return any(reading.bad for reading in self.readings)


@dataclass(frozen=True, slots=True)
class StandingAlert:
    """A pending or firing alert with its evidence."""

    name: str
    severity: str
    state: str
    """pending or firing."""
    since: float
    """When its condition became true."""
    value: str
    """Of the rule's expression."""
    summary: str
    description: str
    runbook: str
    labels: Mapping[str, str]
    silenced: bool
    confirmed: bool
    """False for one from before dsobs was restarted, until its rule has the data to say so again."""
    evidence: tuple[tuple[str, str], ...]
    """Further annotations, such as the threshold."""
    next_step: str
    """What dsobs does about it."""


@dataclass(frozen=True, slots=True)
class StandingAlerts:
    """The worst and oldest first."""

    firing: int
    """All of them; information and the watchdog are not counted."""
    pending: int
    shown: tuple[StandingAlert, ...]
    left_out: int
    """That are not among `shown`."""
    failing_rules: tuple[tuple[str, str], ...]
    """(rule, error) of rules whose last evaluation failed: what they look for is not known."""


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One line of an incident."""

    at: float
    what: str
    """`restart done`."""
    text: str


@dataclass(frozen=True, slots=True)
class TimelineIncident:
    """One incident of the last 24 hours."""

    id: str
    opened_at: float
    closed: bool
    alerts: tuple[str, ...]
    entries: tuple[TimelineEntry, ...]
    """Oldest first."""
    left_out: int
    """Lines between the first and those shown."""


@dataclass(frozen=True, slots=True)
class GuardState:
    """What one guard would say to a restart now."""

    name: str
    meaning: str
    refuses: str | None
    """Why; None: it lets pass."""


@dataclass(frozen=True, slots=True)
class Guards:
    """What holds repair back."""

    mode: str
    """observe or enforce."""
    killed: str | None
    """Which kill switch is on."""
    restarts_24h: int | None
    max_restarts_24h: int
    budget_left: int | None
    """Restarts that may be made now; None: those of the last 24 h are not known, and none is made."""
    cooldown_left: float
    """Seconds."""
    ledger_writable: bool
    incident: str | None
    """The one that is going on."""
    checks: tuple[GuardState, ...]


@dataclass(frozen=True, slots=True)
class NextStep:
    """What would be done in the next turn."""

    action: str
    reason: str
    refused: str | None
    """Why it is not done."""


@dataclass(frozen=True, slots=True)
class LogTail:
    """The last lines of one log, oldest first, secrets and prompts left out."""

    name: str
    lines: tuple[str, ...]
    unknown: str
    """Why there are none; empty where they are known."""
    file: str = ""
    """Where they stand, if they are read from a file."""


@dataclass(frozen=True, slots=True)
class ShownSetting:
    """One setting in force."""

    name: str
    value: str
    """Secrets are stars or references."""
    changed: bool
    """It is not the default."""


@dataclass(frozen=True, slots=True)
class StartUp:
    """The present instance's way to ready."""

    state: str
    """not seen, starting, ready, down."""
    started_at: float | None
    budget: float
    """Seconds."""
    text: str


@dataclass(frozen=True, slots=True)
class Status:
    """One server at one moment."""

    at: float
    name: str
    """What alerts call it."""
    version: str
    """Of dsobs."""
    target: str
    engine: str | None
    """vllm; None: not recognized yet."""
    state: State
    headline: str
    """The state as a sentence."""
    facts: tuple[Fact, ...]
    start_up: StartUp
    indicators: tuple[Tile, ...]
    alerts: StandingAlerts
    incidents: tuple[TimelineIncident, ...]
    """Newest first."""
    incidents_left_out: int
    guards: Guards
    next_steps: tuple[NextStep, ...]
    next_text: str
    """The same as a sentence."""
    unknown: Mapping[str, str]
    """What is not known → why."""
    log_tails: tuple[LogTail, ...]
    settings: tuple[ShownSetting, ...]
    reload_error: str | None
    """Why the settings that are in the file are not in force."""
    logs: Mapping[str, Any] | None
    """Of log shipping."""
    view: Mapping[str, Any]
    """The engine as repair sees it."""


@dataclass(frozen=True, slots=True)
class Charts:
    """The last 30 minutes of the indicators, on one grid."""

    start: float
    step: float
    """Seconds."""
    count: int
    """Points: the last is at start + (count - 1) × step."""
    series: Mapping[str, Mapping[str, tuple[float | None, ...]]]
    """Indicator → model (empty: the server's) → values; None: not known then."""
