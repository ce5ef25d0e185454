"""How many records a rollover can make twice: the bound that docs/how-to/logs.md names, measured.

An id is looked for in the newest backing index only (https://github.com/elastic/elasticsearch/issues/44794).
"""

import asyncio
import os
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dsobs.logs.checkpoint import read_checkpoints
from tests.elasticsearch_stand_in import Fault
from tests.logs.shipping import PATIENCE, append, lines, named, settings, shipping, size, until
from tests.real.elasticsearch import WRITER, Elasticsearch
from tests.real.fault_proxy import FaultProxy
from tests.real.test_elasticsearch import TEMPLATE

pytestmark = pytest.mark.real("servers")
RECORDS = 20_000


@pytest.fixture(scope="module")
def started(elasticsearch: Callable[[str], Elasticsearch]) -> Elasticsearch:
    return elasticsearch("9.2.0")


@pytest.fixture
async def server(started: Elasticsearch) -> AsyncIterator[Elasticsearch]:
    await started.must("PUT", "/_index_template/logs", TEMPLATE)
    started.stream = f"logs-{uuid.uuid4().hex[:12]}"
    yield started
    await started.close_session()


async def twice(server: Elasticsearch) -> int:
    """How many records are there twice; none is missing, and none more often."""
    found = Counter(doc["message"] for doc in await server.documents(server.stream))
    assert set(found) == set(named(*range(RECORDS)))
    assert max(found.values()) <= 2
    return sum(1 for count in found.values() if count == 2)


@pytest.mark.parametrize(("bulk_records", "most_in_flight"), [(200, 4), (1000, 2), (500, 1)])
@pytest.mark.fault(17)
async def test_a_rollover_doubles_at_most_the_requests_whose_answers_are_lost_across_it(
    server: Elasticsearch, tmp_path: Path, bulk_records: int, most_in_flight: int
) -> None:
    append(tmp_path / "app.log", lines(*range(RECORDS)))
    whole = size(tmp_path / "app.log")
    async with FaultProxy(server.url) as proxy:
        wanted = settings(
            proxy.url,
            tmp_path / "app.log",
            index=server.stream,
            user=WRITER[0],
            password=WRITER[1],
            bulk_records=bulk_records,
            max_in_flight=most_in_flight,
        )
        async with shipping(wanted, tmp_path / "state") as shipper:
            await until(lambda: shipper.delivery.in_flight == most_in_flight and len(proxy.requests) > 5)
            # From now on the server takes the records, and its answers are lost.
            proxy.always = Fault(500, commit=True)
            before = proxy.failed
            await until(lambda: proxy.failed - before >= 3 * most_in_flight)
            await server.must("POST", f"/{server.stream}/_rollover")
            proxy.always = None
            await until(lambda: shipper.status().acknowledged_bytes == whole, 2 * PATIENCE)
    doubled = await twice(server)
    print(f"{most_in_flight} requests of {bulk_records} records in flight: {doubled} of {RECORDS} are there twice")
    assert 0 < doubled <= most_in_flight * bulk_records


@pytest.mark.fault(1)
async def test_a_kill_and_a_rollover_before_the_restart_double_what_was_not_yet_kept_as_acknowledged(
    server: Elasticsearch, tmp_path: Path
) -> None:
    log, state = tmp_path / "app.log", tmp_path / "state"
    append(log, lines(*range(RECORDS)))
    async with FaultProxy(server.url) as proxy:
        words = [sys.executable, "-m", "dsobs.cli", "logs", "ship", "--from", f"plain:{log}", "--to", proxy.url]
        words += ["--index", server.stream, "--state", str(state)]
        for one in (f"user={WRITER[0]}", "password=env:WRITER", "bulk_records=200", "max_in_flight=4"):
            words += ["--set", f"logs.elasticsearch.{one}"]
        environ = {**os.environ, "WRITER": WRITER[1]}
        first = await asyncio.create_subprocess_exec(*words, env=environ)
        await until(lambda: len(proxy.requests) > 40)
        first.kill()
        await first.wait()
        kept = sum(one.acknowledged for one in read_checkpoints(state / "logs.db"))
        await server.must("POST", f"/{server.stream}/_rollover")
        last = await asyncio.create_subprocess_exec(*words, "--once", env=environ)
        assert await asyncio.wait_for(last.wait(), 2 * PATIENCE) == 0
    doubled = await twice(server)
    # Counted at the end: the server may take what was under way at the kill for a while yet.
    there = await server.documents(server.stream)
    before_rollover = min(doc["_index"] for doc in there)
    unknown = sum(1 for doc in there if doc["_index"] == before_rollover and doc["log.offset"] >= kept)
    print(f"{unknown} records had been taken that the checkpoint did not know of: {doubled} are there twice")
    assert doubled == unknown
