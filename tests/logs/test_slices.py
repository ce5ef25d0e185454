"""Each step of the loop is a few hundred lines, so that none holds it for more than some milliseconds."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs.logs.tail import BLOCK_BYTES, BLOCK_LINES, Tail
from tests.logs.shipping import append


@pytest.mark.parametrize("length", [0, 1, 50, 300, 5000])
def test_a_step_is_so_many_lines_and_so_many_bytes_at_most_and_no_line_is_left_out(tmp_path: Path, length: int) -> None:
    log = tmp_path / "app.log"
    wanted = [b"%d%b" % (number, b"x" * length) for number in range(3 * BLOCK_LINES + 1)]
    append(log, b"".join(line + b"\n" for line in wanted))
    tail = Tail(os.open(log, os.O_RDONLY), log, max_line_bytes=256 * 1024)
    found: list[bytes] = []
    while pieces := tail.read(0.0):
        (piece,) = pieces
        assert 0 < len(piece.lines) <= BLOCK_LINES
        assert piece.end - piece.start <= BLOCK_BYTES + 1
        found += piece.lines
    assert found == wanted
    tail.close()


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.sampled_from((0, 3, 100, 20_000, 70_000, 299_999, 300_001)), max_size=12), crowd=st.booleans()
)
def test_lines_are_whole_and_none_is_left_out_however_their_lengths_change(lengths: list[int], crowd: bool) -> None:
    lines = [b"%d%b" % (number, b"x" * length) for number, length in enumerate(lengths)]
    if crowd:
        lines = [b"%d" % number for number in range(3 * BLOCK_LINES)] + lines
    with tempfile.TemporaryFile() as file:
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
        tail = Tail(os.dup(file.fileno()), Path("app.log"), max_line_bytes=300_000)
        found: list[bytes] = []
        while True:
            before = tail.position
            found += [line for piece in tail.read(0.0) for line in piece.lines]
            if tail.position == before:
                break
        tail.close()
    assert found == [line[:300_000] for line in lines]
