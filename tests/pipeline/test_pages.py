"""Which pages a fault or planned work leads to: alerts, inhibition and who is told, in virtual time."""

from dsobs.config import Config
from dsobs.model.clock import ManualClock
from dsobs.model.observation import Failure
from dsobs.notifiers.inhibition import load_inhibition
from dsobs.rules import shipped
from dsobs.sidecar.telling import Policy, Teller
from tests.pipeline.world import ENFORCE, Server, World

INHIBITION = load_inhibition((), [("alertmanager.yaml", shipped.source("alertmanager.yaml"))])


class Paged:
    """A world whose alerts are told of."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.teller = Teller(Policy.of(world.config, "srv", INHIBITION), ManualClock(world.now))
        self.told: list[tuple[float, str, str]] = []
        """(seconds since the start, trigger or resolve, alert)."""

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.world.run(1)
            for one in self.teller.turn(self.world.evaluator.alerts(), [], self.world.now):
                self.told.append((self.world.at, one.event.value, one.labels["alertname"]))

    def stop(self, planned: str | None) -> None:
        server = self.world.server
        server.failure, server.health, server.running, server.planned_stop = Failure.REFUSED, None, False, planned

    def load(self) -> None:
        """Another instance is there and not yet up."""
        server = self.world.server
        server.running, server.planned_stop, server.started_at = True, None, self.world.now

    def ready(self) -> None:
        self.world.server.failure, self.world.server.health = None, 200


def test_a_planned_restart_pages_nobody_however_long_it_loads_within_its_budget() -> None:
    paged = Paged(World(config=Config()))
    paged.run(2700)
    paged.stop("docker stop")
    paged.run(20)
    paged.load()
    paged.run(1200)
    paged.ready()
    paged.run(900)
    assert paged.told == []


def test_a_planned_stop_that_is_not_back_within_the_start_up_budget_is_one_warning() -> None:
    paged = Paged(World(config=Config.model_validate({"startup": {"budget": 300}})))
    paged.run(2700)
    paged.stop("docker stop")
    paged.run(1200)
    assert paged.told == [(3016.0, "trigger", "EnginePlannedStopLong")]
    assert paged.world.restarts == []


def test_a_crash_is_one_page_though_the_engine_loads_for_minutes_after_it() -> None:
    paged = Paged(World(config=Config()))
    paged.run(2700)
    paged.stop(None)
    paged.run(20)
    paged.load()
    paged.run(200)
    paged.ready()
    paged.run(2400)
    assert [told[1:] for told in paged.told] == [("trigger", "EngineDown"), ("resolve", "EngineDown")]


def test_a_repaired_hang_is_one_page_that_ends_when_the_repair_is_verified() -> None:
    world = World(config=ENFORCE)
    paged = Paged(world)

    def loads() -> None:
        world.server = Server(started_at=world.now, failure=Failure.REFUSED, health=None)

    world.restart_engine = loads  # type: ignore[method-assign]
    paged.run(2700)
    world.server.frozen = True
    paged.run(120)
    assert len(world.restarts) == 1
    paged.ready()
    paged.run(2400)
    assert [told[1:] for told in paged.told] == [("trigger", "EngineHung"), ("resolve", "EngineHung")]


def test_a_server_that_is_not_ready_without_a_fault_of_its_own_is_paged_by_its_objective() -> None:
    paged = Paged(World(config=Config()))
    paged.run(2700)
    paged.world.server.health = 404
    paged.run(120)
    assert [told[1:] for told in paged.told] == [("trigger", "AvailabilityBudgetFast")]
