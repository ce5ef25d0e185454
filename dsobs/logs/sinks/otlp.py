"""OpenTelemetry's protocol: records as OTLP log records, over HTTP (extra `otlp`).

The log data model: https://opentelemetry.io/docs/specs/otel/logs/data-model/. A record's id is its attribute
`log.record.uid`, so that what arrives twice can be told apart; `elasticsearch.index` says where it belongs.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber

from dsobs import __version__
from dsobs.logs.sinks import Answer, SinkSettings
from dsobs.otlp.client import OtlpClient, Reply

if TYPE_CHECKING:
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs

log = logging.getLogger(__name__)

UID = "log.record.uid"
INDEX = "elasticsearch.index"
_NAMES = {
    "error.type": "exception.type",
    "error.message": "exception.message",
    "error.stack_trace": "exception.stacktrace",
    "orchestrator.cluster.name": "k8s.cluster.name",
    "orchestrator.namespace": "k8s.namespace.name",
    "orchestrator.resource.name": "k8s.pod.name",
    "orchestrator.resource.id": "k8s.pod.uid",
}
"""ECS → OpenTelemetry's semantic conventions, where they differ."""
_RESOURCE = ("service.", "host.", "container.", "orchestrator.", "k8s.")
"""Beginnings of names that say where a record comes from."""
_SEVERITIES = {
    "trace": SeverityNumber.SEVERITY_NUMBER_TRACE,
    "debug": SeverityNumber.SEVERITY_NUMBER_DEBUG,
    "info": SeverityNumber.SEVERITY_NUMBER_INFO,
    "notice": SeverityNumber.SEVERITY_NUMBER_INFO2,
    "warn": SeverityNumber.SEVERITY_NUMBER_WARN,
    "warning": SeverityNumber.SEVERITY_NUMBER_WARN,
    "error": SeverityNumber.SEVERITY_NUMBER_ERROR,
    "critical": SeverityNumber.SEVERITY_NUMBER_FATAL,
    "fatal": SeverityNumber.SEVERITY_NUMBER_FATAL,
}
_MOST_INT = 2**63


class OtlpSink:
    """One receiver of OTLP."""

    def __init__(self, settings: SinkSettings) -> None:
        wanted = settings.logs.otlp
        assert wanted is not None
        self._settings = wanted
        self._session: aiohttp.ClientSession | None = None

    async def send(self, index: str, body: Sequence[bytes], count: int) -> Answer:
        """One attempt; the records are taken once the receiver has said so."""
        message = await asyncio.to_thread(request_of, index, body)
        if self._session is None:
            self._session = aiohttp.ClientSession()
        reply = await OtlpClient(self._settings, self._session).send("logs", message)
        return _answer(reply, count)

    async def close(self) -> None:
        """Closes its connections; legal twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _answer(reply: Reply, count: int) -> Answer:
    if reply.status is None or not 200 <= reply.status < 300:
        return Answer(reply.status, detail=reply.detail, retry_after=reply.retry_after)
    if reply.rejected:
        log.warning("OTLP logs: %d of %d records were rejected: %s", reply.rejected, count, reply.detail)
    return Answer(200, rejected=min(reply.rejected, count))


def request_of(index: str, body: Sequence[bytes]) -> ExportLogsServiceRequest:
    """The records of an NDJSON body as one request, those of one resource together."""
    request = ExportLogsServiceRequest()
    groups: dict[tuple[tuple[str, str], ...], ResourceLogs] = {}
    lines = b"".join(body).split(b"\n")
    for action, document in zip(lines[0:-1:2], lines[1:-1:2], strict=True):
        fields: dict[str, Any] = {}
        _flatten(orjson.loads(document), "", fields)
        resource = {name: fields.pop(name) for name in list(fields) if name.startswith(_RESOURCE)}
        key = tuple(sorted((name, str(value)) for name, value in resource.items()))
        group = groups.get(key)
        if group is None:
            group = groups[key] = request.resource_logs.add()
            group.resource.attributes.extend(_attributes(resource))
            group.scope_logs.add().scope.name = "dsobs"
            group.scope_logs[0].scope.version = __version__
        record = group.scope_logs[0].log_records.add()
        _fill(record, orjson.loads(action)["create"]["_id"], index, fields)
    return request


def _flatten(value: Mapping[str, Any], head: str, into: dict[str, Any]) -> None:
    """Nested objects become dotted names, as ECS has both for the same; empty ones stay."""
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            _flatten(inner, f"{head}{key}.", into)
        else:
            into[f"{head}{key}"] = inner


def _fill(record: "LogRecord", uid: str, index: str, fields: dict[str, Any]) -> None:
    level = fields.get("log.level")
    if isinstance(level, str):
        record.severity_text = level
        record.severity_number = _SEVERITIES.get(level.lower(), SeverityNumber.SEVERITY_NUMBER_UNSPECIFIED)
        del fields["log.level"]
    for name, into in (("@timestamp", "time_unix_nano"), ("event.created", "observed_time_unix_nano")):
        nanoseconds = _nanoseconds(fields.get(name))
        if nanoseconds is not None:
            setattr(record, into, nanoseconds)
            del fields[name]
    for name, into, size in (("trace.id", "trace_id", 16), ("span.id", "span_id", 8)):
        raw = _hex(fields.get(name), size)
        if raw is not None:
            setattr(record, into, raw)
            del fields[name]
    if "message" in fields:
        record.body.CopyFrom(_any(fields.pop("message")))
    record.attributes.extend(_attributes({UID: uid, INDEX: index, **fields}))


def _attributes(fields: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=_NAMES.get(name, name), value=_any(value)) for name, value in fields.items()]


def _any(value: Any) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        if -_MOST_INT <= value < _MOST_INT:
            return AnyValue(int_value=value)
        # Greater than the protocol's integers: as text nothing of it is lost.
        return AnyValue(string_value=str(value))
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[_any(one) for one in value]))
    if isinstance(value, dict):
        return AnyValue(kvlist_value=KeyValueList(values=_attributes(value)))
    return AnyValue()


def _nanoseconds(value: Any) -> int | None:
    """Of an ISO time, to the microsecond and what follows it; None for what is none."""
    if not isinstance(value, str):
        return None
    with contextlib.suppress(ValueError, OverflowError):
        at = datetime.fromisoformat(value)
        if at.tzinfo is not None:
            whole = int(at.replace(microsecond=0).timestamp())
            return whole * 1_000_000_000 + at.microsecond * 1000 if whole >= 0 else None
    return None


def _hex(value: Any, size: int) -> bytes | None:
    if isinstance(value, str) and len(value) == 2 * size:
        with contextlib.suppress(ValueError):
            raw = bytes.fromhex(value)
            return raw if any(raw) else None
    return None
