"""What looks like a hang and is none: a pause, one long step; in virtual time at the default settings."""

from dataclasses import replace

import pytest

from dsobs.config import Config
from dsobs.model.observation import Failure
from dsobs.pipeline import MAX_ENGINES
from tests.pipeline.world import ENFORCE, Server, World

UNPROBED = Config.model_validate({"remediation": {"mode": "enforce"}, "hang": {"probe": "off"}})


@pytest.mark.parametrize("config", [ENFORCE, UNPROBED], ids=["probes", "no probes"])
@pytest.mark.parametrize("outstanding", [0, 4])
def test_a_paused_engine_is_not_probed_not_paged_and_not_restarted(config: Config, outstanding: int) -> None:
    world = World(config=config, server=Server(outstanding=outstanding, says_paused=True))
    world.run(60)
    world.server.paused = True
    # A probe that went out just before it was paused may still time out.
    world.run(6)
    probes = len(world.probes)
    world.run(1800)
    assert world.told == []
    assert world.restarts == []
    assert len(world.probes) == probes
    # One that is idle and never probed is not asked.
    assert world.pipeline.view.paused is (config is ENFORCE or outstanding > 0)
    world.server.paused = False
    world.run(120)
    assert world.told == []
    assert not world.pipeline.view.paused


def test_an_engine_that_hangs_when_it_is_resumed_is_paged_and_restarted() -> None:
    world = World(server=Server(says_paused=True))
    world.run(60)
    world.server.paused = True
    world.run(600)
    world.server.paused, world.server.frozen = False, True
    resumed = world.at
    paged = world.run(300, until=lambda: "EngineHung" in world.firing()) - resumed
    assert paged <= 75  # 5 s until it does not say any more that it is paused, then a prefill's patience.
    world.run(60)
    assert len(world.restarts) == 1


def test_a_hang_of_an_engine_that_can_be_asked_for_a_pause_is_paged_as_quickly() -> None:
    world = World(server=Server(says_paused=True))
    world.run(60)
    world.server.frozen = True
    begun = world.at
    assert world.run(60, until=lambda: "EngineHung" in world.firing()) - begun <= 10
    world.run(60)
    assert len(world.restarts) == 1


@pytest.mark.parametrize("hung_before", [False, True])
def test_a_container_that_somebody_paused_is_not_restarted(*, hung_before: bool) -> None:
    """Its CPU stands still, and not one byte comes: but for the runtime's word, a server to restart."""
    world = World(server=Server(frozen=hung_before))
    world.run(20 if hung_before else 60)
    told = len(world.told)
    world.server.frozen, world.server.failure, world.server.health = True, Failure.TIMEOUT, None
    world.server.stopping = "docker pause"
    world.run(1200)
    assert world.restarts == []
    assert not {name for _, name, _ in world.told[told:]} - {"EngineHung"}
    world.server = replace(world.server, frozen=False, failure=None, health=200, stopping=None)
    world.run(120)
    assert world.firing() == set()
    assert world.restarts == []


def test_an_engine_that_stays_silent_when_it_is_not_paused_any_more_is_restarted() -> None:
    world = World()
    world.run(60)
    world.server.frozen, world.server.failure, world.server.health = True, Failure.TIMEOUT, None
    world.server.stopping = "docker pause"
    world.run(600)
    world.server.stopping = None
    world.run(110)
    assert "EngineUnresponsive" in world.firing()
    world.run(300)
    assert len(world.restarts) == 1


def test_an_engine_that_can_not_be_asked_is_asked_once_an_instance() -> None:
    world = World(server=Server(outstanding=0))
    asked = 0
    for _ in range(300):
        world.run(1)
        asked += world._pause_asked
    assert asked == 1


def prefill(**server: object) -> World:
    """One request that begins a step of its own, with nothing else to do, after another has ended."""
    world = World(server=Server(**server))  # type: ignore[arg-type]
    world.run(60)
    world.server.busy = True
    return world


@pytest.mark.parametrize("seconds", [100, 300, 600])
def test_one_long_step_is_paged_and_not_restarted_while_its_cpu_works(seconds: int) -> None:
    world = prefill()
    world.run(seconds)
    assert world.firing() == {"EngineHung"}
    assert world.restarts == []
    assert world.refused[0].startswith("at_work")
    world.server.busy = False
    world.run(60)
    assert world.states("EngineHung") == ["firing", "resolved"]
    assert world.restarts == []


def test_a_loop_that_burns_cpu_for_ever_is_restarted_after_the_long_patience() -> None:
    world = prefill()
    begun = world.run(60, until=lambda: "EngineHung" in world.firing())
    world.run(900, until=lambda: world.restarts)
    assert 595 <= world.restarts[0] - begun <= 605


def test_one_long_step_that_becomes_a_stand_still_is_restarted_30_s_after_it_worked_last() -> None:
    world = prefill()
    world.run(200)
    world.server.frozen = True
    stopped = world.at
    world.run(900, until=lambda: world.restarts)
    assert 30 <= world.restarts[0] - stopped <= 36


def test_without_a_witness_a_hang_is_restarted_as_soon_as_one_that_stands_still() -> None:
    times = []
    for cores in (1.0, 0.3):  # 0.3 cores say neither.
        world = World(server=Server(cores=cores))
        world.run(60)
        world.server = replace(world.server, frozen=cores == 1.0, busy=cores != 1.0)
        world.run(120, until=lambda world=world: world.restarts)  # type: ignore[misc]
        times.append(world.restarts)
    assert times[0] == times[1]
    assert len(times[0]) == 1


def test_a_page_with_a_flood_of_engines_is_not_taken_in_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.run(60)
    world.server.models = MAX_ENGINES + 1
    world.run(120)
    said = [record for record in caplog.records if "is not read" in record.message]
    assert [record.message for record in said] == [
        "the engine's metrics page is not read: 257 engines (models and ranks), the limit is 256"
    ]
    counts = {dict(s.labels).get("reason"): s.value for s in world.pipeline.samples()}
    assert counts["too_many_series"] == 120
    assert len(world.pipeline.view.engines) == 1
    assert world.states("EngineSignalsLost") == ["pending"]
    assert len(world.told) == 1
    assert world.restarts == []
    world.server.models = MAX_ENGINES
    world.run(10)
    assert len(world.pipeline.view.engines) == MAX_ENGINES
