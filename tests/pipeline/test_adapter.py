"""An adapter is a plugin: its mistake costs its signals and nothing else."""

import pytest

from dsobs.model.engine import EngineFacts
from dsobs.model.samples import Page, Sample
from tests.pipeline.world import World


class Broken:
    """An adapter that recognizes everything and reads nothing."""

    name = "broken"
    reserves_memory = True

    def recognizes(self, page: Page) -> bool:
        return True

    def facts(self, page: Page) -> EngineFacts:
        raise KeyError("no such family")

    def canonical(self, page: Page) -> list[Sample]:
        raise KeyError("no such family")


def test_an_adapter_that_raises_is_said_once_and_restarts_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.run(30.0)
    world.pipeline.adapter = Broken()  # type: ignore[assignment]
    caplog.clear()
    world.run(300.0)
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["the metrics page can't be read as one of broken: KeyError: 'no such family'"]
    assert "EngineHung" not in world.firing()
    assert "EngineDown" not in world.firing()
