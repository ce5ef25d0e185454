import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from dsobs.notifiers.lane import PARALLEL
from dsobs.notifiers.outbox import SCHEMA
from dsobs.state import StateDb
from tests.pagerduty_stand_in import PagerDutyStandIn

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("deliver_until_killed.py")


@contextlib.asynccontextmanager
async def delivering(state_file: Path, url: str, event: str) -> AsyncIterator[None]:
    """A process that has queued twenty events and delivers; killed with SIGKILL at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        str(state_file),
        url,
        event,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(90):
            assert await process.stdout.readline() == b"queued\n"
        yield
    finally:
        process.kill()
        await process.communicate()


async def test_killed_in_the_middle_of_delivering_sends_the_rest_and_repeats_under_the_same_key(tmp_path: Path) -> None:
    state_file = tmp_path / "state.db"
    async with PagerDutyStandIn() as pagerduty:
        # All that may be in flight is taken, and no answer comes: killed between sending and recording.
        pagerduty.hold_answers = asyncio.Event()
        async with delivering(state_file, pagerduty.url, "trigger"):
            await pagerduty.wait_for(lambda: len(pagerduty.events) == PARALLEL)
        pagerduty.hold_answers.set()
        async with delivering(state_file, pagerduty.url, "nothing"):
            await pagerduty.wait_for(lambda: len(pagerduty.open_incidents()) == 20)
        async with delivering(state_file, pagerduty.url, "resolve"):
            await pagerduty.wait_for(lambda: len(pagerduty.open_incidents()) == 0 and len(pagerduty.incidents) == 20)
        assert [incident.triggers for incident in pagerduty.incidents] == [2] * PARALLEL + [1] * (20 - PARALLEL)
        for n in range(20):
            seen = pagerduty.seen(f"key-{n}")
            assert seen == sorted(seen, reverse=True), "no resolve before its trigger, no trigger after its resolve"
    with contextlib.closing(StateDb(state_file, SCHEMA)) as db:
        states = db.transact(lambda connection: connection.execute("SELECT DISTINCT state FROM outbox").fetchall())
    assert {state for (state,) in states} <= {"accepted", "pending", "collapsed"}
