"""dsobs is killed with SIGKILL at a random moment of an incident and started again.

LONG_TESTS=1 tries 100 moments (ten minutes); else a few. TEST_SEED=N repeats a run's moments.
"""

import asyncio
import collections
import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsobs import state
from dsobs.remediation import ledger
from dsobs.rules.shipped import source
from tests.acceptance.scene import Page, Scene, scene

LONG = os.environ.get("LONG_TESTS") == "1"
MOMENTS = 100 if LONG else 3
SEED = int(os.environ.get("TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
SIDE_BY_SIDE = 4
TAKES_EFFECT = 36
"""About so many commits, acts and pages an incident has, before and after each."""
STEPS = ("hang", "alert-firing", "incident-opened", "evidence-saved", "restart-begun", "restart-done", "verified")
STAND_IN = (sys.executable, "-m", "tests.acceptance.stand_in_engine", "{port}")
FAST: dict[str, Any] = {
    "target__scrape_interval": "0.25s",
    "hang__min_threshold": "1s",
    "hang__probe_timeout": "0.5s",
    "remediation__confirm_hang": "1s",
    "remediation__verify_timeout": "6s",
    "runtime__stop_grace": "1s",
    "gpu__enabled": "false",
    "rules__shipped": "false",
}


@dataclass(frozen=True)
class Moment:
    """When dsobs is killed: where the `count`th thing takes effect, or `delay` seconds after `step`."""

    count: int = 0
    step: str = ""
    delay: float = 0.0


def moments(seed: int, number: int) -> list[Moment]:
    """Half at what takes effect, each in its turn; half at any time after a step."""
    rng = random.Random(seed)
    counts = rng.sample(range(1, TAKES_EFFECT + 1), TAKES_EFFECT) * 2
    steps = rng.sample(STEPS, len(STEPS)) * number
    return [
        Moment(count=counts[n // 2]) if n % 2 else Moment(step=steps[n // 2], delay=rng.uniform(0.0, 0.4) ** 2 * 6)
        for n in range(number)
    ]


async def _until_dead(here: Scene, moment: Moment) -> str:
    """Waits for the moment, and kills dsobs where it does not do that itself; which moment it was."""
    dsobs = here.dsobs
    assert dsobs is not None
    if moment.count:
        await here.until(lambda: dsobs.returncode is not None or _told(here, "incident-closed"), 120, "the moment")
        if dsobs.returncode is None:
            dsobs.kill()
        await dsobs.wait()
        return str(json.loads((here.folder / "armed").read_text() or '"at the end"'))
    await here.until(lambda: moment.step == "hang" or _told(here, moment.step), 120, moment.step)
    at = time.time() + moment.delay
    await here.until(lambda: time.time() >= at, 30, "the moment")
    dsobs.kill()
    await dsobs.wait()
    return f"{moment.delay:.2f} s after {moment.step}"


def _told(here: Scene, action: str) -> bool:
    return any(told == action for _, told, _ in here.events)


def _ledger(folder: Path) -> list[ledger.Entry]:
    """All lines, of a file that opens and is whole."""
    with state.read_only(folder / "state" / "state.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return ledger.of_incident(connection, "")


async def incident(folder: Path, moment: Moment) -> str:
    """One engine hangs, dsobs is killed and started again; what became of it."""
    settings = {**FAST, "rules__files": str(_rules(folder))}
    async with scene(folder) as here:
        await here.start_engine(*STAND_IN)
        program = ("tests.acceptance.run_until_killed", str(folder / "armed"))
        await here.start_dsobs(**settings, program=(*program, str(moment.count)))
        await here.until_working()
        (folder / "armed").touch()
        view = (await here.status())["view"]
        engine = view["runtime"]["pids"][-1]
        os.kill(engine, signal.SIGUSR1)
        how = await _until_dead(here, moment)
        here.events.clear()
        await here.start_dsobs(**settings, program=(*program, "0"))

        def restarts() -> int:
            return (folder / "engine.log").read_text(errors="replace").count("restart requested")

        await here.until(lambda: here.paged("EngineHung"), 120, "page")
        await here.until(
            lambda: restarts() or any("did not help" in page.body["summary"] for page in here.pages), 120, "repaired"
        )
        assert not [page for page in here.pages if page.name == "EngineDown"], here.story()
        outcome = "restarted once"
        if not restarts():
            assert any("did not help" in page.body["summary"] for page in here.pages)
            lines = [(e.kind, e.state) for e in _ledger(folder)]
            assert ("restart", "unknown") in lines, lines
            outcome = "counted as done"
            # As a person does who was paged.
            os.kill(engine, signal.SIGKILL)
        # The escalation of one that did not help ends with its incident, after a quiet minute.
        await here.until(lambda: not [p for p in _open(here) if LONG or p.name == "EngineHung"], 240, "resolved")
        if outcome == "restarted once":
            await here.until(lambda: any(e.state == "closed" for e in _ledger(folder)), 120, "closed")
        assert here.dsobs is not None
        here.dsobs.terminate()
        await asyncio.wait_for(here.dsobs.wait(), 90)
        entries = _ledger(folder)
        assert restarts() == (1 if outcome == "restarted once" else 0), here.story()
        assert len({page.body["dedup_key"] for page in here.pages if page.name == "EngineHung"}) == 1
        assert len([e for e in entries if (e.kind, e.state) == ("restart", "reserved")]) == 1
        assert len({e.incident for e in entries}) == 1
    return f"{outcome}, killed {how}"


def _rules(folder: Path) -> Path:
    """The shipped rules of the engine, which keep firing for a shorter time."""
    folder.mkdir()
    rules = folder / "rules.yaml"
    rules.write_text(source("engine.rules.yaml").replace("keep_firing_for: 15s", "keep_firing_for: 3s"))
    return rules


def _open(here: Scene) -> list[Page]:
    """Pages that nothing resolved."""
    last = {page.body["dedup_key"]: page for page in here.pages}
    return [page for page in last.values() if page.event == "trigger"]


@pytest.mark.real("seconds")
async def test_killed_at_random_moments_it_restarts_once_or_counts_it_as_done_and_pages_and_resolves(
    tmp_path: Path,
) -> None:
    print(f"TEST_SEED={SEED}")
    free = asyncio.Semaphore(SIDE_BY_SIDE)

    async def one(number: int, moment: Moment) -> str:
        async with free:
            try:
                told = await incident(tmp_path / str(number), moment)
            except AssertionError as error:
                return f"FAILED {moment}: {error}"
            print(f"{number}: {told}", flush=True)
            return told

    told = await asyncio.gather(*(one(n, moment) for n, moment in enumerate(moments(SEED, MOMENTS))))
    print(*sorted(collections.Counter(told).items()), sep="\n")
    assert [each for each in told if each.startswith("FAILED")] == []
