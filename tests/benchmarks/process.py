"""What `dsobs run` costs beside a busy engine: CPU of one core and resident memory, with the simulator under load.

python -m tests.benchmarks.process [SECONDS]
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.acceptance.scene import scene


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds and resident MiB of a process (proc(5))."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def measure(seconds: float) -> dict[str, float]:
    """As shipped, observe mode, with one webhook."""
    with tempfile.TemporaryDirectory() as folder:
        async with scene(Path(folder)) as here:
            await here.start_engine()
            await here.start_load(8)
            await here.start_dsobs(enforce=False)
            await here.until_working()
            assert here.dsobs is not None
            await here.turns(10)
            cpu, _ = usage(here.dsobs.pid)
            begun = time.monotonic()
            peak = 0.0
            while time.monotonic() - begun < seconds:
                await asyncio.sleep(5.0)
                peak = max(peak, usage(here.dsobs.pid)[1])
            after, resident = usage(here.dsobs.pid)
            core = (after - cpu) / (time.monotonic() - begun)
            return {"seconds": seconds, "core_percent": 100 * core, "resident_mib": resident, "peak_mib": peak}


def main() -> None:
    """Prints one JSON object."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    print(json.dumps({name: round(value, 2) for name, value in asyncio.run(measure(seconds)).items()}))


if __name__ == "__main__":
    main()
