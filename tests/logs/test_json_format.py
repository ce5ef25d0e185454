"""JSON lines: what is sent as it is, what gets an ECS name, and what is no JSON."""

from pathlib import Path

import orjson
import pytest

from dsobs.logs.record import Common
from tests.logs.parsing import documents, fields, opened, parsed

_CRASH = (Path(__file__).parents[1] / "data" / "vllm-0.32" / "logs" / "crash.jsonl").read_bytes()
_TIME = "2026-11-24T08:00:00.000Z"


def test_a_line_with_ecs_names_is_sent_byte_for_byte() -> None:
    line = b'{"@timestamp":"2026-11-24T08:00:00.000Z", "log.level":"info","n":12345678901234567890,"x":[1.50]}'
    ((_, raw, document),) = parsed(opened("json"), line + b"\n")
    assert document == raw == line


@pytest.mark.parametrize(
    "line",
    [
        '{"@timestamp":"yesterday"}',
        '{"@timestamp":"2026-11-24T08:00:00"}',
        '{"@timestamp":"2026-11-24T08:00:00Z","message":{"a":1}}',
        '{"@timestamp":"2026-11-24T08:00:00Z","_id":"x"}',
        '{"@timestamp":"2026-11-24T08:00:00Z","host":"x"}',
        '{"@timestamp":"2026-11-24T08:00:00Z","log":{"level":"x"}}',
        '{"a":1}',
        ' {"@timestamp":"2026-11-24T08:00:00Z"}',
    ],
)
def test_a_line_that_an_index_would_refuse_or_that_must_be_mapped_is_made_anew(line: str) -> None:
    ((_, _, document),) = parsed(opened("json", common=Common({"host.name": "n"})), line.encode() + b"\n")
    assert isinstance(document, dict)
    assert document["@timestamp"].endswith("Z")


def test_names_that_others_use_become_ecs_names_and_all_else_stays() -> None:
    (document,) = documents(
        opened("json"),
        '{"ts":1795507200.25,"severity":"ERROR","msg":"no","logger":"app","trace_id":"t","spanId":"s","model":"r1",'
        '"tenant_id":"acme","incident_id":"i-1","pid":7,"process":"worker","host":"node-1","error":"broken",'
        '"user":{"id":[1,null,2.5]},"level":30}',
    )
    assert document == {
        "@timestamp": "2026-11-24T08:00:00.250Z",
        "log.level": "ERROR",
        "message": "no",
        "log.logger": "app",
        "trace.id": "t",
        "span.id": "s",
        "labels.model": "r1",
        "labels.tenant": "acme",
        "labels.incident_id": "i-1",
        "process.pid": 7,
        "process.name": "worker",
        "host.name": "node-1",
        "error.message": "broken",
        "user": {"id": [1, None, 2.5]},
        "level": 30,
    }


def test_a_value_where_the_index_has_an_object_is_kept_as_a_label() -> None:
    (document,) = documents(
        opened("json", common=Common({"host.name": "n"})), f'{{"@timestamp":"{_TIME}","host":"x","event":5}}'
    )
    assert document == {"@timestamp": _TIME, "labels.host": "x", "labels.event": 5}


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ('"2026-11-24 08:00:00,123"', "2026-11-24T08:00:00.123Z"),
        ('"2026-11-24T10:00:00.5+02:00"', "2026-11-24T10:00:00.5+02:00"),
        ('"2026-11-24T10:00:00+0200"', "2026-11-24T10:00:00+02:00"),
        ("1795507200", "2026-11-24T08:00:00.000Z"),
        ("1795507200123", "2026-11-24T08:00:00.123Z"),
        ("1795507200123456789", "2026-11-24T08:00:00.123Z"),
    ],
)
def test_times_of_all_kinds_are_understood(value: str, time: str) -> None:
    (document,) = documents(opened("json"), f'{{"time":{value}}}')
    assert document["@timestamp"] == time
    assert "time" not in document


def test_a_time_that_can_not_be_read_is_kept_and_said() -> None:
    (document,) = documents(opened("json"), '{"@timestamp":"yesterday","time":"2026-99-99T00:00:00Z"}')
    assert document["@timestamp"] == "2026-11-24T08:13:20.000Z"
    assert document["labels.timestamp"] == "yesterday"
    assert document["time"] == "2026-99-99T00:00:00Z"
    assert "time can't be read" in document["error.message"]


@pytest.mark.parametrize(
    "line", [b"no json", b'{"a":', b"[1]", b"5", b'{"a":NaN}', b"\xff\xfe", b"a\0b", b'{"a":"\\ud800"}', b"[" * 2000]
)
def test_what_is_no_object_is_sent_as_text_with_the_reason(line: bytes) -> None:
    (document,) = documents(opened("json"), line)
    assert document["message"] == line.decode("utf-8", "replace")
    assert "not a JSON object" in document["error.message"]


def test_an_object_deeper_than_can_be_written_is_sent_as_text() -> None:
    line = b'{"a":' * 300 + b"1" + b"}" * 300
    (document,) = documents(opened("json"), line)
    assert document["message"] == line.decode()


def test_vllms_json_of_0_32_has_process_logger_and_time_with_its_zone() -> None:
    records = [fields(record) for record in parsed(opened("vllm-json"), _CRASH)]
    (failed,) = [record for record in records if "error.type" in record]
    assert failed["message"] == "AsyncLLM output_handler failed."
    assert failed["error.type"] == "vllm.v1.engine.exceptions.EngineDeadError"
    assert failed["error.stack_trace"].startswith("Traceback")
    assert (failed["process.name"], failed["log.logger"]) == ("APIServer", "vllm.v1.engine.async_llm")
    assert failed["@timestamp"] == "2026-11-24T08:13:23.615Z"
    assert (failed["event.timezone"], failed["labels.time_inferred"]) == ("+00:00", "zone")
    accesses = [record for record in records if record.get("log.logger") == "uvicorn.access"]
    assert {record["http.response.status_code"] for record in accesses} == {200, 404, 500}
    assert any("vllm.requests_running" in record for record in records)
    assert not any("JSON object" in record.get("error.message", "") for record in records)


def test_python_log_records_say_where_they_come_from() -> None:
    line = orjson.dumps(
        {"asctime": "2026-11-24 08:00:00,000", "levelname": "INFO", "name": "a.b", "filename": "b.py", "lineno": 7}
    )
    (document,) = documents(opened("json"), line)
    assert document["log.logger"] == "a.b"
    assert (document["log.origin.file.name"], document["log.origin.file.line"]) == ("b.py", 7)
