"""What /livez and /readyz are told of the main loop."""

import asyncio

from dsobs.config import Config
from dsobs.config.models import Target
from dsobs.model.clock import ManualClock
from dsobs.pipeline import Pipeline
from dsobs.sidecar.main import ALIVE_SECONDS, Sidecar
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
    async with asyncio.timeout(10):
        await sidecar._loop()
    assert LOOP_ERRORS.labels("main")._value.get() == before + 3
    assert sidecar.prepared() == "the first turn is not done"
    clock.advance(ALIVE_SECONDS)
    assert sidecar.alive() is None
    clock.advance(1.0)
    assert sidecar.alive() == "the main loop stands still for 31 s"
