"""Everything at once: a writer at full speed with rotations at random, SIGKILL of dsobs at random moments, and a server
that fails at random. At the end each record that was written is there exactly once, compared by content.

LONG_TESTS=1 runs 200 rounds (some ten minutes), else it is a few. tests/real/test_random_faults.py has a real server.
"""

import os
import random
from pathlib import Path

import pytest

from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.random_faults import Writer, rounds_of_faults, wrong

ROUNDS = 200 if os.environ.get("LONG_TESTS") else 4


@pytest.mark.parametrize("tracebacks", [False, True])
@pytest.mark.fault(1, 6, 7, 16, 17)
async def test_each_record_is_there_exactly_once_whatever_happens(tmp_path: Path, tracebacks: bool) -> None:
    chance = random.Random(1)
    (tmp_path / "logs").mkdir()
    writer = Writer(tmp_path / "logs", chance, tracebacks=tracebacks)
    async with ElasticsearchStandIn() as server:

        async def count() -> int:
            return len(server.documents)

        await rounds_of_faults(writer, server, tmp_path / "state", count, chance, ROUNDS, {})
        assert not wrong(writer, server.documents.values())
        assert len(server.documents) == len(writer.written)
