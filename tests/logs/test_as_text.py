"""Records that Elasticsearch can't take for their own fields; tests/real/test_log_sinks.py asks the real one."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dsobs.logs.as_text import as_text
from dsobs.logs.metrics import REGISTRY
from dsobs.logs.sinks import Refusal
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import append, settings, ship_once

TIME = '"@timestamp":"2026-11-24T08:00:00Z"'


@pytest.fixture
async def server() -> AsyncIterator[ElasticsearchStandIn]:
    async with ElasticsearchStandIn() as stand_in:
        yield stand_in


def refused(reason: str) -> Refusal:
    return Refusal(400, "document_parsing_exception", reason)


DUPLICATE = "[1:9] failed to parse: [1:12] Duplicate field 'a' at [Source: (byte[])\"{secret\"]"


def test_what_is_known_stays_a_field_and_all_of_it_is_in_the_text() -> None:
    document = b'{%b,"message":"m","labels.site":"x","a":{"b":1},"a":2}' % TIME.encode()
    made = as_text(b'{"create":{"_id":"1"}}\n%b\n' % document, refused(DUPLICATE))
    assert made is not None
    action, text, _ = made.split(b"\n")
    assert action == b'{"create":{"_id":"1"}}'
    assert orjson.loads(text) == {
        "@timestamp": "2026-11-24T08:00:00Z",
        "message": "m",
        "labels.site": "x",
        "error.message": "its fields can't be indexed, and are kept in event.original: [1:9] failed to parse: [1:12] "
        "Duplicate field 'a'",
        "event.original": document.decode(),
    }


@pytest.mark.parametrize(
    "refusal",
    [
        refused("[1:9] failed to parse field [n] of type [long]"),
        refused("object mapping for [o] tried to parse field [o] as object, but found a concrete value"),
        Refusal(429, "es_rejected_execution_exception", "Duplicate field"),
    ],
)
def test_what_a_template_can_mend_is_no_text(refusal: Refusal) -> None:
    assert as_text(b'{"create":{"_id":"1"}}\n{"message":"m"}\n', refusal) is None


def test_it_is_done_once() -> None:
    made = as_text(b'{"create":{"_id":"1"}}\n{"message":"m"}\n', refused(DUPLICATE))
    assert made is not None
    assert as_text(made, refused(DUPLICATE)) is None


async def test_a_file_full_of_lines_with_a_key_twice_is_shipped_to_its_end(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    def judge(document: dict[str, Any]) -> dict[str, Any] | None:
        known = "event.original" in document or "a" not in document
        return None if known else {"status": 400, "error": {"type": "document_parsing_exception", "reason": DUPLICATE}}

    server.judge = judge
    before = REGISTRY.get_sample_value("dsobs_log_failures_total", {"part": "fields"}) or 0.0
    append(tmp_path / "app.log", "".join(f'{{{TIME},"message":"m {n}","a":1,"a":2}}\n' for n in range(200)))
    shipper = await ship_once(settings(server.url, f"json:{tmp_path / 'app.log'}"), tmp_path / "state")
    assert shipper.status().trouble is None
    assert sorted(server.messages()) == sorted(f"m {n}" for n in range(200))
    assert not (tmp_path / "state/dead-letters.ndjson").exists()
    assert REGISTRY.get_sample_value("dsobs_log_failures_total", {"part": "fields"}) == before + 200


async def test_what_is_refused_as_text_too_is_a_dead_letter(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    server.judge = lambda _: {"status": 400, "error": {"type": "document_parsing_exception", "reason": DUPLICATE}}
    append(tmp_path / "app.log", f'{{{TIME},"message":"m","a":1,"a":2}}\n')
    await ship_once(settings(server.url, f"json:{tmp_path / 'app.log'}"), tmp_path / "state")
    (letter,) = (tmp_path / "state/dead-letters.ndjson").read_bytes().splitlines()
    assert "Duplicate field" in orjson.loads(letter)["reason"]
