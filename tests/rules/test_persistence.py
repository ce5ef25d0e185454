"""What a restart of dsobs keeps, and what it resolves."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsobs.model.alert import AlertState, Transition
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.persistence import SCHEMA, restore, save
from dsobs.state import StateDb
from tests.rules.conftest import Bench, MakeBench

_PENDING, _FIRING, _RESOLVED = AlertState.PENDING, AlertState.FIRING, AlertState.RESOLVED
_RULE = """
groups:
  - name: g
    interval: 1s
    rules:
      - alert: Hot
        expr: temperature > 80
        for: 1m
        annotations: {summary: 'at {{ $value }}'}
"""
_AT_ONCE = _RULE.replace("for: 1m", "for: 0")


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDb]:
    """A state file."""
    db = StateDb(tmp_path / "state.db", SCHEMA)
    yield db
    db.close()


def _keep(bench: Bench, state: StateDb, now: float) -> bool:
    """What the live loop does after each turn; True if there was something to write."""
    snapshot = bench.evaluator.snapshot(now)
    if snapshot is None:
        return False
    state.transact(lambda connection: save(connection, snapshot))
    bench.evaluator.saved(snapshot)
    return True


def _restart(make: MakeBench, text: str, state: StateDb, now: float, ready: bool = True) -> Bench:
    bench = make(text)
    bench.evaluator.restore(state.transact(restore), now)
    if ready:
        bench.evaluator.inputs_ready(now)
    return bench


def _hot(value: float) -> tuple[str, dict[str, str], float]:
    return "temperature", {"gpu": "0"}, value


def _run(bench: Bench, state: StateDb, start: int, end: int, value: float) -> list[Transition]:
    changed: list[Transition] = []
    for now in range(start, end):
        changed += bench.at(now, _hot(value))
        _keep(bench, state, now)
    return changed


def test_fault_26_pending_time_goes_on_after_a_restart_and_downtime_does_not_count(
    bench: MakeBench, state: StateDb
) -> None:
    first = bench(_RULE)
    _run(first, state, 0, 41, 90)
    second = _restart(bench, _RULE, state, 1000)
    # 40 s were pending; the last 10 s may be lost in a crash, since pending time is noted down every 10 s.
    changed = _run(second, state, 1000, 1060, 90)
    assert [(t.before, t.alert.state, t.at) for t in changed] == [(_PENDING, _FIRING, 1020)]
    assert changed[0].alert.active_at == 960


def test_fault_26_pending_time_goes_on_over_several_restarts(bench: MakeBench, state: StateDb) -> None:
    now = 0
    fired: list[Transition] = []
    running = bench(_RULE)
    for _ in range(4):
        fired += [t for t in _run(running, state, now, now + 21, 90) if t.alert.state is _FIRING]
        now += 500
        running = _restart(bench, _RULE, state, now)
    # The third run ends 60 s of pending time.
    assert [t.at for t in fired] == [1020]


def test_pending_alert_is_held_while_there_are_no_data_and_dropped_when_its_condition_is_gone(
    bench: MakeBench, state: StateDb
) -> None:
    _run(bench(_RULE), state, 0, 10, 90)
    second = _restart(bench, _RULE, state, 100, ready=False)
    assert second.at(100) == []
    assert second.states() == [("Hot", _PENDING)]
    second.evaluator.inputs_ready(101)
    assert second.at(101, _hot(70)) == []
    assert second.states() == []


def test_firing_alert_stays_firing_over_a_restart_without_another_transition(bench: MakeBench, state: StateDb) -> None:
    _run(bench(_AT_ONCE), state, 0, 3, 90)
    second = _restart(bench, _AT_ONCE, state, 100)
    assert second.at(100, _hot(91)) == []
    alert = second.only()
    assert (alert.state, alert.active_at, alert.fired_at, alert.confirmed) == (_FIRING, 0, 0, True)
    assert alert.annotations == {"summary": "at 91"}


def test_fault_27_firing_alert_whose_condition_ended_meanwhile_resolves(bench: MakeBench, state: StateDb) -> None:
    first = bench(_AT_ONCE)
    (fired,) = _run(first, state, 0, 1, 90)
    second = _restart(bench, _AT_ONCE, state, 100)
    (resolved,) = second.at(100, _hot(70))
    assert (resolved.before, resolved.alert.state, resolved.alert.resolved_at) == (_FIRING, _RESOLVED, 100)
    assert resolved.alert.fingerprint == fired.alert.fingerprint


def test_restored_alert_does_not_resolve_before_the_first_scrape(bench: MakeBench, state: StateDb) -> None:
    _run(bench(_AT_ONCE), state, 0, 1, 90)
    second = _restart(bench, _AT_ONCE, state, 100, ready=False)
    for now in range(100, 400):
        assert second.at(now) == []
    assert second.only().state is _FIRING
    assert not second.only().confirmed


def test_restored_alert_resolves_for_want_of_data_only_after_the_grace(bench: MakeBench, state: StateDb) -> None:
    _run(bench(_AT_ONCE), state, 0, 1, 90)
    second = _restart(bench, _AT_ONCE, state, 100)
    for now in range(100, 115):
        assert second.at(now) == []
    assert [t.at for t in second.at(115)] == [115]


def test_restored_alert_waits_until_the_window_of_its_range_is_filled(bench: MakeBench, state: StateDb) -> None:
    rule = _AT_ONCE.replace("temperature > 80", "max_over_time(temperature[2m]) > 80")
    _run(bench(rule), state, 0, 1, 90)
    empty = _restart(bench, rule, state, 1000)
    assert [t.at for t in _run(empty, state, 1000, 1200, 70)] == [1120]

    _run(bench(rule), state, 2000, 2001, 90)
    filled = bench(rule)
    filled.evaluator.restore(state.transact(restore), 3000)
    filled.evaluator.inputs_ready(3000, data_since=2800)
    assert [t.at for t in filled.at(3000, _hot(70))] == [3000]


def test_alert_that_was_unconfirmed_over_two_restarts_is_still_there(bench: MakeBench, state: StateDb) -> None:
    _run(bench(_RULE), state, 0, 31, 90)
    second = _restart(bench, _RULE, state, 100, ready=False)
    second.at(100)
    assert _keep(second, state, 100)
    third = _restart(bench, _RULE, state, 200)
    changed = _run(third, state, 200, 260, 90)
    assert [t.at for t in changed] == [230]


def test_keep_firing_for_goes_on_after_a_restart(bench: MakeBench, state: StateDb) -> None:
    rule = _RULE.replace("for: 1m", "keep_firing_for: 1m")
    first = bench(rule)
    _run(first, state, 0, 1, 90)
    _run(first, state, 1, 42, 70)
    second = _restart(bench, rule, state, 1000)
    # 40 s of the minute were over.
    assert [t.at for t in _run(second, state, 1000, 1060, 70)] == [1020]


@pytest.mark.parametrize(
    "text",
    [
        _AT_ONCE.replace("alert: Hot", "alert: Warm"),
        _AT_ONCE.replace("annotations:", "labels: {severity: info}\n        annotations:"),
        "groups: []",
    ],
    ids=["name", "labels", "removed"],
)
def test_firing_alert_resolves_when_its_rule_is_changed_or_removed(bench: MakeBench, state: StateDb, text: str) -> None:
    (fired,) = _run(bench(_AT_ONCE), state, 0, 1, 90)
    second = _restart(bench, text, state, 100, ready=False)
    (resolved,) = second.at(100)
    assert (resolved.alert.state, resolved.alert.fingerprint) == (_RESOLVED, fired.alert.fingerprint)
    assert _keep(second, state, 100)
    assert [alert.state for alert in state.transact(restore)] == [_RESOLVED]
    assert second.at(101) == []
    second.at(1001)
    assert second.states() == []


@pytest.mark.parametrize("expression", ["temperature>80", "temperature > 70"])
def test_firing_alert_whose_expression_is_written_otherwise_goes_on_after_a_restart(
    bench: MakeBench, state: StateDb, expression: str
) -> None:
    _run(bench(_AT_ONCE), state, 0, 1, 90)
    second = _restart(bench, _AT_ONCE.replace("temperature > 80", expression), state, 100)
    assert second.at(100, _hot(90)) == []
    assert (second.only().state, second.only().fired_at) == (_FIRING, 0)
    assert [t.alert.state for t in second.at(101, _hot(60))] == [_RESOLVED]


def test_resolve_of_a_removed_rule_that_was_not_saved_comes_again(bench: MakeBench, state: StateDb) -> None:
    _run(bench(_AT_ONCE), state, 0, 1, 90)
    for now in (100, 200):
        second = _restart(bench, "groups: []", state, now)
        assert [t.alert.state for t in second.at(now)] == [_RESOLVED]


def test_change_of_for_and_annotations_keeps_the_state(bench: MakeBench, state: StateDb) -> None:
    _run(bench(_AT_ONCE), state, 0, 1, 90)
    second = _restart(bench, _AT_ONCE.replace("for: 0", "for: 5m").replace("'at {{", "'now {{"), state, 100)
    assert second.at(100, _hot(90)) == []
    assert (second.only().state, second.only().annotations["summary"]) == (_FIRING, "now 90")


def test_resolved_alert_is_retained_over_a_restart_for_the_rest_of_15_minutes(bench: MakeBench, state: StateDb) -> None:
    first = bench(_AT_ONCE)
    _run(first, state, 0, 1, 90)
    _run(first, state, 1, 2, 70)
    assert _restart(bench, _AT_ONCE, state, 800).states() == [("Hot", _RESOLVED)]
    assert _restart(bench, _AT_ONCE, state, 902).states() == []


def test_fault_30_wall_clock_set_over_a_restart_fires_and_resolves_nothing(bench: MakeBench, state: StateDb) -> None:
    for shift in (-3600, 3600):
        _run(bench(_RULE), state, 10_000, 10_041, 90)
        second = _restart(bench, _RULE, state, 10_041 + shift)
        changed = _run(second, state, 10_041 + shift, 10_041 + shift + 21, 90)
        assert [t.at - shift for t in changed] == [10_061]
        third = _restart(bench, _RULE, state, 10_100 - shift)
        assert third.at(10_100 - shift, _hot(90)) == []
        assert third.only().state is _FIRING


def test_nothing_is_written_while_nothing_changes(bench: MakeBench, state: StateDb) -> None:
    b = bench(_RULE)
    b.at(0, _hot(70))
    assert not _keep(b, state, 0)
    b.at(1, _hot(90))
    assert _keep(b, state, 1)
    written = []
    for now in range(2, 30):
        b.at(now, _hot(90))
        written.append(_keep(b, state, now))
    # Pending time every 10 s.
    assert written.count(True) == 2
    _run(b, state, 30, 70, 90)
    b.at(70, _hot(90))
    assert b.only().state is _FIRING
    assert not _keep(b, state, 70)


def test_snapshot_that_was_not_committed_comes_again(bench: MakeBench, state: StateDb) -> None:
    b = bench(_AT_ONCE)
    b.at(0, _hot(90))
    lost = b.evaluator.snapshot(0)
    assert lost is not None
    assert b.evaluator.snapshot(0) == lost
    assert _keep(b, state, 1)
    assert b.evaluator.snapshot(1) is None


def test_save_is_undone_with_the_transaction_around_it(bench: MakeBench, state: StateDb) -> None:
    b = bench(_AT_ONCE)
    _run(b, state, 0, 1, 90)
    b.at(1, _hot(70))
    snapshot = b.evaluator.snapshot(1)
    assert snapshot is not None

    def fails(connection: object) -> None:
        save(connection, snapshot)  # type: ignore[arg-type]
        raise LookupError("later in the transaction")

    with pytest.raises(LookupError):
        state.transact(fails)
    assert [alert.state for alert in state.transact(restore)] == [_FIRING]


def test_saved_alert_reads_back_as_it_was(bench: MakeBench, state: StateDb) -> None:
    b = bench(_AT_ONCE.replace("temperature > 80", "temperature or vector(1)").replace("at {{", "é\\n{{"))
    b.at(5, ("temperature", {"gpu": "α\x01"}, math.nan))
    snapshot = b.evaluator.snapshot(5)
    assert snapshot is not None
    state.transact(lambda connection: save(connection, snapshot))
    read = {tuple(alert.labels.items()): alert for alert in state.transact(restore)}
    assert len(read) == len(snapshot.alerts) == 2
    for alert in snapshot.alerts:
        other = read[tuple(sorted(alert.labels.items()))]
        assert math.isnan(other.value) == math.isnan(alert.value)
        assert (dict(other.labels), dict(other.annotations)) == (dict(alert.labels), dict(alert.annotations))
        assert (other.rule_key, other.state, other.active_at) == (alert.rule_key, alert.state, alert.active_at)


def test_evaluator_without_a_state_file_works_from_memory(bench: MakeBench) -> None:
    b = bench(_AT_ONCE)
    assert isinstance(b.evaluator, Evaluator)
    assert [t.alert.state for t in b.at(0, _hot(90))] == [_FIRING]
    assert [t.alert.state for t in b.at(1, _hot(70))] == [_RESOLVED]
