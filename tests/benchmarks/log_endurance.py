"""What shipping logs costs over time: files that stand still, an Elasticsearch that is away, a backlog to catch up.

python -m tests.benchmarks.log_endurance [--files N] [--outage SECONDS] [--backlog LINES]

`dsobs logs ship` as a process, beside a receiver on loopback. Prints one JSON object a part.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.logs import receiver, write_input
from tests.benchmarks.process import resident, usage

LINES_PER_SECOND = 10_000
SETTLED_SECONDS = 5.0
NOWHERE = 9
"""The discard port: nobody listens there, which is what an Elasticsearch that is away looks like."""


@contextmanager
def shipping(source: str, port: int, folder: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """`dsobs logs ship` until the block ends."""
    words = [sys.executable, "-m", "dsobs.cli", "logs", "ship", "--from", source, "--to", f"http://127.0.0.1:{port}"]
    words += ["--index", "logs", "--state", str(folder / "state"), *more]
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def idle(files: int, seconds: float = 60.0) -> dict[str, Any]:
    """CPU of watching `files` files in which nothing happens."""
    with tempfile.TemporaryDirectory() as name, receiver(files) as (port, arrived):
        folder = Path(name)
        (folder / "logs").mkdir()
        for number in range(files):
            (folder / "logs" / f"{number}.log").write_text(f"line #{number:08}# of a file that stands still\n")
        with shipping(f"plain:{folder}/logs/*.log", port, folder) as process:
            while arrived() < files:
                time.sleep(0.2)
            time.sleep(SETTLED_SECONDS)
            before, _ = usage(process.pid)
            time.sleep(seconds)
            after, memory = usage(process.pid)
    share = (after - before) / seconds
    return {"files": files, "percent_of_a_core": round(100 * share, 2), "resident_mib": round(memory, 1)}


def outage(seconds: float) -> dict[str, Any]:
    """Resident memory while nobody takes what is written at `LINES_PER_SECOND`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text, _ = write_input(folder, LINES_PER_SECOND)
        block = text.read_bytes()
        log = folder / "growing.log"
        log.write_bytes(b"")
        marks: dict[str, float] = {}
        with shipping(f"json:{log}", NOWHERE, folder) as process:
            time.sleep(SETTLED_SECONDS)
            before = resident(process.pid)["resident_mib"]
            begun = time.monotonic()
            peak = before
            with log.open("ab") as growing:
                for second in range(1, int(seconds) + 1):
                    growing.write(block)
                    growing.flush()
                    time.sleep(max(0.0, begun + second - time.monotonic()))
                    now = resident(process.pid)["resident_mib"]
                    peak = max(peak, now)
                    if second in (10, 60, 300, 600, 1800, 3600):
                        marks[str(second)] = now
            written = log.stat().st_size
    return {
        "outage_seconds": int(seconds),
        "written_mib": round(written / 2**20),
        "idle_mib": before,
        "resident_mib_after_seconds": marks,
        "most_above_idle_mib": round(peak - before, 1),
    }


def backlog(lines: int) -> dict[str, Any]:
    """CPU and memory of each fifth of a backlog."""
    with tempfile.TemporaryDirectory() as name, receiver(lines) as (port, arrived):
        folder = Path(name)
        as_json, _ = write_input(folder, lines)
        fifths: list[dict[str, Any]] = []
        with shipping(
            f"json:{as_json}", port, folder, "--once", "--set", "logs.elasticsearch.compress=false"
        ) as process:
            cpu, done = 0.0, 0
            for part in range(1, 6):
                while arrived() < lines * part // 5 and process.poll() is None:
                    time.sleep(0.05)
                if process.poll() is not None:
                    break
                now, memory = usage(process.pid)
                there = arrived()
                fifths.append(
                    {"records_per_cpu_second": round((there - done) / (now - cpu)), "resident_mib": round(memory, 1)}
                )
                cpu, done = now, there
            code = process.wait(600)
        return {"backlog": lines, "arrived": arrived(), "exit_code": code, "fifths": fifths}


def main() -> None:
    """One JSON object a part."""
    parser = argparse.ArgumentParser(description="Shipping logs, over time.")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--outage", type=float, default=300.0, metavar="SECONDS")
    parser.add_argument("--backlog", type=int, default=5_000_000, metavar="LINES")
    args = parser.parse_args()
    print(json.dumps(idle(args.files)), flush=True)
    print(json.dumps(outage(args.outage)), flush=True)
    print(json.dumps(backlog(args.backlog)), flush=True)


if __name__ == "__main__":
    main()
