"""The alert state machine, group scheduling and the views."""

import gc
import math
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs import promql, telemetry
from dsobs.model.alert import AlertState
from dsobs.model.clock import SteadyClock
from dsobs.model.samples import Sample, labels
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import load_text
from dsobs.rules.formatting import formatted
from dsobs.series.store import Store
from tests.rules.conftest import Bench, MakeBench

_PENDING, _FIRING, _RESOLVED = AlertState.PENDING, AlertState.FIRING, AlertState.RESOLVED
_RULE = """
groups:
  - name: g
    interval: 15s
    rules:
      - alert: Hot
        expr: temperature > 80
        for: 1m
        labels: {severity: warning, host: 'rule-{{ $labels.gpu }}'}
        annotations: {summary: 'GPU {{ $labels.gpu }} at {{ $value }}'}
"""


def _hot(value: float, gpu: str = "0") -> tuple[str, dict[str, str], float]:
    return "temperature", {"gpu": gpu, "host": "series"}, value


def _failures(group: str, rule: str) -> float:
    return float(telemetry.RULE_FAILURES.labels(group, rule)._value.get())


def test_condition_is_pending_until_it_has_held_for_the_whole_of_for(bench: MakeBench) -> None:
    b = bench(_RULE)
    (began,) = b.at(0, _hot(90))
    assert (began.before, began.alert.state, began.at) == (None, _PENDING, 0)
    for now in (15, 30, 45):
        assert b.at(now, _hot(91)) == []
    (fired,) = b.at(60, _hot(92))
    assert (fired.before, fired.alert.state) == (_PENDING, _FIRING)
    assert (fired.alert.active_at, fired.alert.fired_at, fired.alert.value) == (0, 60, 92)
    assert fired.alert.annotations == {"summary": "GPU 0 at 92"}


def test_rule_labels_stand_over_series_labels_and_the_name_is_dropped(bench: MakeBench) -> None:
    b = bench(_RULE, external_labels={"cluster": "eu", "gpu": "external"})
    b.at(0, _hot(90))
    assert b.only().labels == {
        "alertname": "Hot", "severity": "warning", "host": "rule-0", "gpu": "0", "cluster": "eu",
    }  # fmt: skip


def test_pending_alert_whose_condition_ends_is_dropped_and_begins_anew(bench: MakeBench) -> None:
    b = bench(_RULE)
    b.at(0, _hot(90))
    assert b.at(45, _hot(70)) == []
    assert b.states() == []
    (began,) = b.at(60, _hot(90))
    assert (began.alert.state, began.alert.active_at) == (_PENDING, 60)


def test_for_of_zero_fires_at_once(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "for: 0"))
    (fired,) = b.at(0, _hot(90))
    assert (fired.before, fired.alert.state, fired.alert.fired_at) == (None, _FIRING, 0)


def test_for_in_tenths_of_seconds_is_not_one_tick_late(bench: MakeBench) -> None:
    b = bench(_RULE.replace("15s", "100ms").replace("for: 1m", "for: 300ms"))
    start = 1_700_000_000.1
    assert [len(b.at(start + tick / 10, _hot(90))) for tick in range(4)] == [1, 0, 0, 1]


def test_resolved_alert_is_shown_for_15_minutes(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "for: 0"))
    b.at(0, _hot(90))
    (resolved,) = b.at(15, _hot(70))
    assert (resolved.before, resolved.alert.state, resolved.alert.resolved_at) == (_FIRING, _RESOLVED, 15)
    b.at(915, _hot(70))
    assert b.states() == [("Hot", _RESOLVED)]
    b.at(930, _hot(70))
    assert b.states() == []


def test_alert_that_fires_again_while_shown_as_resolved_begins_anew(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "for: 0"))
    b.at(0, _hot(90))
    b.at(15, _hot(70))
    (again,) = b.at(30, _hot(90))
    assert (again.before, again.alert.state, again.alert.active_at) == (_RESOLVED, _FIRING, 30)
    assert again.alert.fingerprint == b.seen[0].alert.fingerprint


def test_keep_firing_for_holds_an_alert_from_the_first_evaluation_without_result(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "keep_firing_for: 30s"))
    b.at(0, _hot(90))
    assert b.at(15, _hot(70)) == []
    assert b.at(30, _hot(90)) == []
    assert b.at(45, _hot(70)) == []
    assert b.at(60, _hot(70)) == []
    (resolved,) = b.at(75, _hot(70))
    assert resolved.alert.state is _RESOLVED


def test_fault_24_vanished_series_resolves_and_nothing_else_fires(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "for: 0"))
    b.store.append_samples([Sample(labels("temperature", gpu="0"), 90.0)], 0, "gpu")
    assert [t.alert.state for t in b.at(0)] == [_FIRING]
    b.store.append_samples([], 15, "gpu")
    assert [t.alert.state for t in b.at(15)] == [_RESOLVED]


def test_nan_never_fires(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "for: 0"))
    assert b.at(0, _hot(math.nan)) == []


def test_each_label_set_is_an_alert_of_its_own(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "for: 0"))
    assert len(b.at(0, _hot(90, "0"), _hot(95, "1"), _hot(70, "2"))) == 2
    (resolved,) = b.at(15, _hot(70, "0"), _hot(95, "1"))
    assert resolved.alert.labels["gpu"] == "0"


def test_fault_28_flapping_is_one_incident(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "keep_firing_for: 1m"))
    for tick in range(40):
        b.at(tick * 15.0, _hot(90 if tick % 3 == 0 else 70))
    assert [t.alert.state for t in b.seen] == [_FIRING]
    plain = bench(_RULE.replace("for: 1m", "for: 0"))
    for tick in range(40):
        plain.at(tick * 15.0, _hot(90 if tick % 3 == 0 else 70))
    assert {t.alert.fingerprint for t in plain.seen} == {b.seen[0].alert.fingerprint}


def test_two_results_with_the_same_labels_are_an_error_of_the_rule(bench: MakeBench) -> None:
    b = bench(_RULE.replace("rule-{{ $labels.gpu }}", "x, gpu: y").replace("'x, gpu: y'", "x, gpu: y"))
    assert b.at(0, _hot(90, "0"), _hot(90, "1")) == []
    (rule,) = b.evaluator.rules()["groups"][0]["rules"]
    assert rule["health"] == "err"
    assert rule["lastError"].startswith("two results have the same labels after the rule's labels are applied")


_TWO = """
groups:
  - name: two
    interval: 1s
    rules:
      - alert: Broken
        expr: a + on(x) b > 0
      - alert: Whole
        expr: a > 0
"""


def test_fault_29_rule_that_fails_keeps_its_state_and_the_others_run(bench: MakeBench) -> None:
    b = bench(_TWO)
    before = _failures("two", "Broken")
    one = [("a", {"x": "1"}, 1.0), ("b", {"x": "1"}, 1.0)]
    assert len(b.at(0, *one)) == 2
    # Two series on the one side: the matching is many to many now.
    assert [t.alert.name for t in b.at(1, *one, ("b", {"x": "1", "y": "2"}, 1.0), ("a", {"x": "2"}, 1.0))] == ["Whole"]
    assert _failures("two", "Broken") == before + 1
    assert ("Broken", _FIRING) in b.states()
    broken, whole = b.evaluator.rules()["groups"][0]["rules"]
    assert (broken["health"], whole["health"]) == ("err", "ok")
    assert broken["lastError"]
    assert broken["state"] == "firing"


def test_fault_29_missed_iterations_are_counted_and_never_made_up_for(bench: MakeBench) -> None:
    b = bench(_RULE.replace("name: g", "name: missed"))
    missed = telemetry.RULE_MISSED.labels("missed")._value
    before = missed.get()
    runs = telemetry.RULE_EVALUATIONS.labels("missed")._value
    runs_before = runs.get()
    b.at(0, _hot(90))
    b.at(100, _hot(90))
    b.at(104, _hot(90))
    b.at(105, _hot(90))
    assert missed.get() - before == 5
    assert runs.get() - runs_before == 3


def test_group_runs_once_a_slot_although_ticks_jitter(bench: MakeBench) -> None:
    b = bench(_RULE.replace("interval: 15s", "interval: 1s").replace("name: g", "name: jitter"))
    missed = telemetry.RULE_MISSED.labels("jitter")._value
    runs = telemetry.RULE_EVALUATIONS.labels("jitter")._value
    for now in (0.05, 1.001, 2.2, 3.0, 4.08, 5.0):
        b.at(now, _hot(70))
    assert (missed.get(), runs.get()) == (0, 6)


def test_late_caller_does_not_delay_firing(bench: MakeBench) -> None:
    b = bench(_RULE)
    b.at(0, _hot(90))
    for now in (15.9, 30.9, 45.9):
        assert b.at(now, _hot(90)) == []
    assert len(b.at(60.0, _hot(90))) == 1
    other = bench(_RULE)
    other.at(0.9, _hot(90))
    for now in (16, 31, 46):
        assert other.at(now, _hot(90)) == []
    # 0.9 s late at first, 0.1 s early now: the fourth slot all the same.
    assert len(other.at(60.8, _hot(90))) == 1


def test_groups_keep_their_own_interval(bench: MakeBench) -> None:
    b = bench(_RULE + _TWO.replace("groups:\n", ""))
    runs = {name: telemetry.RULE_EVALUATIONS.labels(name)._value.get() for name in ("g", "two")}
    for now in range(31):
        b.at(now)
    assert telemetry.RULE_EVALUATIONS.labels("g")._value.get() - runs["g"] == 3
    assert telemetry.RULE_EVALUATIONS.labels("two")._value.get() - runs["two"] == 62


def test_fault_30_wall_clock_steps_of_an_hour_change_nothing(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    steady, step = 1000.0, 0.0
    monkeypatch.setattr("time.monotonic", lambda: steady)
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0 + steady + step)
    clock = SteadyClock()
    b = bench(_RULE.replace("name: g", "name: steps"))
    missed = telemetry.RULE_MISSED.labels("steps")._value
    for tick in range(120):
        step = (0.0, 3600.0, -3600.0)[tick % 3]
        b.at(clock.now(), _hot(90 if tick < 80 else 70))
        steady += 1.0
    assert [(t.alert.state, t.at - 1_700_001_000.0) for t in b.seen] == [(_PENDING, 0), (_FIRING, 60), (_RESOLVED, 90)]
    assert missed.get() == 0


def test_limit_of_a_group_is_an_error_that_keeps_the_state(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "for: 0").replace("interval: 15s", "interval: 15s\n    limit: 1"))
    b.at(0, _hot(90, "0"))
    assert b.at(15, _hot(90, "0"), _hot(90, "1")) == []
    assert b.states() == [("Hot", _FIRING)]
    assert "2 results are more than the group's limit of 1" in b.evaluator.rules()["groups"][0]["rules"][0]["lastError"]


def test_recording_rule_feeds_later_rules_and_ends_with_its_source(bench: MakeBench) -> None:
    b = bench(
        """
groups:
  - name: g
    interval: 1s
    rules:
      - record: host:temperature:max
        expr: max(temperature)
        labels: {kind: max}
      - alert: Hot
        expr: host:temperature:max > 80
"""
    )
    b.store.append_samples([Sample(labels("temperature", gpu="0"), 90.0)], 0, "gpu")
    (fired,) = b.at(0)
    assert fired.alert.labels == {"alertname": "Hot", "kind": "max"}
    b.store.append_samples([], 1, "gpu")
    assert [t.alert.state for t in b.at(1)] == [_RESOLVED]


def test_scalar_expression_is_one_result_without_labels(bench: MakeBench) -> None:
    b = bench("groups: [{name: g, rules: [{alert: Watchdog, expr: '1'}]}]")
    (fired,) = b.at(0)
    assert fired.alert.labels == {"alertname": "Watchdog"}


def test_query_offset_looks_back(bench: MakeBench) -> None:
    b = bench(_RULE.replace("for: 1m", "for: 0").replace("interval: 15s", "interval: 15s\n    query_offset: 15s"))
    assert b.at(0, _hot(90)) == []
    assert len(b.at(15, _hot(70))) == 1


def test_template_that_fails_says_so_in_the_text_and_the_alert_goes_out(bench: MakeBench) -> None:
    b = bench(_RULE.replace("at {{ $value }}", "{{ if gt $value 1 }}x{{ end }}").replace("for: 1m", "for: 0"))
    (fired,) = b.at(0, _hot(90))
    assert fired.alert.annotations["summary"] == (
        "<error expanding template: gt: incompatible types for comparison: float64 and int>"
    )


def test_template_that_fails_is_told_once_with_file_and_line(
    bench: MakeBench, caplog: pytest.LogCaptureFixture
) -> None:
    b = bench(_RULE.replace("at {{ $value }}", "{{ if gt $value 1 }}x{{ end }}").replace("for: 1m", "for: 0"))
    for now in (0, 15, 30):
        b.at(now, _hot(90), _hot(91, gpu="1"))
    assert [record.message for record in caplog.records] == [
        "test.yaml:6: rule Hot: summary: template: gt: incompatible types for comparison: float64 and int"
    ]


def test_rule_that_fails_is_told_with_file_and_line(bench: MakeBench, caplog: pytest.LogCaptureFixture) -> None:
    b = bench(_RULE.replace("temperature > 80", "temperature + on (host) temperature"))
    for now in (0, 15):
        b.at(now, _hot(90), _hot(91, gpu="1"))
    (told,) = [record.message for record in caplog.records]
    assert told.startswith("test.yaml:6: rule Hot of group g failed: ")


def test_template_may_ask_the_store(bench: MakeBench) -> None:
    text = _RULE.replace("GPU {{", "{{ with query `temperature` }}{{ . | first | value }} {{ end }}{{")
    b = bench(text.replace("for: 1m", "for: 0"))
    (fired,) = b.at(0, _hot(90))
    assert fired.alert.annotations["summary"] == "90 0 at 90"


def test_alerts_are_series_too_and_later_rules_see_them_at_once(bench: MakeBench) -> None:
    b = bench(
        _RULE.replace("for: 1m", "for: 0").replace("interval: 15s", "interval: 1s")
        + '      - {alert: Any, expr: \'count(ALERTS{alertstate="firing", alertname="Hot"}) > 0\'}\n'
    )
    assert [t.alert.name for t in b.at(0, _hot(90))] == ["Hot", "Any"]
    names = {"alertname": "Hot", "severity": "warning", "host": "rule-0", "gpu": "0"}
    assert b.evaluator.alert_samples() == [
        Sample(labels("ALERTS", alertstate="firing", **names), 1.0),
        Sample(labels("ALERTS_FOR_STATE", **names), 0.0),
        Sample(labels("ALERTS", alertstate="firing", alertname="Any"), 1.0),
        Sample(labels("ALERTS_FOR_STATE", alertname="Any"), 0.0),
    ]
    assert b.at(1, _hot(90)) == []
    assert [(t.alert.name, t.alert.state) for t in b.at(2, _hot(70))] == [("Hot", _RESOLVED), ("Any", _RESOLVED)]


def test_a_label_that_renders_to_nothing_is_raw_in_the_alerts_series_and_lacks_in_the_alert(bench: MakeBench) -> None:
    text = """
groups:
  - name: g
    labels: {of_group: '{{ $labels.nosuch }}'}
    rules:
      - {alert: A, expr: temperature > 80, labels: {own: '{{ $labels.nope }}', empty: ''}}
      - {alert: Any, expr: 'ALERTS{own="{{ $labels.nope }}", of_group="{{ $labels.nosuch }}"}'}
"""
    b = bench(text)
    first, second = b.at(0, _hot(90))
    assert (first.alert.name, second.alert.name) == ("A", "Any")
    assert first.alert.labels == {"alertname": "A", "gpu": "0", "host": "series"}
    shown = dict(b.evaluator.alert_samples()[0].labels)
    assert (shown["own"], shown["of_group"], "empty" in shown) == (
        "{{ $labels.nope }}", "{{ $labels.nosuch }}", False
    )  # fmt: skip


def test_the_store_is_to_hold_what_rules_read_record_and_ask_for_in_templates(bench: MakeBench) -> None:
    text = _RULE.replace("GPU {{", "{{ with query `other offset 2h` }}{{ . | first | value }} {{ end }}{{")
    evaluator = bench(text + "      - {record: hottest, expr: max(temperature)}\n").evaluator
    assert evaluator.metric_names == {"temperature", "other", "hottest"}
    assert evaluator.lookback_seconds == 7_500
    assert evaluator.lookbacks == {"temperature": 300, "other": 7_500, "hottest": 0}


def test_views_have_the_shape_of_prometheus(bench: MakeBench) -> None:
    b = bench(_RULE)
    (rule,) = b.evaluator.rules()["groups"][0]["rules"]
    assert (rule["state"], rule["health"], rule["lastEvaluation"]) == ("unknown", "unknown", "0001-01-01T00:00:00Z")
    b.at(1_700_000_000.25, _hot(90.5))
    (group,) = b.evaluator.rules()["groups"]
    assert (group["name"], group["file"], group["interval"], group["limit"]) == ("g", "test.yaml", 15.0, 0)
    (rule,) = group["rules"]
    alert = {
        "labels": {"alertname": "Hot", "severity": "warning", "host": "rule-0", "gpu": "0"},
        "annotations": {"summary": "GPU 0 at 90.5"},
        "state": "pending",
        "activeAt": "2023-11-14T22:13:20.250Z",
        "value": "9.05e+01",
    }
    assert rule.pop("evaluationTime") >= 0
    assert rule == {
        "state": "pending",
        "name": "Hot",
        "query": "temperature > 80",
        "duration": 60.0,
        "keepFiringFor": 0.0,
        "labels": {"host": "rule-{{ $labels.gpu }}", "severity": "warning"},
        "annotations": {"summary": "GPU {{ $labels.gpu }} at {{ $value }}"},
        "alerts": [alert],
        "health": "ok",
        "lastEvaluation": "2023-11-14T22:13:20.250Z",
        "type": "alerting",
    }
    assert b.evaluator.alerts_view() == {"alerts": [alert]}


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(0, 5), st.integers(0, 5))
def test_states_follow_the_condition(holds: list[bool], hold_for: int, keep: int) -> None:
    """Against the definition, told over the whole history of the condition instead of step by step."""
    store = Store()
    store.want("x")
    rule = f"{{alert: A, expr: x > 0, for: {hold_for}s, keep_firing_for: {keep}s}}"
    text = f"groups: [{{name: p, interval: 1s, rules: [{rule}]}}]"
    evaluator = Evaluator(load_text([("f", text)]), store)
    firing = False
    for now, holding in enumerate(holds):
        store.append(labels("x"), now, float(holding))
        evaluator.evaluate(now)
        run = 0
        while run <= now and holds[now - run] == holding:
            run += 1
        # `run` evaluations in a row agree, so that the first was run - 1 seconds ago.
        firing = (firing or run - 1 >= hold_for) if holding else (firing and run - 1 < keep)
        state = next((alert.state for alert in evaluator.alerts() if alert.state is not _RESOLVED), None)
        assert state is (_FIRING if firing else _PENDING if holding else None)


def test_groups_that_are_spread_all_begin_at_once_and_then_take_turns_at_their_own_interval(bench: MakeBench) -> None:
    intervals = {"fast": 1, "a": 15, "b": 15, "c": 30, "d": 15}
    groups = [
        f"{{name: {name}, interval: {interval}s, rules: [{{record: 'seen:{name}', expr: vector(1)}}]}}"
        for name, interval in intervals.items()
    ]
    b = bench(f"groups: [{', '.join(groups)}]", spread=True)
    ran: dict[str, list[int]] = {name: [] for name in intervals}
    for now in range(1000, 1121):
        b.at(now)
        for name, seconds in ran.items():
            (series,) = b.store.series(f"seen:{name}", None)
            if series.times[-1] == now * 1000:
                seconds.append(now)
    assert ran.pop("fast") == list(range(1000, 1121))
    assert all(seconds[0] == 1000 for seconds in ran.values())
    for name, seconds in ran.items():
        assert {after - before for before, after in pairwise(seconds[1:])} == {intervals[name]}
        assert 0 < seconds[1] - seconds[0] <= intervals[name]
    later = [second for seconds in ran.values() for second in seconds[1:]]
    assert len(set(later)) == len(later)


def test_news_between_two_slots_fires_at_once_in_fast_groups_and_moves_no_slot(bench: MakeBench) -> None:
    fast = _RULE.replace("15s", "1s").replace("for: 1m", "for: 0s")
    b = bench(fast)
    b.at(0, _hot(10))
    b.store.append(labels("temperature", gpu="0", host="series"), 0.3, 95.0)
    assert b.evaluator.evaluate(0.3) == []
    (fired,) = b.evaluator.evaluate(0.3, news=True)
    assert fired.alert.state is _FIRING
    assert b.evaluator.evaluate(0.6) == []
    (resolved,) = b.at(1.0, _hot(10))
    assert resolved.alert.state is _RESOLVED
    slow = bench(_RULE.replace("for: 1m", "for: 0s"))
    slow.at(0, _hot(10))
    slow.store.append(labels("temperature", gpu="0", host="series"), 0.3, 95.0)
    assert slow.evaluator.evaluate(0.3, news=True) == []


_TWO_RULES = """
groups:
  - name: g
    interval: 15s
    rules:
      - alert: Hot
        expr: temperature > 80
        for: 1m
        labels: {severity: warning, host: 'rule-{{ $labels.gpu }}'}
        annotations: {summary: 'another text'}
      - {alert: New, expr: temperature > 80}
"""


def test_reloaded_rule_that_did_not_change_keeps_its_pending_time_and_its_slots(bench: MakeBench) -> None:
    b = bench(_RULE)
    for now in (0, 15, 30):
        b.at(now, _hot(90))
    b.evaluator.replace_groups(load_text([("test.yaml", _TWO_RULES)]))
    assert b.at(40, _hot(90)) == []
    changes = [change for now in (45, 60) for change in b.at(now, _hot(90))]
    assert [(c.alert.name, c.at) for c in changes if c.alert.state is _FIRING] == [("New", 45), ("Hot", 60)]
    assert [a.annotations for a in b.evaluator.alerts() if a.name == "Hot"] == [{"summary": "another text"}]


def test_reloaded_rules_firing_alert_does_not_fire_anew(bench: MakeBench) -> None:
    b = bench(_RULE)
    for now in (0, 15, 30, 45, 60):
        b.at(now, _hot(90))
    b.evaluator.replace_groups(load_text([("another.yaml", _RULE)]))
    assert b.at(75, _hot(90)) == []
    assert (b.only().state, b.only().fired_at) == (_FIRING, 60)


def test_reloaded_rule_with_another_expression_keeps_its_alerts_until_it_says_otherwise(bench: MakeBench) -> None:
    b = bench(_RULE)
    for now in (0, 15, 30, 45, 60):
        b.at(now, _hot(90))
    formatted_rule = formatted(_RULE.replace("temperature > 80", "temperature>80"), "test.yaml").text
    for text in (_RULE.replace("temperature > 80", "temperature>80"), formatted_rule, _RULE.replace("> 80", "> 85")):
        b.evaluator.replace_groups(load_text([("test.yaml", text)]))
        assert b.at(b.evaluator.alerts()[0].seen_at + 15, _hot(90)) == []
    assert b.states() == [("Hot", _FIRING)]
    assert [(c.alert.state, c.before) for c in b.at(120, _hot(83))] == [(_RESOLVED, _FIRING)]


def test_alerts_of_a_rule_that_is_gone_resolve(bench: MakeBench) -> None:
    b = bench(_RULE)
    for now in (0, 15, 30, 45, 60):
        b.at(now, _hot(90))
    b.evaluator.replace_groups([])
    assert [(c.alert.state, c.before) for c in b.at(75, _hot(90))] == [(_RESOLVED, _FIRING)]
    assert b.states() == [("Hot", _RESOLVED)]


def test_series_of_a_reloaded_recording_rule_do_not_end(bench: MakeBench) -> None:
    rules = "{record: r, expr: temperature * 2}", "{record: r, expr: 'max(temperature)'}"
    text = "groups: [{{name: g, interval: 15s, rules: [{}, {}]}}]"
    b = bench(text.format(*rules))
    b.at(0, _hot(10))
    for now, (first, second) in ((15, rules[::-1]), (30, (rules[1], rules[0].replace(" * ", "*")))):
        b.evaluator.replace_groups(load_text([("test.yaml", text.format(first, second))]))
        b.at(now, _hot(10))
    assert [list(series.values) for series in b.store.series("r", None)] == [[20.0] * 3, [10.0] * 3]


def test_series_of_a_recording_rule_that_is_gone_end(bench: MakeBench) -> None:
    text = "groups: [{name: g, interval: 15s, rules: [{record: twice, expr: temperature * 2}]}]"
    b = bench(text)
    b.store.want("twice")
    b.at(0, _hot(10))
    b.evaluator.replace_groups([])
    (series,) = b.store.series("twice", None)
    assert math.isnan(series.values[-1])


def test_alerts_say_when_their_rule_last_gave_a_result(bench: MakeBench) -> None:
    text = "groups: [{name: g, interval: 15s, rules: [{alert: A, expr: a >= on(x) b}]}]"
    b = bench(text)
    good = [("a", {"x": "1"}, 1.0), ("b", {"x": "1"}, 1.0)]
    b.at(0, *good)
    assert (b.only().seen_at, b.only().interval) == (0, 15)
    b.at(15, *good)
    assert b.only().seen_at == 15
    b.at(30, *good, ("b", {"x": "1", "y": "2"}, 1.0))
    assert b.evaluator.rules()["groups"][0]["rules"][0]["health"] == "err"
    assert b.only().seen_at == 15


_HEAVY = """
groups:
  - name: heavy
    interval: 1m
    rules:
      - {record: "job:mean", expr: "avg by (job) (stddev_over_time(x[5m]))"}
      - {alert: Peak, expr: "max by (job) (max_over_time(x[5m:5s])) > 1e9"}
      - {alert: Each, expr: "x + deriv(x[5m]) > 0", annotations: {summary: "{{ $labels.n }} {{ $value | humanize }}"}}
      - {alert: Some, expr: "x > on (n) x * 2 or x > 1e9 unless on (n) x"}
"""


def _driven(work: promql.Sliced[Any]) -> tuple[list[float], int]:
    """CPU seconds of each slice, and how many parts were given away."""
    held: list[float] = []
    apart, result = 0, None
    # A collection would go through all that other tests of this process have left, and count as the rules'.
    gc.collect()
    gc.disable()
    try:
        while True:
            begun = time.thread_time()
            try:
                part = work.send(result)
            except StopIteration:
                return held, apart
            held.append(time.thread_time() - begun)
            result = part() if part is not None else None
            apart += part is not None
    finally:
        gc.enable()


def test_rules_that_take_long_let_others_work_in_between_and_decide_as_in_one_go(bench: MakeBench) -> None:
    def filled() -> Bench:
        made = bench(_HEAVY)
        for number in range(1100):
            series = labels("x", job=str(number % 3), n=str(number))
            for second in range(0, 300, 10):
                made.store.append(series, second, float((number + second) % 17))
        return made

    expected = filled()
    expected.evaluator.evaluate(300)

    b = filled()
    held, apart = _driven(b.evaluator.evaluation(300))
    # The operators of the two rules that look at all series, and the last step of the others, run apart.
    assert apart == 4
    assert sum(held) > 0.05
    assert max(held) < sum(held) / 3
    assert len(held) > sum(held) / 0.02
    assert b.evaluator.alerts() == expected.evaluator.alerts()
    assert {a.name for a in b.evaluator.alerts()} == {"Each"}
