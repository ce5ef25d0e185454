"""Files that are rotated, cut, deleted and begun anew, while dsobs watches and while it does not (faults 6 to 11)."""

import asyncio
from pathlib import Path

import pytest

from dsobs.logs import metrics
from dsobs.logs.checkpoint import read_checkpoints
from dsobs.logs.pace import Pace
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import (
    QUICK,
    append,
    compress,
    copytruncate,
    delete,
    inode,
    lines,
    link,
    move,
    named,
    settings,
    shipping,
    size,
    until,
    write,
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path / "logs" / "app.log"


def lost(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("dsobs_log_lost_bytes_total", {"reason": reason}) or 0.0


def arrived(server: ElasticsearchStandIn) -> list[str]:
    """In the order of their numbers."""
    return sorted(server.messages(), key=lambda text: int(text.split()[1]))


@pytest.mark.fault(6)
async def test_rename_and_create_finishes_the_old_file_and_begins_the_new(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1, 2))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1, 2))
        with log.open("ab") as writer:
            move(log, log.with_name("app.log.1"))
            append(log, lines(4))
            # The writer notices the rotation late.
            writer.write(lines(3).encode())
        await until(lambda: arrived(server) == named(1, 2, 3, 4))
    assert server.duplicates == 0


@pytest.mark.fault(6)
async def test_rotations_between_two_looks_lose_no_generation(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1))
    slow = Pace(**{**{name: getattr(QUICK, name) for name in QUICK.__slots__}, "scan": 0.3})
    async with shipping(settings(server.url, log), tmp_path / "state", pace=slow):
        await until(lambda: arrived(server) == named(1))
        for number in range(2, 8):
            for old in sorted(log.parent.glob("app.log.*"), reverse=True):
                move(old, log.with_name(f"app.log.{int(old.suffix[1:]) + 1}"))
            move(log, log.with_name("app.log.1"))
            append(log, lines(number))
        await until(lambda: arrived(server) == named(*range(1, 8)))
    assert server.duplicates == 0


@pytest.mark.fault(6)
async def test_rotations_while_dsobs_is_stopped_lose_no_generation(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1))
    append(log, lines(2))
    move(log, log.with_name("app.log.2"))
    write(log.with_name("app.log.1"), lines(3))
    append(log, lines(4))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1, 2, 3, 4))
    assert server.duplicates == 0


@pytest.mark.fault(6)
async def test_many_generations_that_were_not_sent_before_a_stop_are_found_again_and_none_counts_as_lost(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    await server.down()
    before = lost("rotated_away")
    wanted = settings(server.url, log)
    async with shipping(wanted, tmp_path / "state") as shipper:
        for number in range(30):
            append(log, lines(number))
            await until(lambda number=number: len(shipper.sources.feeds) == number + 1)  # type: ignore[misc]
            move(log, log.with_name(f"app.log.{30 - number}"))
    append(log, lines(30))
    assert len(read_checkpoints(tmp_path / "state" / "logs.db")) >= 25
    await server.up()
    async with shipping(wanted, tmp_path / "state"):
        await until(lambda: arrived(server) == named(*range(31)))
    assert lost("rotated_away") == before
    assert server.duplicates == 0


@pytest.mark.fault(6)
async def test_what_was_rotated_and_compressed_while_dsobs_is_stopped_is_read_from_there(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1))
        append(log, lines(2))
        await until(lambda: arrived(server) == named(1, 2))
        await server.down()
        append(log, lines(3))
        size_ = size(log)
        await until(lambda: shipper_saw(tmp_path / "state", size_))
    compress(log, log.with_name("app.log.1.gz"))
    append(log, lines(4))
    await server.up()
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1, 2, 3, 4))
    assert server.duplicates == 0


@pytest.mark.fault(6)
async def test_what_was_written_after_the_last_look_is_read_from_compressed_generations(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1))
    append(log, lines(2))
    compress(log, log.with_name("app.log.2.gz"))
    append(log, lines(3))
    compress(log, log.with_name("app.log.1.gz"))
    append(log, lines(4))
    before = lost("rotated_away")
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1, 2, 3, 4))
    assert (server.duplicates, lost("rotated_away")) == (0, before)


@pytest.mark.fault(10)
async def test_compressed_generations_beyond_the_bound_on_held_bytes_count_as_lost(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1))
    for number in (2, 3):
        append(log, lines(number))
        if number > 2:
            compress(log, log.with_name(f"app.log.{number}.gz"))
        else:
            delete(log)
    append(log, lines(4))
    before = lost("rotated_away")
    async with shipping(settings(server.url, log, max_held_bytes=0), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1, 4))
    assert lost("rotated_away") - before == len(lines(3))


def shipper_saw(state: Path, size_: int) -> bool:
    """It is on disk that the one file had this size."""
    (kept,) = read_checkpoints(state / "logs.db")
    return kept.size == size_


async def test_files_that_were_rotated_before_the_first_start_are_left_alone(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    write(log.with_name("app.log.1"), lines(90))
    append(log, lines(1))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1))
        move(log.with_name("app.log.1"), log.with_name("app.log.2"))
        move(log, log.with_name("app.log.1"))
        append(log, lines(2))
        await until(lambda: arrived(server) == named(1, 2))


@pytest.mark.fault(7)
async def test_copytruncate_makes_no_duplicates(server: ElasticsearchStandIn, log: Path, tmp_path: Path) -> None:
    append(log, lines(1, 2))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1, 2))
        copytruncate(log, log.with_name("app.log.1"))
        append(log, lines(3))
        await until(lambda: arrived(server) == named(1, 2, 3))
    assert server.duplicates == 0


@pytest.mark.fault(7)
async def test_what_copytruncate_cut_off_unread_is_read_from_its_copy(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1))
    async with shipping(settings(server.url, log, max_in_flight=1), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1))
        # One look: nobody reads between these lines.
        append(log, lines(2))
        copytruncate(log, log.with_name("app.log.1"))
        append(log, lines(3))
        await until(lambda: arrived(server) == named(1, 2, 3))
    assert server.duplicates == 0


@pytest.mark.fault(7)
async def test_what_a_truncation_without_a_copy_cut_off_is_counted_as_far_as_it_was_seen(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    before = lost("truncated")
    append(log, lines(1) + "half a line")
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1))
        copytruncate(log, None)
        append(log, lines(2))
        await until(lambda: arrived(server) == named(1, 2))
    assert lost("truncated") - before == len("half a line")


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.fault(8)
async def test_truncated_and_regrown_past_the_old_offset_is_noticed(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, stopped: bool
) -> None:
    append(log, lines(1, 2))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1, 2))
        if not stopped:
            write(log, lines(*range(3, 9)))
            await until(lambda: arrived(server) == named(*range(1, 9)))
    if stopped:
        write(log, lines(*range(3, 9)))
        async with shipping(settings(server.url, log), tmp_path / "state"):
            await until(lambda: arrived(server) == named(*range(1, 9)))
    assert server.duplicates == 0


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.fault(8, 9)
async def test_the_same_place_with_the_same_first_line_and_other_bytes_is_another_document(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, stopped: bool
) -> None:
    append(log, "line 0 banner\n" + lines(11))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: len(server.documents) == 2)
        if not stopped:
            write(log, "line 0 banner\n" + lines(22, 33))
            await until(lambda: arrived(server) == ["line 0 banner", *named(11, 22, 33)])
    if stopped:
        write(log, "line 0 banner\n" + lines(22, 33))
        async with shipping(settings(server.url, log), tmp_path / "state"):
            await until(lambda: arrived(server) == ["line 0 banner", *named(11, 22, 33)])


@pytest.mark.fault(9)
async def test_an_inode_that_is_used_again_is_another_file(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1, 2))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1, 2))
    # The file's own inode with other content is what a reused inode looks like from outside.
    before = inode(log)
    write(log, lines(3, 4, 5))
    assert inode(log) == before
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1, 2, 3, 4, 5))


@pytest.mark.fault(9)
async def test_two_files_with_the_same_first_lines_are_told_apart(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    for name in ("a.log", "b.log"):
        append(log.with_name(name), "line 0 banner\n" + lines(1))
    async with shipping(settings(server.url, log.with_name("*.log")), tmp_path / "state"):
        await until(lambda: len(server.documents) == 4)
    assert server.duplicates == 0


@pytest.mark.fault(10)
async def test_a_file_that_is_deleted_while_output_is_blocked_is_read_to_its_end(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    await server.down()
    append(log, lines(1))
    async with shipping(settings(server.url, log, bulk_records=1, max_in_flight=1), tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.in_flight == 1)
        append(log, lines(*range(2, 50)))
        await until(lambda: shipper.status().total_bytes == size(log))
        delete(log)
        await asyncio.sleep(0)
        await server.up()
        await until(lambda: arrived(server) == named(*range(1, 50)))
        await until(lambda: not shipper.sources.feeds)


@pytest.mark.fault(10)
async def test_deleted_files_beyond_the_bound_on_held_bytes_are_given_up_and_counted(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    before = lost("rotated_away")
    await server.down()
    first = b"line 1\n" + b"x" * 100 + b"\n"
    append(log, first)
    wanted = settings(server.url, log, bulk_records=1, max_in_flight=1, max_held_bytes=4096)
    async with shipping(wanted, tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.in_flight == 1)
        more = b"y" * 999 + b"\n"
        append(log, more * 300)
        await until(lambda: shipper.status().total_bytes == size(log))
        whole, read = size(log), next(iter(shipper.sources.feeds.values())).tail.position
        delete(log)
        await until(lambda: not shipper.sources.feeds)
        await server.up()
    assert lost("rotated_away") - before == whole - read


@pytest.mark.fault(11)
async def test_a_partial_last_line_waits_for_its_end_also_across_a_restart(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1) + "line 2")
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1))
    async with shipping(settings(server.url, log), tmp_path / "state"):
        append(log, "2 and a half")
        await asyncio.sleep(0)
        append(log, "\n")
        await until(lambda: arrived(server) == ["line 1", "line 22 and a half"])
    assert server.duplicates == 0


@pytest.mark.fault(11)
async def test_a_partial_last_line_is_sent_marked_once_its_file_is_gone(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1) + "line 2 has no end")
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: arrived(server) == named(1))
        delete(log)
        await until(lambda: arrived(server) == ["line 1", "line 2 has no end"])
        await until(lambda: not shipper.sources.feeds)
    document = next(doc for doc in server.documents.values() if doc["message"].endswith("end"))
    assert document["error.message"] == "the file ended without a line feed"


@pytest.mark.fault(11)
async def test_a_file_without_any_line_feed_is_sent_once_it_is_gone(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, "line 1 only")
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: len(shipper.sources.feeds) == 1)
        delete(log)
        await until(lambda: arrived(server) == ["line 1 only"])


async def test_a_symlink_that_is_turned_to_another_file_is_followed(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    one, two = log.with_name("one"), log.with_name("two")
    append(one, lines(1))
    link(log, one)
    async with shipping(settings(server.url, log), tmp_path / "state"):
        await until(lambda: arrived(server) == named(1))
        append(two, lines(3))
        append(one, lines(2))
        turned = log.with_name("turned")
        link(turned, two)
        move(turned, log)
        await until(lambda: arrived(server) == named(1, 2, 3))
    assert server.duplicates == 0


@pytest.mark.fault(2, 3)
async def test_a_lost_state_directory_yields_the_same_ids_again(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(*range(1, 30)))
    move(log, log.with_name("app.log.1"))
    append(log, lines(*range(30, 40)))
    wanted = settings(server.url, log.with_name("app.log*"))
    async with shipping(wanted, tmp_path / "state"):
        await until(lambda: arrived(server) == named(*range(1, 40)))
    move(log.with_name("app.log.1"), log.with_name("app.log.2"))
    move(log, log.with_name("app.log.1"))
    append(log, lines(40))
    async with shipping(wanted, tmp_path / "other state"):
        await until(lambda: arrived(server) == named(*range(1, 41)))
    assert server.duplicates == 39


async def test_files_are_read_from_their_ends_on_the_first_start_where_that_is_set(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1, 2) + "line")
    wanted = settings(server.url, log.with_name("*.log"), from_end=True)
    async with shipping(wanted, tmp_path / "state") as shipper:
        await until(lambda: len(shipper.sources.feeds) == 1)
        append(log, " 3\n")
        append(log.with_name("new.log"), lines(4))
        await until(lambda: arrived(server) == named(3, 4))
    append(log.with_name("newer.log"), lines(5))
    async with shipping(wanted, tmp_path / "state"):
        await until(lambda: arrived(server) == named(3, 4, 5))
