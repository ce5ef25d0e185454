"""Alerts and recorded series against real Prometheus 3, evaluation by evaluation.

hypothesis draws series (flapping, late, ending, with gaps, NaN and infinities) for a fixed set of rules. dsobs
evaluates them and says after each evaluation what is pending, firing and recorded, with labels and annotations. This is
written down as a promtool unit test, and promtool says where Prometheus says something else. LONG_TESTS=1 draws fifteen
times as many.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dsobs.model.alert import AlertState
from dsobs.model.samples import Labels, Sample, labels_of, metric_name
from dsobs.promql import numbers
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import load_text
from dsobs.series.store import STALE, Store
from tests.real.prometheus import tool

pytestmark = pytest.mark.real("servers")

DRAWN = 300 if os.environ.get("LONG_TESTS") == "1" else 20
SEED = 20_261_124
INTERVAL = 15
STEPS = 40
RULES = """
groups:
  - name: states
    rules:
      - record: job:s:sum
        expr: sum by (job) (s)
        labels: {by: "record", empty: ""}
      - alert: AtOnce
        expr: s > 1
        labels: {severity: critical, engine: "e{{ $labels.i }}"}
        annotations:
          value: '{{ $value }}'
          said: '{{ $labels.job }}/{{ .Labels.i }} at {{ printf "%.3f" $value }} {{ humanize $value }}'
          nothing: '{{ $labels.nope }}'
      - alert: For
        expr: s > 1
        for: 45s
        annotations: {share: '{{ $value | humanizePercentage }}', time: '{{ humanizeDuration $value }}'}
      - alert: Kept
        expr: s > 1
        keep_firing_for: 1m
      - alert: ForAndKept
        expr: s > 1
        for: 30s
        keep_firing_for: 30s
      - alert: ByValue
        expr: s > 1
        for: 15s
        labels: {value: '{{ $value }}'}
      - alert: Rate
        expr: rate(c[1m]) > 0.1
        for: 30s
        annotations: {rate: '{{ $value | printf "%.6g" }}'}
      - alert: Absent
        expr: absent(s{i="1"})
        for: 30s
      - alert: Recorded
        expr: job:s:sum{by="record"} > 2
        for: 15s
        annotations:
          other: '{{ with query "count(s)" }}{{ . | first | value }} series{{ end }}'
          each: |
            {{ range $n, $s := query "s > 0" | sortByLabel "i" }}{{ if eq .Labels.i "2" }}{{ continue }}{{ end -}}
            {{ if gt $n 1 }}{{ break }}{{ end }}{{ $s.Labels.i }}={{ .Value | humanize }},{{ else }}none{{ end }}
          names: '{{ range $k, $v := .Labels }}{{ $k }}:{{ $v }} {{ end }}{{ range 3 }}{{ . }}{{ end }}'
      - alert: Many
        expr: count by (job) (ALERTS{alertstate="firing", alertname=~"AtOnce|For"}) > 1
      - alert: Long
        expr: time() - ALERTS_FOR_STATE{alertname="AtOnce"} > 60
        keep_firing_for: 15s
      - record: alerts:count
        expr: count by (alertstate) (ALERTS)
"""
SERIES = tuple(
    labels_of({"__name__": name, "i": i, "job": job})
    for name in ("s", "c")
    for i, job in (("1", "a"), ("2", "a"), ("3", "b"))
)

_values = st.sampled_from(
    ("0", "1", "1.5", "2", "2.25", "1234567.5", "0.1", "-3", "NaN", "+Inf", "-Inf", "_", "_", "stale")
)
_runs = st.lists(st.tuples(_values, st.integers(1, 6)), min_size=1, max_size=STEPS)
Story = dict[Labels, list[str]]


@st.composite
def _stories(draw: st.DrawFn) -> Story:
    """Values of all series at all steps, in promtool's notation."""
    story: Story = {}
    for labels in SERIES:
        values: list[str] = []
        for value, times in draw(_runs):
            values += [value] * times
        if metric_name(labels) == "c":
            values = [v if v in ("_", "stale") else str(5 * n % 35) for n, v in enumerate(values)]
        values = values[:STEPS]
        story[labels] = values + ["_"] * (STEPS - len(values))
    return story


def _number(text: str) -> float:
    return STALE if text == "stale" else float(text)


def _expected(samples: list[Sample]) -> list[dict[str, Any]]:
    return [{"labels": _series(labels), "value": _plain(value)} for labels, value, _ in samples]


def _plain(value: float) -> Any:
    text = numbers.text(value)
    return value if text[-1].isdigit() else {"NaN": float("nan"), "+Inf": float("inf"), "-Inf": float("-inf")}[text]


def _series(labels: Labels) -> str:
    pairs = ", ".join(f'{name}="{value}"' for name, value in labels if name != "__name__")
    return f"{metric_name(labels)}{{{pairs}}}"


def told(story: Story, name: str) -> tuple[dict[str, Any], int]:
    """A test group of promtool with what dsobs says at each step, and how many alerts that are."""
    store = Store(fine_seconds=1e6)
    evaluator = Evaluator(load_text([("rules.yaml", RULES)]), store, default_interval=INTERVAL)
    for wanted in evaluator.metric_names:
        store.want(wanted)
    recorded = [n for n in evaluator.metric_names if ":" in n]
    expressions: list[dict[str, Any]] = []
    alerts: list[dict[str, Any]] = []
    count = 0
    names = [str(rule["alert"]) for rule in yaml.safe_load(RULES)["groups"][0]["rules"] if "alert" in rule]
    for step in range(STEPS):
        now = float(step * INTERVAL)
        for labels, values in story.items():
            if values[step] != "_":
                store.append(labels, now, _number(values[step]))
        evaluator.evaluate(now)
        assert [
            rule for group in evaluator.rules()["groups"] for rule in group["rules"] if rule["health"] != "ok"
        ] == []
        at = f"{step * INTERVAL}s"
        samples = evaluator.alert_samples()
        for metric in ("ALERTS", "ALERTS_FOR_STATE"):
            expected = [sample for sample in samples if metric_name(sample.labels) == metric]
            expressions.append({"expr": metric, "eval_time": at, "exp_samples": _expected(expected)})
        for metric in recorded:
            found = [
                Sample(series.labels, series.values[-1])
                for series in store.series(metric)
                if series.last_time == round(now * 1000) and series.values[-1] == series.values[-1]
            ]
            not_nan = f"{metric} == {metric}"
            expressions.append({"expr": not_nan, "eval_time": at, "exp_samples": _expected(found)})
        firing = [alert for alert in evaluator.alerts() if alert.state is AlertState.FIRING]
        count += len(firing)
        for alertname in names:
            said = [
                {
                    "exp_labels": {k: v for k, v in alert.labels.items() if k != "alertname"},
                    "exp_annotations": dict(alert.annotations),
                }
                for alert in firing
                if alert.name == alertname
            ]
            alerts.append({"eval_time": at, "alertname": alertname, "exp_alerts": said})
    return {
        "name": name,
        "interval": f"{INTERVAL}s",
        "input_series": [{"series": _series(labels), "values": " ".join(values)} for labels, values in story.items()],
        "promql_expr_test": expressions,
        "alert_rule_test": alerts,
    }, count


def test_alerts_and_recorded_series_are_those_of_prometheus_at_each_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups: list[dict[str, Any]] = []
    count = 0

    @seed(SEED)
    @settings(
        max_examples=DRAWN,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(_stories())
    def draw(story: Story) -> None:
        nonlocal count
        group, firing = told(story, f"story {len(groups)}")
        groups.append(group)
        count += firing

    draw()
    (tmp_path / "rules.yaml").write_text(RULES)
    document = {"rule_files": ["rules.yaml"], "evaluation_interval": f"{INTERVAL}s", "tests": groups}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    ran = subprocess.run(
        [str(tool("promtool")), "test", "rules", str(tmp_path / "test.yaml")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    output = ran.stdout + ran.stderr
    with capsys.disabled():
        print(
            f"\nalert states: {len(groups)} stories, {len(groups) * STEPS} evaluations, {count} firing alerts: "
            f"differences {len(re.findall(r'^ +(?:alertname:|expr:)', output, re.MULTILINE))}"
        )
    assert ran.returncode == 0, output[:6_000]
    assert count > 100
