"""A backlog is read to its end however long that takes.

Files that did not grow lately are looked at less often; one of them used to be read no further, silently, once it had
not grown for a minute and what was read of it was acknowledged and kept.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from dsobs.logs import sources as all_sources
from dsobs.logs.feed import Feed
from dsobs.logs.pace import Pace
from dsobs.logs.sources import BUSY_SECONDS, Sources
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import append, lines, named, settings, shipping, until


def watched(log: Path, now: float) -> Sources:
    """Of one file, as at its first look; the times are virtual."""
    ids: Callable[[], int] = iter(range(1, 100)).__next__
    made = Sources(
        settings(None, log), origin="h", common={}, transforms=[], kept=[], new_id=ids, first_run=False, pace=Pace()
    )
    asyncio.run(made.scan(now))
    return made


def keep(feed: Feed) -> None:
    """What is acknowledged of it is on disk."""
    one = feed.checkpoint()
    if one is not None:
        feed.kept(one)


def read_all(feed: Feed) -> None:
    """As the pump does it."""
    before = -1
    while feed.tail.position != before:
        before = feed.tail.position
        for piece in feed.tail.read(0.0):
            feed.progress.done(feed.progress.begin(piece.end))
    feed.drained = True


def test_a_backlog_that_takes_longer_than_a_file_is_busy_stays_to_be_read(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    append(log, lines(*range(100)))
    sources = watched(log, 0.0)
    sources.look(0.0)
    (feed,) = sources.readable()
    for minutes in range(1, 60):
        # A line a minute is read, acknowledged and kept.
        feed.tail.position += len("line 1\n")
        feed.progress.done(feed.progress.begin(feed.tail.position))
        keep(feed)
        sources.look(minutes * BUSY_SECONDS)
        assert sources.readable() == [feed]
    read_all(feed)
    sources.look(61 * BUSY_SECONDS)
    assert sources.readable() == []
    append(log, lines(100))
    sources.look(62 * BUSY_SECONDS)
    assert sources.readable() == [feed]
    sources.close_all()


@pytest.mark.parametrize("kept", [False, True])
def test_a_file_with_something_to_acknowledge_or_keep_stays_active(tmp_path: Path, kept: bool) -> None:
    log = tmp_path / "app.log"
    append(log, lines(*range(100)))
    sources = watched(log, 0.0)
    sources.look(0.0)
    (feed,) = sources.readable()
    ticket = feed.progress.begin(50)
    feed.drained = True
    sources.look(2 * BUSY_SECONDS)
    assert sources.active == [feed]
    feed.progress.done(ticket)
    if kept:
        keep(feed)
    sources.look(4 * BUSY_SECONDS)
    assert sources.active == ([] if kept else [feed])
    sources.close_all()


async def test_a_backlog_of_a_file_that_is_never_busy_arrives_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_sources, "BUSY_SECONDS", -1.0)
    monkeypatch.setattr("dsobs.logs.tail.BLOCK_BYTES", 100)
    append(tmp_path / "app.log", lines(*range(3000)))
    async with ElasticsearchStandIn() as server:
        server.delay = 0.005
        wanted = settings(server.url, tmp_path / "app.log", bulk_records=50, max_line_bytes=1024)
        async with shipping(wanted, tmp_path / "state"):
            await until(lambda: len(server.documents) == 3000, 60)
        assert set(server.messages()) == set(named(*range(3000)))
