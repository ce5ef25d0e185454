"""Everything at once: a writer at full speed with rotations at random, SIGKILL of dsobs at random moments, and a server
that fails at random. At the end each record that was written is there exactly once, compared by content.

LONG_TESTS=1 runs 200 rounds (some five minutes), else it is a few.
"""

import asyncio
import collections
import contextlib
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.elasticsearch_stand_in import ElasticsearchStandIn, Fault
from tests.logs.shipping import copytruncate, until

LONG = bool(os.environ.get("LONG_TESTS"))
ROUNDS = 200 if LONG else 6
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


class Writer:
    """Writes numbered lines into `app.log` of a folder and rotates it as every tool does it; loses nothing itself."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.log = folder / "app.log"
        self.written: list[str] = []
        self._chance = chance
        self._file = self.log.open("ab", buffering=0)

    def write(self, count: int) -> None:
        """So many lines, some of them in two pieces."""
        lines = [f"record {len(self.written) + n} {'x' * self._chance.randrange(200)}" for n in range(count)]
        self.written += lines
        data = "".join(f"{line}\n" for line in lines).encode()
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
        way = self._chance.randrange(3)
        if way == 0:
            copytruncate(self.log, self._shift())
            return
        self.log.rename(self._shift())
        if way == 1:
            # It goes on in the renamed file before it opens the new one.
            self.write(3)
        self._file.close()
        self._file = self.log.open("ab", buffering=0)

    def close(self) -> None:
        """At the end."""
        self._file.close()


@contextlib.asynccontextmanager
async def shipper(log: Path, url: str, state: Path) -> Any:
    """`dsobs logs ship`, which is killed at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "dsobs.cli", "logs", "ship", "--from", f"plain:{log}", "--to", url, "--index", "logs"),
        *("--state", str(state), "--set", "logs.elasticsearch.bulk_wait=20ms", "--set", "logs.origin=host-1"),
        *("--set", "logs.elasticsearch.bulk_bytes=65536", "--set", "logs.elasticsearch.timeout=2s"),
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def settled(server: ElasticsearchStandIn, wanted: int) -> None:
    """Waits until so many documents are there, or none has come for half a minute."""
    before = -1
    while before < len(server.documents) < wanted:
        before = len(server.documents)
        with contextlib.suppress(AssertionError):
            await until(lambda: len(server.documents) >= wanted, 30)


def wrong(writer: Writer, server: ElasticsearchStandIn) -> str:
    """What is missing, and what is there more than once."""
    found = collections.Counter(server.messages())
    missing = [line for line in writer.written if line not in found]
    extra = [line for line, count in found.items() if count > 1] + [line for line in found if line[:7] != "record "]
    return f"missing {len(missing)}: {missing[:3]}; extra {len(extra)}: {extra[:3]}" if missing or extra else ""


@pytest.mark.parametrize("seed", [1])
async def test_each_record_is_there_exactly_once_whatever_happens(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    (tmp_path / "logs").mkdir()
    writer = Writer(tmp_path / "logs", chance)
    async with ElasticsearchStandIn() as server:
        writer.write(5)
        async with shipper(writer.log, server.url, tmp_path / "state"):
            # What is rotated away before dsobs ever saw its file was never its to ship.
            await until(lambda: len(server.documents) == 5, 30)
        for _ in range(ROUNDS):
            server.script.extend(fault for fault in chance.choices(FAULTS, k=4) if chance.random() < 0.5)
            async with shipper(writer.log, server.url, tmp_path / "state"):
                lives = chance.uniform(0.0, 1.5)
                loop = asyncio.get_running_loop()
                end = loop.time() + lives
                while loop.time() < end:
                    writer.write(chance.randrange(1, 100))
                    if chance.random() < 0.03:
                        writer.rotate()
                    await asyncio.sleep(chance.uniform(0.0, 0.02))
            # Nobody ships now, and the world goes on.
            for _ in range(chance.randrange(3)):
                writer.write(chance.randrange(1, 50))
                writer.rotate()
        writer.write(1)
        writer.close()
        server.script.clear()
        async with shipper(writer.log, server.url, tmp_path / "state"):
            await settled(server, len(writer.written))
        assert not wrong(writer, server)
        assert len(server.documents) == len(writer.written)
