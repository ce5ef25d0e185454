"""The same bytes give the same records however they come and are read, and wherever reading stops and goes on.

A record is its stream, its offset and its bytes: what its id and its place come from. What the second without a further
line does (`Pace.flush`) is time, and is left out here.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsobs.logs import tail as tails
from dsobs.logs.checkpoint import Checkpoint
from dsobs.logs.feed import Feed
from dsobs.logs.record import Lines
from dsobs.logs.tail import Tail
from tests.logs.test_format_properties import _LINES, FORMATS

MOST_LINE_BYTES = 200
_special = (
    *_LINES,
    b"\0\0\0",
    b"\0\0after a hole",
    b"\0\0(EngineCore pid=776) ERROR 11-23 17:17:07 [core.py:113]   File y\r",
    b"x" * (MOST_LINE_BYTES - 1),
    b"x" * MOST_LINE_BYTES,
    b"x" * (MOST_LINE_BYTES + 1),
    b"(EngineCore pid=776) ERROR 11-23 17:17:07 [core.py:113] " + b"y" * 3 * MOST_LINE_BYTES,
    b"\0" * 2 * MOST_LINE_BYTES + b"z",
    b"(Worker_TP0 pid=5) ERROR 11-23 17:17:07 [w.py:1] other",
    b"(Worker_TP0 pid=5) ERROR 11-23 17:17:07 [w.py:1] Traceback (most recent call last):",
    b"(Worker_TP0 pid=5) ERROR 11-23 17:17:07 [w.py:1]   File z",
)
_line = st.one_of(st.sampled_from(_special), st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")))
_file = st.tuples(st.lists(_line, min_size=1, max_size=25), st.booleans()).map(
    # With its last line feed or without.
    lambda made: b"\n".join(made[0]) + b"\n" * made[1]
)
_step = st.tuples(
    st.integers(0, 120),  # so many bytes come
    st.sampled_from(["", "", "", "restart", "restart before the acknowledgement"]),
)
Found = Counter[tuple[str, int, bytes]]


class Reader:
    """A shipper's way with one file: reads what there is, and is killed and begins again as it is told."""

    def __init__(self, path: Path, format_: str, block: int) -> None:
        self._path, self._format = path, format_
        self._block = block
        self._kept: Checkpoint | None = None
        self.found: Found = Counter()
        self.again: Found = Counter()
        self._begin()

    def _begin(self) -> None:
        fd = os.open(self._path, os.O_RDONLY)
        self.feed = Feed(Tail(fd, self._path, max_line_bytes=MOST_LINE_BYTES), self._format, "", 0.0)
        self._identified = False

    def _identify(self, *, complete: bool) -> bool:
        if not self._identified and self.feed.tail.identify(complete=complete):
            self._identified = True
            kept = self._kept
            if kept is not None:
                self.feed.resume(kept)
            self.feed.id = 1
            self.feed.open("host", {}, [], kept=kept)
        return self._identified

    def read(self, *, complete: bool = False, acknowledge: bool = True) -> None:
        """All that is there; `complete`: and what has no end, and what is held."""
        self.feed.tail.look()
        if not self._identify(complete=complete):
            return
        before = -1
        while self.feed.tail.position != before:
            before = self.feed.tail.position
            for piece in self.feed.tail.read(0.0):
                self._take(piece, acknowledge=acknowledge)
        if complete:
            for piece in self.feed.tail.rest(0.0, gone=True):
                self._take(piece, acknowledge=acknowledge)
            self._add(self.feed.flush())

    def _take(self, piece: Lines, *, acknowledge: bool) -> None:
        self._add(self.feed.parse(piece))
        ticket = self.feed.progress.begin(self.feed.done_to(piece))
        if acknowledge:
            self.feed.progress.done(ticket)

    def _add(self, records: list[Any]) -> None:
        for start, raw, _ in records:
            self.found[self.feed.dataset, start, raw] += 1

    def restart(self) -> None:
        """As after SIGKILL: what is acknowledged is known, and nothing else."""
        if self._identified:
            self._kept = self.feed.checkpoint() or self._kept
        self.feed.tail.close()
        self._begin()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "BLOCK_BYTES", 1)


def read_at_once(path: Path, format_: str) -> Found:
    """In one block."""
    reader = Reader(path, format_, 0)
    reader.read(complete=True)
    reader.feed.tail.close()
    return reader.found


@pytest.mark.parametrize("format_", FORMATS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=_file, steps=st.lists(_step, max_size=30), block=st.sampled_from([1, 300, 1000, 256 * 1024]))
@pytest.mark.fault(11, 12, 13)
def test_the_same_bytes_give_the_same_records_however_they_come(
    tmp_path: Path, format_: str, data: bytes, steps: list[tuple[int, str]], block: int
) -> None:
    whole, path = tmp_path / "whole.log", tmp_path / "app.log"
    whole.write_bytes(data)
    path.write_bytes(b"")
    tails.BLOCK_BYTES = 256 * 1024
    wanted = read_at_once(whole, format_)
    tails.BLOCK_BYTES = block
    reader = Reader(path, format_, block)
    at = 0
    restarted = False
    for size, then in steps:
        with path.open("ab") as file:
            file.write(data[at : at + size])
        at += size
        reader.read(acknowledge=then != "restart before the acknowledgement")
        if then:
            restarted = True
            reader.restart()
    with path.open("ab") as file:
        file.write(data[at:])
    reader.read(complete=True)
    reader.feed.tail.close()
    assert set(reader.found) == set(wanted)
    if not restarted:
        assert reader.found == wanted
