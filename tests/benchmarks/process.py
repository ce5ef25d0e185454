"""What `dsobs run` costs beside a busy engine: CPU of one core and resident memory, with the simulator under load.

python -m tests.benchmarks.process [SECONDS]

Needs what dsobs itself needs, nothing of the development group: any environment with dsobs and dsobs-nvml installed,
started in a checkout. On a machine with an NVIDIA driver NVML is part of it; `gpu` says what dsobs knows of it.
"""

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.acceptance.scene import scene

MARKS = (60, 300, 600)
"""Seconds at which memory is told."""


def usage(pid: int) -> tuple[float, float]:
    """CPU seconds and resident MiB of a process (proc(5))."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def resident(pid: int) -> dict[str, float]:
    """Resident MiB: all of it, and how much is the process's own (the rest is files that others may share)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value}
    return {"resident_mib": round(kib["VmRSS"] / 1024, 1), "anonymous_mib": round(kib["RssAnon"] / 1024, 1)}


async def measure(seconds: float) -> dict[str, Any]:
    """As shipped, observe mode, with one webhook."""
    with tempfile.TemporaryDirectory() as folder:
        async with scene(Path(folder)) as here:
            await here.start_engine()
            await here.start_load(8)
            await here.start_dsobs(enforce=False)
            await here.until_working()
            assert here.dsobs is not None
            pid = here.dsobs.pid
            await here.turns(15)
            cpu, first = usage(pid)
            begun = time.monotonic()
            peak = first
            marks: dict[int, dict[str, float]] = {}
            while (gone := time.monotonic() - begun) < seconds:
                await asyncio.sleep(min(5.0, seconds - gone))
                peak = max(peak, usage(pid)[1])
                for mark in MARKS:
                    if mark not in marks and mark <= time.monotonic() - begun + 0.5:
                        marks[mark] = resident(pid)
                        print(f"after {mark} s: {marks[mark]}", file=sys.stderr, flush=True)
            after, _ = usage(pid)
            core = (after - cpu) / (time.monotonic() - begun)
            unknown = (await here.status())["unknown"]
            return {
                "seconds": seconds,
                "python": platform.python_version(),
                "gpu": unknown.get("gpu", "read"),
                "core_percent": round(100 * core, 2),
                "first_mib": round(first, 1),
                **resident(pid),
                "peak_mib": round(peak, 1),
                "after": marks,
            }


def main() -> None:
    """Prints one JSON object."""
    print(json.dumps(asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 600.0))))


if __name__ == "__main__":
    main()
