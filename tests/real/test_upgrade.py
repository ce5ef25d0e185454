"""A real vLLM is stopped on purpose and another model comes on its port, behind a key that dsobs does not have."""

import asyncio
import contextlib
import json
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.scene import Scene, scene
from tests.real.vllm import SCRIPT, install

pytestmark = pytest.mark.real
START_SECONDS = 400.0
NEW = "deepseek-r1-14b"


async def start(here: Scene, *flags: str) -> None:
    await here.start_engine("bash", str(SCRIPT), "serve", "{port}", *flags, ready=START_SECONDS)


def learned(state: Path) -> dict[str, Any]:
    """Fingerprint of model and flags → (counts of gaps, seconds of work), as dsobs keeps it."""
    with contextlib.closing(sqlite3.connect(state / "state.db")) as db:
        (row,) = db.execute("SELECT value FROM facts WHERE name = 'memory'").fetchall()
    found: dict[str, Any] = json.loads(row[0])["gaps"]
    return found


async def worked(here: Scene, seconds: float, models: int) -> dict[str, float]:
    """Waits until so many models have learned for so long; seconds of work by fingerprint."""
    found: dict[str, float] = {}

    async def enough() -> bool:
        gaps = await asyncio.to_thread(learned, here.folder / "state")
        found.update({mark: work for mark, (_, work) in gaps.items()})
        return len(found) == models and all(work >= seconds for work in found.values())

    await here.until(enough, 60, f"{models} models learned for {seconds:.0f} s")
    return found


async def test_upgrade_to_another_model_behind_a_key_that_dsobs_has_not_is_information_only(tmp_path: Path) -> None:
    await asyncio.to_thread(install)
    async with scene(tmp_path) as here:
        await start(here)
        load = await here.start_load()
        await here.start_dsobs()
        await here.until_working(60)
        old = await worked(here, 10.0, 1)
        # The planned stop.
        assert here.engine is not None
        here.engine.send_signal(signal.SIGTERM)
        await asyncio.wait_for(here.engine.wait(), 30)
        load.send_signal(signal.SIGTERM)
        await load.wait()
        await here.turns(8)
        assert "SIGTERM" in (await here.status())["view"]["planned_stop"]
        here.left_alone()
        # The other model, with other flags.
        flags = ("--served-model-name", NEW, "--block-size", "32", "--max-model-len", "2048", "--api-key", "k3y")
        await start(here, *flags)
        before = here.happened("probe-inconclusive")
        # Idle: dsobs asks, and is told 401, twice.
        await here.until(lambda: here.happened("probe-inconclusive") >= before + 2, 120, "two probes get 401")
        assert any("status 401" in message for _, action, message in here.events if action == "probe-inconclusive")
        await here.start_load(4, "--api-key", "k3y")
        await here.until_working(60)
        both = await worked(here, 5.0, 2)
        (new,) = set(both) - set(old)
        assert both[new] < 60.0
        view = (await here.status())["view"]
        assert [engine["key"][0] for engine in view["engines"]] == [NEW]
        assert view["engines"][0]["threshold_seconds"] == 5.0
        assert (view["planned_stop"], view["down_since"]) == (None, None)
        assert {page.severity for page in here.pages} <= {"info", "warning"}
        here.left_alone()
