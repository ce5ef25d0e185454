"""The wall clock is set by an hour while dsobs runs: the runtime's times are by the new time, dsobs's own go on."""

import pytest

from dsobs.config import Config
from dsobs.config.models import Mode, Remediation
from dsobs.model.observation import Failure
from tests.pipeline.world import World

HOUR = 3600.0
STEPS = pytest.mark.parametrize("step", [-HOUR, 0.0, HOUR])


def stepped(step: float, config: Config | None = None) -> World:
    """A working server, and the wall clock set by `step`."""
    world = World() if config is None else World(config=config)
    world.run(120)
    world.wall = step
    return world


@STEPS
def test_a_start_is_slow_an_hour_after_it_began_and_not_sooner_or_later(step: float) -> None:
    world = stepped(step)
    begun = world.at
    world.restart_engine()
    world.server.failure = Failure.REFUSED
    world.run(HOUR - 10, every=5)
    assert "EngineStartSlow" not in world.firing()
    world.run(20)
    assert "EngineStartSlow" in world.firing()
    assert world.at - begun == HOUR + 10
    assert world.restarts == []


@STEPS
def test_a_hang_is_restarted_and_verified_and_its_alert_resolved(step: float) -> None:
    world = stepped(step)
    world.server.frozen = True
    world.run(200)
    assert len(world.restarts) == 1
    states = [(e.kind, e.state) for e in world.ledger.entries]
    assert states[-2:] == [("verify", "done"), ("incident", "closed")]
    assert world.states("EngineHung") == ["firing", "resolved"]
    assert world.pipeline.view.restarts_24h == 1


@STEPS
def test_the_budget_counts_every_restart_once_and_forgets_it_after_24_hours(step: float) -> None:
    world = stepped(step, Config(remediation=Remediation(mode=Mode.ENFORCE, cooldown=0)))
    world.run(60)
    for _ in range(3):
        world.restart_engine()
        world.run(60)
    assert world.pipeline.view.restarts_24h == 3
    world.server.frozen = True
    world.run(120)
    assert world.restarts == []
    assert world.refused[0].startswith("budget")
    window = world.pipeline.restarts
    assert window.in_24h(world.now + 86400 - 600) == 3
    assert window.in_24h(world.now + 86400) == 0


@STEPS
@pytest.mark.parametrize("restarted", [False, True])
def test_the_cooldown_lasts_its_ten_minutes(step: float, restarted: bool) -> None:
    world = stepped(0.0)
    world.server.frozen = True
    world.run(120, until=lambda: world.restarts)
    (first,) = world.restarts
    world.run(60)
    world.wall = step
    if restarted:
        # Somebody else; that counts for the budget, not for the cooldown.
        world.restart_engine()
    world.run(60)
    world.server.frozen = True
    world.run(1200, until=lambda: len(world.restarts) > 1)
    assert world.refused[0].startswith("cooldown")
    assert world.restarts[1] - first == 600


@STEPS
def test_nothing_fires_on_a_server_that_works(step: float) -> None:
    world = stepped(step)
    world.run(600)
    assert world.told == []
