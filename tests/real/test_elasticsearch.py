"""Shipping to a real Elasticsearch, where the server's part matters (faults 1, 14, 15, 17 to 19 of the log tests)."""

import asyncio
import base64
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from dsobs.config.secret import Secret
from dsobs.logs import metrics
from dsobs.logs.ship import Shipper
from tests.logs.shipping import PATIENCE, append, lines, named, settings, ship_once, shipping, size, until
from tests.real.elasticsearch import STRANGER, WRITER, Elasticsearch

pytestmark = pytest.mark.real("servers")
VERSIONS = ("9.2.0", "8.19.5")
TEMPLATE = {
    "index_patterns": ["logs*"],
    "data_stream": {},
    "priority": 500,
    "template": {
        "settings": {"number_of_shards": 1, "number_of_replicas": 0},
        "mappings": {"properties": {"@timestamp": {"type": "date"}, "number": {"type": "long"}}},
    },
}


@pytest.fixture(scope="module", params=VERSIONS)
def started(request: pytest.FixtureRequest, elasticsearch: Callable[[str], Elasticsearch]) -> Elasticsearch:
    return elasticsearch(request.param)


@pytest.fixture
async def server(started: Elasticsearch) -> AsyncIterator[Elasticsearch]:
    """With the template, a data stream of this test's own, and a session of its own loop."""
    await started.must("PUT", "/_index_template/logs", TEMPLATE)
    started.stream = f"logs-{uuid.uuid4().hex[:12]}"
    yield started
    await started.close_session()


def as_writer(server: Elasticsearch, log: object, **more: Any) -> Any:
    user, password = more.pop("who", WRITER)
    return settings(server.url, log, index=server.stream, user=user, password=password, **more)


def count(outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value("dsobs_log_records_total", {"outcome": outcome}) or 0.0


def all_taken(shipper: Shipper, log: Path) -> bool:
    """Nothing is wrong any more, and the server has the whole file."""
    return shipper.delivery.trouble is None and shipper.status().acknowledged_bytes == size(log)


def messages(documents: list[dict[str, Any]]) -> list[str]:
    return sorted((doc["message"] for doc in documents), key=lambda text: int(text.split()[1]))


@pytest.mark.fault(15)
async def test_records_arrive_in_a_data_stream_and_are_there_already_when_sent_again(
    server: Elasticsearch, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(*range(2000)))
    wanted = as_writer(server, tmp_path / "app.log", compress=True)
    await ship_once(wanted, tmp_path / "state")
    before = count("duplicate")
    await ship_once(wanted, tmp_path / "lost and made anew")
    assert count("duplicate") - before == 2000
    documents = await server.documents(server.stream)
    assert messages(documents) == named(*range(2000))
    assert documents[0]["_index"].startswith(f".ds-{server.stream}-")


@pytest.mark.fault(1)
async def test_sigkill_in_the_middle_of_bulks_leaves_each_record_once(server: Elasticsearch, tmp_path: Path) -> None:
    append(tmp_path / "app.log", lines(*range(30_000)))
    words = (
        *(sys.executable, "-m", "dsobs.cli", "logs", "ship", "--from", f"plain:{tmp_path / 'app.log'}"),
        *("--to", server.url, "--index", server.stream, "--state", str(tmp_path / "state"), "--once"),
        *("--set", f"logs.elasticsearch.user={WRITER[0]}", "--set", "logs.elasticsearch.password=env:WRITER"),
        *("--set", "logs.elasticsearch.bulk_records=500"),
    )
    for part in range(5):
        process = await asyncio.create_subprocess_exec(*words, env={**os.environ, "WRITER": WRITER[1]})
        wanted = 2000 * (part + 1)
        while process.returncode is None and await _how_many(server) < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
    last = await asyncio.create_subprocess_exec(*words, env={**os.environ, "WRITER": WRITER[1]})
    assert await asyncio.wait_for(last.wait(), PATIENCE) == 0
    assert messages(await server.documents(server.stream)) == named(*range(30_000))


async def _how_many(server: Elasticsearch) -> int:
    status, _ = await server.ask("POST", f"/{server.stream}/_refresh")
    if status != 200:
        return 0
    return int((await server.must("GET", f"/{server.stream}/_count"))["count"])


@pytest.mark.fault(14)
async def test_a_mapping_error_goes_to_the_dead_letters_and_the_others_arrive(
    server: Elasticsearch, tmp_path: Path
) -> None:
    good = [{"@timestamp": "2026-11-24T08:00:00Z", "message": f"line {n}", "number": n} for n in range(50)]
    bad = {**good[0], "message": "line 50", "number": "no number"}
    append(tmp_path / "app.log", b"".join(orjson.dumps(one) + b"\n" for one in [*good[:25], bad, *good[25:]]))
    await ship_once(as_writer(server, f"json:{tmp_path / 'app.log'}"), tmp_path / "state")
    assert messages(await server.documents(server.stream)) == named(*range(50))
    (letter,) = (tmp_path / "state/dead-letters.ndjson").read_bytes().splitlines()
    said = orjson.loads(letter)
    assert (said["status"], said["type"]) == (400, "document_parsing_exception")
    assert "failed to parse field [number]" in said["reason"]
    assert said["document"]["message"] == "line 50"


@pytest.mark.fault(14)
async def test_a_wrong_template_holds_shipping_until_it_is_mended(server: Elasticsearch, tmp_path: Path) -> None:
    wrong = {**TEMPLATE, "template": {"mappings": {"properties": {"message": {"type": "long"}}}}}
    await server.must("PUT", "/_index_template/logs", wrong)
    append(tmp_path / "app.log", lines(*range(300)))
    async with shipping(as_writer(server, tmp_path / "app.log"), tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert (shipper.delivery.trouble or ("",))[0] == "refused_records"
        await server.must("PUT", "/_index_template/logs", TEMPLATE)
        await server.must("POST", f"/{server.stream}/_rollover")
        await until(lambda: all_taken(shipper, tmp_path / "app.log"))
    assert messages(await server.documents(server.stream)) == named(*range(300))
    assert not (tmp_path / "state/dead-letters.ndjson").exists()


@pytest.mark.parametrize(
    ("who", "reason", "status"),
    [(("writer", "wrong"), "authorization", "401"), (STRANGER, "authorization", "403")],
)
@pytest.mark.fault(19)
async def test_who_may_not_write_is_held_and_told(
    server: Elasticsearch, tmp_path: Path, who: tuple[str, str], reason: str, status: str
) -> None:
    append(tmp_path / "app.log", lines(1, 2))
    key = tmp_path / "password"
    append(key, who[1])
    wanted = settings(server.url, tmp_path / "app.log", index=server.stream, user=who[0], password=f"file:{key}")
    async with shipping(wanted, tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert shipper.delivery.trouble is not None
        assert shipper.delivery.trouble[0] == reason
        assert status in shipper.delivery.trouble[1] or "security_exception" in shipper.delivery.trouble[1]
        if who[0] == "writer":
            key.write_text(WRITER[1])
            await until(lambda: all_taken(shipper, tmp_path / "app.log"))
    if who[0] == "writer":
        assert messages(await server.documents(server.stream)) == named(1, 2)


@pytest.mark.fault(19)
async def test_an_api_key_that_is_none_is_held_and_told_and_nothing_is_lost(
    server: Elasticsearch, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(1, 2))
    key = Secret(base64.b64encode(b"no-such-id:no-such-key").decode())
    wanted = settings(server.url, tmp_path / "app.log", index=server.stream, api_key=key)
    async with shipping(wanted, tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert shipper.delivery.trouble is not None
        reason, text = shipper.delivery.trouble
        assert reason == "authorization"
        assert text.startswith(f"{server.url} answered 401: user and password, key or token are refused")
    await ship_once(as_writer(server, tmp_path / "app.log"), tmp_path / "state")
    assert messages(await server.documents(server.stream)) == named(1, 2)


@pytest.mark.fault(19)
async def test_a_blocked_index_is_held_and_goes_on_when_it_is_freed(server: Elasticsearch, tmp_path: Path) -> None:
    append(tmp_path / "app.log", lines(1))
    async with shipping(as_writer(server, tmp_path / "app.log"), tmp_path / "state") as shipper:
        await until(lambda: shipper.status().acknowledged_bytes > 0)
        await server.must("PUT", f"/{server.stream}/_settings", {"index.blocks.write": True})
        append(tmp_path / "app.log", lines(2))
        await until(lambda: shipper.delivery.trouble is not None)
        assert (shipper.delivery.trouble or ("",))[0] == "index"
        await server.must("PUT", f"/{server.stream}/_settings", {"index.blocks.write": False})
        await until(lambda: all_taken(shipper, tmp_path / "app.log"))
    assert messages(await server.documents(server.stream)) == named(1, 2)


@pytest.mark.fault(19)
async def test_a_closed_name_is_held_not_dropped(server: Elasticsearch, tmp_path: Path) -> None:
    append(tmp_path / "app.log", lines(1))
    wanted = settings(server.url, tmp_path / "app.log", index="elsewhere", user=WRITER[0], password=WRITER[1])
    async with shipping(wanted, tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert (shipper.delivery.trouble or ("",))[0] == "authorization"
    assert not (tmp_path / "state/dead-letters.ndjson").exists()


@pytest.mark.fault(20)
async def test_a_kill_of_the_server_in_the_middle_loses_and_doubles_nothing(
    server: Elasticsearch, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(*range(40_000)))
    wanted = as_writer(server, tmp_path / "app.log", bulk_records=500, timeout=10.0)
    async with shipping(wanted, tmp_path / "state") as shipper:
        await until(lambda: shipper.status().acknowledged_bytes > 50_000)
        await asyncio.to_thread(server.kill)
        await server.start()
        whole = size(tmp_path / "app.log")
        await until(lambda: shipper.status().acknowledged_bytes == whole, 2 * PATIENCE)
    assert messages(await server.documents(server.stream)) == named(*range(40_000))


async def test_a_rollover_between_two_attempts_doubles_at_most_what_was_in_flight(
    server: Elasticsearch, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(*range(1000)))
    await ship_once(as_writer(server, tmp_path / "app.log"), tmp_path / "state")
    await server.must("POST", f"/{server.stream}/_rollover")
    append(tmp_path / "app.log", lines(1000))
    # What is acknowledged is not sent again, so nothing doubles across a rollover that comes after.
    await ship_once(as_writer(server, tmp_path / "app.log"), tmp_path / "state")
    assert messages(await server.documents(server.stream)) == named(*range(1001))
    # A lost state directory is the worst case: the new backing index knows none of the ids.
    await ship_once(as_writer(server, tmp_path / "app.log"), tmp_path / "lost and made anew")
    documents = await server.documents(server.stream)
    assert len(documents) == 2001
    assert len({doc["_id"] for doc in documents}) == 1001


NARROW = {"thread_pool.write.size": "1", "thread_pool.write.queue_size": "1", "http.max_content_length": "64kb"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow_started() -> AsyncIterator[Elasticsearch]:
    async with Elasticsearch(settings=NARROW) as server:
        await server.must("PUT", "/_index_template/logs", TEMPLATE)
        await server.close_session()
        yield server
        await server.close_session()


@pytest_asyncio.fixture
async def narrow(narrow_started: Elasticsearch) -> AsyncIterator[Elasticsearch]:
    """A server that takes little, with a data stream of this test's own, and a session of its own loop."""
    narrow_started.stream = f"logs-{uuid.uuid4().hex[:12]}"
    yield narrow_started
    await narrow_started.close_session()


@pytest.mark.fault(14, 21)
async def test_a_full_write_queue_refuses_records_and_each_arrives_once(narrow: Elasticsearch, tmp_path: Path) -> None:
    server = narrow
    for number in range(4):
        append(tmp_path / f"{number}.log", "".join(f"line {number * 1000 + n} of many\n" for n in range(1000)))
    wanted = as_writer(server, tmp_path / "*.log", bulk_records=50, max_in_flight=32)
    async with shipping(wanted, tmp_path / "state") as shipper:
        whole = sum(size(tmp_path / f"{number}.log") for number in range(4))
        crowd = [asyncio.create_task(_crowd(server)) for _ in range(4)]
        # The crowd holds its ground only until the queue was full: on a busy machine it would hold up all there is.
        for _ in range(600):
            if shipper.status().acknowledged_bytes == whole or await _rejections(server) > 20:
                break
            await asyncio.sleep(0.2)
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        await until(lambda: shipper.status().acknowledged_bytes == whole, 2 * PATIENCE)
    documents = await server.documents(server.stream)
    assert len(documents) == 4000
    assert len({doc["message"] for doc in documents}) == 4000
    # It did refuse: else nothing was shown.
    assert await _rejections(server) > 0


async def _crowd(server: Elasticsearch) -> None:
    """Others that write at the same time, so that the queue is full."""
    while True:
        await server.ask("POST", "/crowd/_doc", {"text": "x" * 1000})


async def _rejections(server: Elasticsearch) -> int:
    """How many writes the server's queue refused."""
    nodes = (await server.must("GET", "/_nodes/stats/thread_pool"))["nodes"]
    return sum(int(node["thread_pool"]["write"]["rejected"]) for node in nodes.values())


@pytest.mark.fault(18)
async def test_413_is_split(narrow: Elasticsearch, tmp_path: Path) -> None:
    server = narrow
    long = "line 500 " + "x" * 100_000
    append(tmp_path / "app.log", lines(*range(500)) + long + "\n" + lines(501))
    await ship_once(as_writer(server, tmp_path / "app.log"), tmp_path / "state")
    assert messages(await server.documents(server.stream)) == named(*range(500), 501)
    (letter,) = (tmp_path / "state/dead-letters.ndjson").read_bytes().splitlines()
    assert orjson.loads(letter)["status"] == 413
