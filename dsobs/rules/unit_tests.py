"""Unit test files of rules in promtool's format, read whole: every problem has its file and line.

https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/, as promtool 3 reads it.
"""

import contextlib
import datetime
import glob
import math
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from dsobs.rules.notation import NativeHistogramError, NotationError, metric, values
from dsobs.rules.reader import Problem, Reader, is_null, read_text


@dataclass(frozen=True, slots=True)
class InputSeries:
    """One series: its labels, and its values, one an interval from the start (None: no sample)."""

    labels: dict[str, str]
    values: list[float | None]
    refused: Problem | None = None
    """Why it can't be read here, though promtool can: cases that need it fail, others do not."""


@dataclass(frozen=True, slots=True)
class ExpectedAlert:
    """Labels without `alertname`."""

    labels: dict[str, str]
    annotations: dict[str, str]


@dataclass(frozen=True, slots=True)
class AlertCase:
    """Which alerts of this name fire at `eval_time` seconds after the start; none: it must be silent."""

    line: int
    alertname: str
    eval_time: float
    expected: list[ExpectedAlert]


@dataclass(frozen=True, slots=True)
class ExpressionCase:
    """What an expression gives at `eval_time` seconds after the start; (labels, value) pairs."""

    line: int
    expr: str
    eval_time: float
    expected: list[tuple[dict[str, str], float]]
    refused: Problem | None = None
    """Why what is expected can't be read here, though promtool can."""


@dataclass(frozen=True, slots=True)
class UnitTest:
    """One entry of `tests`; seconds, `start` since the Unix epoch."""

    name: str
    line: int
    interval: float
    start: float
    series: list[InputSeries]
    alerts: list[AlertCase]
    expressions: list[ExpressionCase]
    external_labels: dict[str, str]
    external_url: str


@dataclass(frozen=True, slots=True)
class UnitTestFile:
    """One file; `rule_files` are those that the patterns found, `unmatched` the patterns that found none."""

    file: str
    rule_files: list[str]
    unmatched: list[str]
    evaluation_interval: float
    group_order: dict[str, int]
    fuzzy: bool
    tests: list[UnitTest]


_FILE_KEYS = ("rule_files", "evaluation_interval", "group_eval_order", "tests", "fuzzy_compare")
_TEST_KEYS = (
    "interval",
    "input_series",
    "alert_rule_test",
    "promql_expr_test",
    "external_labels",
    "external_url",
    "name",
    "start_timestamp",
)


def read_unit_tests(path: Path | str) -> tuple[UnitTestFile | None, list[Problem]]:
    """The file, or None and every problem that it has."""
    problems: list[Problem] = []
    text = read_text(path, problems)
    if text is None:
        return None, problems
    reader = _UnitTests(str(path))
    found = reader.read(text)
    return (None if reader.problems else found), reader.problems


class _UnitTests(Reader):
    def read(self, text: str) -> UnitTestFile:
        root = self._compose(text)
        top = {} if root is None else self._mapping(root, _FILE_KEYS, "a test file")
        interval = self._duration(top.get("evaluation_interval"), "evaluation_interval") or 60.0
        order: dict[str, int] = {}
        for node in self._sequence(top.get("group_eval_order"), "group_eval_order"):
            group = self._text(node, "group_eval_order")
            if group in order:
                self._problem(node, f"group {group!r} is twice in `group_eval_order`; remove one of them")
            order[group] = len(order)
        rule_files, unmatched = self._rule_files(top.get("rule_files"))
        tests = [
            self._test(node, index, interval)
            for index, node in enumerate(self._sequence(top.get("tests"), "tests"))
            if not is_null(node)
        ]
        fuzzy = self._truth(top.get("fuzzy_compare"), "fuzzy_compare")
        return UnitTestFile(self.name, rule_files, unmatched, interval, order, fuzzy, tests)

    def _rule_files(self, node: yaml.Node | None) -> tuple[list[str], list[str]]:
        found: list[str] = []
        unmatched: list[str] = []
        for item in self._sequence(node, "rule_files"):
            pattern = str(Path(self.name).parent / self._text(item, "rule_files"))
            matches = sorted(glob.glob(pattern, include_hidden=True))  # noqa: PTH207 - whole patterns, absolute ones too
            found += matches
            if not matches:
                unmatched.append(pattern)
        return found, unmatched

    def _test(self, node: yaml.Node, index: int, evaluation_interval: float) -> UnitTest:
        fields = self._mapping(node, _TEST_KEYS, "a test")
        return UnitTest(
            self._text(fields.get("name"), "name") or f"unnamed#{index}",
            node.start_mark.line + 1,
            self._duration(fields.get("interval"), "interval") or evaluation_interval,
            self._start(fields.get("start_timestamp")),
            [self._series(item) for item in self._sequence(fields.get("input_series"), "input_series")],
            [self._alert_case(item) for item in self._sequence(fields.get("alert_rule_test"), "alert_rule_test")],
            [self._expression(item) for item in self._sequence(fields.get("promql_expr_test"), "promql_expr_test")],
            self._words(fields.get("external_labels"), "external_labels"),
            self._text(fields.get("external_url"), "external_url"),
        )

    def _series(self, node: yaml.Node) -> InputSeries:
        fields = self._mapping(node, ("series", "values"), "an input series")
        labels: dict[str, str] = {}
        sequence: list[float | None] = []
        series = fields.get("series")
        if series is None:
            self._problem(node, 'the input series has no name; add `series: name{label="value"}`')
        else:
            try:
                labels = metric(self._text(series, "series"))
            except NotationError as error:
                self._problem(series, f"series: {error}")
        refused = None
        if "values" in fields:
            try:
                sequence = values(self._text(fields["values"], "values"))
            except NativeHistogramError as error:
                refused = self._refusal(fields["values"], error)
            except NotationError as error:
                self._problem(fields["values"], f"values: {error}")
        return InputSeries({name: value for name, value in labels.items() if value}, sequence, refused)

    def _refusal(self, node: yaml.Node, error: NativeHistogramError) -> Problem:
        return Problem(self.name, node.start_mark.line + 1, "", "", str(error), unsupported=True)

    def _alert_case(self, node: yaml.Node) -> AlertCase:
        fields = self._mapping(node, ("eval_time", "alertname", "exp_alerts"), "an alert_rule_test")
        name = self._text(fields.get("alertname"), "alertname")
        if not name and isinstance(node, yaml.MappingNode):
            self._problem(node, "the alert_rule_test has no `alertname`; add it")
        expected = []
        for item in self._sequence(fields.get("exp_alerts"), "exp_alerts"):
            if is_null(item):
                expected.append(ExpectedAlert({}, {}))
                continue
            alert = self._mapping(item, ("exp_labels", "exp_annotations"), "an expected alert")
            labels = self._words(alert.get("exp_labels"), "exp_labels")
            labels.pop("alertname", None)
            expected.append(ExpectedAlert(labels, self._words(alert.get("exp_annotations"), "exp_annotations")))
        return AlertCase(node.start_mark.line + 1, name, self._duration(fields.get("eval_time"), "eval_time"), expected)

    def _expression(self, node: yaml.Node) -> ExpressionCase:
        fields = self._mapping(node, ("expr", "eval_time", "exp_samples"), "a promql_expr_test")
        expected = []
        refused = None
        for item in self._sequence(fields.get("exp_samples"), "exp_samples"):
            sample = self._mapping(item, ("labels", "value", "histogram"), "an expected sample")
            if self._text(sample.get("histogram"), "histogram"):
                refused = self._refusal(sample["histogram"], NativeHistogramError())
            labels: dict[str, str] = {}
            if "labels" in sample:
                try:
                    labels = metric(self._text(sample["labels"], "labels"))
                except NotationError as error:
                    self._problem(sample["labels"], f"labels: {error}")
            expected.append((labels, self._value(sample.get("value"))))
        return ExpressionCase(
            node.start_mark.line + 1,
            self._text(fields.get("expr"), "expr"),
            self._duration(fields.get("eval_time"), "eval_time"),
            expected,
            refused,
        )

    def _words(self, node: yaml.Node | None, what: str) -> dict[str, str]:
        """A mapping of texts; numbers and the like as they are written."""
        if node is None:
            return {}
        return {
            str(key.value): "" if is_null(value) else self._text(value, f"{what}: {key.value}")
            for key, value, _ in reversed(self._items(node, f"`{what}`"))
        }

    def _value(self, node: yaml.Node | None) -> float:
        text = self._text(node, "value").lower()
        if not text:
            return 0.0
        try:
            if match := re.fullmatch(r"([+-]?)(?:\.inf|(\.nan))", text):
                return math.nan if match[2] else math.copysign(math.inf, -1 if match[1] == "-" else 1)
            if re.fullmatch(r"[+-]?0[xob][0-9a-f_]+", text):
                return float(int(text, 0))
            if re.fullmatch(r"[+-]?0[0-7_]+", text):
                return float(int(text.replace("_", ""), 8))
            if re.fullmatch(r"[+-]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:e[+-]?[0-9]+)?", text):
                return float(text.replace("_", ""))
        except ValueError:
            pass
        self._problem(node, f"value {text!r} is no number; infinities are written .inf, not-a-number .nan")
        return 0.0

    def _truth(self, node: yaml.Node | None, what: str) -> bool:
        text = self._text(node, what).lower()
        if text not in ("", "true", "false", "yes", "no", "on", "off", "y", "n"):
            self._problem(node, f"{what} must be true or false")
        return text in ("true", "yes", "on", "y")

    def _start(self, node: yaml.Node | None) -> float:
        text = self._text(node, "start_timestamp")
        if not text:
            return 0.0
        if re.fullmatch(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", text):
            return round(float(text), 3)
        moment = None
        if re.fullmatch(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", text):
            with contextlib.suppress(ValueError):
                moment = datetime.datetime.fromisoformat(text.upper())
        if moment is None:
            self._problem(node, f"start_timestamp {text!r} is no time; write Unix seconds or 2026-01-31T12:00:00Z")
            return 0.0
        return moment.timestamp()
