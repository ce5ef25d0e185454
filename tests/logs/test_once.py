"""`dsobs logs ship --once` ships all that was there at its start, and ends."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import append, lines, move, named, settings, ship_once, shipping, until

HEAD = "(EngineCore pid=7) {} 11-24 08:00:00 [core.py:1] line {}\n"


@pytest.fixture
async def server() -> AsyncIterator[ElasticsearchStandIn]:
    async with ElasticsearchStandIn() as stand_in:
        yield stand_in


@pytest.mark.parametrize("block", [64, 1000, 256 * 1024])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
async def test_a_last_record_that_could_go_on_is_shipped_wherever_the_last_block_ends(
    server: ElasticsearchStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, block: int
) -> None:
    """399,999 of 400,000 lines arrived in a benchmark: the last was an ERROR, after which a traceback may come."""
    monkeypatch.setattr("dsobs.logs.tail.BLOCK_BYTES", block)
    log = tmp_path / "vllm.log"
    append(log, "".join(HEAD.format("ERROR" if n == count - 1 else "INFO", n) for n in range(count)))
    await ship_once(settings(server.url, f"vllm:{log}", max_line_bytes=1024), tmp_path / "state")
    assert sorted(server.messages(), key=lambda text: int(text.split()[1])) == named(*range(count))
    # And it is done with: nothing of it is sent again.
    await ship_once(settings(server.url, f"vllm:{log}", max_line_bytes=1024), tmp_path / "state")
    assert server.duplicates == 0


async def test_a_file_with_nothing_new_is_done_with(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    append(tmp_path / "a.log", lines(1))
    append(tmp_path / "empty.log", "")
    for _ in range(2):
        await ship_once(settings(server.url, tmp_path / "*.log"), tmp_path / "state")
    assert server.messages() == named(1)
    assert len(server.requests) == 1


async def test_generations_that_were_rotated_since_the_last_time_are_shipped_up_to_the_newest(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, lines(1))
    await ship_once(settings(server.url, log), tmp_path / "state")
    append(log, lines(2))
    for number in (3, 4):
        move(log, log.with_name(f"app.log.{5 - number}"))
        append(log, lines(number))
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert sorted(server.messages()) == named(1, 2, 3, 4)


async def test_a_file_that_goes_on_growing_is_no_reason_not_to_end(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, lines(*range(2000)))
    growing = True

    async def grow() -> None:
        number = 2000
        while growing:
            append(log, lines(number))
            number += 1
            await asyncio.sleep(0)

    writer = asyncio.create_task(grow())
    await ship_once(settings(server.url, log, bulk_records=100), tmp_path / "state")
    growing = False
    await writer
    found = {int(text.split()[1]) for text in server.messages()}
    assert set(range(2000)) <= found
    assert found == set(range(len(found)))


async def test_a_last_line_that_gets_its_end_while_it_is_looked_at_is_one_record(
    server: ElasticsearchStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "app.log"
    append(log, "line 1\nline")
    from dsobs.logs.tail import Tail

    read = Tail.read

    def read_then_grow(tail: Tail, now: float) -> object:
        pieces = read(tail, now)
        if not pieces and not log.read_bytes().endswith(b"\n"):
            append(log, " 2\nline 3\n")
        return pieces

    monkeypatch.setattr(Tail, "read", read_then_grow)
    shipper = await ship_once(settings(server.url, log), tmp_path / "state")
    assert shipper.unfinished == {}
    assert sorted(server.messages()) == named(1, 2, 3)


async def test_what_a_parser_holds_of_a_file_that_is_cut_without_a_copy_is_shipped(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "vllm.log"
    append(log, HEAD.format("INFO", 1) + HEAD.format("ERROR", 2))
    async with shipping(settings(server.url, f"vllm:{log}"), tmp_path / "state"):
        # The record that may go on is held for a while; before that has passed, the file is begun anew.
        await until(lambda: len(server.documents) == 1)
        log.write_text(HEAD.format("INFO", 3))
        await until(lambda: sorted(server.messages()) == named(1, 2, 3))


async def test_what_a_parser_holds_of_a_deleted_file_that_is_given_up_is_shipped(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "vllm.log"
    append(log, HEAD.format("INFO", 1) + HEAD.format("ERROR", 2))
    wanted = settings(server.url, f"vllm:{log}", max_held_bytes=0)
    async with shipping(wanted, tmp_path / "state") as shipper:
        await until(lambda: len(server.documents) == 1)
        log.unlink()
        await until(lambda: not shipper.sources.feeds)
        await until(lambda: sorted(server.messages()) == named(1, 2))
