"""Records as OTLP log records: what of a document stands where."""

import json
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber

from dsobs.config.logs import Logs
from dsobs.config.otlp import OtlpLogs
from dsobs.logs.metrics import RECORDS
from dsobs.logs.ship import Shipper
from dsobs.logs.sinks import Answer, SinkSettings, open_sink
from dsobs.logs.sinks.otlp import request_of
from tests.otlp_receiver import Fate, OtlpReceiver, attributes, value_of

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def line(id_: str, document: dict[str, Any]) -> bytes:
    return json.dumps({"create": {"_id": id_}}).encode() + b"\n" + json.dumps(document).encode() + b"\n"


def one(document: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    (group,) = request_of("logs-dsobs.vllm-default", [line("id-1", document)]).resource_logs
    (record,) = group.scope_logs[0].log_records
    return attributes(group.resource.attributes), record


def test_fields_that_the_data_model_has_stand_in_their_places() -> None:
    resource, record = one(
        {
            "@timestamp": "2026-11-24T08:00:00.123456Z",
            "log.level": "error",
            "message": "CUDA out of memory",
            "trace.id": TRACE,
            "span.id": SPAN,
            "service": {"name": "vllm-a"},
            "host.name": "node-1",
            "orchestrator.namespace": "prod",
            "error.stack_trace": "Traceback …",
            "labels": {"model": "deepseek"},
        }
    )
    assert record.time_unix_nano == 1_795_507_200_123_456_000
    assert (record.severity_text, record.severity_number) == ("error", SeverityNumber.SEVERITY_NUMBER_ERROR)
    assert value_of(record.body) == "CUDA out of memory"
    assert (record.trace_id.hex(), record.span_id.hex()) == (TRACE, SPAN)
    assert resource == {"service.name": "vllm-a", "host.name": "node-1", "k8s.namespace.name": "prod"}
    assert attributes(record.attributes) == {
        "log.record.uid": "id-1",
        "elasticsearch.index": "logs-dsobs.vllm-default",
        "exception.stacktrace": "Traceback …",
        "labels.model": "deepseek",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trace.id", "0" * 32),
        ("trace.id", "no hex"),
        ("span.id", 7),
        ("@timestamp", "yesterday"),
        ("@timestamp", "2026-11-24T08:00:00"),
        ("@timestamp", "1850-01-01T00:00:00Z"),
        ("log.level", {"not": "text"}),
        ("big", 2**63 + 5),
        ("nothing", None),
        ("empty", {}),
        ("mixed", [1, "two", None, {"three": 3.5}, [True]]),
    ],
)
def test_what_does_not_fit_the_data_model_is_kept_as_an_attribute(field: str, value: Any) -> None:
    _, record = one({field: value})
    found = attributes(record.attributes)
    if isinstance(value, dict) and value:
        assert found[f"{field}.not"] == "text"
    else:
        assert found[field] == (str(value) if isinstance(value, int) and value > 2**63 else value)


def test_level_that_is_none_of_the_known_ones_keeps_its_text() -> None:
    _, record = one({"log.level": "verbose"})
    assert (record.severity_text, record.severity_number) == ("verbose", 0)


def test_records_of_one_place_share_their_resource() -> None:
    body = [line(str(n), {"message": "x", "host.name": f"h{n % 2}"}) for n in range(6)]
    groups = request_of("i", body).resource_logs
    assert [len(group.scope_logs[0].log_records) for group in groups] == [3, 3]


async def test_records_that_a_receiver_rejects_are_counted_and_never_sent_again() -> None:
    answer = ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = 2
    answer.partial_success.error_message = "too old"
    async with OtlpReceiver() as receiver:
        receiver.always = Fate(body=answer.SerializeToString())
        sink = open_sink("otlp", SinkSettings(Logs(otlp=OtlpLogs(endpoint=receiver.url)), Path("/nonexistent")))
        taken = await sink.send("i", [line("1", {}), line("2", {}), line("3", {})], 3)
        await sink.close()
    assert taken == Answer(200, rejected=2)


async def test_every_line_arrives_though_the_receiver_was_away_and_what_it_rejects_is_counted(tmp_path: Path) -> None:
    (tmp_path / "vllm.log").write_text("".join(f"line {number}\n" for number in range(500)))
    partly = ExportLogsServiceResponse()
    partly.partial_success.rejected_log_records = 1
    before = {outcome: RECORDS.labels(outcome)._value.get() for outcome in ("sent", "rejected")}
    async with OtlpReceiver() as receiver:
        receiver.script.extend([Fate(503), Fate(429), Fate(body=partly.SerializeToString())])
        logs = Logs(
            files=(str(tmp_path / "*.log"),),
            otlp=OtlpLogs(endpoint=receiver.url, bulk_records=100, max_in_flight=1),
        )
        shipper = Shipper(logs, tmp_path / "state", once=True)
        (tmp_path / "state").mkdir()
        await shipper.run()
        bodies = [value_of(record.body) for _, record in receiver.records()]
    assert sorted(bodies) == sorted(f"line {number}" for number in range(500))
    counted = {outcome: RECORDS.labels(outcome)._value.get() - before[outcome] for outcome in before}
    assert counted == {"sent": 499, "rejected": 1}
