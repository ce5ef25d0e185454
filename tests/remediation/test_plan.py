"""What to do next, decided purely."""

from dataclasses import replace
from typing import Any

import pytest

from dsobs.config.models import Mode
from dsobs.config.models import Remediation as Settings
from dsobs.model.alert import Alert, AlertState
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.turn import Fleet
from dsobs.model.view import EngineProgress, View, Witness
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Entry, Ledger
from dsobs.remediation.plan import Step, awaited, due, plan

NOW = 10_000.0
RUNNING = RuntimeView("docker", "c", running=True, started_at=1000.0)
HUNG = EngineProgress(("m", "0"), 8.0, NOW - 40, NOW, 40.0, 5.0, in_prefill=False, failed_at=NOW - 31)
VIEW = View(
    at=NOW, seen=True, up=True, ready=True, runtime=RUNNING, can_restart=True, engines=(HUNG,), restarts_24h=0,
    instance_started_at=1000.0, was_ready=True, probes_enabled=True,
)  # fmt: skip
DOWN = replace(
    VIEW,
    up=False,
    ready=False,
    engines=(),
    down_since=NOW - 60,
    runtime=replace(RUNNING, running=False),
    down_reason="gone",
)
SETTINGS = Settings()
ENFORCE = Settings(mode=Mode.ENFORCE)
NO = Switches()


def alert(name: str = "EngineHung", state: AlertState = AlertState.FIRING, action: str = "restart") -> Alert:
    labels = {"alertname": name, "severity": "critical", **({"action": action} if action else {})}
    return Alert(name, labels, state=state, active_at=NOW - 35, fired_at=NOW - 31)


def ledger(*entries: tuple[float, str, str], **detail: Any) -> Ledger:
    made = [Entry(NOW - 31, "i1", "incident", "opened", {"alerts": ["EngineHung"]}, 1)]
    for number, (ago, kind, state) in enumerate(entries, 2):
        made.append(Entry(NOW - ago, "i1", kind, state, detail, number))
    return Ledger(tuple(made))


EVIDENCE = (30, "evidence", "done")


def do(
    alerts: list[Alert],
    view: View = VIEW,
    book: Ledger | None = None,
    settings: Settings = SETTINGS,
    switches: Switches = NO,
) -> list[Step]:
    return plan(alerts, view, book if book is not None else ledger(EVIDENCE), NOW, settings, switches)


def restarts(steps: list[Step]) -> list[str | None]:
    return [step.refused for step in steps if step.action == "restart"]


def test_a_healthy_server_needs_nothing() -> None:
    assert do([], book=Ledger()) == []
    assert do([alert(state=AlertState.PENDING)], book=Ledger()) == []
    assert do([alert("LatencyP99High", action="")], book=Ledger()) == []


def test_a_firing_alert_opens_an_incident_then_evidence_is_gathered() -> None:
    assert [s.action for s in do([alert()], book=Ledger())] == ["open"]
    young = replace(VIEW, engines=(replace(HUNG, failed_at=NOW - 1),))
    assert [s.action for s in do([alert()], young, ledger())] == ["evidence"]


def test_restart_waits_30_s_without_progress_after_the_failed_probe() -> None:
    early = replace(VIEW, engines=(replace(HUNG, failed_at=NOW - 29),))
    assert restarts(do([alert()], early)) == []
    assert restarts(do([alert()])) == [None]


def test_time_without_a_scrape_does_not_count_as_time_without_progress() -> None:
    unseen = replace(VIEW, engines=(replace(HUNG, last_seen_at=NOW - 25),))
    assert restarts(do([alert()], unseen)) == []


def test_a_hang_that_no_probe_confirmed_is_paged_and_not_restarted() -> None:
    unconfirmed = replace(VIEW, engines=(replace(HUNG, failed_at=None, stall_seconds=600.0, last_moved_at=NOW - 600),))
    assert restarts(do([alert()], unconfirmed)) == []


def test_evidence_never_holds_up_a_restart() -> None:
    assert [s.action for s in do([alert()], book=ledger())] == ["evidence", "restart"]


@pytest.mark.parametrize(
    ("view", "switches", "settings", "guard"),
    [
        (VIEW, Switches(killed="file /run/dsobs/kill"), SETTINGS, "kill_switch"),
        (VIEW, Switches(silenced="s1"), SETTINGS, "silence"),
        (VIEW, Switches(state_set_aside="state.db.corrupt-1"), SETTINGS, "state_agreed"),
        (VIEW, Switches(uncoordinated="no Lease"), SETTINGS, "coordination"),
        (VIEW, Switches(fleet=Fleet(acting="pod b acts")), SETTINGS, "others_acting"),
        (VIEW, Switches(fleet=Fleet(unready="2 of 3")), SETTINGS, "breaker"),
        (VIEW, Switches(fleet=Fleet(budget="5 in an hour")), SETTINGS, "fleet_budget"),
        (replace(VIEW, restarts_24h=3), NO, SETTINGS, "budget"),
        (replace(VIEW, restarts_24h=None), NO, SETTINGS, "budget"),
        (replace(VIEW, can_restart=False, runtime=Unknown("gone")), NO, SETTINGS, "runtime_known"),
        (replace(VIEW, planned_stop="SIGTERM"), NO, SETTINGS, "not_planned"),
        (replace(VIEW, runtime=replace(RUNNING, stopping="docker pause")), NO, SETTINGS, "not_planned"),
        (replace(VIEW, asleep=True), NO, SETTINGS, "not_asleep"),
        (replace(VIEW, up=False, starting_since=NOW - 9), NO, SETTINGS, "not_starting"),
        (replace(VIEW, seen=False), NO, SETTINGS, "not_starting"),
    ],
)
def test_each_guard_refuses_with_its_name(view: View, switches: Switches, settings: Settings, guard: str) -> None:
    (reason,) = restarts(do([alert()], view, switches=switches, settings=settings))
    assert reason is not None
    assert reason.startswith(guard + ":")


@pytest.mark.parametrize("action", ["reset_gpu", "reboot_node", "escalate"])
def test_a_broken_card_is_never_answered_with_a_restart(action: str) -> None:
    steps = do([alert(), alert("GPUResetNeeded", action=action)], settings=ENFORCE)
    assert [step.action for step in steps] == ["restart", "page"]
    assert restarts(steps) == ["gpu_well: GPUResetNeeded: a restart does not mend the card"]
    assert restarts(do([alert(), alert("GPUResetNeeded", AlertState.RESOLVED, action)])) == [None]
    assert restarts(do([alert(), alert("GPUApplicationFault", action="restart_application")])) == [None]


def test_an_alert_of_an_xid_holds_nothing_back_that_the_card_itself_does_not() -> None:
    """Its card may have been cleared meanwhile, while the alert goes on for an hour."""
    after = alert("GPUResetNeeded", action="reset_gpu")
    labels = {**after.labels, "cause": "xid"}
    assert restarts(do([alert(), replace(after, labels=labels)])) == [None]


def test_a_ledger_that_can_not_be_written_refuses() -> None:
    book = replace(ledger(EVIDENCE), writable=False, why_not="disk full")
    assert restarts(do([alert()], book=book)) == ["ledger_writable: the ledger can't be written: disk full"]


def test_dsobs_never_breaks_the_documented_limit_itself() -> None:
    assert restarts(do([alert()], replace(VIEW, restarts_24h=2))) == [None]
    assert restarts(do([alert()], replace(VIEW, restarts_24h=3)))[0] is not None


def test_cooldown_counts_attempts_whose_outcome_is_not_known() -> None:
    book = ledger(EVIDENCE, (500, "restart", "reserved"))
    book = book.with_entry(Entry(NOW - 499, "i1", "restart", "unknown", {"attempt": 3}, 9))
    book = book.with_entry(Entry(NOW - 400, "i1", "verify", "failed", {}, 10))
    (reason,) = restarts(do([alert()], book=book))
    assert reason == "cooldown: cooldown: 100 s left"


def test_an_attempt_that_surely_did_nothing_starts_no_cooldown() -> None:
    book = ledger(EVIDENCE, (500, "restart", "reserved"))
    book = book.with_entry(Entry(NOW - 499, "i1", "restart", "failed", {"attempt": 3, "withdrawn": True}, 9))
    assert restarts(do([alert()], book=book)) == [None]


def test_never_two_restarts_at_once() -> None:
    assert do([alert()], book=ledger(EVIDENCE, (5, "restart", "reserved"))) == []


def after_restart(ago: float = 20.0, state: str = "done") -> Ledger:
    detail = {"attempt": 3, "instance_started_at": 1000.0, "reserved_at": NOW - ago - 5}
    book = ledger(EVIDENCE, (ago + 5, "restart", "reserved"))
    return book.with_entry(Entry(NOW - ago, "i1", "restart", state, detail, 4))


BACK = replace(VIEW, instance_started_at=NOW - 15, engines=(), probe_answered_at=NOW - 2)


@pytest.mark.parametrize("state", ["done", "unknown"])
def test_a_restart_is_verified_by_a_new_ready_instance_that_answers(state: str) -> None:
    assert [s.action for s in do([], BACK, after_restart(state=state))] == ["verified"]


@pytest.mark.parametrize(
    "view",
    [
        replace(BACK, instance_started_at=1000.0),
        replace(BACK, ready=False),
        replace(BACK, probe_answered_at=NOW - 300),
        replace(BACK, engines=(HUNG,)),
    ],
)
def test_what_is_not_proved_is_not_verified(view: View) -> None:
    assert do([], view, after_restart()) == []


def test_requests_that_finish_verify_as_well_as_a_probe() -> None:
    moving = replace(HUNG, failed_at=None, moved_tokens=True, last_moved_at=NOW - 1, stall_seconds=0.0)
    view = replace(BACK, probe_answered_at=None, engines=(moving,))
    assert [s.action for s in do([], view, after_restart())] == ["verified"]


def test_an_unverified_restart_pages_when_its_time_is_over() -> None:
    steps = do([alert()], replace(BACK, ready=False), after_restart(4000.0))
    assert [s.action for s in steps] == ["failed"]


@pytest.mark.parametrize(
    ("kind", "told"),
    [("verify", "restart did not help: not ready"), ("restart", "restart failed: no such container")],
)
def test_a_failure_is_paged_once_also_by_a_dsobs_that_was_killed_before_it_paged(kind: str, told: str) -> None:
    detail = {"attempt": 3, "reason": "not ready", "why": "no such container"}
    book = after_restart(90.0).with_entry(Entry(NOW - 5, "i1", kind, "failed", detail, 5))
    (step,) = [s for s in do([], BACK, book) if s.action == "page"]
    assert step.reason == told
    paged = book.with_entry(Entry(NOW - 4, "i1", "page", "done", {}, 6))
    assert [s.action for s in do([], BACK, paged) if s.action == "page"] == []


def test_a_restart_that_was_withdrawn_is_tried_again_after_a_minute_and_pages_nobody() -> None:
    book = ledger(EVIDENCE, (60, "restart", "reserved"))
    withdrawn = Entry(NOW - 59, "i1", "restart", "failed", {"attempt": 3, "withdrawn": True}, 3)
    assert do([alert()], book=book.with_entry(withdrawn)) == []
    assert restarts(do([alert()], book=book.with_entry(replace(withdrawn, at=NOW - 61)))) == [None]


def refused(*ago: float, paged: bool = True) -> Ledger:
    """A ledger in which the runtime refused so many seconds ago; the first refusal was `paged`."""
    book, id_ = ledger(EVIDENCE), 3
    for number, seconds in enumerate(ago):
        why = {"attempt": id_, "why": "no such container"}
        lines = [Entry(NOW - seconds - 1, "i1", "restart", "reserved", {}, id_)]
        lines.append(Entry(NOW - seconds, "i1", "restart", "failed", why, id_ + 1))
        if paged and number == 0:
            lines.append(Entry(NOW - seconds, "i1", "page", "done", {}, id_ + 2))
        for line in lines:
            book = book.with_entry(line)
        id_ += 3
    return book


def pages(steps: list[Step]) -> list[str]:
    return [step.reason for step in steps if step.action == "page"]


def test_fault_37_a_runtime_that_refuses_is_paged_once_and_asked_again_after_a_cooldown() -> None:
    assert pages(do([alert()], book=refused(1, paged=False))) == ["restart failed: no such container"]
    for ago in (1, 61, 599):
        steps = do([alert()], book=refused(ago))
        assert pages(steps) == []
        assert restarts(steps) in ([], [f"refused_before: the runtime refused, next try in {600 - ago} s"])
    assert restarts(do([alert()], book=refused(601))) == [None]
    assert pages(do([alert()], book=refused(601, 1))) == []


def test_fault_37_a_runtime_that_goes_on_refusing_is_given_up_with_a_page() -> None:
    book = refused(5000, 3000, 1000)
    steps = do([alert()], book=book)
    assert pages(steps) == ["restart failed 3 times, dsobs tries no more: no such container"]
    assert restarts(steps) == ["refused_before: the runtime refused 3 times; this is for a person"]
    assert pages(do([alert()], book=book.with_entry(Entry(NOW - 999, "i1", "page", "done", {}, 99)))) == []


def test_an_incident_stays_open_while_its_restored_alert_is_not_seen_anew() -> None:
    book = after_restart().with_entry(Entry(NOW - 1, "i1", "verify", "done", {}, 5))
    restored = replace(alert(), confirmed=False)
    assert do([restored], BACK, book) == []
    assert do([restored], BACK, Ledger()) == []


def test_a_verified_incident_closes_when_its_alerts_are_gone() -> None:
    book = after_restart().with_entry(Entry(NOW - 1, "i1", "verify", "done", {}, 5))
    assert [s.action for s in do([], BACK, book)] == ["close"]
    assert [s.action for s in do([alert()], BACK, book)] == []


def test_an_incident_that_ends_by_itself_closes_after_a_quiet_minute() -> None:
    quiet = replace(VIEW, engines=())
    assert do([], quiet, ledger((59, "evidence", "done"))) == []
    assert [s.action for s in do([], quiet, ledger((61, "evidence", "done")))] == ["close"]
    away = replace(quiet, up=False, ready=False)
    assert do([], away, ledger((61, "evidence", "done"))) == []
    stopped = replace(away, planned_stop="docker stop event")
    assert [s.action for s in do([], stopped, ledger((61, "evidence", "done")))] == ["close"]


def test_a_refusal_that_will_not_pass_by_itself_pages_once() -> None:
    used = replace(VIEW, restarts_24h=3)
    assert [s.action for s in do([alert()], used, settings=ENFORCE)] == ["restart", "page"]
    book = ledger(EVIDENCE, (5, "page", "done"))
    assert [s.action for s in do([alert()], used, book, ENFORCE)] == ["restart"]


def test_in_observe_a_refused_restart_pages_nobody() -> None:
    assert [s.action for s in do([alert()], replace(VIEW, restarts_24h=3))] == ["restart"]


def test_a_dead_engine_is_restarted_after_its_runtime_had_time_to() -> None:
    assert restarts(do([alert("EngineDown")], DOWN)) == [None]
    assert restarts(do([alert("EngineDown")], replace(DOWN, down_since=NOW - 5))) == []


def test_an_engine_that_its_runtime_already_started_again_is_left_alone() -> None:
    view = replace(DOWN, runtime=RUNNING, starting_since=NOW - 30)
    (reason,) = restarts(do([alert("EngineDown")], view))
    assert reason is not None
    assert reason.startswith("not_starting")


def test_an_api_server_without_its_core_is_restarted_only_if_a_request_was_answered_with_an_error() -> None:
    view = replace(VIEW, down_since=NOW - 60, down_reason="/health answers 503", engines=())
    assert restarts(do([alert("EngineDown")], view)) == []
    assert restarts(do([alert("EngineDown")], replace(view, probe_error_at=NOW - 10))) == [None]


@pytest.mark.parametrize(("moved_ago", "due"), [(1.0, []), (14.0, []), (15.0, [None])])
def test_an_error_before_an_engine_that_still_moves_is_no_dead_core(moved_ago: float, due: list[None]) -> None:
    moves = replace(HUNG, failed_at=None, last_moved_at=NOW - moved_ago)
    view = replace(VIEW, engines=(moves,), down_since=NOW - 60, down_reason="5xx", probe_error_at=NOW - 10)
    assert restarts(do([alert("EngineDown")], view)) == due


@pytest.mark.parametrize(
    ("seconds", "still", "restarted"),
    [
        (301, 400, True),
        (299, 400, False),
        (3000, 301, True),
        (3000, 299, False),  # It worked until then.
        (3000, None, False),
    ],
)
def test_unresponsive_needs_5_minutes_and_a_second_source_that_stands_still_over_all_of_them(
    seconds: float, still: float | None, restarted: bool
) -> None:
    view = replace(
        VIEW,
        up=False,
        engines=(),
        unresponsive_since=NOW - seconds,
        witness=Witness.UNKNOWN if still is None else Witness.STILL,
        still_since=None if still is None else NOW - still,
    )
    assert bool(restarts(do([alert("EngineUnresponsive")], view))) is restarted


@pytest.mark.parametrize(
    ("name", "view", "waits"),
    [
        (
            "EngineHung",
            replace(VIEW, engines=(replace(HUNG, failed_at=NOW - 12),)),
            "18 s more without progress (remediation.confirm_hang)",
        ),
        (
            "EngineHung",
            replace(VIEW, engines=(replace(HUNG, failed_at=NOW - 60),), worked_at=NOW - 10),
            "20 s more without progress and without work of CPU or GPU (remediation.confirm_hang)",
        ),
        (
            "EngineHung",
            replace(VIEW, engines=(replace(HUNG, failed_at=NOW - 60, last_seen_at=NOW - 20),), still_since=NOW - 50),
            "its page, or 250 s more of a standstill of CPU or GPU (remediation.confirm_unresponsive)",
        ),
        ("EngineHung", replace(VIEW, engines=(replace(HUNG, failed_at=None),)), "more evidence"),
        ("EngineUnresponsive", replace(VIEW, unresponsive_since=NOW - 400), "CPU or GPU to stand still, which is not"),
        ("EngineUnresponsive", replace(VIEW, unresponsive_since=NOW - 400, still_since=NOW - 299), "1 s more of a "),
        ("EngineDown", replace(DOWN, down_since=NOW - 1), "14 s more for its runtime to start it again"),
    ],
)
def test_an_alert_that_is_not_due_says_what_it_waits_for(name: str, view: View, waits: str) -> None:
    assert due(alert(name), view, NOW, SETTINGS) is None
    assert awaited(alert(name), view, NOW, SETTINGS).startswith(waits)


@pytest.mark.parametrize("ago", [0.0, 1.0, 12.0, 29.0])
def test_a_hang_is_due_when_the_time_is_over_that_it_says_it_waits_for(ago: float) -> None:
    view = replace(VIEW, engines=(replace(HUNG, failed_at=NOW - ago),))
    left = float(awaited(alert(), view, NOW, SETTINGS).partition(" s more")[0])
    later = replace(view, engines=(replace(view.engines[0], last_seen_at=NOW + left),))
    assert due(alert(), later, NOW + left, SETTINGS) is not None


def test_other_engines_of_the_server_that_still_work_are_drained_first() -> None:
    working = replace(HUNG, key=("m", "1"), failed_at=None, last_moved_at=NOW - 1, stall_seconds=0.0)
    view = replace(VIEW, engines=(HUNG, working))
    assert [s.action for s in do([alert()], view)] == ["drain"]
    assert do([alert()], view, ledger(EVIDENCE, (29, "drain", "done"))) == []
    assert restarts(do([alert()], view, ledger(EVIDENCE, (30, "drain", "done")))) == [None]
    done = replace(view, engines=(HUNG, replace(working, outstanding=0.0)))
    assert restarts(do([alert()], done, ledger(EVIDENCE, (5, "drain", "done")))) == [None]
    # One that waits for its turn is waited for too, and not for ever.
    assert do([alert()], view, ledger(EVIDENCE, (100, "drain", "reserved"))) == []
    assert restarts(do([alert()], view, ledger(EVIDENCE, (120, "drain", "reserved")))) == [None]


def test_an_alert_that_asks_for_no_action_is_never_repaired() -> None:
    assert do([alert("EngineStartSlow", action="")], book=Ledger()) == []


def attempts(count: int, state: str) -> tuple[Entry, ...]:
    """Restarts of hours ago, each with its outcome."""
    made: list[Entry] = []
    for number in range(count):
        at, first = NOW - 20_000.0 + 4000 * number, 100 + 2 * number
        if state == "observed":
            made.append(Entry(at, f"o{number}", "restart", "observed", {}, first))
        else:
            made.append(Entry(at, f"o{number}", "restart", "reserved", {}, first))
            made.append(Entry(at + 1, f"o{number}", "restart", state, {"attempt": first}, first + 1))
    return tuple(made)


def with_attempts(count: int, state: str) -> Ledger:
    return Ledger((*attempts(count, state), *ledger(EVIDENCE).entries))


def test_what_observe_mode_would_have_done_uses_up_no_budget_of_enforce() -> None:
    assert restarts(do([alert("EngineDown")], DOWN, with_attempts(3, "observed"), ENFORCE)) == [None]
    (refused,) = restarts(do([alert("EngineDown")], DOWN, with_attempts(3, "observed")))
    assert refused == "budget: budget used: 3 restarts in 24 h, limit 3"
    lately = Entry(NOW - 60, "o9", "restart", "observed", {}, 1)
    book = Ledger((lately, *ledger(EVIDENCE).entries))
    assert restarts(do([alert("EngineDown")], DOWN, book, ENFORCE)) == [None]
    (refused,) = restarts(do([alert("EngineDown")], DOWN, book))
    assert refused is not None
    assert refused.startswith("cooldown")


@pytest.mark.parametrize(
    ("state", "seen", "own", "allowed"),
    [
        ("unknown", 0, 0, False),  # No new instance of any was seen: they count all the same.
        ("done", 3, 3, False),  # Each counts once.
        ("done", 2, 2, False),
        ("failed", 0, 0, True),  # Surely nothing was done.
    ],
)
def test_attempts_count_towards_the_budget_once_each(state: str, seen: int, own: int, allowed: bool) -> None:
    view = replace(DOWN, restarts_24h=seen, own_restarts_24h=own)
    (refused,) = restarts(do([alert("EngineDown")], view, with_attempts(3, state), ENFORCE))
    assert (refused is None) is allowed
    one = replace(DOWN, restarts_24h=1, own_restarts_24h=1)
    assert restarts(do([alert("EngineDown")], one, with_attempts(1, "unknown"), ENFORCE)) == [None]


def test_nothing_is_restarted_while_the_runtime_does_not_say_how_the_engine_is() -> None:
    view = replace(DOWN, runtime=Unknown("Docker does not answer"), can_restart=False)
    (refused,) = restarts(do([alert("EngineDown")], view))
    assert refused == "runtime_known: the runtime can't restart the engine: Docker does not answer"


OTHER = EngineProgress(("m", "1"), 8.0, NOW - 1, NOW, 0.0, 5.0, in_prefill=False)


@pytest.mark.parametrize(
    ("since_failed", "worked_ago", "engines", "outcome"),
    [
        (31, None, (), [None]),
        (31, 40, (), [None]),  # Before the probe failed: a core that was stopped later.
        (31, 0, (), ["at_work"]),
        (599, 0, (), ["at_work"]),
        (600, 0, (), [None]),
        (60, 29, (), ["at_work"]),  # It stands still, but not for 30 s.
        (60, 30, (), [None]),
        (31, 0, (OTHER,), [None]),  # The work that is seen is another engine's.
    ],
)
def test_a_hang_that_cpu_or_gpu_deny_has_a_long_patience(
    since_failed: float, worked_ago: float | None, engines: tuple[EngineProgress, ...], outcome: list[str | None]
) -> None:
    hung = replace(HUNG, failed_at=NOW - since_failed, last_moved_at=NOW - since_failed - 9)
    view = replace(
        VIEW,
        engines=(hung, *engines),
        witness=Witness.WORKING,
        worked_at=None if worked_ago is None else NOW - worked_ago,
    )
    drained = ledger(EVIDENCE, (40, "drain", "done"))
    steps = [s for s in do([alert()], view, drained) if s.action == "restart"]
    assert [s.refused and s.refused.partition(":")[0] for s in steps] == outcome
    assert all("at work" in s.reason for s in steps if since_failed == 600)


def test_a_repair_that_is_proved_late_is_verified_all_the_same() -> None:
    book = after_restart(90.0).with_entry(Entry(NOW - 20, "i1", "verify", "failed", {"reason": "not ready"}, 5))
    book = book.with_entry(Entry(NOW - 19, "i1", "page", "done", {}, 6))
    assert [s.action for s in do([alert()], BACK, book)] == ["verified"]


@pytest.mark.parametrize(("state", "verified"), [("unknown", True), ("done", False)])
def test_the_same_instance_is_proof_only_after_a_restart_whose_outcome_is_not_known(state: str, verified: bool) -> None:
    same = replace(BACK, instance_started_at=1000.0)
    assert do([], same, after_restart(state=state)) == []
    book = after_restart(90.0, state).with_entry(Entry(NOW - 20, "i1", "verify", "failed", {}, 5))
    book = book.with_entry(Entry(NOW - 19, "i1", "page", "done", {}, 6))
    assert ("verified" in [s.action for s in do([alert()], same, book)]) is verified


LEFT_OVER = replace(
    DOWN,
    can_restart=True,
    cannot_replace="",
    shm_left_over=0.97,
    runtime=replace(RUNNING, runtime="kubernetes", running=False, brings_back=True),
)


def test_engine_that_left_shared_memory_full_is_replaced_and_not_restarted() -> None:
    (step,) = [s for s in do([alert("EngineDown")], LEFT_OVER) if s.action == "restart"]
    assert (step.how, step.refused) == ("replace", None)
    assert step.reason == "down for 60 s, and what has ended holds 97% of /dev/shm"


@pytest.mark.parametrize(
    "view",
    [
        replace(LEFT_OVER, shm_left_over=0.9),
        replace(LEFT_OVER, shm_left_over=None),
        replace(LEFT_OVER, down_since=NOW - 14),
    ],
)
def test_ended_engine_that_left_nothing_behind_is_left_to_its_runtime(view: View) -> None:
    assert restarts(do([alert("EngineDown")], view)) == []


def test_replacing_without_the_right_is_refused_and_paged_with_the_rule() -> None:
    view = replace(LEFT_OVER, cannot_replace="no right to replace the pod; add to the Role: {...}")
    steps = do([alert("EngineDown")], view, settings=ENFORCE)
    why = (
        "runtime_known: a restart would not help, and the engine can't be replaced: no right to replace the pod; add "
        "to the Role: {...}"
    )
    assert restarts(steps) == [why]
    assert [s.reason for s in steps if s.action == "page"] == [f"restart refused: {why}"]


def test_breaker_and_others_hold_quietly_and_a_used_up_workload_is_paged() -> None:
    for fleet, pages in ((Fleet(acting="b"), 0), (Fleet(unready="2 of 3"), 0), (Fleet(budget="5 in an hour"), 1)):
        steps = do([alert()], settings=ENFORCE, switches=Switches(fleet=fleet))
        assert len([s for s in steps if s.action == "page"]) == pages, fleet
