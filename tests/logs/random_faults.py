"""A writer, a shipper that is killed, and a server that fails, all at random: what the tests of it have in common."""

import asyncio
import collections
import contextlib
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.elasticsearch_stand_in import ElasticsearchStandIn, Fault
from tests.logs.shipping import copytruncate, until

FAULTS = (
    Fault(429),
    Fault(503),
    Fault(500, commit=True),
    Fault(401),
    Fault(413),
    Fault(200, commit=True, hang_up=True),
    Fault(200, body=b'{"errors":false,"items":[', commit=True),
    Fault(200, commit=True, body=b"{}"),
)
QUIET_SECONDS = 30.0
"""Nothing new has come for so long: the rest is lost."""


class Writer:
    """Writes numbered records into `app.log` of a folder and rotates it as every tool does it; loses nothing itself.

    With `tracebacks`, vLLM's lines, of which some are followed by a traceback; else plain lines.
    """

    def __init__(self, folder: Path, chance: random.Random, *, tracebacks: bool) -> None:
        self.log = folder / "app.log"
        self.written: list[str] = []
        """What is to be in each document: its message, and its traceback behind it."""
        self.rotations: collections.Counter[str] = collections.Counter()
        self._chance, self._tracebacks = chance, tracebacks
        self._file = self.log.open("ab", buffering=0)

    def _record(self) -> str:
        """The lines of the next one."""
        message = f"record {len(self.written)} {'x' * self._chance.randrange(200)}"
        if not self._tracebacks:
            self.written.append(message)
            return f"{message}\n"
        level, trace = "INFO", ""
        if self._chance.random() < 0.3:
            level = "ERROR"
            if self._chance.random() < 0.7:
                trace = f'Traceback (most recent call last):\n  File "a.py", line 1\nValueError: {len(self.written)}'
        self.written.append(message + trace)
        return f"{level} 11-24 08:00:00 [core.py:1] {message}\n{trace}{chr(10) * bool(trace)}"

    def write(self, count: int) -> None:
        """So many records, in two pieces."""
        data = "".join(self._record() for _ in range(count)).encode()
        cut = self._chance.randrange(len(data))
        self._file.write(data[:cut])
        self._file.write(data[cut:])

    def _shift(self) -> Path:
        """Makes room at `app.log.1`."""
        numbers = sorted((int(path.suffix[1:]) for path in self.log.parent.glob("app.log.*")), reverse=True)
        for number in numbers:
            self.log.with_name(f"app.log.{number}").rename(self.log.with_name(f"app.log.{number + 1}"))
        return self.log.with_name("app.log.1")

    def rotate(self) -> None:
        """One of the ways."""
        way = self._chance.choice(("copytruncate", "rename, noticed late", "rename"))
        self.rotations[way] += 1
        if way == "copytruncate":
            copytruncate(self.log, self._shift())
            return
        self.log.rename(self._shift())
        if way == "rename, noticed late":
            # It goes on in the renamed file before it opens the new one.
            self.write(3)
        self._file.close()
        self._file = self.log.open("ab", buffering=0)

    def close(self) -> None:
        """At the end."""
        self._file.close()


@contextlib.asynccontextmanager
async def shipper(writer: Writer, url: str, state: Path, environ: Mapping[str, str], *more: str) -> AsyncIterator[None]:
    """`dsobs logs ship`, which is killed at the end."""
    form = "vllm" if writer._tracebacks else "plain"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "dsobs.cli", "logs", "ship", "--from", f"{form}:{writer.log}", "--to", url, "--index", "logs"),
        *("--state", str(state), "--set", "logs.elasticsearch.bulk_wait=20ms", "--set", "logs.origin=host-1"),
        *("--set", "logs.elasticsearch.bulk_bytes=65536", "--set", "logs.elasticsearch.timeout=2s", *more),
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **environ},
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def settled(count: Callable[[], Awaitable[int]], wanted: int) -> int:
    """How many documents are there, once there are so many, or none has come for `QUIET_SECONDS`."""
    loop = asyncio.get_running_loop()
    seen, moved = -1, loop.time()
    while seen < wanted and loop.time() - moved < QUIET_SECONDS:
        there = await count()
        if there != seen:
            seen, moved = there, loop.time()
        await asyncio.sleep(0.1)
    return seen


async def rounds_of_faults(
    writer: Writer,
    server: ElasticsearchStandIn,
    state: Path,
    count: Callable[[], Awaitable[int]],
    chance: random.Random,
    rounds: int,
    environ: Mapping[str, str],
    *more: str,
) -> None:
    """So many lives of a shipper, each ended by SIGKILL, and a last one that may finish.

    `server` fails as its script says; `count` says how many documents are there.
    """
    loop = asyncio.get_running_loop()
    writer.write(5)
    async with shipper(writer, server.url, state, environ, *more):
        # What is rotated away before dsobs ever saw its file was never its to ship.
        assert await settled(count, 5) == 5
    for _ in range(rounds):
        writer.write(chance.randrange(1, 50))
        server.script.extend(fault for fault in chance.choices(FAULTS, k=4) if chance.random() < 0.5)
        async with shipper(writer, server.url, state, environ, *more):
            if chance.random() < 0.8:
                # Most lives begin to count with the first request: to start takes long on a machine at work.
                before = len(server.requests)
                await until(lambda before=before: len(server.requests) > before, 2 * QUIET_SECONDS)  # type: ignore[misc]
            end = loop.time() + chance.uniform(0.0, 2.5)
            while loop.time() < end:
                writer.write(chance.randrange(1, 100))
                if chance.random() < 0.02:
                    writer.rotate()
                await asyncio.sleep(chance.uniform(0.0, 0.05))
        # Nobody ships now, and the world goes on.
        for _ in range(chance.randrange(3)):
            writer.write(chance.randrange(1, 50))
            writer.rotate()
    writer.write(1)
    writer.close()
    server.script.clear()
    async with shipper(writer, server.url, state, environ, *more):
        await settled(count, len(writer.written))


def wrong(writer: Writer, documents: Iterable[Mapping[str, Any]]) -> str:
    """What is missing, and what is there more than once or was never written; empty: nothing is."""
    found = collections.Counter(doc["message"] + doc.get("error.stack_trace", "") for doc in documents)
    wanted = collections.Counter(writer.written)
    missing, extra = list((wanted - found).elements()), list((found - wanted).elements())
    return f"missing {len(missing)}: {missing[:3]}; extra {len(extra)}: {extra[:3]}" if missing or extra else ""
