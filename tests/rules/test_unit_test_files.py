"""Unit test files: what is read, and what is refused with which words."""

from pathlib import Path

import pytest

from dsobs.rules.unit_tests import UnitTestFile, read_unit_tests

_DATA = Path(__file__).parent / "unit_test_data"

MESSAGES: dict[str, list[str]] = {
    "not_yaml": ["FILE:3: no valid YAML: while scanning a quoted scalar found unexpected end of stream"],
    "two_lists": ["FILE:2: `rule_files` must be a list (`- …`)", "FILE:1: `tests` must be a list (`- …`)"],
    "shapes": [
        "FILE:1: unknown key `rule_file` in a test file; did you mean `rule_files`?",
        "FILE:2: evaluation_interval: '1 minute' is no duration; write 30s, 5m or 1h30m",
        "FILE:3: group 'a' is twice in `group_eval_order`; remove one of them",
        "FILE:6: unknown key `intervall` in a test; did you mean `interval`?",
        "FILE:7: start_timestamp 'yesterday' is no time; write Unix seconds or 2026-01-31T12:00:00Z",
        "FILE:9: series: can't read the series 'up{job=\"x\"': `,` or `}` must stand at its end",
        'FILE:11: the input series has no name; add `series: name{label="value"}`',
        "FILE:13: values: '+' is no value of a series; write numbers, a+bxn, a-bxn, axn, _, _xn or stale",
        "FILE:15: eval_time: '-5m' is no duration; write 30s, 5m or 1h30m",
        "FILE:17: the alert_rule_test has no `alertname`; add it",
        "FILE:21: unknown key `exp_label` in an expected alert; did you mean `exp_labels`?",
        "FILE:25: labels: can't read the series 'up{job=x}': a label value in quotes must stand before 'x}'",
        "FILE:26: value 'one' is no number; infinities are written .inf, not-a-number .nan",
        "FILE:27: value 'nan' is no number; infinities are written .inf, not-a-number .nan",
        "FILE:28: `external_labels` must be a mapping (`key: value`)",
        "FILE:4: fuzzy_compare must be true or false",
    ],
}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_bad_file_is_refused_with_every_problem(name: str) -> None:
    path = _DATA / f"{name}.bad.yaml"
    tests, problems = read_unit_tests(path)
    assert tests is None
    assert [str(problem).replace(str(path), "FILE") for problem in problems] == MESSAGES[name]


def test_every_bad_file_has_its_messages_here() -> None:
    assert sorted(MESSAGES) == sorted(path.name.removesuffix(".bad.yaml") for path in _DATA.glob("*.bad.yaml"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    tests, problems = read_unit_tests(tmp_path / "x.yaml")
    assert tests is None
    assert [str(p) for p in problems] == [f"{tmp_path}/x.yaml: can't read it: No such file or directory"]


def _read(tmp_path: Path, text: str) -> UnitTestFile:
    path = tmp_path / "x.test.yaml"
    path.write_text(text)
    tests, problems = read_unit_tests(path)
    assert problems == []
    assert tests is not None
    return tests


def test_defaults_are_those_of_promtool(tmp_path: Path) -> None:
    tests = _read(tmp_path, "tests: [{promql_expr_test: [{expr: up}]}, {name: named, interval: 5s}]")
    assert (tests.evaluation_interval, tests.fuzzy, tests.rule_files, tests.group_order) == (60.0, False, [], {})
    first, second = tests.tests
    assert (first.name, first.interval, first.start, first.line) == ("unnamed#0", 60.0, 0.0, 1)
    assert (second.name, second.interval) == ("named", 5.0)
    (case,) = first.expressions
    assert (case.expr, case.eval_time, case.expected) == ("up", 0.0, [])


def test_rule_files_are_relative_to_the_test_and_may_be_patterns(tmp_path: Path) -> None:
    for name in ("b.rules.yaml", "a.rules.yaml", "c.yaml"):
        (tmp_path / name).write_text("groups: []")
    tests = _read(tmp_path, f"rule_files: ['*.rules.yaml', '{tmp_path}/c.yaml', gone.yaml]")
    assert [Path(f).name for f in tests.rule_files] == ["a.rules.yaml", "b.rules.yaml", "c.yaml"]
    assert tests.unmatched == [f"{tmp_path}/gone.yaml"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1609459200", 1609459200.0),
        ("1.5e3", 1500.0),
        ("2024-01-01T00:00:00Z", 1704067200.0),
        ('"2024-01-01T01:00:00.250+01:00"', 1704067200.25),
    ],
)
def test_a_test_may_begin_at_any_time(tmp_path: Path, text: str, seconds: float) -> None:
    assert _read(tmp_path, f"tests: [{{start_timestamp: {text}}}]").tests[0].start == seconds


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("-1.5e3", -1500), (".inf", float("inf")), ("-.Inf", float("-inf")), ("0x10", 16), ("010", 8), ("", 0)],
)
def test_expected_values_are_read_as_yaml_numbers(tmp_path: Path, text: str, value: float) -> None:
    tests = _read(tmp_path, f"tests: [{{promql_expr_test: [{{expr: up, exp_samples: [{{value: {text}}}]}}]}}]")
    assert tests.tests[0].expressions[0].expected == [({}, value)]
