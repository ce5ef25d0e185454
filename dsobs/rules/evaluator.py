"""Prometheus' alert state machine over the local store.

States of an alert, one rule and one label set each:

pending   the condition holds, for less than `for`
firing    it has held for `for` or longer; or it held until less than `keep_firing_for` ago
resolved  it was firing and holds no more; shown for another 15 minutes, so that it can be sent again

A group runs at its own interval on the caller's clock, once a slot, at the first `evaluate` of the slot; slots that
nobody came for are counted and left out. `for` is measured from slot to slot, so a caller that is late does not delay
firing.

After a restart the restored alerts are unconfirmed: nothing resolves for want of data. The caller says with
`inputs_ready` that the first scrape is complete. An unconfirmed alert becomes confirmed when its rule's result has it
again, or when its absence counts: the windows of the rule's ranges are filled, and either all metrics that the rule
names are there, or the grace (15 s, two intervals at least) is over, since some signals are absent by nature. Then it
resolves.
"""

import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeAlias

from dsobs import promql, telemetry
from dsobs.model.alert import Alert, AlertState, Transition
from dsobs.model.samples import Labels, Sample, labels_of
from dsobs.rules.files import AlertRule, Group, RecordingRule, Templates
from dsobs.rules.go_text import TemplateError
from dsobs.rules.notation import metric_text
from dsobs.rules.persistence import SavedAlert, Snapshot
from dsobs.rules.states import Active, Departed, GroupState, RuleState, alert_of, alert_samples, saved_alert
from dsobs.rules.templates import Data
from dsobs.rules.views import alert_views, group_view
from dsobs.series.store import Store

_log = logging.getLogger(__name__)

RESOLVED_RETENTION_SECONDS = 900.0
"""As Prometheus (`resolvedRetention` in rules/alerting.go)."""
_SAVE_PENDING_SECONDS = 10.0
"""Pending time that a crash may cost."""
NEWS_INTERVAL_SECONDS = 1.0
"""Groups of this interval or less also run between two slots, where something has come that is not to wait."""

_WITH_SELECTOR = re.compile(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\{(?!\{)")
"""A metric in a template's query: the query itself may be known only when it is rendered."""
_compiled = lru_cache(256)(promql.compile)
"""Of expressions in templates, and of metrics' names."""


class RuleFailure(Exception):
    """A rule's result can't be used; its state stays as it was."""


_Result: TypeAlias = dict[Labels, tuple[dict[str, str], dict[str, str], float]]


class Evaluator:
    """Evaluates rule groups over `store`.

    `external_labels` are added to every alert that has no such label; templates see them as `$externalLabels`.
    `default_interval` and `restore_grace` are seconds. `bare_labels` leaves the external labels to the templates, as
    Prometheus does until it sends an alert; `expose_alerts` gives the store `ALERTS` even where no rule refers to it.
    `spread` lets groups of longer intervals take turns after their first evaluation, a second apart, as Prometheus
    spreads them: else all of one interval, and those of its multiples, fall due in the same second.
    Not thread-safe.
    """

    def __init__(
        self,
        groups: Iterable[Group],
        store: Store,
        *,
        external_labels: Mapping[str, str] | None = None,
        external_url: str = "",
        default_interval: float = 15.0,
        restore_grace: float = 15.0,
        bare_labels: bool = False,
        expose_alerts: bool = False,
        spread: bool = False,
    ) -> None:
        self._store = store
        self._spread = spread
        self._bare_labels = bare_labels
        self._external_labels = dict(external_labels or {})
        self._external_url = external_url
        self._restore_grace = restore_grace
        self._default_interval = default_interval
        self.limits = promql.LIMITS
        """What the query of one rule may take, and the step of its subqueries that name none."""
        self._groups = self._states(groups)
        self.metric_names = self._names()
        """What the store has to hold: metrics that the rules name, templates included, and those that they record."""
        self._departed: list[Departed] = []
        self._ready_at: float | None = None
        self._data_since = math.inf
        self._revision = 0
        self._saved_revision = 0
        self._saved_at = -math.inf
        self._expose_always = expose_alerts
        self._slice = promql.Slice()
        self._exposes_alerts = expose_alerts or not self.metric_names.isdisjoint(("ALERTS", "ALERTS_FOR_STATE"))

    def _states(self, groups: Iterable[Group]) -> list[GroupState]:
        states = [GroupState(group, self._default_interval) for group in groups]
        if self._spread:
            slow = (state for state in states if state.interval > NEWS_INTERVAL_SECONDS)
            for number, state in enumerate(slow):
                state.second_sooner = number % state.interval
        return states

    def _names(self) -> frozenset[str]:
        named = {name for query in self._queries() for name in query.metric_names}
        recorded = {s.rule.name for g in self._groups for s in g.rules if isinstance(s.rule, RecordingRule)}
        return frozenset(named | recorded | self._shown())

    def _shown(self) -> set[str]:
        """Metrics of queries that templates put together."""
        rules = [s.rule for g in self._groups for s in g.rules if isinstance(s.rule, AlertRule)]
        return {name for rule in rules for _, text in rule.annotations for name in _WITH_SELECTOR.findall(text.text)}

    def has_rule(self, name: str) -> bool:
        """Whether there is an alerting rule of this name."""
        return any(isinstance(s.rule, AlertRule) and s.rule.name == name for g in self._groups for s in g.rules)

    @property
    def has_alert_rules(self) -> bool:
        """Whether some rule looks for a fault: one whose alerts have a severity other than none."""
        rules = (s.rule for g in self._groups for s in g.rules if isinstance(s.rule, AlertRule))
        return any(all(name != "severity" or label.text != "none" for name, label in rule.labels) for rule in rules)

    @property
    def lookback_seconds(self) -> float:
        """How far back any rule looks."""
        offset = max((group.group.query_offset for group in self._groups), default=0.0)
        return max((query.lookback_seconds for query in self._queries()), default=0.0) + offset

    @property
    def lookbacks(self) -> dict[str, float]:
        """How far back rules look, seconds, by metric: of all in `metric_names`.

        A query that a template puts together may look as far as any rule does.
        """
        found = dict.fromkeys(self.metric_names, 0.0)
        for group in self._groups:
            for query in (query for state in group.rules for query in state.rule.queries):
                for name in query.metric_names:
                    found[name] = max(found[name], query.lookback_seconds + group.group.query_offset)
        return found | dict.fromkeys(self._shown(), self.lookback_seconds)

    def _queries(self) -> list[promql.Query]:
        return [query for group in self._groups for state in group.rules for query in state.rule.queries]

    # Reload and restart.

    def replace_groups(self, groups: Iterable[Group]) -> None:
        """Takes other rules from now on. The state of a rule that did not change in name and labels stays.

        Firing alerts of rules that are gone resolve in the next `evaluate`.
        """
        before = self._groups
        left = {(state.rule.key, state.rule.expr): state for group in before for state in group.rules}
        slots = {(g.group.file, g.group.name, g.interval): g for g in before}
        self._groups = self._states(groups)
        self.metric_names = self._names()
        for group in self._groups:
            old = slots.get((group.group.file, group.group.name, group.interval))
            if old is not None:
                group.next_slot, group.evaluated_at, group.seconds = old.next_slot, old.evaluated_at, old.seconds
        self._keep(left)
        for gone in left.values():
            for labels in gone.recorded | gone.exposed:
                self._store.mark_stale(labels, max((g.evaluated_at or 0.0 for g in before), default=0.0))
            if isinstance(gone.rule, AlertRule):
                self._departed += [
                    Departed(gone.rule.key, gone.rule.name, active)
                    for active in gone.active.values()
                    if active.state is not AlertState.PENDING
                ]
        refers = not self.metric_names.isdisjoint(("ALERTS", "ALERTS_FOR_STATE"))
        self._exposes_alerts = self._expose_always or refers
        self._revision += 1

    def _keep(self, left: dict[tuple[str, str], RuleState]) -> None:
        """Takes the states of rules that are still there out of `left`, by key and expression."""
        changed: list[tuple[list[RuleState], int]] = []
        for group in self._groups:
            for n, state in enumerate(group.rules):
                kept = left.pop((state.rule.key, state.rule.expr), None)
                if kept is None:
                    changed.append((group.rules, n))
                else:
                    kept.rule = state.rule
                    group.rules[n] = kept
        for rules, n in changed:
            rule = rules[n].rule
            # Only recording rules share a key: then in order, as in Prometheus.
            name = next((name for name in left if name[0] == rule.key), None)
            if name is not None:
                rules[n] = left.pop(name)
                rules[n].rule = rule

    def restore(self, saved: Iterable[SavedAlert], now: float) -> None:
        """Takes over what the last run left; before the first `evaluate`.

        Firing alerts of rules that are no longer there resolve in the next `evaluate`.
        """
        rules = {
            state.rule.key: state
            for group in self._groups
            for state in group.rules
            if isinstance(state.rule, AlertRule)
        }
        for alert in saved:
            state = rules.get(alert.rule_key)
            retained = alert.resolved_at is not None and now - alert.resolved_at < RESOLVED_RETENTION_SECONDS
            if alert.state is AlertState.RESOLVED and not retained:
                continue
            active = Active(
                alert.labels,
                alert.annotations,
                alert.value,
                alert.state,
                alert.active_at,
                alert.fired_at,
                alert.resolved_at,
                restored=None if alert.state is AlertState.RESOLVED else alert,
            )
            if state is not None:
                state.active[labels_of(alert.labels)] = active
            elif alert.state is not AlertState.PENDING:
                self._departed.append(Departed(alert.rule_key, alert.name, active))
        self._revision += 1

    def inputs_ready(self, now: float, data_since: float | None = None) -> None:
        """The first scrape after the start that tells something is complete; called again it changes nothing.

        `data_since` is the time of the oldest sample in the store where windows were restored, else they begin `now`.
        """
        if self._ready_at is None:
            self._ready_at = now
            self._data_since = now if data_since is None else min(now, data_since)

    def snapshot(self, now: float) -> Snapshot | None:
        """All alerts, if something changed since the last `saved`, or pending time is to be noted down; else None."""
        states = [(s.rule, s) for g in self._groups for s in g.rules if s.active and isinstance(s.rule, AlertRule)]
        if self._revision == self._saved_revision:
            timed = any(
                a.restored is None and (a.state is AlertState.PENDING or a.kept_since is not None)
                for _, s in states
                for a in s.active.values()
            )
            if not timed or now - self._saved_at < _SAVE_PENDING_SECONDS:
                return None
        alerts = [
            saved_alert(rule.key, rule.name, active, now if state.evaluated_at is None else state.evaluated_at)
            for rule, state in states
            for active in state.active.values()
        ]
        alerts += [saved_alert(departed.rule_key, departed.name, departed.active, now) for departed in self._departed]
        return Snapshot(now, self._revision, tuple(alerts))

    def saved(self, snapshot: Snapshot) -> None:
        """The snapshot is committed. Without this the next `snapshot` has everything again."""
        self._saved_revision = snapshot.revision
        self._saved_at = snapshot.at

    # Evaluation.

    def evaluate(self, now: float, *, news: bool = False) -> list[Transition]:
        """`evaluation` in one go."""
        return promql.finish(self.evaluation(now, news=news))

    def evaluation(self, now: float, *, news: bool = False) -> promql.Sliced[list[Transition]]:
        """Runs the groups that are due and gives the alerts that became pending, firing or resolved, in order.

        Yields after each slice, so that the caller can let others work: they may read what there is, and until it has
        ended must not change the rules or the store.

        `news`: something has come between two slots that is not to wait for the next one (a probe's end): groups of
        `NEWS_INTERVAL_SECONDS` or less run once more, their slots stay as they are.

        A pending alert whose condition ends is dropped without a word. `now` is Unix seconds of a clock that does not
        go back. Never raises for a rule: its failure is counted, shown by `rules()`, and its state kept.
        """
        self._slice = promql.Slice()
        transitions = self._depart(now) if self._departed else []
        for group in self._groups:
            at = group.slot(now)
            if at is None and news and group.interval <= NEWS_INTERVAL_SECONDS:
                at = now
            if at is None:
                continue
            begun = time.perf_counter()
            for state in group.rules:
                yield from self._run(group, state, at, now, transitions)
                yield from self._slice.over()
            group.seconds = time.perf_counter() - begun
            group.evaluated_at = now
        return transitions

    def failures(self) -> list[tuple[str, str]]:
        """(rule, what failed) of those whose last evaluation failed."""
        return [(s.rule.name, s.last_error) for group in self._groups for s in group.rules if s.health == "err"]

    def _run(
        self, group: GroupState, state: RuleState, at: float, now: float, transitions: list[Transition]
    ) -> promql.Sliced[None]:
        begun = time.perf_counter()
        group.evaluations.inc()
        rule = state.rule
        try:
            if isinstance(rule, AlertRule):
                yield from self._run_alert(group, state, rule, at, now, transitions)
                if self._exposes_alerts:
                    self._expose(state, now - group.group.query_offset)
            else:
                yield from self._run_recording(group, state, rule, now)
        except Exception as error:  # noqa: BLE001 - one rule that fails must not stop the others
            telemetry.RULE_FAILURES.labels(group.group.name, rule.name).inc()
            message = str(error) or type(error).__name__
            if message != state.last_error:
                where = f"{group.group.file}:{rule.line}"
                _log.warning("%s: rule %s of group %s failed: %s", where, rule.name, group.group.name, message)
            state.health, state.last_error = "err", message
        else:
            state.health, state.last_error = "ok", ""
            state.succeeded_at = now
        state.seconds = time.perf_counter() - begun
        state.evaluated_at = now

    def _query(self, query: promql.Query, at: float) -> promql.Sliced[Sequence[Sample]]:
        result = yield from query.in_slices(self._store, at, self.limits)
        return [Sample((), float(result))] if isinstance(result, (int, float)) else result

    def _run_recording(
        self, group: GroupState, state: RuleState, rule: RecordingRule, now: float
    ) -> promql.Sliced[None]:
        at = now - group.group.query_offset
        recorded: dict[Labels, float] = {}
        for sample in (yield from self._query(rule.query, at)):
            yield from self._slice.over()
            labels = labels_of({**dict(sample.labels), **dict(rule.labels), "__name__": rule.name})
            if labels in recorded:
                raise RuleFailure("two results have the same labels after the rule's labels are applied")
            recorded[labels] = sample.value
        self._check_limit(group, len(recorded))
        for labels, value in recorded.items():
            self._store.append(labels, at, value)
        for labels in state.recorded - recorded.keys():
            self._store.mark_stale(labels, at)
        state.recorded = set(recorded)

    @staticmethod
    def _check_limit(group: GroupState, count: int) -> None:
        if 0 < group.group.limit < count:
            raise RuleFailure(f"{count} results are more than the group's limit of {group.group.limit}")

    def _run_alert(
        self,
        group: GroupState,
        state: RuleState,
        rule: AlertRule,
        at: float,
        now: float,
        transitions: list[Transition],
    ) -> promql.Sliced[None]:
        samples = yield from self._query(rule.query, now - group.group.query_offset)
        if not samples and not state.active:
            return
        found = yield from self._label(group, state, rule, samples, now - group.group.query_offset)
        self._check_limit(group, len(found))

        for key, (labels, annotations, value) in found.items():
            yield from self._slice.over()
            active = state.active.get(key)
            if active is None or active.state is AlertState.RESOLVED:
                before = None if active is None else active.state
                active = Active(labels, annotations, value, AlertState.PENDING, min(at, now))
                state.active[key] = active
                if rule.for_seconds == 0:
                    active.state, active.fired_at = AlertState.FIRING, now
                self._note(transitions, now, rule, active, before)
                continue
            active.value, active.annotations = value, annotations
            if active.restored is not None:
                self._confirm(active, at)
            if active.kept_since is not None:
                active.kept_since = None
                self._revision += 1
            if active.state is AlertState.PENDING and _held_for(at, active.active_at, rule.for_seconds):
                active.state, active.fired_at = AlertState.FIRING, now
                self._note(transitions, now, rule, active, AlertState.PENDING)

        gone = [key for key in state.active if key not in found]
        for key in gone:
            yield from self._slice.over()
            self._without_condition(group, state, rule, key, at, now, transitions)

    def _without_condition(
        self,
        group: GroupState,
        state: RuleState,
        rule: AlertRule,
        key: Labels,
        at: float,
        now: float,
        transitions: list[Transition],
    ) -> None:
        active = state.active[key]
        if active.restored is not None:
            if not self._absence_counts(group, rule, now):
                return
            self._confirm(active, at)
        if active.state is AlertState.PENDING:
            del state.active[key]
            self._revision += 1
        elif active.state is AlertState.FIRING:
            if rule.keep_firing_seconds > 0:
                if active.kept_since is None:
                    active.kept_since = min(at, now)
                    self._revision += 1
                if not _held_for(at, active.kept_since, rule.keep_firing_seconds):
                    return
            active.state, active.resolved_at, active.kept_since = AlertState.RESOLVED, now, None
            self._note(transitions, now, rule, active, AlertState.FIRING)
        elif active.resolved_at is None or now - active.resolved_at > RESOLVED_RETENTION_SECONDS:
            del state.active[key]
            self._revision += 1

    def _label(
        self, group: GroupState, state: RuleState, rule: AlertRule, samples: Sequence[Sample], at: float
    ) -> promql.Sliced[_Result]:
        def render(templates: Templates) -> dict[str, str]:
            return _render(templates, data, state, f"{group.group.file}:{rule.line}: rule {rule.name}")

        found: _Result = {}
        for sample in samples:
            yield from self._slice.over()
            series = dict(sample.labels)
            data = Data(
                series,
                sample.value,
                self._external_labels,
                self._external_url,
                lambda expression: promql.finish(self._query(_compiled(expression), at)),
            )
            series = {name: value for name, value in series.items() if name != "__name__"}
            labels = {**series, **render(rule.labels), "alertname": rule.name}
            labels = {name: value for name, value in labels.items() if value}
            if not self._bare_labels:
                labels = {**self._external_labels, **labels}
            key = labels_of(labels)
            if key in found:
                raise RuleFailure(
                    "two results have the same labels after the rule's labels are applied: "
                    + ", ".join(f'{name}="{value}"' for name, value in key)
                )
            found[key] = (labels, render(rule.annotations), sample.value)
        return found

    def _confirm(self, active: Active, at: float) -> None:
        """The time of the last run goes on from here, without the time in between."""
        assert active.restored is not None
        if active.state is AlertState.PENDING:
            active.active_at = at - active.restored.pending_seconds
        if active.restored.kept_seconds is not None:
            active.kept_since = at - active.restored.kept_seconds
        active.restored = None
        self._revision += 1

    def _absence_counts(self, group: GroupState, rule: AlertRule, now: float) -> bool:
        if self._ready_at is None or now - self._data_since < rule.range_seconds:
            return False
        if now - self._ready_at >= max(self._restore_grace, 2 * group.interval):
            return True
        queries = [_compiled(metric_text({"__name__": name})) for name in rule.query.metric_names]
        return all(promql.finish(self._query(query, now)) for query in queries)

    def _note(
        self, transitions: list[Transition], now: float, rule: AlertRule, active: Active, before: AlertState | None
    ) -> None:
        self._revision += 1
        transitions.append(Transition(now, alert_of(rule.name, active), before))

    def _depart(self, now: float) -> list[Transition]:
        transitions: list[Transition] = []
        for departed in self._departed:
            active = departed.active
            if active.state is AlertState.FIRING:
                active.state, active.resolved_at, active.restored = AlertState.RESOLVED, now, None
                self._revision += 1
                transitions.append(Transition(now, alert_of(departed.name, active), AlertState.FIRING))
        kept = [d for d in self._departed if now - (d.active.resolved_at or now) <= RESOLVED_RETENTION_SECONDS]
        if len(kept) < len(self._departed):
            self._revision += 1
        self._departed = kept
        return transitions

    # Views.

    def alerts(self) -> list[Alert]:
        """Pending, firing and, for 15 minutes, resolved alerts."""
        current = [
            replace(alert_of(state.rule.name, active), seen_at=state.succeeded_at, interval=group.interval)
            for group in self._groups
            for state in group.rules
            for active in state.active.values()
        ]
        return current + [alert_of(departed.name, departed.active) for departed in self._departed]

    def alert_samples(self) -> list[Sample]:
        """`ALERTS` (1 for each pending and firing alert) and `ALERTS_FOR_STATE` (its beginning, Unix seconds)."""
        return [sample for group in self._groups for state in group.rules for sample in alert_samples(state)]

    def _expose(self, state: RuleState, at: float) -> None:
        """Rules may refer to `ALERTS`; only then the store gets them."""
        samples = alert_samples(state)
        for sample in samples:
            self._store.append(sample.labels, at, sample.value)
        present = {sample.labels for sample in samples}
        for labels in state.exposed - present:
            self._store.mark_stale(labels, at)
        state.exposed = present

    def rules(self) -> dict[str, Any]:
        """`data` of Prometheus' `/api/v1/rules`."""
        return {"groups": [group_view(group) for group in self._groups]}

    def alerts_view(self) -> dict[str, Any]:
        """`data` of Prometheus' `/api/v1/alerts`: pending and firing."""
        return {"alerts": [view for group in self._groups for state in group.rules for view in alert_views(state)]}


def _held_for(now: float, since: float, seconds: float) -> bool:
    # In whole milliseconds, as Prometheus counts, or 0.1 s ticks would reach 5 minutes one tick late.
    return round((now - since) * 1000) >= round(seconds * 1000)


def _render(templates: Templates, data: Data, state: RuleState, place: str) -> dict[str, str]:
    rendered: dict[str, str] = {}
    for name, template in templates:
        try:
            rendered[name] = template.render(data)
        except TemplateError as error:
            # As Prometheus: the alert goes out, and its text says what is wrong with it.
            rendered[name] = f"<error expanding template: {error}>"
            # Once, not at each evaluation of each series.
            if name not in state.failed_templates:
                state.failed_templates.add(name)
                _log.warning("%s: %s: template: %s", place, name, error)
    return rendered
