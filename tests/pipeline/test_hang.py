"""A hang seen through pages that come late, or not at all; in virtual time at the default settings."""

import os
from dataclasses import replace

import pytest

from dsobs.config import Config
from dsobs.model.alert import AlertState
from dsobs.model.observation import Failure, ProbeOutcome
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Ledger
from tests.pipeline.world import Server, World


def hung_world(**server: object) -> World:
    """A working server whose core has just stopped."""
    world = World(server=Server(**server))  # type: ignore[arg-type]
    world.run(60)
    world.server.frozen = True
    return world


def test_a_hang_under_load_is_paged_within_10_s_and_restarted_30_s_after_its_probe_failed() -> None:
    world = hung_world()
    begun = world.at
    fired = world.run(60, until=lambda: "EngineHung" in world.firing()) - begun
    assert fired <= 10
    world.run(120)
    (restarted,) = world.restarts
    assert 30 <= restarted - begun - fired <= 32
    assert world.states("EngineHung") == ["firing", "resolved"]


def test_a_hang_while_idle_is_paged_within_90_s() -> None:
    world = World(server=Server(outstanding=0))
    world.run(300)
    for moment in range(0, 30, 1 if os.environ.get("LONG_TESTS") == "1" else 3):
        # Wherever between two probes it begins.
        each = World(server=Server(outstanding=0))
        each.run(60 + moment)
        each.server.frozen = True
        begun = each.at
        assert each.run(200, until=lambda each=each: "EngineHung" in each.firing()) - begun <= 90  # type: ignore[misc]
    assert world.firing() == set()


@pytest.mark.parametrize("failure", [Failure.TIMEOUT, Failure.UNREACHABLE, Failure.HTTP_STATUS, Failure.UNPARSABLE])
def test_a_hang_whose_page_can_not_be_read_any_more_fires_on_until_it_is_disproved(failure: Failure) -> None:
    world = hung_world()
    # So that nothing restarts it.
    world.knows_runtime = False
    world.run(60, until=lambda: "EngineHung" in world.firing())
    world.server.failure = failure
    world.run(900, until=lambda: "EngineHung" not in world.firing())
    assert world.states("EngineHung") == ["firing"]
    # An answered probe disproves it, though the page is still away.
    world.server.frozen = False
    world.run(60)
    assert world.states("EngineHung") == ["firing", "resolved"]


def test_a_hang_whose_page_is_away_while_dsobs_is_restarted_fires_on() -> None:
    world = hung_world()
    world.knows_runtime = False
    world.run(60, until=lambda: "EngineHung" in world.firing())
    world.server.failure = Failure.TIMEOUT
    world.run(10)
    again = world.again()
    again.run(300)
    assert again.states("EngineHung") == []
    again.server.failure, again.server.frozen = None, False
    again.run(60)
    assert again.states("EngineHung") == ["resolved"]


def test_a_hang_without_one_byte_fires_as_hung_and_unresponsive_with_no_hole_between() -> None:
    world = hung_world(health=200)
    world.run(60, until=lambda: "EngineHung" in world.firing())
    world.server.failure, world.server.health = Failure.TIMEOUT, None
    while world.at < 250:
        world.run(1)
        assert "EngineHung" in world.firing(), world.told
    assert "EngineUnresponsive" in world.firing()


def test_a_hang_whose_page_can_not_be_read_is_restarted_like_an_unresponsive_server() -> None:
    world = hung_world()
    begun = world.run(60, until=lambda: "EngineHung" in world.firing())
    world.server.failure = Failure.TIMEOUT
    world.run(900, until=lambda: world.restarts)
    (restarted,) = world.restarts
    assert 300 <= restarted - begun <= 310


@pytest.mark.parametrize(("cores", "knows"), [(2.0, True), (0.0, False)])
def test_without_a_second_source_that_stands_still_no_page_leads_to_no_restart(cores: float, knows: bool) -> None:
    world = hung_world()
    world.knows_runtime = knows
    world.run(60, until=lambda: "EngineHung" in world.firing())
    # From here on it works, and is too busy to answer anybody.
    world.server = replace(world.server, frozen=cores == 0.0, cores=cores, failure=Failure.TIMEOUT)
    world.server.probe = ProbeOutcome.TIMEOUT
    world.run(1800)
    assert world.restarts == []


def test_one_page_in_a_minute_is_enough_to_confirm_a_hang() -> None:
    world = hung_world()
    begun = world.run(60, until=lambda: "EngineHung" in world.firing())
    while world.at < begun + 200 and not world.restarts:
        world.server.failure = None if int(world.at - begun) % 60 == 59 else Failure.TIMEOUT
        world.run(1)
    assert world.states("EngineHung")[0] == "firing"
    assert [at - begun for at in world.restarts] == [60]


def test_a_standstill_that_was_confirmed_long_ago_is_not_acted_on() -> None:
    config = Config.model_validate({"remediation": {"mode": "enforce", "enabled": True, "max_restarts_24h": 0}})
    world = World(config=config)
    world.run(60)
    world.server.frozen = True
    world.run(60, until=lambda: world.refused)
    # The page is away, and behind it the engine works again: what would have been due is so no more.
    world.server = replace(world.server, failure=Failure.TIMEOUT, frozen=False, probe=ProbeOutcome.TIMEOUT)
    world.run(30)
    refusals = len(world.refused)
    world.run(600)
    assert len(world.refused) == refusals


@pytest.mark.parametrize("server", [Server(), Server(outstanding=0)])
def test_scrapes_that_time_out_for_a_minute_raise_nothing_critical(server: Server) -> None:
    world = World(server=server)
    world.run(120)
    world.server.failure = Failure.TIMEOUT
    world.run(60)
    world.server.failure = None
    world.run(120)
    assert [(name, state) for _, name, state in world.told] == [("EngineSignalsLost", AlertState.PENDING)]
    assert world.restarts == []


def test_each_failed_scrape_and_each_probe_is_counted_once() -> None:
    world = hung_world()
    world.server.failure = Failure.UNPARSABLE
    world.run(3)
    world.server.failure = None
    world.run(60)
    counts = {
        dict(s.labels).get("reason"): s.value
        for s in world.pipeline.samples()
        if s.labels[0][1].endswith("failures_total")
    }
    assert counts["unparsable"] == 3
    assert sum(counts.values()) == 3
    assert sum(world.pipeline.probe_counts.values()) == len(world.probes)


def test_an_incident_whose_alert_is_silenced_is_held_and_not_over() -> None:
    world = hung_world()
    world.pipeline.can_restart = False
    world.run(200)
    silenced = {alert.fingerprint for alert in world.evaluator.alerts()}
    steps = world.pipeline.planned(world.now, world.ledger, Switches(), silenced)
    assert [(step.action, step.refused) for step in steps] == [
        ("restart", "silence: all alerts that ask for it are silenced")
    ]
    # For what is silenced none is opened.
    assert world.pipeline.planned(world.now, Ledger(), Switches(), silenced) == []


@pytest.mark.parametrize("minutes", [2, 40])
def test_a_page_that_can_not_be_read_is_told_once_however_long_the_engine_was_seen(minutes: int) -> None:
    world = World()
    world.run(60 * minutes)
    world.server.failure, world.server.answered = Failure.HTTP_STATUS, True
    world.run(600)
    # Both fire in the longer one; inhibition has one of them told.
    fired = {name for _, name, state in world.told if state is AlertState.FIRING}
    assert fired == {"EngineSignalsLost"} | ({"AvailabilityBudgetFast"} if minutes > 30 else set())
    assert world.restarts == []
    world.server.failure = None
    world.run(60)
    assert "EngineSignalsLost" not in world.firing()
