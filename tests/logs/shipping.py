"""A shipper beside a stand-in, in the loop of the test, at a quick pace."""

import asyncio
import contextlib
import gzip
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson

from dsobs.config.logs import Elasticsearch, LogFileSink, Logs
from dsobs.logs import metrics
from dsobs.logs.pace import Pace
from dsobs.logs.ship import Shipper

PATIENCE = 120.0
"""Seconds, for what is to come sooner or later; nobody is held to it."""
QUICK = Pace(
    look=0.01,
    look_idle=0.02,
    scan=0.02,
    deep_scan=1.0,
    tick=0.05,
    flush=0.2,
    renamed=0.5,
    deleted=0.2,
    drain=1,
    retry=0.05,
)


def settings(url: str | None, *files: object, **more: Any) -> Logs:
    """Of a shipper of `files` (PATTERN or FORMAT:PATTERN) to the server at `url`, or to a file."""
    sink = {name: more.pop(name) for name in list(more) if name in Elasticsearch.model_fields}
    elastic = (
        Elasticsearch(**{"urls": (url,), "index": "logs", "bulk_wait": 0.02, "compress": False, **sink})
        if url
        else None
    )
    texts = tuple(text if ":" in (text := str(file)) else f"plain:{text}" for file in files)
    return Logs(**{"files": texts, "origin": "host-1", "elasticsearch": elastic, "file": LogFileSink(), **more})


@contextlib.asynccontextmanager
async def shipping(wanted: Logs, state: Path, *, pace: Pace = QUICK) -> AsyncIterator[Shipper]:
    """Runs until the block ends; then stops, and drains as in operation."""
    shipper = Shipper(wanted, state, pace=pace)
    task = asyncio.create_task(shipper.run())
    try:
        await until(lambda: task.done() or shipper.running)
        yield shipper
    finally:
        shipper.stop()
        await asyncio.wait_for(task, PATIENCE)


async def ship_once(wanted: Logs, state: Path) -> Shipper:
    """Ships all that is there."""
    shipper = Shipper(wanted, state, once=True, pace=QUICK)
    await asyncio.wait_for(shipper.run(), PATIENCE)
    return shipper


async def until(holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Waits until `holds()`; AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.005)


def append(path: Path, text: str | bytes) -> None:
    """What a writer does that opens its file for appending."""
    with path.open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)


def lines(*numbers: int) -> str:
    """Whole lines, each told apart by its number."""
    return "".join(f"line {number}\n" for number in numbers)


def named(*numbers: int) -> list[str]:
    """The messages of `lines(*numbers)`."""
    return [f"line {number}" for number in numbers]


def records(folder: Path) -> list[dict[str, Any]]:
    """What the file sink wrote, oldest first."""
    found = sorted(folder.glob("records.ndjson*"), key=lambda path: path.stat().st_mtime_ns)
    return [orjson.loads(line) for path in found for line in path.read_bytes().splitlines()]


def copytruncate(path: Path, to: Path | None) -> None:
    """As logrotate does it: a copy, if there is to be one, then the file is cut to nothing."""
    if to is not None:
        to.write_bytes(path.read_bytes())
    os.truncate(path, 0)


def compress(path: Path, to: Path) -> None:
    """As gzip does it: the original goes."""
    to.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def move(path: Path, to: Path) -> None:
    """A rename."""
    path.replace(to)


def write(path: Path, text: str) -> None:
    """Begins the file anew, in its place."""
    path.write_text(text)


def delete(path: Path) -> None:
    """The name goes; who has the file open has it still."""
    path.unlink()


def link(path: Path, to: Path) -> None:
    """A symbolic link at `path`."""
    path.symlink_to(to)


def size(path: Path) -> int:
    """Bytes."""
    return path.stat().st_size


def inode(path: Path) -> int:
    """Its number."""
    return path.stat().st_ino


def count(name: str, **labels: str) -> float:
    """A counter or gauge of shipping as it is now; 0 before it was first set."""
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def letters(state: Path) -> list[dict[str, Any]]:
    """The dead letters of a state folder."""
    path = state / "dead-letters.ndjson"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
