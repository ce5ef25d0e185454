"""Unit tests of rules run as promtool runs them. The same files go through promtool itself in tests/real."""

from pathlib import Path

from dsobs.rules.unit_test_run import CaseResult, run_file
from dsobs.rules.unit_tests import read_unit_tests

_RULES = """
groups:
  - name: g
    interval: 1h
    rules:
      - record: job:up:sum
        expr: sum by (job) (up)
      - alert: Down
        expr: up == 0
        for: 2m
        labels: {severity: page, empty: ''}
        annotations: {summary: '{{ $labels.job }} {{ $value }} {{ $externalLabels.dc }} {{ .ExternalURL }}'}
      - alert: Fired
        expr: count(ALERTS{alertname="Down", alertstate="firing"}) > 0
"""


def _run(tmp_path: Path, tests: str, rules: str = _RULES, head: str = "") -> list[CaseResult]:
    (tmp_path / "r.yaml").write_text(rules)
    path = tmp_path / "t.yaml"
    path.write_text(f"rule_files: [r.yaml]\n{head}\ntests:\n{tests}")
    found, problems = read_unit_tests(path)
    assert problems == []
    assert found is not None
    results, problems = run_file(found)
    assert problems == []
    return results


def _verdicts(results: list[CaseResult]) -> list[bool]:
    return [result.ok for result in results]


def test_alerts_are_those_of_the_last_evaluation_at_or_before_their_time(tmp_path: Path) -> None:
    results = _run(
        tmp_path,
        """
  - interval: 30s
    input_series: [{series: 'up{job="a"}', values: '1 1 0x9'}]
    external_labels: {dc: x}
    external_url: http://prometheus
    alert_rule_test:
      - {eval_time: 2m59s, alertname: Down, exp_alerts: []}
      - eval_time: 3m
        alertname: Down
        exp_alerts:
          - exp_labels: {job: a, severity: page}
            exp_annotations: {summary: a 0 x http://prometheus}
      - eval_time: 3m59s
        alertname: Down
        exp_alerts:
          - exp_labels: {job: a, severity: page}
            exp_annotations: {summary: a 0 x http://prometheus}
      - {eval_time: 3m, alertname: Fired, exp_alerts: [{}]}
      - {eval_time: 2m, alertname: Fired}
    promql_expr_test:
      - expr: count by (alertstate) (ALERTS{alertname="Down"})
        eval_time: 2m
        exp_samples: [{labels: '{alertstate="pending"}', value: 1}]
      - expr: sum by (job) (ALERTS_FOR_STATE{alertname="Down"})
        eval_time: 2m
        exp_samples: [{labels: '{job="a"}', value: 60}]
""",
    )
    assert _verdicts(results) == [True] * 7


def test_a_failed_case_says_what_was_expected_and_what_came(tmp_path: Path) -> None:
    (alert, expression) = _run(
        tmp_path,
        """
  - name: n
    input_series: [{series: 'up{job="a"}', values: 0x9}]
    alert_rule_test:
      - {eval_time: 5m, alertname: Down, exp_alerts: [{exp_labels: {job: b}}]}
    promql_expr_test:
      - {expr: up, eval_time: 5m, exp_samples: []}
""",
    )
    assert (alert.ok, alert.name, alert.expr, alert.line) == (False, "n", "Down", 8)
    assert alert.reason == "Down at 5m: not what was expected"
    assert alert.expected == ('{job="b"} annotations {}',)
    assert alert.got == ('{job="a", severity="page"} annotations {summary="a 0  "}',)
    assert (expression.ok, expression.expr, expression.eval_time) == (False, "up", 300.0)
    assert expression.reason == "at 5m: expected nothing, got 1"
    assert (expression.expected, expression.got) == ((), ('up{job="a"} 0',))


def test_expressions_see_the_samples_up_to_the_last_evaluation_only(tmp_path: Path) -> None:
    text = """
  - interval: 10s
    input_series: [{series: up, values: '1 2 3 4 5 6 7'}]
    promql_expr_test:
      - {expr: up, eval_time: 59s, exp_samples: [{labels: up, value: 1}]}
"""
    assert _verdicts(_run(tmp_path, text)) == [True]
    longer = text + "      - {expr: up, eval_time: 1m, exp_samples: [{labels: up, value: 7}]}\n"
    assert _verdicts(_run(tmp_path, longer)) == [False, True]


def test_nan_equals_nothing_and_fuzzy_compare_allows_the_last_bit(tmp_path: Path) -> None:
    text = """
  - input_series: [{series: a, values: 0+0.1x3}, {series: b, values: NaN}]
    promql_expr_test:
      - {expr: a, eval_time: 3m, exp_samples: [{labels: a, value: 0.3}]}
      - {expr: b, exp_samples: [{labels: b, value: .nan}]}
"""
    assert _verdicts(_run(tmp_path, text)) == [False, False]
    assert _verdicts(_run(tmp_path, text, head="fuzzy_compare: true")) == [True, False]


def test_an_unsupported_expression_fails_its_own_case_only(tmp_path: Path) -> None:
    rules = _RULES + '      - {alert: Native, expr: "histogram_count(x) > 1"}\n'
    results = _run(
        tmp_path,
        """
  - input_series:
      - {series: 'up{job="a"}', values: 0x9}
      - {series: native, values: '{{schema:0 buckets:[1]}}x9'}
    alert_rule_test:
      - {eval_time: 5m, alertname: Native, exp_alerts: []}
      - {eval_time: 1m, alertname: Down, exp_alerts: []}
    promql_expr_test:
      - {expr: histogram_count(up), eval_time: 1m}
      - {expr: native, eval_time: 1m}
      - {expr: 'sum(', eval_time: 1m}
      - {expr: sum(up), eval_time: 1m, exp_samples: [{value: 0}]}
""",
        rules,
    )
    assert _verdicts(results) == [False, True, False, False, False, True]
    for result in (results[0], results[2]):
        assert "dsobs does not support" in result.reason
        assert "histogram_count()" in result.reason
    assert "native histograms are not supported" in results[3].reason


def test_what_reads_a_recorded_series_that_is_not_evaluated_fails_with_its_reason(tmp_path: Path) -> None:
    rules = """
groups:
  - name: g
    rules:
      - {record: 'a:b', expr: histogram_count(x)}
      - {record: 'c:d', expr: 'a:b * 2'}
      - {alert: A, expr: 'c:d > 0'}
"""
    results = _run(
        tmp_path,
        """
  - alert_rule_test: [{eval_time: 1m, alertname: A, exp_alerts: []}]
    promql_expr_test: [{expr: 'absent(c:d)', exp_samples: [{value: 1}]}, {expr: 'ALERTS'}]
""",
        rules,
    )
    assert _verdicts(results) == [False, False, False]
    assert all("histogram_count" in result.reason for result in results)


def test_a_rule_that_fails_ends_its_test_and_no_other(tmp_path: Path) -> None:
    rules = "groups: [{name: g, rules: [{record: 'a:b', expr: x + on (j) y}, {alert: A, expr: x > 0}]}]"
    bad = "{series: 'y{i=\"1\",j=\"1\"}', values: '_ 1x9'}, {series: 'y{i=\"2\",j=\"1\"}', values: '_ 1x9'}"
    results = _run(
        tmp_path,
        f"""
  - name: fails
    input_series: [{{series: 'x{{j="1"}}', values: 1x9}}, {bad}]
    alert_rule_test:
      - {{eval_time: 0s, alertname: A, exp_alerts: [{{exp_labels: {{j: "1"}}}}]}}
      - {{eval_time: 5m, alertname: A, exp_alerts: [{{exp_labels: {{j: "1"}}}}]}}
    promql_expr_test: [{{expr: '1', exp_samples: [{{value: 1}}]}}]
  - name: without cases
    input_series: [{{series: 'x{{j="1"}}', values: 1x9}}, {bad.replace("_ ", "")}]
  - name: goes on
    promql_expr_test: [{{expr: '1', exp_samples: [{{value: 1}}]}}]
""",
        rules,
    )
    assert [(r.name, r.ok) for r in results] == [
        ("fails", True),
        ("fails", False),
        ("fails", False),
        ("without cases", False),
        ("goes on", True),
    ]
    assert results[1].reason.startswith("not reached, since at 1m rule a:b: found duplicate series")


def test_groups_run_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    rules = """
groups:
  - {name: second, rules: [{record: 'b:b', expr: 'a:a + 1'}]}
  - {name: first, rules: [{record: 'a:a', expr: x}]}
"""
    text = """
  - input_series: [{series: x, values: 1 2}]
    promql_expr_test: [{expr: 'b:b', eval_time: 1m, exp_samples: [{labels: 'b:b', value: 3}]}]
"""
    assert _verdicts(_run(tmp_path, text, rules)) == [False]
    assert _verdicts(_run(tmp_path, text, rules, head="group_eval_order: [first, second]")) == [True]


def test_days_of_samples_are_kept_unthinned(tmp_path: Path) -> None:
    results = _run(
        tmp_path,
        """
  - interval: 5s
    input_series: [{series: x, values: 0+1x34560}]
    promql_expr_test:
      - {expr: 'count_over_time(x[2d])', eval_time: 2d, exp_samples: [{value: 34560}]}
      - {expr: 'count_over_time(x[1h] offset 1d)', eval_time: 2d, exp_samples: [{value: 720}]}
""",
        head="evaluation_interval: 1h",
    )
    assert [result.got for result in results] == [(), ()]
    assert _verdicts(results) == [True, True]


_UNREAD = """
groups:
  - name: g
    labels: {of.group: v}
    rules:
      - {alert: Define, expr: up == 0, annotations: {s: '{{ define "x" }}y{{ end }}'}}
      - {alert: Computed, expr: 'rate(up[5m+1m]) == 0'}
      - {alert: Quoted, expr: 'up{job=~"\\\\Qa\\\\E"} == 0'}
      - alert: Fine
        expr: up offset 0s == 0
        labels: {own.label: a b}
        annotations: {run book: '{{ externalURL }}/x {{ pathPrefix }}'}
      - {record: my.metric, expr: 'sum by ("job") ({"up"} == 0)'}
"""


def test_what_only_prometheus_reads_fails_the_cases_that_need_it_and_no_other(tmp_path: Path) -> None:
    results = _run(
        tmp_path,
        """
  - interval: 1m
    input_series: [{series: 'up{job="a"}', values: '0x9'}]
    external_url: http://h/p
    alert_rule_test:
      - {eval_time: 5m, alertname: Define, exp_alerts: [{exp_labels: {job: a, of.group: v}}]}
      - {eval_time: 5m, alertname: Computed}
      - {eval_time: 5m, alertname: Quoted}
      - eval_time: 5m
        alertname: Fine
        exp_alerts:
          - exp_labels: {job: a, of.group: v, own.label: a b}
            exp_annotations: {run book: 'http://h/p/x /p'}
    promql_expr_test:
      - expr: 'absent(ALERTS{alertname="Define"})'
        eval_time: 5m
        exp_samples: [{labels: '{alertname="Define"}', value: 1}]
      - expr: '{"my.metric"}'
        eval_time: 5m
        exp_samples: [{labels: '{"my.metric", job="a", "of.group"="v"}', value: 0}]
""",
        _UNREAD,
    )
    assert _verdicts(results) == [False, False, False, True, False, True]
    for result, named in zip(results, ("define", "computed", "Qa", "", "define", ""), strict=True):
        assert named in result.reason
