"""Files that can't be read, for a while or for good: told, never lost, and no burden to the others."""

import errno
import gzip
import os
from pathlib import Path

import pytest

from dsobs.logs import metrics
from dsobs.logs.record import Lines
from dsobs.logs.tail import Tail
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import append, delete, lines, link, move, named, settings, ship_once, shipping, until


def fails(tail: Tail, now: float) -> list[Lines]:
    """As a disk's broken block does."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def arrived(server: ElasticsearchStandIn) -> list[str]:
    """In the order of their numbers."""
    return sorted(server.messages(), key=lambda text: int(text.split()[1]))


def lost(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("dsobs_log_lost_bytes_total", {"reason": reason}) or 0.0


async def test_an_unreadable_file_is_told_and_read_once_it_can_be(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    link(log, log)
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: shipper.status().unreadable == {str(log): os.strerror(40)})
        delete(log)
        append(log, lines(1))
        await until(lambda: arrived(server) == named(1))
        assert shipper.status().unreadable == {}


async def test_a_file_that_fails_when_it_is_read_is_told_and_the_others_are_shipped(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1))
    # A regular file that can be opened, and whose first byte can't be read.
    wanted = settings(server.url, "/proc/self/mem", log)
    async with shipping(wanted, tmp_path / "state") as shipper:
        await until(lambda: arrived(server) == named(1))
        assert shipper.status().unreadable == {"/proc/self/mem": os.strerror(errno.EIO)}
        append(log, lines(2))
        await until(lambda: arrived(server) == named(1, 2))
    once = await ship_once(wanted, tmp_path / "state")
    assert once.status().unreadable == {"/proc/self/mem": os.strerror(errno.EIO)}


async def test_a_file_that_can_not_be_read_any_further_is_behind_and_goes_on_when_it_can_be(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log, lines(1))
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: arrived(server) == named(1))
        with monkeypatch.context() as patched:
            patched.setattr(Tail, "read", fails)
            append(log, lines(2))
            await until(lambda: shipper.status().unreadable == {str(log): os.strerror(errno.EIO)})
            await until(lambda: shipper.status().behind_seconds > 0)
        await until(lambda: arrived(server) == named(1, 2))
        assert shipper.status().unreadable == {}


async def test_what_can_not_be_looked_at_at_the_start_counts_not_as_lost(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(1))
    await ship_once(settings(server.url, log), tmp_path / "state")
    append(log, lines(2))
    move(log, tmp_path / "aside")
    link(log, log)
    before = lost("rotated_away")
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: bool(shipper.status().unreadable))
        delete(log)
        move(tmp_path / "aside", log)
        await until(lambda: arrived(server) == named(1, 2))
    assert (server.duplicates, lost("rotated_away")) == (0, before)


async def test_a_last_line_without_its_end_is_not_behind(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, "line 1\nhal")
    os.utime(log, (1.0, 1.0))
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: arrived(server) == named(1))
        await until(lambda: shipper.status().behind_seconds == 0)
        assert metrics.REGISTRY.get_sample_value("dsobs_log_behind_bytes", {"source": f"plain:{log}"}) == 0


async def test_compressed_files_are_no_lines_and_named_where_all_that_is_there_is_asked_for(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    packed = tmp_path / "app.log.1.gz"
    packed.write_bytes(gzip.compress(lines(1).encode()))
    append(log, lines(2))
    once = await ship_once(settings(server.url, f"{log}*"), tmp_path / "state")
    assert once.status().unreadable == {}
    assert f"{packed} and others of {log}* are compressed and passed over; gunzip -c FILE" in caplog.text
    once = await ship_once(settings(server.url, f"{log}*.gz"), tmp_path / "state")
    assert "it is compressed; gunzip -c FILE" in once.status().unreadable[str(packed)]
    assert arrived(server) == named(2)
