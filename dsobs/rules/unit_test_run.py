"""Runs unit tests of rules as promtool 3 does: all groups at each `evaluation_interval` from the start, whatever their
own interval, over samples that are never thinned. A subquery that names no step takes that interval too.

What is read twice from promtool's documentation and easily missed: an alert is looked at in the last evaluation at or
before its `eval_time`; expressions are evaluated after all evaluations, over the samples up to the last one; external
labels are there for templates and not among an alert's labels; NaN equals nothing, not even an expected NaN.

Different on purpose: a query may read any number of samples (promtool stops at 10,000), and a rule that dsobs does not
evaluate fails the cases that need it and no others.
"""

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from dsobs import promql
from dsobs.model.alert import AlertState
from dsobs.model.samples import Labels, Sample, labels_of, metric_name
from dsobs.promql import EvaluationError, PromqlError
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import AlertRule, Group, RecordingRule, read, reason
from dsobs.rules.notation import metric_text, value_text
from dsobs.rules.reader import Problem
from dsobs.rules.unit_tests import AlertCase, ExpressionCase, UnitTest, UnitTestFile
from dsobs.series.store import Store

_EVERYTHING = 2**40
"""Seconds, and a number of series, that no test reaches: nothing is thinned, nothing left out."""
_ALERTS = frozenset({"ALERTS", "ALERTS_FOR_STATE"})

logging.getLogger("dsobs.rules.evaluator").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What became of one case. `reason` is empty where it passed; `expected` and `got` are lines."""

    file: str
    line: int
    name: str
    expr: str
    """The expression, or the alert's name."""
    eval_time: float
    ok: bool
    reason: str = ""
    expected: tuple[str, ...] = ()
    got: tuple[str, ...] = ()


def run_file(tests: UnitTestFile) -> tuple[list[CaseResult], list[Problem]]:
    """All cases of a file, in its order; problems of its rule files, with which nothing is run."""
    groups, problems = read(tests.rule_files)
    fatal = [problem for problem in problems if not problem.unsupported]
    if fatal:
        return [], fatal
    order = tests.group_order
    # Groups that the order does not name count as the first one of it, as there.
    groups.sort(key=lambda group: order.get(group.name, 0))
    known: dict[str, Problem] = {}
    for problem in problems:
        known.setdefault(problem.rule, problem)
    return [result for test in tests.tests for result in _run_test(tests, test, groups, known)], []


def _missing(groups: Sequence[Group], known: dict[str, Problem]) -> dict[str, Problem]:
    """Alerts and metrics that are not evaluated or read here, or need one that is not, and which problem it is."""
    missing = dict(known)
    rules = [rule for group in groups for rule in group.rules]
    while True:
        for name in _ALERTS if any(isinstance(r, AlertRule) and r.name in missing for r in rules) else ():
            missing.setdefault(name, next(iter(missing.values())))
        more = {
            rule.name: missing[name]
            for rule in rules
            if rule.name not in missing
            for name in rule.query.metric_names & missing.keys()
        }
        if not more:
            return missing
        missing |= more


def _run_test(
    tests: UnitTestFile, test: UnitTest, groups: Sequence[Group], known: dict[str, Problem]
) -> Iterator[CaseResult]:
    refused = {series.labels.get("__name__", ""): series.refused for series in test.series if series.refused}
    run = _Run(tests, test, groups, _missing(groups, known | refused))
    failure = run.evaluate()
    if failure is not None and not (test.alerts or test.expressions):
        yield CaseResult(tests.file, test.line, test.name, "", failure[0], ok=False, reason=_failed(failure))
    for case in test.alerts:
        yield run.alert_result(case, failure)
    for expression in test.expressions:
        yield run.expression_result(expression, failure)


class _Run:
    """One test: its store, its evaluator, and what fired when it was asked for."""

    def __init__(
        self, tests: UnitTestFile, test: UnitTest, groups: Sequence[Group], missing: dict[str, Problem]
    ) -> None:
        self._tests = tests
        self._test = test
        self._missing = missing
        self._interval = tests.evaluation_interval
        self._limits = replace(promql.LIMITS, subquery_step=tests.evaluation_interval)
        self._fired: dict[float, dict[str, list[tuple[dict[str, str], dict[str, str]]]]] = {}
        self._store = Store(fine_seconds=_EVERYTHING, coarse_seconds=_EVERYTHING, max_series=_EVERYTHING)
        self._inputs = _inputs(test)
        self._queries = {case.expr: _compiled(case.expr) for case in test.expressions}
        rules = [rule for group in groups for rule in group.rules]
        recorded = {rule.name for rule in rules if isinstance(rule, RecordingRule)}
        input_names = {metric_name(series.labels) for series in self._inputs}
        for name in input_names | recorded | _ALERTS:
            self._store.want(name)
        asked = frozenset().union(
            *(rule.query.metric_names for rule in rules),
            *(query.metric_names for query in self._queries.values() if isinstance(query, promql.Query)),
        )
        exposes = not asked.isdisjoint(_ALERTS)
        needed = _Needed({case.alertname for case in test.alerts}, input_names | recorded, everything=exposes)
        self._evaluator = self._make([_only(group, needed.holds, self._interval) for group in groups], exposes)
        # Rules without data give the same at each time, so that once is enough to see whether they fail.
        self._rest = self._make([_only(group, needed.not_holds, self._interval) for group in groups], exposes=False)

    def _make(self, groups: Iterable[Group], exposes: bool) -> Evaluator:
        evaluator = Evaluator(
            [group for group in groups if group.rules],
            self._store,
            external_labels=self._test.external_labels,
            external_url=self._test.external_url,
            bare_labels=True,
            expose_alerts=exposes,
        )
        evaluator.limits = self._limits
        return evaluator

    def evaluate(self) -> tuple[float, str] | None:
        """Goes through the whole time of the test; (seconds after the start, what failed) where a rule failed."""
        test, interval = self._test, self._interval
        times = sorted({case.eval_time for case in test.alerts})
        end = max([*times, *(case.eval_time for case in test.expressions)], default=0.0)
        due = iter(times)
        next_time = next(due, math.inf)
        step_ms, end_ms = round(interval * 1000), round(end * 1000)
        for tick in range(end_ms // step_ms + 1):
            now = test.start + tick * step_ms / 1000
            self._load(now)
            if tick == 0:
                self._rest.evaluate(now)
            self._evaluator.evaluate(now)
            failures = self._evaluator.failures() or (self._rest.failures() if tick == 0 else [])
            if failures:
                told = "; ".join(f"rule {name}: {error}" for name, error in failures)
                return tick * step_ms / 1000, told
            while next_time * 1000 < (tick + 1) * step_ms - 0.5:
                self._fired[next_time] = self._firing()
                next_time = next(due, math.inf)
        return None

    def _load(self, now: float) -> None:
        """The samples up to now."""
        at = round(now * 1000)
        append = self._store.append
        for series in self._inputs:
            until = bisect_right(series.times, at, series.loaded)
            for index in range(series.loaded, until):
                append(series.labels, series.times[index] / 1000, series.values[index])
            series.loaded = until

    def _firing(self) -> dict[str, list[tuple[dict[str, str], dict[str, str]]]]:
        found: dict[str, list[tuple[dict[str, str], dict[str, str]]]] = {}
        for alert in self._evaluator.alerts():
            if alert.state is AlertState.FIRING:
                labels = {name: value for name, value in alert.labels.items() if name != "alertname"}
                found.setdefault(alert.name, []).append((labels, dict(alert.annotations)))
        return found

    def alert_result(self, case: AlertCase, failure: tuple[float, str] | None) -> CaseResult:
        """Compares labels and annotations of the alerts of this name, in any order."""

        def result(ok: bool, why: str = "", expected: Sequence[str] = (), got: Sequence[str] = ()) -> CaseResult:
            name, file = self._test.name, self._tests.file
            return CaseResult(
                file, case.line, name, case.alertname, case.eval_time, ok, why, tuple(expected), tuple(got)
            )

        if case.alertname in self._missing:
            return result(False, str(self._missing[case.alertname]))
        if case.eval_time not in self._fired:
            assert failure is not None
            return result(False, _failed(failure))
        expected = _sorted((alert.labels, alert.annotations) for alert in case.expected)
        got = _sorted(self._fired[case.eval_time].get(case.alertname, []))
        if expected == got:
            return result(True)
        why = f"{case.alertname} at {_time(case.eval_time)}: {_counted(expected, got)}"
        return result(False, why, [_alert_text(*a) for a in expected], [_alert_text(*a) for a in got])

    def expression_result(self, case: ExpressionCase, failure: tuple[float, str] | None) -> CaseResult:
        """Evaluates over all samples of the test and compares labels and values."""

        def result(ok: bool, why: str = "", expected: Sequence[str] = (), got: Sequence[str] = ()) -> CaseResult:
            name, file = self._test.name, self._tests.file
            return CaseResult(file, case.line, name, case.expr, case.eval_time, ok, why, tuple(expected), tuple(got))

        query = self._queries[case.expr]
        if isinstance(query, str):
            return result(False, query)
        if case.refused is not None:
            return result(False, str(case.refused))
        for name in sorted(query.metric_names & self._missing.keys()):
            return result(False, str(self._missing[name]))
        if failure is not None:
            return result(False, _failed(failure))
        try:
            value = query.evaluate(self._store, self._test.start + case.eval_time, self._limits)
        except EvaluationError as error:
            return result(False, str(error))
        samples = [Sample((), float(value))] if isinstance(value, (int, float)) else value
        got = sorted(((dict(s.labels), s.value) for s in samples), key=_sample_key)
        expected = sorted(case.expected, key=_sample_key)
        if len(got) == len(expected) and all(
            a == b and _same(x, y, self._tests.fuzzy) for (a, x), (b, y) in zip(expected, got, strict=True)
        ):
            return result(True)
        why = f"at {_time(case.eval_time)}: {_counted(expected, got)}"
        return result(False, why, [_sample_text(*s) for s in expected], [_sample_text(*s) for s in got])


class _Needed:
    """Which rules have to be evaluated at each time: those of the cases, and whatever has data and so may fail."""

    def __init__(self, alerts: set[str], data: set[str], *, everything: bool) -> None:
        self._alerts = alerts
        self._data = data
        self._everything = everything

    def holds(self, rule: AlertRule | RecordingRule) -> bool:
        """Whether it has to be."""
        if self._everything or isinstance(rule, RecordingRule) or rule.name in self._alerts:
            return True
        return not rule.query.metric_names or not self._data.isdisjoint(rule.query.metric_names)

    def not_holds(self, rule: AlertRule | RecordingRule) -> bool:
        """Whether once is enough."""
        return not self.holds(rule)


def _only(group: Group, holds: Callable[[AlertRule | RecordingRule], bool], interval: float) -> Group:
    return replace(group, interval=interval, rules=tuple(rule for rule in group.rules if holds(rule)))


@dataclass(slots=True)
class _Input:
    labels: Labels
    times: list[int]
    """Milliseconds since the Unix epoch."""
    values: list[float]
    loaded: int = 0
    """How many are in the store."""


def _inputs(test: UnitTest) -> list[_Input]:
    """Of the same series twice the last one holds."""
    step, start = round(test.interval * 1000), round(test.start * 1000)
    found: dict[Labels, _Input] = {}
    for series in test.series:
        times: list[int] = []
        values: list[float] = []
        for index, value in enumerate(series.values):
            if value is not None:
                times.append(start + index * step)
                values.append(value)
        labels = labels_of(series.labels)
        found[labels] = _Input(labels, times, values)
    return list(found.values())


def _compiled(expression: str) -> promql.Query | str:
    try:
        return promql.compile(expression)
    except PromqlError as error:
        return reason(error)


def _failed(failure: tuple[float, str]) -> str:
    return f"not reached, since at {_time(failure[0])} {failure[1]}"


def _same(a: float, b: float, fuzzy: bool) -> bool:
    return a == b or (fuzzy and b in (math.nextafter(a, -math.inf), math.nextafter(a, math.inf)))


def _pairs(labels: dict[str, str]) -> list[tuple[str, str]]:
    return sorted(labels.items())


def _sample_key(sample: tuple[dict[str, str], float]) -> list[tuple[str, str]]:
    return _pairs(sample[0])


def _sorted(
    alerts: Iterable[tuple[dict[str, str], dict[str, str]]],
) -> list[tuple[dict[str, str], dict[str, str]]]:
    return sorted(alerts, key=lambda alert: (_pairs(alert[0]), _pairs(alert[1])))


def _sample_text(labels: dict[str, str], value: float) -> str:
    return f"{metric_text(labels)} {value_text(value)}"


def _alert_text(labels: dict[str, str], annotations: dict[str, str]) -> str:
    return f"{metric_text(labels)} annotations {metric_text(annotations)}"


def _counted(expected: Sequence[object], got: Sequence[object]) -> str:
    if len(expected) == len(got):
        return "not what was expected"
    return f"expected {len(expected) or 'nothing'}, got {len(got) or 'nothing'}"


def _time(seconds: float) -> str:
    """`1d2h30m`, as promtool prints durations."""
    left = round(seconds * 1000)
    out = ""
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")):
        count, left = divmod(left, size)
        if count:
            out += f"{count}{unit}"
    return out or "0s"
