"""Rotations, SIGKILL of dsobs and lost or failed requests, all at random, before a real Elasticsearch: at the end each
record that was written is in it exactly once, compared by content.

30 rounds, two to three minutes; LONG_TESTS=1 is 200, ROUNDS another number of them, SEED another course of things.
"""

import os
import random
import time
from pathlib import Path

import pytest

from tests.logs.random_faults import Writer, rounds_of_faults, wrong
from tests.real.elasticsearch import WRITER, Elasticsearch
from tests.real.fault_proxy import FaultProxy

pytestmark = pytest.mark.real("faults")
ROUNDS = int(os.environ.get("ROUNDS") or (200 if os.environ.get("LONG_TESTS") == "1" else 30))
SEED = int(os.environ.get("SEED", "1"))


@pytest.mark.fault(1, 6, 7, 16, 17)
async def test_each_record_is_in_elasticsearch_exactly_once_whatever_happens(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    (tmp_path / "logs").mkdir()
    writer = Writer(tmp_path / "logs", chance, tracebacks=True)
    began = time.monotonic()
    async with Elasticsearch() as server, FaultProxy(server.url) as proxy:

        async def count() -> int:
            status, _ = await server.ask("POST", "/logs/_refresh")
            return int((await server.must("GET", "/logs/_count"))["count"]) if status == 200 else 0

        credentials = (f"logs.elasticsearch.user={WRITER[0]}", "logs.elasticsearch.password=env:WRITER")
        more = [word for one in credentials for word in ("--set", one)]
        await rounds_of_faults(writer, proxy, tmp_path / "state", count, chance, ROUNDS, {"WRITER": WRITER[1]}, *more)
        documents = await server.documents("logs")
        said = (
            f"{ROUNDS} rounds, {len(writer.written)} records written, {len(documents)} documents, "
            f"{len(proxy.requests)} requests of which {proxy.failed} failed or lost, {proxy.duplicates} records sent "
            f"again (409), rotations {dict(writer.rotations)}, {time.monotonic() - began:.0f} s"
        )
        print(said)
        assert not wrong(writer, documents), said
        assert not (tmp_path / "state/dead-letters.ndjson").exists()
        assert proxy.failed > 0
