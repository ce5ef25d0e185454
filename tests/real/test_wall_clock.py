"""A live dsobs whose wall clock is set back and forward by an hour: cadence kept, nothing fires or resolves falsely.

libfaketime stands for the operator at `date --set`: it changes what a running process reads as wall time, and leaves
the monotonic clock alone, as the kernel does.
"""

import asyncio
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.scene import SIMULATOR, Scene, scene
from tests.real import apt

pytestmark = pytest.mark.real("seconds")
LIBRARY = "faketime/libfaketimeMT.so.1"
HOUR = 3600
RULES = """
groups:
  - name: steady
    interval: 1s
    rules:
      - alert: AlwaysThere
        expr: dsobs_engine_seen == 1
        labels: {severity: warning}
      - alert: NotYetThere
        expr: dsobs_engine_seen == 1
        for: 30m
        labels: {severity: warning}
"""


def library() -> str:
    """libfaketime's path; installed first where it is missing."""
    found = sorted(Path("/usr/lib").glob(f"*/{LIBRARY}"))
    if not found:
        apt.install("libfaketime")
        found = sorted(Path("/usr/lib").glob(f"*/{LIBRARY}"))
    return str(found[0])


async def wall_offset(here: Scene) -> float:
    """Seconds by which dsobs's wall clock differs from the real one: its API says the date."""
    async with here.session.get(f"http://127.0.0.1:{here.api}/livez") as answer:
        assert answer.status == 200
        return (parsedate_to_datetime(answer.headers["Date"]) - datetime.now(UTC)).total_seconds()


async def alerts(here: Scene) -> set[tuple[str, str]]:
    """(Name, state) of each."""
    async with here.session.get(f"http://127.0.0.1:{here.api}/api/v1/alerts") as answer:
        return {(a["labels"]["alertname"], a["state"]) for a in (await answer.json())["data"]["alerts"]}


async def set_clock(here: Scene, file: Path, offset: int) -> None:
    await asyncio.to_thread(file.write_text, f"{offset:+d}\n")

    async def moved() -> bool:
        return abs(await wall_offset(here) - offset) < 5

    await here.until(moved, 60, f"a wall clock {offset:+d} s off")


async def seen_at(here: Scene) -> float:
    """When dsobs last turned, by the clock that it goes by."""
    return float((await here.status())["view"]["at"])


def sent(here: Scene, name: str, event: str) -> list[float]:
    """When each of these pages came."""
    return [page.at for page in here.pages if (page.name, page.event) == (name, event)]


async def hang_and_repair(here: Scene, number: int) -> None:
    """The `number`th hang of this scene: paged, restarted once, verified, resolved."""
    await here.stop_at_work()
    await here.until(lambda: len(sent(here, "EngineHung", "trigger")) == number, 60, "page")
    await here.until(lambda: here.happened("verified") == number, 180, "verified")
    await here.until(lambda: len(sent(here, "EngineHung", "resolve")) == number, 180, "resolve")
    await here.until(lambda: here.happened("incident-closed") == number, 180, "closed")
    status = await here.status()
    assert status["guards"]["restarts_24h"] == number
    assert status["view"]["starting_since"] is None


@pytest.mark.parametrize("supervisor_too", [False, True], ids=["dsobs", "dsobs_and_supervisor"])
async def test_wall_clock_set_back_and_forward_by_an_hour_changes_nothing_and_hangs_are_paged_and_repaired(
    tmp_path: Path, supervisor_too: bool
) -> None:
    file, rules = tmp_path / "offset", tmp_path / "steady.rules.yaml"
    await asyncio.to_thread(file.write_text, "+0\n")
    await asyncio.to_thread(rules.write_text, RULES)
    faked = {
        "LD_PRELOAD": library(),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
    }
    async with scene(tmp_path) as here:
        # Not the engine: with Debian's libfaketime 0.9.10 an absolute clock_nanosleep, Python's time.sleep, fails.
        engine = ("env", "--unset", "LD_PRELOAD", *SIMULATOR)
        await here.start_engine(*engine, environ=faked if supervisor_too else None)
        await here.start_load()
        quick: dict[str, Any] = {
            "remediation__confirm_hang": "3s",
            "remediation__cooldown": "0s",
            "runtime__stop_grace": "2s",
        }
        await here.start_dsobs(environ=faked, rules__files=str(rules), **quick)
        await here.until_working()
        await here.until(lambda: here.paged("AlwaysThere"), 60, "the steady alert")
        for hangs, offset in enumerate((-HOUR, HOUR)):
            await set_clock(here, file, offset)
            before, at, begun = time.monotonic(), await seen_at(here), time.monotonic()
            await here.turns(10)
            ended, later, after = time.monotonic(), await seen_at(here), time.monotonic()
            assert ended - begun < 20
            # A turn may be a second old when it is told of, and another one late.
            assert ended - begun - 3 < later - at < after - before + 3
            told = await alerts(here)
            assert {name for name, state in told if state == "firing"} == {"AlwaysThere", "Watchdog"}
            assert ("NotYetThere", "pending") in told
            assert len(here.critical()) == hangs
            await hang_and_repair(here, hangs + 1)
        assert {page.name for page in here.pages} == {"AlwaysThere", "EngineHung"}
        assert sent(here, "AlwaysThere", "resolve") == []
        assert len(here.critical()) == 2
