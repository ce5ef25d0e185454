"""A restart that does not help, an engine that goes away in odd ways; in virtual time at the default settings."""

from dataclasses import replace

from dsobs.model.observation import Failure
from dsobs.remediation.ledger import Entry, Ledger
from dsobs.remediation.plan import unseen_restart
from tests.pipeline.world import Server, World


def test_a_page_stays_open_until_the_repair_is_verified() -> None:
    world = World(crashing=True)
    world.run(60)
    world.server.frozen = True
    world.run(120, until=lambda: world.restarts)
    assert len(world.restarts) == 1
    world.run(300)
    # The new instance crashes again and again.
    assert world.states("EngineHung") == ["firing"]
    assert world.states("EngineDown") == ["firing"]
    world.crashing = False
    world.server = Server(started_at=world.now)
    world.run(60)
    assert world.states("EngineHung") == ["firing", "resolved"]
    assert world.states("EngineDown") == ["firing", "resolved"]
    assert [(e.kind, e.state) for e in world.ledger.entries][-2:] == [("verify", "done"), ("incident", "closed")]


def test_a_page_stays_open_though_dsobs_is_restarted_before_the_repair_is_verified() -> None:
    world = World(crashing=True)
    world.run(60)
    world.server.frozen = True
    world.run(120, until=lambda: world.restarts)
    world.run(30)
    again = world.again()
    again.run(300)
    assert again.states("EngineHung") == []
    again.crashing, again.server = False, Server(started_at=again.now)
    again.run(60)
    assert again.states("EngineHung") == ["resolved"]


def test_a_repair_that_is_not_verified_in_its_time_is_escalated_and_its_page_stays_open() -> None:
    world = World(crashing=True)
    world.run(60)
    world.server.frozen = True
    world.run(5000)
    kinds = [(e.kind, e.state) for e in world.ledger.entries]
    assert ("verify", "failed") in kinds
    assert ("page", "done") in kinds
    assert world.states("EngineHung") == ["firing"]
    world.crashing, world.server = False, Server(started_at=world.now)
    world.run(120)
    assert not world.firing() & {"EngineHung", "EngineDown"}
    assert world.ledger.open_incident() is None


def test_a_container_that_the_operator_stopped_is_not_started_again_though_the_word_comes_late() -> None:
    world = World()
    world.run(60)
    # The daemon does not answer, and the port refuses.
    world.knows_runtime = False
    world.server = replace(world.server, failure=Failure.REFUSED, running=False)
    world.run(60)
    assert world.firing() == {"EngineDown"}
    assert world.restarts == []
    assert world.refused[0].startswith("runtime_known")
    # A daemon may be that slow: one page is enough.
    assert not any(entry.kind == "page" for entry in world.ledger.entries)
    world.knows_runtime = True
    world.server.planned_stop = "docker stop event"
    world.run(900)
    assert world.states("EngineDown") == ["firing", "resolved"]
    assert world.restarts == []


def test_a_port_that_closes_while_the_process_lives_is_paged_and_what_stands_still_behind_it_restarted() -> None:
    world = World()
    world.run(60)
    world.server.failure = Failure.REFUSED
    world.server.cores = 0.0
    begun = world.at
    assert world.run(60, until=lambda: "EngineDown" in world.firing()) - begun <= 5
    world.run(400)
    assert len(world.restarts) == 1
    assert 300 <= world.restarts[0] - begun <= 320
    assert world.states("EngineDown") == ["firing", "resolved"]


def test_a_wrapper_that_starts_the_engine_again_behind_a_closed_port_is_left_to_it() -> None:
    world = World()
    world.run(60)
    world.server.failure = Failure.REFUSED
    world.run(1800)
    assert world.restarts == []
    assert world.states("EngineDown") == ["firing"]
    world.server.failure = None
    world.run(120)
    assert world.states("EngineDown") == ["firing", "resolved"]


def test_an_engine_that_loads_while_dsobs_is_restarted_is_left_alone() -> None:
    world = World()
    world.run(60)
    world.server.planned_stop = "docker restart event"
    world.server = replace(world.server, started_at=world.now, failure=Failure.REFUSED)
    world.run(60)
    again = world.again()
    again.run(1800)
    assert again.told == []
    assert again.restarts == []


def test_a_planned_restart_behind_a_port_forwarder_pages_nobody_however_long_the_model_loads() -> None:
    world = World()
    world.run(60)
    world.server.planned_stop = "docker restart event"
    world.server = replace(world.server, started_at=world.now, failure=Failure.CLOSED)
    world.run(1500)
    assert world.told == []
    world.run(2200, until=lambda: "EngineStartSlow" in world.firing())
    assert 3600 <= world.at - 60 <= 3605
    assert not world.firing() & {"EngineDown", "EngineUnresponsive", "EngineHung"}
    assert world.restarts == []


def test_a_crashed_container_behind_a_port_forwarder_is_left_alone_while_its_new_instance_loads() -> None:
    world = World()
    world.run(60)
    world.server = replace(world.server, started_at=world.now, failure=Failure.CLOSED)
    world.run(1500)
    assert world.firing() == {"EngineDown"}
    assert world.restarts == []
    assert world.refused[0].startswith("not_starting")
    world.server.failure = None
    world.run(120)
    assert not world.firing() & {"EngineDown", "EngineUnresponsive"}


def test_a_living_server_that_closes_every_connection_is_paged_and_not_restarted() -> None:
    world = World()
    world.run(60)
    world.server.failure = Failure.CLOSED
    begun = world.at
    world.run(60, until=lambda: "EngineDown" in world.firing())
    assert 10 <= world.at - begun <= 13
    world.run(1800)
    assert world.restarts == []
    world.server.failure = None
    world.run(120)
    assert not world.firing() & {"EngineDown", "EngineUnresponsive"}


def test_a_runtime_that_stays_silent_over_a_dead_engine_is_escalated_and_that_ends_with_the_outage() -> None:
    world = World()
    world.run(60)
    world.knows_runtime = False
    world.server = replace(world.server, failure=Failure.REFUSED, running=False)
    begun = world.at
    escalated = world.run(300, until=lambda: any(e.kind == "page" for e in world.ledger.entries)) - begun
    assert 75 <= escalated <= 85
    world.knows_runtime, world.server = True, Server(started_at=world.now)
    world.run(120)
    assert world.states("EngineDown") == ["firing", "resolved"]
    assert world.ledger.open_incident() is None


def test_what_the_instance_before_answered_proves_nothing_of_a_new_one() -> None:
    world = World(server=Server(outstanding=0))
    world.run(70)
    assert world.pipeline.view.probe_answered_at is not None
    world.restart_engine()
    world.run(2)
    assert world.pipeline.view.probe_answered_at is None


def test_the_instance_of_a_restart_that_dsobs_made_before_it_was_killed_is_its_own() -> None:
    world = World()
    world.run(60)
    world.server.frozen = True
    world.run(25)
    started = world.server.started_at
    world._write("restart", "reserved", instance_started_at=started)
    world.restart_engine()
    world.server.failure = Failure.REFUSED
    # Killed now: what it remembers is the old instance.
    again = world.again()
    attempt = unseen_restart(again.ledger, again.pipeline.restarts.known.runtime_start)
    assert attempt is not None
    again.pipeline.restarts.expect_own(again.now + 60)
    again.pipeline.lifecycle.expect_own_stop("dsobs", again.now + 60)
    again.run(600)
    assert "EngineDown" not in again.firing()
    assert again.pipeline.view.own_restarts_24h == 1
    # Once it was seen there is nothing to be expected any more: its end is a crash.
    assert unseen_restart(again.ledger, again.pipeline.restarts.known.runtime_start) is None


def test_what_is_not_known_of_a_restart_excuses_no_end() -> None:
    reserved = Entry(10.0, "i1", "restart", "reserved", {"instance_started_at": 100.0}, 2)
    opened = Entry(9.0, "i1", "incident", "opened", {}, 1)
    done = Entry(20.0, "i1", "restart", "done", {"instance_started_at": 100.0, "attempt": 2, "started_at": 15.0}, 3)
    verified = Entry(30.0, "i1", "verify", "done", {}, 4)
    assert unseen_restart(Ledger((opened, reserved)), 100.0) == reserved
    assert unseen_restart(Ledger((opened, reserved, done)), 100.0) == done
    for entries, start in (
        ((opened,), 100.0),
        ((opened, reserved), None),
        ((opened, reserved, done), 115.0),
        ((opened, reserved, done, verified), 100.0),
    ):
        assert unseen_restart(Ledger(entries), start) is None
