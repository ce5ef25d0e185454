"""Who is told of what, without input or output."""

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dsobs import silences, telemetry
from dsobs.config import Config, Mode
from dsobs.config.models import Pages
from dsobs.model.alert import Alert, AlertState
from dsobs.model.clock import ManualClock
from dsobs.model.notification import Event, Notification
from dsobs.notifiers.inhibition import InhibitRule
from dsobs.remediation.ledger import Entry, Ledger
from dsobs.sidecar import telling
from dsobs.sidecar.page_texts import PageTexts
from dsobs.sidecar.telling import Policy, Teller
from dsobs.silences import Matcher, Silence

NOW = 1_800_000_000.0
DOWN_HOLDS_LATENCY = InhibitRule((Matcher("alertname", "=", "Down"),), (Matcher("alertname", "=", "Slow"),), ())


def alert(name: str, state: AlertState = AlertState.FIRING, **fields: Any) -> Alert:
    labels = {"alertname": name, "severity": fields.pop("severity", "critical"), **fields.pop("labels", {})}
    times = {"active_at": NOW - 60, "fired_at": NOW - 30, "seen_at": NOW, "interval": 1.0}
    return Alert(name, labels, {"summary": f"{name} it is"}, state, 1.0, **{**times, **fields})


def ended(one: Alert, at: float = NOW) -> Alert:
    return replace(one, state=AlertState.RESOLVED, resolved_at=at)


def teller(*inhibit: InhibitRule, elsewhere: bool = False) -> Teller:
    return Teller(Policy("gpu-1", elsewhere, inhibit, Mode.OBSERVE, PageTexts.of(Config())), ManualClock(NOW))


def told(teller: Teller, *alerts: Alert, held: Sequence[Silence] = (), now: float = NOW) -> list[tuple[Event, str]]:
    found: list[Notification] = teller.turn(alerts, held, now)
    return [(one.event, one.labels.get("alertname") or one.summary) for one in found]


TRIGGER, RESOLVE = Event.TRIGGER, Event.RESOLVE


def test_an_alert_is_told_of_once_and_its_end_once() -> None:
    t, a = teller(), alert("A")
    assert told(t, a) == [(TRIGGER, "A")]
    assert told(t, a) == []
    assert told(t, ended(a)) == [(RESOLVE, "A")]
    assert told(t, ended(a)) == []
    assert told(t, a) == [(TRIGGER, "A")]


def test_pending_alerts_and_ends_of_alerts_that_nobody_heard_of_are_not_told() -> None:
    assert told(teller(), alert("A", AlertState.PENDING), ended(alert("B"))) == []


def test_a_restored_alert_is_told_of_when_its_rule_confirms_it() -> None:
    t = teller()
    assert told(t, alert("A", confirmed=False)) == []
    assert told(t, alert("A")) == [(TRIGGER, "A")]


def test_a_silenced_alert_is_told_of_when_the_silence_ends() -> None:
    t, a = teller(), alert("A")
    held = [silences.new(["alertname=A"], NOW - 1, 60, "me", "")]
    assert told(t, a, held=held) == []
    assert told(t, a, held=held, now=NOW + 58) == []
    assert told(t, a, held=held, now=NOW + 59) == [(TRIGGER, "A")]


def test_a_silence_for_the_server_by_its_name_holds() -> None:
    held = [silences.new([matcher], NOW - 1, 60, "me", "") for matcher in ("instance=gpu-2", "instance=gpu-1")]
    assert told(teller(), alert("A"), held=held[:1]) == [(TRIGGER, "A")]
    assert told(teller(), alert("A"), held=held) == []


def test_a_silenced_alert_is_told_of_when_the_silence_is_expired() -> None:
    t, a = teller(), alert("A")
    assert told(t, a, held=[silences.new(["alertname=A"], NOW - 1, 60, "me", "")]) == []
    assert told(t, a, held=[]) == [(TRIGGER, "A")]


def test_a_silence_that_ends_over_a_restart_of_dsobs_leaves_its_alert_to_be_told_of() -> None:
    connection = sqlite3.connect(":memory:")
    for statement in telling.SCHEMA:
        connection.execute(statement)
    t, a = teller(), alert("A")
    assert told(t, a, held=[silences.new(["alertname=A"], NOW - 1, 60, "me", "")]) == []
    t.save(connection, t.unsaved or frozenset())
    again = teller()
    again.restore(connection)
    assert told(again, replace(a, confirmed=False)) == []
    assert told(again, a) == [(TRIGGER, "A")]
    assert told(again, a) == []


def test_an_alert_that_ends_while_it_is_silenced_is_never_told_of() -> None:
    t, a = teller(), alert("A")
    held = [silences.new(["alertname=A"], NOW - 1, 60, "me", "")]
    told(t, a, held=held)
    assert told(t, ended(a), held=held) == []


def test_one_that_was_told_of_is_resolved_though_it_is_silenced_now() -> None:
    t, a = teller(), alert("A")
    told(t, a)
    held = [silences.new(["alertname=A"], NOW - 1, 60, "me", "")]
    assert told(t, ended(a), held=held) == [(RESOLVE, "A")]


def test_one_fault_is_one_page_and_what_is_left_when_it_ends_is_told_of() -> None:
    t, down, slow = teller(DOWN_HOLDS_LATENCY), alert("Down"), alert("Slow")
    assert told(t, slow, down) == [(TRIGGER, "Down")]
    assert told(t, slow, ended(down)) == [(TRIGGER, "Slow"), (RESOLVE, "Down")]


def test_a_silenced_source_holds_its_targets_all_the_same() -> None:
    t = teller(DOWN_HOLDS_LATENCY)
    held = [silences.new(["alertname=Down"], NOW - 1, 60, "me", "")]
    assert told(t, alert("Slow"), alert("Down"), held=held) == []


def test_with_evaluation_in_prometheus_only_what_was_told_of_before_is_resolved() -> None:
    t, a = teller(), alert("A")
    told(t, a)
    t.policy = replace(t.policy, elsewhere=True)
    assert told(t, a, alert("B")) == []
    assert told(t, ended(a), ended(alert("B"))) == [(RESOLVE, "A")]


@pytest.mark.parametrize("quiet", [alert("Watchdog", severity="critical"), alert("X", severity="none")])
def test_what_is_no_fault_pages_nobody(quiet: Alert) -> None:
    assert told(teller(), quiet) == []


def test_what_is_held_is_counted_by_reason() -> None:
    t = teller(DOWN_HOLDS_LATENCY)
    held = [silences.new(["alertname=S"], NOW - 1, 60, "me", "")]
    told(t, alert("Down"), alert("Slow"), alert("S"), alert("Watchdog", severity="none"), held=held)
    reasons = ("silenced", "inhibited", "evaluated_elsewhere", "no_fault")
    assert [telemetry.ALERTS_HELD.labels(reason)._value.get() for reason in reasons] == [1, 1, 0, 1]


def test_what_was_told_of_outlives_a_restart() -> None:
    connection = sqlite3.connect(":memory:")
    for statement in telling.SCHEMA:
        connection.execute(statement)
    t, a = teller(), alert("A")
    told(t, a)
    unsaved = t.unsaved
    assert unsaved is not None
    t.save(connection, unsaved)
    t.saved(unsaved)
    assert t.unsaved is None
    again = teller()
    again.restore(connection)
    assert told(again, replace(a, confirmed=False)) == []
    assert told(again, ended(a)) == [(RESOLVE, "A")]


def late(
    teller: Teller, receivers: Sequence[str], *alerts: Alert, held: Sequence[Silence] = ()
) -> dict[str, list[str]]:
    found = teller.catch_up(receivers, alerts, held, NOW)
    return {name: [one.labels.get("alertname") or one.summary for one in some] for name, some in found.items()}


def saved_and_restored(before: Teller) -> Teller:
    connection = sqlite3.connect(":memory:")
    for statement in telling.SCHEMA:
        connection.execute(statement)
    before.save(connection, before.unsaved or frozenset())
    again = teller()
    again.restore(connection)
    return again


def test_a_receiver_that_is_new_is_told_once_of_what_still_fires() -> None:
    t, a, b, c = teller(), alert("A"), alert("B", active_at=NOW - 90), alert("C")
    assert late(t, []) == {}
    told(t, a, b, c)
    told(t, a, b, ended(c))
    assert late(t, ["webhook"], a, b, ended(c)) == {"webhook": ["B", "A"]}
    assert late(t, ["webhook"], a, b) == {}
    assert late(t, ["webhook", "slack"], a, b) == {"slack": ["B", "A"]}
    assert told(t, a, ended(b)) == [(RESOLVE, "B")]


def test_what_begins_to_fire_with_a_new_receiver_is_told_by_the_way_of_all() -> None:
    t, a = teller(), alert("A")
    assert late(t, ["webhook"], a) == {}
    assert told(t, a) == [(TRIGGER, "A")]
    assert late(t, ["webhook"], a) == {}


def test_a_new_receiver_is_told_of_a_silenced_alert_when_the_silence_is_over() -> None:
    t, a, b = teller(), alert("A"), alert("B")
    told(t, a, b)
    held = [silences.new(["alertname=A"], NOW - 1, 60, "me", "")]
    assert late(t, ["webhook"], a, b, held=held) == {"webhook": ["B"]}
    assert late(t, ["webhook"], a, b, held=held) == {}
    assert late(t, ["webhook"], a, b) == {"webhook": ["A"]}


def test_which_receivers_are_up_to_date_outlives_a_restart_and_one_that_is_owed_something_is_not() -> None:
    t, a = teller(), alert("A")
    held = [silences.new(["alertname=A"], NOW - 1, 60, "me", "")]
    late(t, ["webhook"])
    told(t, a)
    late(t, ["webhook", "slack"], a, held=held)
    again = saved_and_restored(t)
    assert late(again, ["webhook", "slack"], replace(a, confirmed=False)) == {}
    assert late(again, ["webhook", "slack"], a) == {"slack": ["A"]}
    assert late(saved_and_restored(again), ["webhook", "slack"], a) == {}


def test_a_receiver_that_was_gone_in_between_is_new() -> None:
    t, a = teller(), alert("A")
    late(t, ["webhook"])
    told(t, a)
    assert late(t, [], a) == {}
    assert late(t, ["webhook"], a) == {"webhook": ["A"]}


def test_a_new_receiver_hears_of_an_open_escalation_that_is_a_page_of_its_own() -> None:
    t = teller()
    t.escalation("i-1", "the ladder is used up", NOW)
    assert late(t, ["webhook"]) == {"webhook": ["[critical] gpu-1: the ladder is used up"]}
    assert late(t, ["webhook"]) == {}


def test_an_escalation_and_its_end_have_one_key() -> None:
    t = teller(elsewhere=True)
    sent, over = t.escalation("i-1", "restart failed: no", NOW), t.escalation("i-1", None, NOW)
    assert sent is not None
    assert over is not None
    assert (sent.event, sent.dedup_key, sent.severity) == (TRIGGER, "dsobs/gpu-1/incident-i-1", "critical")
    assert (over.event, over.dedup_key) == (RESOLVE, sent.dedup_key)


def test_alertmanager_is_told_where_runbook_dashboard_and_logs_are(caplog: pytest.LogCaptureFixture) -> None:
    pages = Pages(
        runbook="https://h/{{ $labels.alertname }}",
        dashboard="https://h/d?i={{ $source }}",
        logs="https://h/{{ humanize $source }}",
    )
    policy = Policy("gpu-1", False, (), Mode.OBSERVE, PageTexts.of(Config(pages=pages)))
    t = Teller(policy, ManualClock(NOW))
    (one,) = t.standing([alert("A")], Ledger(), NOW)
    assert {name: text for name, text in one.annotations.items() if name.endswith("_url")} == {
        "runbook_url": "https://h/A",
        "dashboard_url": "https://h/d?i=gpu-1",
    }
    assert caplog.text == "", "said once, by its page"


def test_a_page_says_what_dsobs_does_and_in_observe_what_it_would_do() -> None:
    hung = alert("EngineHung", labels={"action": "restart"})
    observes = teller().policy
    assert observes.next_step(hung).startswith(
        "nothing: remediation.mode is observe; in enforce it would restart the engine"
    )
    enforces = replace(observes, mode=Mode.ENFORCE)
    assert enforces.next_step(hung) == "restarts the engine once it is confirmed and no guard refuses"


def test_standing_alerts_carry_the_server_and_begin_when_they_fired() -> None:
    (one,) = teller().standing([alert("A", AlertState.PENDING), alert("A", labels={"engine": "0"})], Ledger(), NOW)
    assert one.labels == {"alertname": "A", "severity": "critical", "engine": "0", "instance": "gpu-1"}
    assert (one.started_at, one.seen_at, one.interval, one.ended_at) == (NOW - 30, NOW, 1.0, None)
    assert one.annotations["next_step"] == "nothing; this is for a person"
    (own,) = teller().standing([alert("A", labels={"instance": "other"})], Ledger(), NOW)
    assert own.labels["instance"] == "other"


def test_alertmanagers_labels_give_the_instance_of_alerts_that_have_none() -> None:
    settings = {"notifiers": {"alertmanager": {"urls": ["http://a:9093"], "labels": ["instance=node-7"]}}}
    policy = Policy.of(Config.model_validate(settings), "gpu-1", ())
    t = Teller(policy, ManualClock(NOW))
    t.escalation("i-1", "used up", NOW)
    found = t.standing([alert("A"), alert("B", labels={"instance": "other"})], Ledger(), NOW)
    assert [one.labels["instance"] for one in found] == ["node-7", "other", "node-7"]
    assert Policy.of(Config(), "gpu-1", ()).labels(alert("A"))["instance"] == "gpu-1"


def test_with_evaluation_in_prometheus_only_watchdog_and_escalations_stand() -> None:
    entries = (
        Entry(NOW - 9, "i-1", "incident", "opened", {"alerts": ["A"]}, 1),
        Entry(NOW - 5, "i-1", "page", "done", {"reason": "restart refused: budget"}, 2),
    )
    found = teller(elsewhere=True).standing([alert("A"), alert("Watchdog", severity="none")], Ledger(entries), NOW)
    assert [one.labels["alertname"] for one in found] == ["Watchdog", "RemediationEscalated"]
    assert found[1].annotations["summary"] == "gpu-1: restart refused: budget"
    assert (found[1].started_at, found[1].seen_at) == (NOW - 5, NOW)
    closed = Entry(NOW, "i-1", "incident", "closed", {}, 3)
    (over,) = teller().standing([], Ledger((*entries, closed)), NOW + 900)
    assert over.ended_at == NOW
    assert teller().standing([], Ledger((*entries, closed)), NOW + 901) == []


def test_an_escalation_that_the_ledger_could_not_take_stands_all_the_same() -> None:
    t = teller()
    t.escalation("i-1", "restart failed: no", NOW)
    (one,) = t.standing([], Ledger(), NOW + 60)
    assert (one.labels["incident"], one.started_at, one.ended_at) == ("i-1", NOW, None)
    t.escalation("i-1", None, NOW + 90)
    assert t.standing([], Ledger(), NOW + 91) == []


def faulty(name: str = "EngineHung", action: str = "restart") -> Alert:
    return alert(name, labels={"action": action})


def test_an_escalation_updates_the_open_page_of_its_fault_and_ends_with_it() -> None:
    t = teller()
    (page,) = t.turn([faulty()], [], NOW)
    sent = t.escalation("i-1", "restart refused: budget", NOW + 30)
    assert sent is not None
    assert (sent.event, sent.dedup_key, sent.at) == (TRIGGER, page.dedup_key, NOW + 30)
    assert sent.summary == "[critical] EngineHung on gpu-1: restart refused: budget"
    (standing,) = t.standing([], Ledger(), NOW + 31)
    assert (standing.labels["alertname"], standing.labels["incident"]) == ("EngineHung", "i-1")
    assert told(t, ended(faulty())) == [(RESOLVE, "EngineHung")]
    assert t.escalation("i-1", None, NOW + 90) is None


@pytest.mark.parametrize("held_back", ["silenced", "resolved", "warning", "no fault of the server"])
def test_an_escalation_without_an_open_page_of_the_server_is_a_page_of_its_own(held_back: str) -> None:
    t, page = teller(), faulty()
    held = [silences.new(["alertname=EngineHung"], NOW - 1, 60, "me", "")] if held_back == "silenced" else []
    if held_back == "warning":
        page = alert("GPUFaultUnknown", severity="warning", labels={"action": "escalate"})
    elif held_back == "no fault of the server":
        page = alert("DsobsTellsNobody")
    t.turn([page], held, NOW)
    if held_back == "resolved":
        t.turn([ended(page)], [], NOW)
    sent, again = t.escalation("i-1", "restart failed: no", NOW), None
    assert sent is not None
    assert sent.dedup_key == "dsobs/gpu-1/incident-i-1"
    t.turn([faulty("EngineDown")], [], NOW)
    again, over = t.escalation("i-1", "restart failed again", NOW), t.escalation("i-1", None, NOW)
    assert again is not None
    assert over is not None
    assert {again.dedup_key, over.dedup_key} == {sent.dedup_key}


def test_an_escalation_of_an_engine_that_a_lost_card_explains_goes_into_the_page_of_the_card() -> None:
    t = teller(
        InhibitRule((Matcher("alertname", "=", "GPUFellOffBus"),), (Matcher("alertname", "=", "EngineDown"),), ())
    )
    (page,) = t.turn([faulty("EngineDown"), faulty("GPUFellOffBus", "reboot_node")], [], NOW)
    sent = t.escalation("i-1", "restart refused: gpu_well", NOW)
    assert sent is not None
    assert (sent.dedup_key, sent.labels["alertname"]) == (page.dedup_key, "GPUFellOffBus")


def test_what_carries_an_escalation_outlives_a_restart() -> None:
    connection = sqlite3.connect(":memory:")
    for statement in telling.SCHEMA:
        connection.execute(statement)
    t = teller()
    t.turn([faulty()], [], NOW)
    t.escalation("i-1", "restart refused: budget", NOW)
    t.save(connection, t.unsaved or frozenset())
    again = teller()
    again.restore(connection)
    assert again.unsaved is None
    assert told(again, faulty()) == []
    assert again.escalation("i-1", None, NOW) is None


def test_wish_for_a_replica_has_a_page_of_its_own_that_ends_by_itself_and_also_after_a_restart() -> None:
    t = teller()
    run = f"docker run {'x' * 5000}"
    sent = t.scale_out("one more replica is wanted", run, NOW)
    assert sent is not None
    assert sent.summary == "[critical] gpu-1: one more replica is wanted"
    assert sent.details["run"] == run
    (standing,) = [s for s in t.standing([], Ledger(), NOW) if s.labels.get("incident") == "scale-out"]
    assert standing.labels["alertname"] == "ScaleOutWanted"
    assert standing.annotations["run"] == run
    saved = t.unsaved
    assert saved is not None
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(telling.SCHEMA[0])
        t.save(connection, saved)
        again = teller()
        again.restore(connection)
    for one in (t, again):
        over = one.scale_out(None, "", NOW + 60)
        assert over is not None
        assert (over.event, over.dedup_key) == (Event.RESOLVE, sent.dedup_key)
        assert one.scale_out(None, "", NOW + 90) is None
