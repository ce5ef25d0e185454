"""What follows from the sink's answers (faults 1, 14 to 22 and 35)."""

import time
from pathlib import Path
from typing import Any

import pytest

from dsobs.logs import metrics
from tests.elasticsearch_stand_in import ElasticsearchStandIn, Fault
from tests.logs.shipping import append, letters, lines, named, settings, ship_once, shipping, until

REJECTED = {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "queue full"}}
UNPARSABLE = {
    "status": 400,
    "error": {"type": "document_parsing_exception", "reason": "bad", "caused_by": {"reason": "no number"}},
}


def count(outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value("dsobs_log_records_total", {"outcome": outcome}) or 0.0


def in_flight_limit() -> float:
    return metrics.REGISTRY.get_sample_value("dsobs_log_in_flight_limit") or 0.0


def numbers(server: ElasticsearchStandIn) -> list[str]:
    return sorted(server.messages(), key=lambda text: int(text.split()[1]))


@pytest.mark.fault(14)
async def test_partial_bulk_retries_only_rejected_records_and_keeps_refused_ones(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    rejected: list[str] = []

    def judge(document: dict[str, Any]) -> dict[str, Any] | None:
        message = document["message"]
        if message == "line 3":
            return UNPARSABLE
        if message in named(2, 5) and message not in rejected:
            rejected.append(message)
            return REJECTED
        return None

    server.judge = judge
    append(log, lines(*range(1, 7)))
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert numbers(server) == named(1, 2, 4, 5, 6)
    assert [records for _, records, _ in server.requests] == [6, 2]
    (letter,) = letters(tmp_path / "state")
    assert letter["document"]["message"] == "line 3"
    assert letter["reason"] == "bad: no number"
    assert (letter["index"], letter["status"], letter["type"]) == ("logs", 400, "document_parsing_exception")
    assert letter["action"]["create"]["_id"]
    # A poison record never blocks its file.
    append(log, lines(7))
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert numbers(server)[-1] == "line 7"


@pytest.mark.fault(14)
async def test_more_than_a_twentieth_refused_holds_instead_of_filling_the_dead_letters(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    server.judge = lambda _: UNPARSABLE
    append(log, lines(*range(1, 201)))
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        reason, text = shipper.delivery.trouble or ("", "")
        assert reason == "refused_records"
        assert "document_parsing_exception" in text
        assert metrics.REGISTRY.get_sample_value("dsobs_log_held", {"reason": "refused_records"}) == 1
        # Somebody mends the template.
        server.judge = None
        await until(lambda: numbers(server) == named(*range(1, 201)) and shipper.delivery.trouble is None)
    assert letters(tmp_path / "state") == []
    assert metrics.REGISTRY.get_sample_value("dsobs_log_held", {"reason": "refused_records"}) == 0


@pytest.mark.fault(15)
async def test_all_items_409_is_success(server: ElasticsearchStandIn, log: Path, tmp_path: Path) -> None:
    append(log, lines(1, 2))
    await ship_once(settings(server.url, log), tmp_path / "state")
    before = count("duplicate")
    await ship_once(settings(server.url, log), tmp_path / "lost and made anew")
    assert count("duplicate") - before == 2
    assert numbers(server) == named(1, 2)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(200, commit=True, hang_up=True),
        Fault(200, body=b'{"errors":false,"items":[{"create":{"status":201}}', commit=True),
        Fault(200, body=b'{"errors":false,"items":[{"create":{"status":201}}]}', commit=True),
        Fault(200, body=b"<html>", commit=True),
        Fault(200, body=b"{}", commit=True),
        Fault(200, body=b'{"items":[{"index":{}},{"create":null}]}', commit=True),
        Fault(200, body=b"", commit=True),
    ],
)
@pytest.mark.fault(16)
async def test_a_200_that_does_not_say_what_became_of_each_record_is_sent_again(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, fault: Fault
) -> None:
    server.script.append(fault)
    append(log, lines(1, 2))
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert len(server.requests) == 2
    assert server.duplicates == 2
    assert numbers(server) == named(1, 2)


@pytest.mark.fault(17)
async def test_a_time_out_after_the_server_took_the_records_leaves_one_document_each(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    server.script.append(Fault(200, commit=True, hang=True))
    append(log, lines(1, 2))
    await ship_once(settings(server.url, log, timeout=0.2), tmp_path / "state")
    # Sent again once, or more often where the machine stood still.
    assert server.duplicates >= 2
    assert numbers(server) == named(1, 2)


@pytest.mark.fault(18)
async def test_413_is_split_and_a_single_record_that_is_too_large_goes_to_the_dead_letters(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    server.max_body = 4000
    append(log, lines(*range(1, 40)) + "line 40 " + "x" * 5000 + "\n" + lines(41))
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert numbers(server) == named(*range(1, 40), 41)
    (letter,) = letters(tmp_path / "state")
    assert letter["status"] == 413
    assert letter["document"]["message"].startswith("line 40 x")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault(401), "authorization"),
        (Fault(403), "authorization"),
        (Fault(404), "index"),
        (Fault(400, body=b'{"error":{"type":"invalid_index_name_exception","reason":"bad name"}}'), "index"),
        (Fault(302, headers={"Location": "http://127.0.0.1:1/"}), "index"),
    ],
)
@pytest.mark.fault(19)
async def test_a_refusal_that_somebody_must_mend_is_held_and_told_not_dropped(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, fault: Fault, reason: str
) -> None:
    server.always = fault
    append(log, lines(1, 2))
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: (shipper.delivery.trouble or ("",))[0] == reason)
        assert metrics.REGISTRY.get_sample_value("dsobs_log_held", {"reason": reason}) == 1
        server.always = None
        await until(lambda: numbers(server) == named(1, 2))
    assert letters(tmp_path / "state") == []


@pytest.mark.parametrize(
    "said",
    [
        {"status": 403, "error": {"type": "cluster_block_exception", "reason": "index [logs] blocked by: read-only"}},
        {"status": 403, "error": {"type": "security_exception", "reason": "not allowed"}},
        {"status": 404, "error": {"type": "index_not_found_exception", "reason": "no such index"}},
        {"status": 400, "error": {"type": "index_closed_exception", "reason": "closed"}},
        {"status": 503, "error": {"type": "unavailable_shards_exception", "reason": "not yet"}},
    ],
)
@pytest.mark.fault(19)
async def test_records_that_are_refused_for_the_index_s_sake_are_held(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path, said: dict[str, Any]
) -> None:
    server.judge = lambda document: said if document["message"] == "line 2" else None
    append(log, lines(1, 2, 3))
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert numbers(server) == named(1, 3)
        server.judge = None
        await until(lambda: numbers(server) == named(1, 2, 3))
    assert letters(tmp_path / "state") == []


@pytest.mark.fault(5, 20)
async def test_an_outage_is_drained_in_order_afterwards_with_bounded_memory(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    await server.down()
    wanted = settings(server.url, log, bulk_records=100, max_in_flight=2)
    async with shipping(wanted, tmp_path / "state") as shipper:
        append(log, lines(*range(5000)))
        await until(lambda: shipper.delivery.trouble is not None)
        append(log, lines(*range(5000, 10_000)))
        assert shipper.delivery.trouble is not None
        assert shipper.delivery.trouble == ("sink", f"{server.url}: Connection refused")
        assert shipper.delivery.in_flight <= 2
        await server.up()
        await until(lambda: len(server.documents) == 10_000)
    assert server.duplicates == 0
    assert [doc["message"] for doc in server.documents.values()][:100] == named(*range(100))


@pytest.mark.fault(21)
async def test_a_slow_or_refusing_server_gets_fewer_requests_at_a_time(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    append(log, lines(*range(20_000)))
    wanted = settings(server.url, log, bulk_records=100, max_in_flight=8)
    server.delay = 0.01
    async with shipping(wanted, tmp_path / "state"):
        await until(lambda: server.most_in_flight >= 4)
        server.always = Fault(429)
        await until(lambda: in_flight_limit() <= server.most_in_flight / 2)
        server.always, server.delay = None, 0.0
        await until(lambda: len(server.documents) == 20_000, 20)


@pytest.mark.fault(22)
async def test_records_in_the_failure_store_are_counted_as_quarantined(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    server.judge = lambda document: (
        {"status": 201, "failure_store": "used"} if document["message"] == "line 2" else None
    )
    before = count("quarantined"), count("sent")
    append(log, lines(1, 2, 3))
    await ship_once(settings(server.url, log), tmp_path / "state")
    assert (count("quarantined") - before[0], count("sent") - before[1]) == (1, 2)


@pytest.mark.fault(35)
async def test_a_stop_with_a_backlog_drains_for_a_bounded_time_and_leaves_the_rest_for_later(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    # All of it would take 50 s.
    server.delay = 1.0
    append(log, lines(*range(5000)))
    async with shipping(settings(server.url, log, bulk_records=100, max_in_flight=1), tmp_path / "state"):
        await until(lambda: len(server.documents) > 0)
        begun = time.monotonic()
    assert time.monotonic() - begun < 20
    first = len(server.documents)
    assert first < 5000
    server.delay = 0.0
    async with shipping(settings(server.url, log, bulk_records=100), tmp_path / "state"):
        await until(lambda: len(server.documents) == 5000)
    # What was drained is not sent again.
    assert server.duplicates <= 100


async def test_another_product_is_refused_with_its_reason(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    server.product = ""
    append(log, lines(1))
    async with shipping(settings(server.url, log), tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert "is not Elasticsearch (OpenSearch is not supported)" in (shipper.delivery.trouble or ("", ""))[1]


async def test_several_hosts_stand_in_for_each_other(server: ElasticsearchStandIn, log: Path, tmp_path: Path) -> None:
    append(log, lines(1, 2))
    both = settings(server.url, log, urls=("http://127.0.0.1:1", server.url))
    await ship_once(both, tmp_path / "state")
    assert numbers(server) == named(1, 2)


async def test_bodies_are_compressed_where_that_is_set(server: ElasticsearchStandIn, log: Path, tmp_path: Path) -> None:
    append(log, lines(*range(500)))
    await ship_once(settings(server.url, log, compress=True), tmp_path / "state")
    (_, _, headers), *_ = server.requests
    assert headers["Content-Encoding"] == "gzip"
    assert len(server.documents) == 500


async def test_credentials_are_read_again_when_they_are_refused(
    server: ElasticsearchStandIn, log: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    append(key, "old")
    server.always = Fault(401)
    append(log, lines(1))
    wanted = settings(server.url, log, api_key=f"file:{key}")
    async with shipping(wanted, tmp_path / "state"):
        await until(lambda: len(server.requests) >= 1)
        append(key, "er")
        await until(lambda: server.requests[-1][2].get("Authorization") == "ApiKey older")
        server.always = None
        await until(lambda: numbers(server) == named(1))
