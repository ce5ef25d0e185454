"""Real vLLM, replaced on purpose by another model with other flags: information, nothing more.

It ends the server that other tests have shared before. LONG_TESTS=1 has the probe refused three times.
"""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.scene import Scene
from tests.real.conftest import SharedVllm
from tests.real.test_left_alone import beside
from tests.real.vllm import SCRIPT, START_SECONDS, VllmProcess

pytestmark = pytest.mark.real("vllm")
NEW = "deepseek-r1-14b"
REFUSED_PROBES = 3 if os.environ.get("LONG_TESTS") == "1" else 1


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

    await here.until(enough, 240, f"{models} models learned for {seconds:.0f} s")
    return found


async def test_upgrade_to_another_model_behind_a_key_that_dsobs_has_not_is_information_only(
    tmp_path: Path, vllm: SharedVllm
) -> None:
    async with beside(tmp_path, vllm) as here:
        await upgraded(here, vllm.process)


async def upgraded(here: Scene, server: VllmProcess) -> None:
    load = await here.start_load()
    await here.start_dsobs()
    await here.until_working()
    old = await worked(here, 10.0, 1)
    # The planned stop.
    await asyncio.to_thread(server.stop)
    load.send_signal(signal.SIGTERM)
    await load.wait()
    await here.turns(8)
    assert "SIGTERM" in (await here.status())["view"]["planned_stop"]
    here.left_alone()
    # The other model, with other flags.
    flags = ("--served-model-name", NEW, "--block-size", "32", "--max-model-len", "16384", "--api-key", "k3y")
    await here.start_engine("bash", str(SCRIPT), "serve", "{port}", *flags, ready=START_SECONDS)
    before = here.happened("probe-inconclusive")
    # Idle: dsobs asks, and is told 401.
    await here.until(lambda: here.happened("probe-inconclusive") >= before + REFUSED_PROBES, 240, "401 on the probe")
    assert any("status 401" in message for _, action, message in here.events if action == "probe-inconclusive")
    # Answers that outlast some seconds also on a fast machine: where all that is outstanding came since the last
    # scrape, it may be a prefill.
    await here.start_load(4, "--api-key", "k3y", "--max-tokens", "6000", "9000", "--timeout", "600")
    await here.until_working()
    both = await worked(here, 5.0, 2)
    (new,) = set(both) - set(old)
    assert both[new] < 60.0

    async def least() -> bool:
        return bool((await here.status())["view"]["engines"][0]["threshold_seconds"] == 5.0)

    # A prefill's patience for a moment is as it should be.
    await here.until(least, 120, "the threshold before anything was learned")
    view = (await here.status())["view"]
    assert [engine["key"][0] for engine in view["engines"]] == [NEW]
    assert (view["planned_stop"], view["down_since"]) == (None, None)
    assert {page.severity for page in here.pages} <= {"info", "warning"}
    here.left_alone()
