"""What the evaluator remembers of groups, rules and alerts between two evaluations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dsobs import telemetry
from dsobs.model.alert import Alert, AlertState
from dsobs.model.samples import Labels, Sample, labels_of
from dsobs.rules.files import AlertRule, Group, RecordingRule
from dsobs.rules.persistence import SavedAlert

_EARLY_SECONDS = 0.25
"""A slot may be begun this much early, so that a loop whose turns jitter misses none."""


@dataclass(slots=True)
class Active:
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    value: float
    state: AlertState
    active_at: float
    fired_at: float | None = None
    resolved_at: float | None = None
    kept_since: float | None = None
    """First evaluation without the condition while `keep_firing_for` holds the alert."""
    restored: SavedAlert | None = None
    """Set while unconfirmed."""


@dataclass(slots=True)
class RuleState:
    rule: AlertRule | RecordingRule
    active: dict[Labels, Active] = field(default_factory=dict)
    recorded: set[Labels] = field(default_factory=set)
    """Series that its last evaluation put into the store."""
    exposed: set[Labels] = field(default_factory=set)
    """Its `ALERTS` and `ALERTS_FOR_STATE` in the store."""
    failed_templates: set[str] = field(default_factory=set)
    """Labels and annotations of which it was said that their template fails."""
    health: str = "unknown"
    last_error: str = ""
    evaluated_at: float | None = None
    succeeded_at: float = 0.0
    """Last evaluation that gave a result."""
    seconds: float = 0.0


class GroupState:
    def __init__(self, group: Group, default_interval: float) -> None:
        self.group = group
        self.interval = group.interval or default_interval
        self.early = min(_EARLY_SECONDS, self.interval / 4)
        self.rules = [RuleState(rule) for rule in group.rules]
        self.next_slot: float | None = None
        self.second_sooner = 0.0
        """By how many seconds, under the interval, the second slot comes early, and with it all that follow."""
        self.evaluated_at: float | None = None
        self.seconds = 0.0
        self.evaluations = telemetry.RULE_EVALUATIONS.labels(group.name)
        self.missed = telemetry.RULE_MISSED.labels(group.name)

    def slot(self, now: float) -> float | None:
        """The time to evaluate for, or None if nothing is due; goes on to the next slot."""
        if self.next_slot is None:
            self.next_slot = now + self.interval - self.second_sooner
            return now
        if now < self.next_slot - self.early:
            return None
        missed = math.floor((now + self.early - self.next_slot) / self.interval)
        if missed:
            self.missed.inc(missed)
        slot = self.next_slot + missed * self.interval
        self.next_slot = slot + self.interval
        return slot


@dataclass(slots=True)
class Departed:
    """An alert whose rule is gone."""

    rule_key: str
    name: str
    active: Active


def alert_samples(state: RuleState) -> list[Sample]:
    samples: list[Sample] = []
    # A label whose template renders to nothing is not among the alert's and has its raw text here, as in Prometheus
    # (`sample` in rules/alerting.go).
    raw = (
        {name: template.text for name, template in state.rule.labels if template.text}
        if isinstance(state.rule, AlertRule)
        else {}
    )
    for active in state.active.values():
        if active.state is AlertState.RESOLVED:
            continue
        shown = {**raw, **active.labels}
        samples.append(Sample(labels_of({**shown, "alertstate": active.state.value, "__name__": "ALERTS"}), 1.0))
        samples.append(
            Sample(labels_of({**shown, "__name__": "ALERTS_FOR_STATE"}), float(math.floor(active.active_at)))
        )
    return samples


def alert_of(name: str, active: Active) -> Alert:
    return Alert(
        name,
        active.labels,
        active.annotations,
        active.state,
        active.value,
        active.active_at,
        active.fired_at,
        active.resolved_at,
        confirmed=active.restored is None,
    )


def saved_alert(rule_key: str, name: str, active: Active, evaluated_at: float) -> SavedAlert:
    if active.restored is not None:
        return replace(active.restored, value=active.value)
    return SavedAlert(
        rule_key,
        name,
        active.labels,
        active.annotations,
        active.state,
        active.value,
        active.active_at,
        active.fired_at,
        active.resolved_at,
        max(0.0, evaluated_at - active.active_at),
        None if active.kept_since is None else max(0.0, evaluated_at - active.kept_since),
        evaluated_at,
    )
