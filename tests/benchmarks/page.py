"""What the status page costs: CPU of `dsobs run` beside a busy engine, with nobody looking and with five who do.

python -m tests.benchmarks.page [SECONDS]

The same sidecar is measured in turns, without viewers and with them, so that what else the machine does falls on both.
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.acceptance.scene import Scene, scene
from tests.benchmarks.process import resident, usage

VIEWERS = 5
ROUNDS = 3


async def _look(here: Scene, taken: list[int]) -> None:
    """One viewer: the page, its charts, and then its events as they come."""
    base = f"http://127.0.0.1:{here.api}"
    for path in ("/", "/status/charts"):
        async with here.session.get(base + path) as answer:
            taken[0] += len(await answer.read())
    async with here.session.get(f"{base}/status/events", timeout=None) as stream:
        async for chunk, _ in stream.content.iter_chunks():
            taken[0] += len(chunk)


async def _core(pid: int, seconds: float) -> float:
    """CPU of a process over so many seconds, in percent of a core."""
    before, begun = usage(pid)[0], time.monotonic()
    await asyncio.sleep(seconds)
    return 100 * (usage(pid)[0] - before) / (time.monotonic() - begun)


async def measure(seconds: float) -> dict[str, Any]:
    """As shipped, observe mode, with one webhook; `seconds` in all."""
    with tempfile.TemporaryDirectory() as folder:
        async with scene(Path(folder)) as here:
            await here.start_engine()
            await here.start_load(8)
            await here.start_dsobs(enforce=False)
            await here.until_working()
            assert here.dsobs is not None
            pid = here.dsobs.pid
            await here.turns(10)
            before = resident(pid)
            alone, watched = [], []
            taken = [0]
            for _ in range(ROUNDS):
                alone.append(await _core(pid, seconds / ROUNDS / 2))
                viewers = [asyncio.create_task(_look(here, taken)) for _ in range(VIEWERS)]
                # The page itself, and what it imports the first time, is no part of what looking on costs.
                await asyncio.sleep(3.0)
                watched.append(await _core(pid, seconds / ROUNDS / 2))
                for viewer in viewers:
                    viewer.cancel()
                await asyncio.gather(*viewers, return_exceptions=True)
            return {
                "viewers": VIEWERS,
                "seconds": seconds,
                "alone_core_percent": [round(one, 2) for one in alone],
                "watched_core_percent": [round(one, 2) for one in watched],
                "page_core_percent": round(sum(watched) / ROUNDS - sum(alone) / ROUNDS, 2),
                "before": before,
                "after": resident(pid),
                "bytes_taken": taken[0],
            }


def main() -> None:
    """Prints one JSON object."""
    print(json.dumps(asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 180.0))))


if __name__ == "__main__":
    main()
