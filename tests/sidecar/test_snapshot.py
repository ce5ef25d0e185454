"""What a server is said to be, in virtual time: never healthy where something is not known, never zero for unknown."""

import itertools
import math
import re
from dataclasses import replace

import pytest

from dsobs.config import Config
from dsobs.config.models import Mode, Remediation
from dsobs.indicators import INDICATORS
from dsobs.model.alert import Alert, AlertState
from dsobs.model.observation import Failure, Health, ProbeOutcome, Scrape, Unknown
from dsobs.model.samples import labels
from dsobs.model.status import State, Verdict
from dsobs.model.view import View
from dsobs.remediation.guard import GUARDS, Switches
from dsobs.remediation.plan import Step
from dsobs.series.store import STALE, Store
from dsobs.sidecar.facts import Seen, facts, state_of
from dsobs.sidecar.snapshot import charts, settings_shown, snapshot
from tests.pipeline.world import World
from tests.status_scenes import AT, CONFIG, SECRET, held, seen, shown


@pytest.fixture(scope="module")
def well() -> World:
    """A server that is known to be well. Not to be changed."""
    world = World(config=CONFIG, now=AT)
    world.run(20)
    return world


# The state.


def test_a_server_that_works_is_healthy_and_it_is_said_how_that_is_known(well: World) -> None:
    status = shown(well)
    assert status.state is State.HEALTHY
    assert {f.name for f in status.facts if f.verdict is Verdict.GOOD} >= {"dsobs", "Metrics page", "Ready", "Progress"}
    assert "4 requests outstanding" in status.headline


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"standing": "the main loop stands still for 40 s"}, "the main loop stands still for 40 s"),
        ({"scrape": None}, "was not read for more than 30 s"),
        ({"scrape": Scrape(AT - 100.0, 0.1)}, "was not read for more than 30 s"),
        ({"engine": None}, "no engine that dsobs knows"),
        ({"has_rules": False}, "no rule looks for faults"),
        ({"failing_rules": [("EngineHung", "too many samples")]}, "a rule can't be evaluated (EngineHung)"),
    ],
)
def test_what_is_not_known_is_never_healthy(well: World, change: dict[str, object], says: str) -> None:
    state, headline = state_of(seen(well, **change))
    assert state is State.UNKNOWN
    assert says in headline


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({"seen": False}, State.UNKNOWN),
        ({"up": False}, State.UNKNOWN),
        ({"engines": ()}, State.UNKNOWN),
        ({"ready": False}, State.FAULTY),
        ({"down_since": AT, "down_reason": "the process ended"}, State.FAULTY),
        ({"up": False, "planned_stop": "docker stop event"}, State.STOPPED),
        ({"paused": True}, State.STOPPED),
        ({"asleep": True}, State.STOPPED),
        ({"up": False, "starting_since": AT}, State.STARTING),
        ({"up": False, "starting_since": AT, "seen": False}, State.STARTING),
        ({"up": False, "starting_since": AT, "seen": False, "runtime": Unknown("none")}, State.UNKNOWN),
        ({"up": False, "starting_since": AT - 10_000.0}, State.FAULTY),
        ({"ready": False, "was_ready": False, "starting_since": AT}, State.STARTING),
    ],
)
def test_each_view_has_its_state(well: World, change: dict[str, object], state: State) -> None:
    view = replace(well.pipeline.view, **change)  # type: ignore[arg-type]
    assert state_of(seen(well, view=view))[0] is state


def test_a_health_check_with_no_answer_leaves_unknown_whether_it_is_ready(well: World) -> None:
    view = replace(well.pipeline.view, ready=False)
    looked = seen(well, view=view, health=Health(well.now, 1.0, failure=Failure.TIMEOUT))
    assert state_of(looked) == (State.UNKNOWN, "Not known: whether it is ready; /health gave nothing (timeout).")


def test_a_stall_is_unknown_until_a_probe_fails_and_then_faulty() -> None:
    world = World(config=CONFIG, now=AT)
    world.run(20)
    world.server.frozen = True
    states: list[State] = []
    headline = ""
    while State.FAULTY not in states and world.at < 60:
        world.run(1)
        state, headline = state_of(seen(world))
        if not states or states[-1] is not state:
            states.append(state)
    assert states == [State.HEALTHY, State.UNKNOWN, State.FAULTY]
    assert headline == "EngineHung fires: Engine 0 of m is hung."
    asked = next(fact for fact in facts(seen(world)) if fact.name == "Synthetic request")
    assert (asked.verdict, asked.text.startswith("not answered in time")) == (Verdict.BAD, True)


@pytest.mark.parametrize(
    ("outcome", "verdict", "says"),
    [
        (None, Verdict.NOTE, "none was needed yet"),
        (ProbeOutcome.ANSWERED, Verdict.GOOD, "answered 3 s ago"),
        (ProbeOutcome.ERROR, Verdict.BAD, "answered with an error 3 s ago"),
        # A long step looks like that too.
        (ProbeOutcome.TIMEOUT, Verdict.UNKNOWN, "not answered in time, 3 s ago"),
        (ProbeOutcome.INCONCLUSIVE, Verdict.UNKNOWN, "the last one proved nothing, 3 s ago (inconclusive)"),
    ],
)
def test_what_the_last_synthetic_request_brought_is_told(
    well: World, outcome: ProbeOutcome | None, verdict: Verdict, says: str
) -> None:
    at = None if outcome is None else well.now - 3
    view = replace(
        well.pipeline.view,
        probe_ended_at=at,
        probe_outcome=str(outcome or ""),
        # Of one that was answered before it.
        probe_answered_at=well.now - 60 if outcome not in (None, ProbeOutcome.ANSWERED) else at,
        probe_error_at=at if outcome is ProbeOutcome.ERROR else None,
    )
    fact = next(fact for fact in facts(seen(well, view=view)) if fact.name == "Synthetic request")
    assert (fact.verdict, fact.text.partition(":")[0]) == (verdict, says)


@pytest.mark.parametrize(
    ("severity", "state"),
    [
        ("critical", State.FAULTY),
        ("error", State.FAULTY),
        ("page", State.FAULTY),
        ("warning", State.DEGRADED),
        ("info", State.HEALTHY),
        ("none", State.HEALTHY),
    ],
)
def test_firing_alerts_count_by_severity(well: World, severity: str, state: State) -> None:
    alert = Alert("A", {"alertname": "A", "severity": severity}, state=AlertState.FIRING)
    assert state_of(seen(well, alerts=[alert]))[0] is state
    assert state_of(seen(well, alerts=[replace(alert, state=AlertState.PENDING)]))[0] is State.HEALTHY


def test_while_dsobs_itself_stands_still_no_fact_is_good(well: World) -> None:
    assert Verdict.GOOD not in {fact.verdict for fact in facts(seen(well, standing="the first turn is not done"))}


def test_each_thing_that_is_not_known_is_listed_with_its_reason() -> None:
    world = World(config=Config(), now=AT, knows_runtime=False, gpus=Unknown("no NVIDIA driver"))
    world.server.failure = Failure.TIMEOUT
    world.run(10)
    status = shown(world)
    assert status.state is State.UNKNOWN
    assert status.unknown["gpu"] == "no NVIDIA driver"
    assert status.unknown["runtime"] == "no runtime configured"
    assert status.unknown["engine"] == "its metrics page was not read"
    assert "restarts" in status.unknown
    assert status.guards.budget_left is None


# Indicators.


def test_an_indicator_without_a_value_is_unknown_with_the_reason_and_never_zero(well: World) -> None:
    status = snapshot(seen(well), held(well, store=Store()))
    assert len(status.indicators) == len(INDICATORS)
    assert all(not tile.readings and tile.unknown for tile in status.indicators)


@pytest.mark.parametrize(("value", "age"), [(STALE, 0.0), (math.nan, 0.0), (math.inf, 0.0), (0.5, 61.0)])
def test_an_ended_undefined_or_old_value_is_unknown(well: World, value: float, age: float) -> None:
    store = Store()
    series = labels(INDICATORS["kv_cache_usage"].record, model_name="m")
    store.want(INDICATORS["kv_cache_usage"].record)
    store.append(series, well.now - age, value)
    status = snapshot(seen(well), held(well, store=store))
    tile = next(tile for tile in status.indicators if tile.name == "kv_cache_usage")
    assert (tile.readings, bool(tile.unknown)) == ((), True)


def test_a_value_beyond_its_threshold_is_bad_and_comes_first(well: World) -> None:
    store = Store()
    record = INDICATORS["kv_cache_usage"].record
    store.want(record)
    for model, value in (("a", 0.5), ("b", 0.99)):
        store.append(labels(record, model_name=model), well.now, value)
    status = snapshot(seen(well), held(well, store=store))
    tile = next(tile for tile in status.indicators if tile.name == "kv_cache_usage")
    assert [(reading.model, reading.shown, reading.bad) for reading in tile.readings] == [
        ("b", "99 %", True),
        ("a", "50 %", False),
    ]
    assert tile.bad


def test_charts_have_a_gap_where_nothing_was_known() -> None:
    store = Store()
    record = INDICATORS["kv_cache_usage"].record
    store.want(record)
    now = 1_700_000_010.0
    for n in range(40):
        if not 10 <= n < 20:
            store.append(labels(record), now - 600.0 + 15.0 * n, 0.25)
    found = charts(store, now)
    line = found.series["kv_cache_usage"][""]
    assert (len(line), found.count, found.step) == (121, 121, 15.0)
    assert set(line) == {None, 0.25}
    known = [n for n, value in enumerate(line) if value is not None]
    gaps = [b - a for a, b in itertools.pairwise(known) if b - a > 1]
    # A value holds for two steps: ten that are missing leave nine unknown at least.
    assert gaps
    assert gaps[0] >= 9


# Alerts, repair, settings.


def test_of_many_alerts_the_worst_and_oldest_are_shown_and_the_others_counted(well: World) -> None:
    alerts = [
        Alert("A", {"severity": "warning" if n % 2 else "critical", "n": str(n)}, {}, AlertState.FIRING, 1.0, AT - n)
        for n in range(500)
    ]
    told = snapshot(seen(well, alerts=alerts), held(well)).alerts
    assert (told.firing, told.pending, len(told.shown), told.left_out) == (500, 0, 50, 450)
    assert {alert.severity for alert in told.shown} == {"critical"}
    assert told.shown[0].labels["n"] == "498"


def test_texts_of_alerts_are_cut() -> None:
    world = World(config=CONFIG, now=AT)
    alert = Alert("A", {"severity": "critical", "l": "x" * 9999}, {"summary": "y" * 9999}, AlertState.FIRING)
    told = snapshot(seen(world, alerts=[alert]), held(world)).alerts.shown[0]
    assert (len(told.summary), len(told.labels["l"])) == (1000, 1000)


def test_every_guard_says_what_it_would_say_to_a_restart_now(well: World) -> None:
    status = snapshot(seen(well), held(well, switches=Switches(killed="API")))
    assert [guard.name for guard in status.guards.checks] == [guard.__name__ for guard in GUARDS]
    assert all(guard.meaning for guard in status.guards.checks)
    refusing = {guard.name: guard.refuses for guard in status.guards.checks if guard.refuses}
    assert refusing == {"kill_switch": "kill switch: API"}
    assert status.guards.killed == "API"
    assert status.guards.budget_left == 3


def test_a_hang_shows_its_way_to_the_restart_and_what_is_left_of_the_budget_after_it() -> None:
    world = World(config=CONFIG, now=AT)
    world.run(20)
    world.server.frozen = True
    world.run(120, until=lambda: world.ledger.open_incident() is not None)
    assert shown(world).next_text == "Next: gather evidence (the incident was opened)."
    world.run(1)
    text = shown(world).next_text
    assert re.fullmatch(
        r"EngineHung leads to a restart, unless a guard refuses. It waits for \d+ s more without progress "
        r"\(remediation.confirm_hang\).",
        text,
    )
    (hung,) = [one for one in world.evaluator.alerts() if one.name == "EngineHung"]
    silenced = snapshot(seen(world), held(world, silenced={hung.fingerprint})).next_text
    assert silenced == "Nothing for EngineHung: it is silenced, and nothing is repaired while that holds."
    observe = world.config.model_copy(update={"remediation": Remediation(mode=Mode.OBSERVE)})
    assert (
        "; mode is observe, so it is only noted. It waits for"
        in snapshot(seen(world, config=observe), held(world)).next_text
    )
    world.run(60, until=lambda: world.restarts)
    status = shown(world)
    assert "is under way, or is being verified" in status.next_text
    assert [entry.what for entry in status.incidents[0].entries][-2:] == ["restart reserved", "restart done"]
    assert status.guards.budget_left == 2
    assert status.guards.cooldown_left > 0


def test_in_observe_a_restart_is_only_noted(well: World) -> None:
    config = CONFIG.model_copy(update={"remediation": Remediation(mode=Mode.OBSERVE)})
    steps = [Step("restart", "i1", "no progress for 41 s, probe failed")]
    status = snapshot(seen(well, config=config), held(well, steps=steps))
    assert status.next_text.endswith("(no progress for 41 s, probe failed); mode is observe, so it is only noted.")
    refused = [replace(steps[0], refused="cooldown: 20 s left")]
    text = snapshot(seen(well), held(well, steps=refused)).next_text
    assert text.startswith("It would restart the engine")
    assert text.endswith("a guard refuses: cooldown: 20 s left.")


def test_settings_are_shown_without_secrets_and_with_what_is_no_default() -> None:
    told = {setting.name: setting for setting in settings_shown(CONFIG)}
    assert told["notifiers.pagerduty.routing_key"].value == "********"
    assert told["api.control_token"].value == "file:/etc/dsobs/control.token"
    assert told["remediation.mode"].changed
    assert not told["target.url"].changed
    assert SECRET not in repr(shown(World(config=CONFIG, now=AT)))


def test_nothing_is_planned_or_shown_of_a_view_that_was_never_made() -> None:
    nothing = Seen(AT, Config(), View(at=0.0), None, None, None, Unknown("not read yet"), [], True, standing="x")
    assert state_of(nothing)[0] is State.UNKNOWN
