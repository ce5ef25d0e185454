"""Long work that lets others work."""

import asyncio
import threading
import time

import pytest

from dsobs.promql import Slice, Sliced, finish, unhurried
from dsobs.promql.slices import SLICE_SECONDS


def work(seen: list[str]) -> Sliced[str]:
    yield None
    seen.append((yield lambda: threading.current_thread().name))
    try:
        yield lambda: 1 // 0
    except ZeroDivisionError:
        seen.append("failed")
    return "done"


def test_in_one_go_every_part_runs_here_and_its_error_is_the_works() -> None:
    seen: list[str] = []
    assert finish(work(seen)) == "done"
    assert seen == [threading.current_thread().name, "failed"]


async def test_unhurried_parts_run_in_another_thread_and_their_errors_are_the_works() -> None:
    seen: list[str] = []
    assert await unhurried(work(seen)) == "done"
    assert seen[0] != threading.current_thread().name
    assert seen[1] == "failed"


async def test_others_work_between_slices() -> None:
    turns = 0

    def counted() -> Sliced[int]:
        for _ in range(5):
            before = turns
            yield None
            assert turns > before
        return turns

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    assert await unhurried(counted()) >= 5
    counting.cancel()


async def test_an_error_of_the_work_is_its_callers() -> None:
    def broken() -> Sliced[None]:
        yield None
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        finish(broken())
    with pytest.raises(ValueError, match="no"):
        await unhurried(broken())


def test_a_slice_is_over_once_it_has_been_used_up_and_then_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    one = Slice()
    assert list(one.over()) == []
    now = 1.1 * SLICE_SECONDS
    assert list(one.over()) == [None]
    assert list(one.over()) == []
