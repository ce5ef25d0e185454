"""Rule files: what loads, and what is refused with which words."""

# ruff: noqa: E501 - messages as users see them, one a line

from pathlib import Path

import pytest

from dsobs.config import Config
from dsobs.pipeline import rule_groups
from dsobs.rules.files import AlertRule, RecordingRule, RuleFileError, load, load_text, out_of_reach, read

_DATA = Path(__file__).parent / "data"

MESSAGES: dict[str, list[str]] = {
    "alert_and_record": [
        'FILE:4: group "g": rule "A": the rule has both `alert` and `record`; make two rules of it',
    ],
    "bad_duration": [
        "FILE:3: group \"g\": interval: 'fast' is no duration; write 30s, 5m or 1h30m",
        'FILE:7: group "g": rule "A": for: \'5 minutes\' is no duration; write 30s, 5m or 1h30m',
        'FILE:8: group "g": rule "A": keep_firing_for: \'1m1h\' is no duration; write 30s, 5m or 1h30m',
    ],
    "bad_template": [
        'FILE:7: group "g": rule "A": label \'kind\': template: undefined variable $lables; there are: $, $externalLabels, $externalURL, $labels, $value',
        "FILE:9: group \"g\": rule \"A\": annotation 'a': template: function 'humanise' is not supported; did you mean humanize?",
        'FILE:10: group "g": rule "A": annotation \'b\': template: {{ template }} is not supported; write it otherwise, or leave this rule to Prometheus',
        'FILE:11: group "g": rule "A": annotation \'c\': template: {{ if }} has no {{ end }}',
        'FILE:12: group "g": rule "A": annotation \'d\': template: unknown field .Label; there are: .ExternalLabels, .ExternalURL, .Labels, .Value',
        "FILE:13: group \"g\": rule \"A\": annotation 'e': template: unclosed action '{{ $value'",
        'FILE:14: group "g": rule "A": annotation \'f\': template: printf takes 1 or more arguments, not 0',
        'FILE:15: group "g": rule "A": annotation \'g\': template: unexpected {{ end }}',
        'FILE:16: group "g": rule "A": annotation \'h\': template: unclosed left parenthesis',
    ],
    "duplicate_group": [
        'FILE:4: group "g": group name "g" is also used in line 2; rename one of them',
    ],
    "duplicate_key": [
        'FILE:6: group "g": rule "A": key `expr` is also in line 5; remove one of them',
    ],
    "duplicate_rule": [
        'FILE:10: group "h": rule "A": the same rule (name and labels) is in FILE:4; remove one or give it another label',
        'FILE:14: group "h": rule "a:b": the same rule (name and labels) is in FILE:12; remove one or give it another label',
    ],
    "invalid_label_name": [
        "FILE:3: group \"g\": invalid label name ''; give it another one",
        'FILE:8: group "g": rule "A": invalid label name \'__name__\'; give it another one',
        'FILE:10: group "g": rule "A": invalid annotation name \'\'; give it another one',
    ],
    "missing_expression": [
        'FILE:4: group "g": rule "A": the rule has no expression; add `expr:`',
        'FILE:6: group "g": rule "B": the rule has no expression; add `expr:`',
        'FILE:7: group "g": the rule has neither `alert` nor `record`; add one of them',
        'FILE:7: group "g": the rule has no expression; add `expr:`',
    ],
    "not_yaml": [
        "FILE:3: no valid YAML: while parsing a block collection expected <block end>, but found '<block mapping start>'",
    ],
    "recording_rule_with_alert_keys": [
        'FILE:6: group "g": rule "a{b}": `for` belongs to alerts, not to recording rules; take it out',
        'FILE:7: group "g": rule "a{b}": `annotations` belongs to alerts, not to recording rules; take it out',
        'FILE:4: group "g": rule "a{b}": invalid metric name \'a{b}\'; labels belong under `labels`',
    ],
    "syntax": [
        """FILE:5: group "syntax": rule "EndsTooEarly": expr: it ends too early, after '=='""",
        """FILE:11: group "syntax": rule "WordTooMany": expr: unexpected 'engine'""",
    ],
    "two_documents": [
        "FILE:2: no valid YAML: expected a single document in the stream but found another document",
    ],
    "unknown_key": [
        'FILE:3: group "g": unknown key `intervall` in a group; did you mean `interval`?',
        'FILE:7: group "g": rule "A": unknown key `lables` in a rule; did you mean `labels`?',
    ],
    "unknown_top": [
        "FILE:1: unknown key `group` in a rule file; did you mean `groups`?",
    ],
    "unsupported_promql": [
        'FILE:5: group "g": rule "A": expr: dsobs does not support the experimental function mad_over_time(); write it otherwise, or leave this rule to Prometheus',
        'FILE:7: group "g": rule "B": expr: unclosed left parenthesis',
        'FILE:9: group "g": rule "C": expr: dsobs does not support a selector that does not name its metrics in a rule; write it otherwise, or leave this rule to Prometheus',
        'FILE:11: group "g": rule "D": expr: dsobs does not support native histograms, which histogram_avg() is for; write it otherwise, or leave this rule to Prometheus',
        'FILE:15: group "g": rule "E": annotation \'summary\': template: dsobs does not support a selector that does not name its metrics in a rule; write it otherwise, or leave this rule to Prometheus',
    ],
    "wrong_shapes": [
        "FILE:2: the group has no name; add `name:`",
        "FILE:2: `rules` must be a list (`- …`)",
        "FILE:4: group \"g\": limit 'many' is no whole number; write 0 for no limit",
        'FILE:6: group "g": a rule must be a mapping (`key: value`)',
        'FILE:7: group "g": `alert` must be plain text',
        'FILE:11: group "g": rule "B": `labels` must be a mapping (`key: value`)',
        'FILE:12: group "g": rule "B": annotation \'summary\' must be plain text',
    ],
}


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_bad_file_is_refused_with_every_problem(name: str) -> None:
    path = _DATA / f"{name}.bad.yaml"
    with pytest.raises(RuleFileError) as refused:
        load([path])
    assert [str(problem).replace(str(path), "FILE") for problem in refused.value.problems] == MESSAGES[name]


def test_every_bad_file_has_its_messages_here() -> None:
    assert sorted(MESSAGES) == sorted(path.name.removesuffix(".bad.yaml") for path in _DATA.glob("*.bad.yaml"))


def test_problems_of_all_files_are_reported_at_once() -> None:
    paths = [_DATA / "duplicate_key.bad.yaml", _DATA / "absent.yaml", _DATA / "unknown_top.bad.yaml"]
    with pytest.raises(RuleFileError) as refused:
        load(paths)
    assert {problem.file for problem in refused.value.problems} == {str(path) for path in paths}
    assert f"{paths[1]}: can't read it: No such file or directory" in str(refused.value)


def test_the_same_rule_in_two_files_is_refused() -> None:
    text = "groups: [{name: g, rules: [{alert: A, expr: up == 0}]}]"
    with pytest.raises(RuleFileError, match=r"the same rule .* is in one\.yaml:1"):
        load_text([("one.yaml", text), ("two.yaml", text)])


def test_the_same_group_name_in_two_files_is_fine() -> None:
    groups = load_text([("one.yaml", "groups: [{name: g}]"), ("two.yaml", "groups: [{name: g}]")])
    assert [(group.name, group.file) for group in groups] == [("g", "one.yaml"), ("g", "two.yaml")]


def test_a_file_that_is_nested_without_end_is_refused_and_does_not_end_the_process() -> None:
    _, problems = read((), [("f", "groups: " + "[" * 5000 + "]" * 5000)])
    assert [str(problem) for problem in problems] == [
        "f: it is nested too deeply; a rule file has six levels at most",
    ]


def test_a_merge_that_holds_itself_is_refused_with_its_line() -> None:
    _, problems = read((), [("f", "groups:\n- &a\n  name: x\n  <<: *a\n")])
    assert [str(problem) for problem in problems] == [
        'f:4: group "x": a group is merged into itself by `<<`; write its keys instead of the alias',
    ]


def test_merges_of_merges_do_not_multiply() -> None:
    """Nine aliases nine levels deep would be 387 million keys."""
    levels = ["&m0 {alert: A, expr: up == 0, labels: {level: 0}}"]
    levels += [f"&m{n} {{labels: {{level: {n}}}, <<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 10)]
    text = "groups:\n- name: g\n  rules:\n" + "".join(f"  - {level}\n" for level in levels)
    groups, problems = read((), [("f", text)])
    assert problems == []
    assert [dict(rule.labels)["level"].text for rule in groups[0].rules if isinstance(rule, AlertRule)] == [
        *"0123456789"
    ]


@pytest.mark.parametrize("text", ["", "# nothing\n", "groups:\n", "groups: []\n", "{}\n"])
def test_an_empty_file_has_no_groups(text: str) -> None:
    assert load_text([("f", text)]) == []


def test_everything_that_a_rule_file_may_hold_is_read() -> None:
    (group,) = load_text(
        [
            (
                "f",
                """
groups:
  - name: g
    interval: 1m30s
    query_offset: 10s
    limit: 7
    labels: {team: inference, severity: info}
    rules:
      - record: a:b
        expr: sum(up)
        labels: {number: 1}
      - alert: A
        expr: |
          up
          == 0
        for: 1h
        keep_firing_for: 500ms
        labels: &labels
          severity: critical
          empty:
        annotations: {summary: 'x {{ $value }}'}
      - alert: B
        expr: up == 0
        for: 0
        labels:
          <<: *labels
          severity: warning
""",
            )
        ]
    )
    assert (group.interval, group.query_offset, group.limit) == (90.0, 10.0, 7)
    recording, first, second = group.rules
    assert isinstance(recording, RecordingRule)
    assert recording.labels == (("number", "1"), ("severity", "info"), ("team", "inference"))
    assert isinstance(first, AlertRule)
    assert isinstance(second, AlertRule)
    assert (first.expr, first.for_seconds, first.keep_firing_seconds) == ("up\n== 0", 3600.0, 0.5)
    assert {name: t.text for name, t in first.labels} == {"empty": "", "severity": "critical", "team": "inference"}
    assert {name: t.text for name, t in second.labels} == {"empty": "", "severity": "warning", "team": "inference"}
    assert second.for_seconds == 0.0


def test_several_rules_of_one_name_are_fine_with_different_labels() -> None:
    text = """
groups:
  - name: g
    rules:
      - {alert: A, expr: up == 0, labels: {severity: warning}}
      - {alert: A, expr: up == 0, labels: {severity: critical}}
      - {record: "a:b", expr: sum(up)}
      - {record: "a:b", expr: max(up) by (job)}
"""
    (group,) = load_text([("f", text)])
    assert len(group.rules) == 4


def test_key_survives_changes_of_expression_for_annotations_and_place_only() -> None:
    def key(expr: str = "up == 0", extra: str = "", group: str = "g", labels: str = "{severity: info}") -> str:
        text = f"groups: [{{name: {group}, rules: [{{alert: A, expr: {expr}, labels: {labels}{extra}}}]}}]"
        (rule,) = load_text([("f", text)])[0].rules
        assert isinstance(rule, AlertRule)
        return rule.key

    assert key() == key(extra=", for: 5m, annotations: {a: b}") == key(group="h") == key(expr="up < 1")
    assert key() != key(labels="{severity: warning}")


def test_a_rule_that_looks_back_further_than_the_sidecar_keeps_is_named() -> None:
    text = """
groups:
  - name: g
    rules:
      - {alert: A, expr: 'rate(x[6h]) > 0'}
      - {alert: B, expr: 'rate(x[6h] offset 1m) > 0'}
      - {record: 'a:b', expr: 'avg_over_time(x[3d])'}
"""
    assert [(problem.line, problem.rule) for problem in out_of_reach(load_text([("f", text)]))] == [
        (6, "B"),
        (7, "a:b"),
    ]


def test_such_a_rule_is_refused_by_the_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("groups: [{name: g, rules: [{alert: A, expr: 'rate(x[1d]) > 0'}]}]")
    config = Config.model_validate({"rules": {"files": [str(path)]}})
    with pytest.raises(
        RuleFileError, match="it looks back 24 h and the sidecar keeps 6 h; leave this rule to Prometheus"
    ):
        rule_groups(config)


def test_what_prometheus_takes_is_named_unsupported_and_mistakes_are_not() -> None:
    rules = {
        "Define": "{expr: x, annotations: {s: '{{ define \"a\" }}{{ end }}'}}",
        "Query": "{expr: x, annotations: {s: '{{ query `{a=\"b\"}` | len }}'}}",
        "Computed": "{expr: 'rate(x[(5m)])'}",
        "Mistake": "{expr: x, annotations: {s: '{{ nosuch }}'}}",
    }
    text = "groups: [{name: g, rules: [" + ", ".join(f"{{alert: {n}, {r[1:]}" for n, r in rules.items()) + "]}]"
    _, problems = read((), [("f", text)])
    assert [(problem.rule, problem.unsupported) for problem in problems] == [
        ("Define", True), ("Query", True), ("Computed", True), ("Mistake", False),
    ]  # fmt: skip
