"""One record: one second of one server.

A JSON object a line, gzip'ed: `t` (Unix seconds), `health` (HTTP status, or the error in words, or null), `metrics`
(the
whole page, or the error in words), `health_s` and `metrics_s` (seconds each took), `nvml` (readings or null),
`nvml_s`. dsobs's own
recorder adds `failure`, `runtime`, `host` and `probes`; readers do without them.
"""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from dsobs.model.observation import (
    Failure,
    Health,
    HostView,
    Observation,
    Paused,
    RuntimeView,
    Scrape,
)

CHUNK = 256 * 1024
MAX_LINE = 64 * 1024 * 1024


class RecordError(ValueError):
    """A recording that can't be read; the message names file, line and what is wrong."""


def record_of(obs: Observation, nvml: Any, health: Health | None, nvml_seconds: float | None = None) -> dict[str, Any]:
    """The record of one observation whose scrape has ended. `nvml`: the recorded form of the GPU readings."""
    scrape = obs.scrape
    if scrape is None:
        raise ValueError("an observation without a scrape is not recorded")
    failure = scrape.failure
    record: dict[str, Any] = {
        "t": obs.at,
        "health": None if health is None else health.status or f"{health.failure}: {health.detail}",
        "metrics": scrape.text if failure is None else f"{failure}: {scrape.detail}",
        "health_s": None if health is None else health.duration_seconds,
        "metrics_s": scrape.duration_seconds,
        "nvml": nvml,
        "nvml_s": nvml_seconds,
    }
    if failure is not None:
        record["failure"] = {
            "reason": failure.value,
            "status": scrape.status,
            "connected": scrape.connected,
            "answered": scrape.answered,
        }
    if isinstance(obs.runtime, RuntimeView):
        view = obs.runtime
        record["runtime"] = {
            name: getattr(view, name)
            for name in RuntimeView.__dataclass_fields__
            if getattr(view, name) not in (None, ())
        }
    if obs.paused is not None:
        record["paused"] = obs.paused.value
    if isinstance(obs.host, HostView):
        record["host"] = {
            name: getattr(obs.host, name)
            for name in HostView.__dataclass_fields__
            if getattr(obs.host, name) is not None
        }
    if obs.probes:
        record["probes"] = [
            {
                "started_at": p.started_at,
                "ended_at": p.ended_at,
                "outcome": p.outcome.value,
                "engine": p.engine,
                "detail": p.detail,
            }
            for p in obs.probes
        ]
    return record


def failure_of_text(text: str) -> Failure:
    """Which failure an error in words tells of."""
    head = text.partition(":")[0]
    if head in {failure.value for failure in Failure}:
        return Failure(head)
    low = text.lower()
    if "refused" in low:
        return Failure.REFUSED
    if "timed out" in low or "timeout" in low:
        return Failure.TIMEOUT
    if "http error" in low or "status" in low:
        return Failure.HTTP_STATUS
    return Failure.UNREACHABLE


def failed_scrape_of(record: Mapping[str, Any]) -> Scrape:
    """The scrape of a record whose `metrics` is an error in words (or missing)."""
    text = record.get("metrics")
    text = text if isinstance(text, str) else "no metrics in the record"
    told = record.get("failure")
    seconds = record.get("metrics_s")
    duration = float(seconds) if isinstance(seconds, int | float) else 0.0
    at = float(record["t"])
    if isinstance(told, dict) and told.get("reason") in {failure.value for failure in Failure}:
        return Scrape(
            at,
            duration,
            failure=Failure(told["reason"]),
            detail=text,
            status=told.get("status"),
            connected=bool(told.get("connected", True)),
            answered=bool(told.get("answered", True)),
        )
    failure = failure_of_text(text)
    gone = failure in (Failure.REFUSED, Failure.UNREACHABLE)
    return Scrape(
        at, duration, failure=failure, detail=text, connected=not gone, answered=failure is Failure.HTTP_STATUS
    )


def health_of(record: Mapping[str, Any]) -> Health | None:
    """The `/health` of a record; None if none was asked."""
    value = record.get("health")
    if value is None:
        return None
    seconds = record.get("health_s")
    duration = float(seconds) if isinstance(seconds, int | float) else 0.0
    if isinstance(value, int):
        return Health(float(record["t"]), duration, status=value)
    return Health(float(record["t"]), duration, failure=failure_of_text(str(value)), detail=str(value)[:200])


def runtime_of(record: Mapping[str, Any]) -> RuntimeView | None:
    """The runtime's word in a record of dsobs's own recorder; None in others."""
    told = record.get("runtime")
    if not isinstance(told, dict):
        return None
    known = {name: value for name, value in told.items() if name in RuntimeView.__dataclass_fields__}
    for name in ("pids", "started_history", "restarts_before"):
        if name in known:
            known[name] = tuple(known[name])
    try:
        return RuntimeView(**known)
    except TypeError:
        return None


def paused_of(record: Mapping[str, Any]) -> Paused | None:
    """What the engine said of a pause, in a record of dsobs's own recorder; None where it was not asked."""
    told = record.get("paused")
    return Paused(told) if told in set(Paused) else None


def host_of(record: Mapping[str, Any]) -> HostView | None:
    """The host's readings in a record of dsobs's own recorder; None in others."""
    told = record.get("host")
    if not isinstance(told, dict):
        return None
    known = {name: value for name, value in told.items() if name in HostView.__dataclass_fields__}
    try:
        known["filesystems"] = tuple((str(path), int(avail), int(size)) for path, avail, size in known["filesystems"])
        return HostView(**known)
    except (TypeError, ValueError, KeyError):
        return None


def decompressed(path: Path) -> Iterator[bytes]:
    """A file's bytes in chunks of at most `CHUNK`; RecordError where its gzip data are damaged.

    A stream that was cut off gives what it holds.
    """
    with path.open("rb") as file:
        head = file.read(2)
        file.seek(0)
        if head != b"\x1f\x8b":
            yield from iter(lambda: file.read(CHUNK), b"")
            return
        inflate = zlib.decompressobj(31)
        data = b""
        try:
            while data := data or file.read(CHUNK):
                yield inflate.decompress(data, CHUNK)
                data = inflate.unconsumed_tail
                if inflate.eof:
                    data = inflate.unused_data
                    inflate = zlib.decompressobj(31)
            yield inflate.flush()
        except zlib.error as error:
            raise RecordError(f"{path}: damaged gzip data: {error}") from error


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of one file (gzip'ed or not), in order; `RecordError` for what is none.

    A last line that was cut off, as SIGKILL leaves it, is left out.
    """
    number, rest = 0, b""
    for chunk in decompressed(path):
        rest += chunk
        if len(rest) > MAX_LINE:
            raise RecordError(f"{path}:{number + 1}: a line of over {MAX_LINE} bytes")
        *complete, rest = rest.split(b"\n")
        for line in complete:
            number += 1
            if line.strip():
                yield _record(path, number, line)
    if rest.strip():
        try:
            last = orjson.loads(rest)
        except orjson.JSONDecodeError:
            if number == 0:
                raise RecordError(f"{path}:1: no JSON object a line; is this a recording?") from None
            return
        if isinstance(last, dict):
            yield _checked(path, number + 1, last)


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"{path}:{number}: not JSON: {error}; a recording has one JSON object a line") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path}:{number}: a record is a JSON object, not {type(value).__name__}")
    return _checked(path, number, value)


def _checked(path: Path, number: int, value: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(value.get("t"), int | float) or isinstance(value.get("t"), bool):
        raise RecordError(f"{path}:{number}: a record needs `t`, Unix seconds")
    return value
