"""Each step of the loop is a few hundred lines, so that none holds it for more than some milliseconds."""

import os
from pathlib import Path

import pytest

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
