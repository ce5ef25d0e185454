"""What one turn of the loop takes from its questions."""

import asyncio
from collections.abc import Awaitable, Callable

from dsobs.collectors.exchange import open_session
from dsobs.config import Config
from dsobs.model.clock import ManualClock
from dsobs.model.observation import Unknown
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
        watch._gpus = Latest(always(Unknown("no NVIDIA driver")))  # type: ignore[arg-type]
        watch._views = Latest(always(Unknown("the supervisor does not answer")))  # type: ignore[arg-type]
        for name in ("_scrapes", "_healths"):
            setattr(watch, name, Latest(always(None)))
        seen = await watch.observe(1.0)
        await watch.stop_asking()
    assert seen.gpus == Unknown("no NVIDIA driver")
    assert seen.runtime == Unknown("the supervisor does not answer")
