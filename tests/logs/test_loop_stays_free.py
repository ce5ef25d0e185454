"""No step holds the event loop for more than 20 ms, by a clock of the loop: the CPU time of each callback.

CPU time, since on a busy machine wall time says nothing of the step.
"""

import asyncio
import gc
import gzip
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsobs import plugins
from dsobs.logs.checkpoint import read_checkpoints
from dsobs.logs.formats import format_named
from dsobs.logs.sinks import GROUP
from tests.logs.shipping import append, count, lines, records, settings, shipping, size, until

MOST_SECONDS = 0.020


class LoopClock:
    """The longest callbacks so far."""

    def __init__(self) -> None:
        self.longest: list[tuple[float, str]] = []

    def note(self, seconds: float, what: str) -> None:
        self.longest = sorted([*self.longest, (seconds, what)])[-3:]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopClock]:
    made = LoopClock()
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        begun = time.thread_time()
        run(handle)
        task = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
        coro = repr(task.get_coro()) if isinstance(task, asyncio.Task) else ""
        # Not of the test's own, nor before shipping begins: opening its database.
        if "test_" not in coro and "Shipper.run" not in coro:
            made.note(time.thread_time() - begun, repr(task or handle))

    # Imports, once at the start, are no step of shipping.
    format_named("plain")
    plugins.load(GROUP, "file")
    # What the tests before have left is no part of it, as what was imported is none in operation.
    gc.freeze()
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield made
    gc.unfreeze()


def sent() -> float:
    return count("dsobs_log_records_total", outcome="sent")


def assert_free(clock: LoopClock) -> None:
    assert clock.longest
    seconds, step = clock.longest[-1]
    assert seconds <= MOST_SECONDS, step


async def test_a_thousand_files_are_found_opened_and_kept_in_short_steps(clock: LoopClock, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for number in range(1000):
        append(tmp_path / f"logs/{number}.log", lines(number))
    wanted, before = settings(None, tmp_path / "logs/*.log"), sent()
    for more in (0, 1000):
        # The second time their checkpoints are there.
        async with shipping(wanted, tmp_path / "state") as shipper:
            append(tmp_path / "logs/5.log", lines(1000 + more))
            await until(lambda more=more: sent() - before == 1001 + bool(more), 60)  # type: ignore[misc]
            await until(lambda: all(one.kept_acknowledged > 0 for one in shipper.sources.feeds.values()), 60)
            assert len(shipper.sources.feeds) == 1000
    assert_free(clock)


async def test_a_large_compressed_file_is_unpacked_beside_the_loop(clock: LoopClock, tmp_path: Path) -> None:
    log = tmp_path / "logs/app.log"
    log.parent.mkdir()
    append(log, lines(1))
    wanted, before = settings(None, log), sent()
    async with shipping(wanted, tmp_path / "state"):
        await until(lambda: sent() - before == 1)
        # Nobody is told yet that this line ends.
        append(log, b"line 2")
        await until(lambda: read_checkpoints(tmp_path / "state/logs.db")[0].size == size(log))
    append(log, b"".join(b"%b\nline %d" % (b" x" * 5000, number) for number in range(3, 3003)))
    append(log, b"\n")
    (log.parent / "app.log.1.gz").write_bytes(gzip.compress(log.read_bytes(), 1))
    log.write_bytes(b"a new line 1\n")
    async with shipping(wanted, tmp_path / "state"):
        await until(lambda: sent() - before == 3003, 60)
    assert len(records(tmp_path / "state")) == 3003
    assert_free(clock)
