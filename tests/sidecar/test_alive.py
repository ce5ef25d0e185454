"""The main loop: what /livez and /readyz are told of it, and what waits for it."""

import asyncio

from dsobs.config import Config
from dsobs.config.models import Target
from dsobs.model.clock import ManualClock
from dsobs.pipeline import Pipeline
from dsobs.sidecar.main import ALIVE_SECONDS, Sidecar
from dsobs.sidecar.settings import Plan, read_plan
from dsobs.telemetry import LOOP_ERRORS


class Nothing:
    """Watches nothing."""

    async def stop_asking(self) -> None:
        pass


class Broken(Sidecar):
    """Each turn fails."""

    turns = 0

    async def _turn(self, interval: float) -> None:
        self.turns += 1
        if self.turns >= 3:
            self.stop()
        raise PermissionError("no")


async def test_turns_that_fail_are_no_life() -> None:
    clock = ManualClock(1000.0)
    sidecar = Broken(Config(target=Target(scrape_interval=0.1)), clock)
    sidecar.watch = Nothing()  # type: ignore[assignment]
    sidecar.pipeline = Pipeline(sidecar.config, sidecar.store, sidecar.evaluator)
    assert sidecar.alive() is None
    before = LOOP_ERRORS.labels("main")._value.get()
    async with asyncio.timeout(60):
        await sidecar._loop()
    assert LOOP_ERRORS.labels("main")._value.get() == before + 3
    assert sidecar.prepared() == "the first turn is not done"
    clock.advance(ALIVE_SECONDS)
    assert sidecar.alive() is None
    clock.advance(1.0)
    assert sidecar.alive() == "the main loop stands still for 31 s"


class Noting(Sidecar):
    """Notes when settings are put to use."""

    used = 0

    def _use_now(self, plan: Plan) -> None:
        self.used += 1


async def test_settings_are_not_put_to_use_while_rules_are_evaluated() -> None:
    sidecar = Noting(Config(), ManualClock(1000.0))
    async with sidecar._turning:
        reload = asyncio.create_task(sidecar._use(read_plan(sidecar.config)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert sidecar.used == 0
    await reload
    assert sidecar.used == 1
