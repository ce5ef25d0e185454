"""What one turn of the loop takes from its questions."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dsobs.collectors.exchange import open_session
from dsobs.config import Config
from dsobs.config.models import RuntimeSettings
from dsobs.model.clock import ManualClock
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.pipeline import Pipeline, rule_groups
from dsobs.rules.evaluator import Evaluator
from dsobs.series.exposition import Parser
from dsobs.series.store import Store
from dsobs.sidecar.latest import Latest
from dsobs.sidecar.watching import Watch


def always(answer: Unknown | None) -> Callable[[], Awaitable[Unknown | None]]:
    async def ask() -> Unknown | None:
        return answer

    return ask


async def test_what_is_unknown_keeps_its_own_reason() -> None:
    config, store, clock = Config(), Store(), ManualClock(1000.0)
    pipeline = Pipeline(config, store, Evaluator(rule_groups(config), store))
    async with open_session(config.target) as session:
        watch = Watch(config, session, clock, pipeline, Parser(), asyncio.Event().set)
        watch._gpus = Latest(always(Unknown("no NVIDIA driver")), Unknown)  # type: ignore[arg-type]
        watch._views = Latest(always(Unknown("the supervisor does not answer")), Unknown)  # type: ignore[arg-type]
        for name in ("_scrapes", "_healths"):
            setattr(watch, name, Latest(always(None), Unknown))
        seen = await watch.observe(1.0)
        await watch.stop_asking()
    assert seen.gpus == Unknown("no NVIDIA driver")
    assert seen.runtime == Unknown("the supervisor does not answer")


async def test_a_question_that_raises_is_answered_with_its_reason_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken() -> RuntimeView:
        raise ValueError("no such field")

    config, store, clock = Config(), Store(), ManualClock(1000.0)
    pipeline = Pipeline(config, store, Evaluator(rule_groups(config), store))
    async with open_session(config.target) as session:
        watch = Watch(config, session, clock, pipeline, Parser(), asyncio.Event().set)
        watch._gpus = Latest(broken, Unknown)  # type: ignore[arg-type]
        watch._views = Latest(broken, Unknown)
        watch._scrapes = Latest(broken, watch._no_scrape)  # type: ignore[arg-type]
        watch._healths = Latest(broken, watch._no_health)  # type: ignore[arg-type]
        for _ in range(3):
            seen = await watch.observe(1.0)
        await watch.stop_asking()
    why = "asking failed: ValueError: no such field"
    assert (seen.gpus, seen.runtime) == (Unknown(why), Unknown(why))
    assert seen.scrape is not None
    assert (seen.scrape.ok, seen.scrape.detail) == (False, why)
    assert seen.health is not None
    assert not seen.health.ok
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 4


@pytest.mark.parametrize(("name", "level"), [("docker", "WARNING"), ("none", "INFO"), ("auto", "INFO")])
async def test_runtime_that_was_named_and_can_not_be_used_is_a_warning_said_once(
    name: str, level: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("INFO", "dsobs")
    runtime = RuntimeSettings(name=name, supervisor_socket=tmp_path / "s.sock")
    config = Config(runtime=runtime, target={"url": "http://10.0.0.2:8000"})  # type: ignore[arg-type]
    store, clock = Store(), ManualClock(1000.0)
    pipeline = Pipeline(config, store, Evaluator(rule_groups(config), store))
    async with open_session(config.target) as session:
        watch = Watch(config, session, clock, pipeline, Parser(), asyncio.Event().set)
        for _ in range(3):
            assert isinstance(await watch._view_runtime(), Unknown)
            clock.advance(60.0)
    said = [(record.levelname, record.getMessage()) for record in caplog.records if "runtime" in record.getMessage()]
    assert [each[0] for each in said] == [level], said
