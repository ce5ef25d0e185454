"""Keys of JSON log lines that mean what an ECS field means, and what an index could not take as it is.

All other keys, and those whose values are not of the kind that the field wants, stay as they are.
"""

from collections.abc import Container, Mapping, Sequence
from datetime import datetime, tzinfo
from operator import itemgetter
from typing import Any

import orjson

from dsobs.logs.formats.numbers import access_of, numbers_of, trace_of
from dsobs.logs.formats.raw import iso_time, note_faults
from dsobs.logs.formats.text import error_of
from dsobs.logs.formats.times import iso_of

TIMES = ("timestamp", "time", "ts", "asctime", "datetime", "@t")
_TEXTS = {
    "level": "log.level",
    "levelname": "log.level",
    "severity": "log.level",
    "lvl": "log.level",
    "log_level": "log.level",
    "loglevel": "log.level",
    "msg": "message",
    "logger": "log.logger",
    "logger_name": "log.logger",
    "vllm_process_name": "process.name",
    "process_name": "process.name",
    "threadName": "process.thread.name",
    "exception": "error.stack_trace",
    "exc_info": "error.stack_trace",
    "exc_text": "error.stack_trace",
    "stack_trace": "error.stack_trace",
    "traceback": "error.stack_trace",
    "trace_id": "trace.id",
    "traceId": "trace.id",
    "traceID": "trace.id",
    "otelTraceID": "trace.id",
    "span_id": "span.id",
    "spanId": "span.id",
    "spanID": "span.id",
    "otelSpanID": "span.id",
    "model": "labels.model",
    "model_name": "labels.model",
    "served_model_name": "labels.model",
    "tenant": "labels.tenant",
    "tenant_id": "labels.tenant",
    "incident_id": "labels.incident_id",
    "incident": "labels.incident_id",
    "hostname": "host.name",
}
_PYTHON = {"name": "log.logger", "filename": "log.origin.file.name", "funcName": "log.origin.function"}
CALLS = frozenset({*_PYTHON, "lineno"})
"""Keys that mean something only beside `levelname`: attributes of Python's log records."""
_OBJECTS = {
    "host": "host.name",
    "service": "service.name",
    "error": "error.message",
    "log": "message",
    "event": "event.action",
    "process": "process.name",
    "container": "container.name",
    "span": "span.id",
    "trace": "trace.id",
    "url": "url.original",
    "http": "",
    "client": "client.address",
    "orchestrator": "",
    "labels": "",
    "vllm": "",
}
"""Objects of ECS, and the field in each that takes a text which stands in its place."""
_METADATA = (
    "_id",
    "_index",
    "_source",
    "_type",
    "_routing",
    "_seq_no",
    "_field_names",
    "_ignored",
    "_tier",
    "_doc_count",
)
"""Names that Elasticsearch keeps for itself: a document with one of them is refused."""

SPECIAL = frozenset({*TIMES, *_TEXTS, *_PYTHON, *_OBJECTS, *_METADATA, "pid", "lineno", "traceparent"})
MOST_DEPTH = 200
"""Brackets that open in a line whose document is written anew: orjson reads deeper objects than it writes."""


def renamed(key: str, *, python: bool) -> tuple[str, type]:
    """ECS name of a special key whose value stays as it is, and the type that it must have; "" for another key.

    `python`: it stands beside `levelname`.
    """
    if key in _TEXTS:
        return _TEXTS[key], str
    if python and key in _PYTHON:
        return _PYTHON[key], str
    if python and key == "lineno":
        return "log.origin.file.line", int
    return ("process.pid", int) if key in ("process", "pid") else ("", str)


def wants_more(logger: Any, message: str) -> bool:
    """Whether a record of Python's logging has fields that are read out of its message."""
    return logger == "uvicorn.access" or " took " in message or "KV cache" in message or "SpecDecoding" in message


def is_time(value: Any) -> bool:
    """Whether `value` can be an `@timestamp` as it is: ISO 8601 to the second at least, with its zone."""
    if type(value) is not str or len(value) < 20 or value[10] != "T" or value[13] != ":" or "," in value:
        return False
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def are_times(values: Sequence[Any]) -> bool:
    """Whether each of them `is_time`; for many at once."""
    try:
        zones = {time.tzinfo for time in map(datetime.fromisoformat, values)}
    except (ValueError, TypeError):
        return False
    return (
        None not in zones
        and set(map(type, values)) == {str}
        and min(map(len, values)) >= 20
        and set(map(itemgetter(10), values)) == {"T"}
        and set(map(itemgetter(13), values)) == {":"}
        and "," not in "".join(values)
    )


def can_be_sent(fields: Mapping[str, Any]) -> bool:
    """Whether the time and the message of a line are what an index takes for them."""
    return type(fields.get("message", "")) is str and is_time(fields.get("@timestamp"))


def map_fields(
    fields: dict[str, Any], reserved: Container[str], read_at: float, when: str, zone: tzinfo | None
) -> dict[str, Any]:
    """`fields` with ECS names in place of the ones known here. `when`: its time by somebody else, or empty."""
    python = "levelname" in fields
    name = fields.get("name")
    for key in [key for key in fields if key in SPECIAL]:
        target, kind = renamed(key, python=python)
        if target and type(fields[key]) is kind and target not in fields and target not in reserved:
            fields[target] = fields.pop(key)
        elif key not in TIMES:
            _map_other(fields, key, reserved)
    _time(fields, read_at, when, zone)
    trace_text = fields.get("error.stack_trace")
    if trace_text and "error.type" not in fields and type(trace_text) is str:
        for name, value in error_of(trace_text).items():
            fields.setdefault(name, value)
    message = fields.get("message")
    if type(message) is str:
        if python and wants_more(name, message):
            fields.update(access_of(message) if name == "uvicorn.access" else numbers_of(message))
    elif "message" in fields:
        fields["message"] = orjson.dumps(message).decode()
    return fields


def _map_other(fields: dict[str, Any], key: str, reserved: Container[str]) -> None:
    """A key whose value is not kept as it is under another name."""
    value = fields[key]
    kind = type(value)
    if key in _OBJECTS:
        if kind is not dict and not (kind is list and all(type(item) is dict for item in value)):
            _replace_object(fields, key, value, reserved)
    elif key in _METADATA:
        fields[f"labels.{key}"] = _label(fields.pop(key))
    elif key == "traceparent" and kind is str and (trace := trace_of(value)):
        for name in trace:
            fields.setdefault(name, trace[name])
        del fields[key]


def _replace_object(fields: dict[str, Any], key: str, value: Any, reserved: Container[str]) -> None:
    """A value where the index has an object, which it would refuse."""
    del fields[key]
    if value is None:
        return
    target = _OBJECTS[key]
    if target and type(value) is str and target not in fields and target not in reserved:
        fields[target] = value
    else:
        fields[f"labels.{key}"] = _label(value)


def _label(value: Any) -> Any:
    """As an index takes it for a label: objects, and lists that may hold some, as JSON text."""
    return orjson.dumps(value).decode() if isinstance(value, dict | list) else value


def _time(fields: dict[str, Any], read_at: float, when: str, zone: tzinfo | None) -> None:
    own = fields.get("@timestamp")
    if own is not None and is_time(own):
        return
    for key in ("@timestamp", *TIMES):
        if key in fields:
            time, taken = iso_of(fields[key], zone)
            if taken and when and key != "@timestamp":
                # The runtime's time has a zone, and this one stays where it is.
                fields["@timestamp"] = when
            elif time:
                del fields[key]
                fields["@timestamp"] = time
                if taken:
                    fields.setdefault("event.timezone", taken)
                    fields.setdefault("labels.time_inferred", "zone")
            if time:
                break
    else:
        if "@timestamp" in fields:
            fields["labels.timestamp"] = str(own)
            note_faults(fields, "no_time")
        fields["@timestamp"] = when or iso_time(read_at)
