"""An answer that all was taken is known by its bytes; whatever differs from that in one of them is read as JSON."""

import contextlib
from typing import Any

import orjson
import pytest
from elastic_transport import SerializationError

from dsobs.logs.sinks import Answer
from dsobs.logs.sinks.elasticsearch import Raw, read_answer


def answer(data: bytes, count: int) -> Answer:
    return read_answer(Raw().loads(data), count, "http://es")


def said(*items: dict[str, Any], errors: bool = False) -> bytes:
    return orjson.dumps({"errors": errors, "items": [{"create": item} for item in items]})


TAKEN = {"status": 201}


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_all_taken_is_that_and_only_for_as_many_as_were_sent(count: int) -> None:
    data = said(*[TAKEN] * count)
    assert answer(data, count) == Answer(200)
    assert answer(data, count + 1).status is None
    assert answer(data, count - 1).status is None


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (said(TAKEN, {"status": 400}), {1: 400}),
        (said({"status": 409}, TAKEN), {0: 409}),
        (said(TAKEN, {"status": 201, "failure_store": "used"}), {}),
        (said(TAKEN, TAKEN)[:-1], None),
        (said(TAKEN, TAKEN) + b"x", None),
        (said(TAKEN, TAKEN).replace(b"}},{", b"}}x{"), None),
        (said(TAKEN, TAKEN, errors=True), {}),
        (b" " + said(TAKEN, TAKEN), {}),
        (b"{}", None),
    ],
)
def test_any_other_answer_is_read(data: bytes, wanted: dict[int, int] | None) -> None:
    if wanted is None:
        with contextlib.suppress(SerializationError):
            assert answer(data, 2).status is None
        return
    found = answer(data, 2)
    assert found.status == 200
    assert {number: one.status for number, one in found.refused.items()} == wanted
    assert found.quarantined == data.count(b"failure_store")
