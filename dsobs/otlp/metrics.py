"""Samples as OTLP metrics: by OpenTelemetry's names where it has some, else by their own.

Semantic conventions: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/ (server) and
https://opentelemetry.io/docs/specs/semconv/hardware/gpu/. Own names stay as they are in Prometheus, as its
compatibility specification has it. What is unknown has no data point.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from dsobs.model.samples import Sample
from dsobs.model.signals import SIGNALS

Attributes = dict[str, Any]
_CUMULATIVE = AggregationTemporality.CUMULATIVE
_UNITS = {
    "seconds": "s",
    "bytes": "By",
    "ratio": "1",
    "watts": "W",
    "celsius": "Cel",
    "hertz": "Hz",
    "joules": "J",
}
"""In UCUM, which OpenTelemetry writes units in."""
START_TIME = "dsobs_engine_process_start_time_seconds"
OPERATION = "inference"
"""`gen_ai.operation.name`: engines do not tell chat from completions in their histograms."""


@dataclass(frozen=True, slots=True)
class Named:
    """How OpenTelemetry calls a signal."""

    name: str
    kind: str
    """counter, updowncounter, gauge or histogram."""
    unit: str
    attributes: Callable[[Mapping[str, str], str], Attributes]
    """From the sample's labels and the engine's name."""


def _server(labels: Mapping[str, str], engine: str) -> Attributes:
    own = {"gen_ai.operation.name": OPERATION, "gen_ai.provider.name": engine or "unknown"}
    if model := labels.get("model_name"):
        own["gen_ai.request.model"] = model
    if rank := labels.get("engine"):
        own["dsobs.engine"] = rank
    return own


def _gpu(labels: Mapping[str, str], _: str) -> Attributes:
    return {"hw.id": labels.get("uuid") or labels.get("gpu", ""), "hw.type": "gpu"}


def _xid(labels: Mapping[str, str], engine: str) -> Attributes:
    return {**_gpu(labels, engine), "error.type": f"xid_{labels.get('xid', '')}"}


def _ecc(labels: Mapping[str, str], engine: str) -> Attributes:
    return {**_gpu(labels, engine), "error.type": labels.get("type", "")}


NAMED: Mapping[str, Named] = {
    "dsobs_engine_request_duration_seconds": Named("gen_ai.server.request.duration", "histogram", "s", _server),
    "dsobs_engine_time_to_first_token_seconds": Named("gen_ai.server.time_to_first_token", "histogram", "s", _server),
    "dsobs_engine_inter_token_latency_seconds": Named("gen_ai.server.time_per_output_token", "histogram", "s", _server),
    "dsobs_gpu_utilization_ratio": Named("hw.gpu.utilization", "gauge", "1", _gpu),
    "dsobs_gpu_memory_total_bytes": Named("hw.gpu.memory.limit", "updowncounter", "By", _gpu),
    "dsobs_gpu_memory_used_bytes": Named("hw.gpu.memory.usage", "updowncounter", "By", _gpu),
    "dsobs_gpu_memory_used_ratio": Named("hw.gpu.memory.utilization", "gauge", "1", _gpu),
    "dsobs_gpu_power_watts": Named("hw.power", "gauge", "W", _gpu),
    "dsobs_gpu_energy_joules_total": Named("hw.energy", "counter", "J", _gpu),
    "dsobs_gpu_xid_errors_total": Named("hw.errors", "counter", "{error}", _xid),
    "dsobs_gpu_ecc_errors_total": Named("hw.errors", "counter", "{error}", _ecc),
}
"""Signal → OpenTelemetry's name for it, under which alone it is exported."""
STATUS = "hw.status"
"""Made from several signals, see `_statuses`."""


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of a metric family that is no canonical signal."""

    type: str
    help: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class _Point:
    attributes: Attributes
    value: float


def metrics_data(
    samples: Iterable[Sample],
    own: Sequence[tuple[str, Family, Sequence[Sample]]],
    *,
    server: Resource,
    dsobs: Resource,
    scope: InstrumentationScope,
    engine: str,
    at: float,
    since: float,
) -> MetricsData:
    """One export. `samples`: canonical ones and alerts, of the resource `server`; `own`: dsobs's families with their
    samples, of the resource `dsobs`.

    `at` is the time of the reading, `since` that from which counters that are not the engine's are known to count (both
    Unix seconds); those of the engine count from its start.
    """
    samples = list(samples)
    started = next((s.value for s in samples if dict(s.labels).get("__name__") == START_TIME), since)
    end, begun, engine_begun = int(at * 1e9), int(since * 1e9), int(started * 1e9)
    families: dict[str, list[tuple[dict[str, str], float]]] = {}
    histograms: dict[str, list[tuple[dict[str, str], str, float]]] = {}
    for sample in samples:
        labels = dict(sample.labels)
        name = labels.pop("__name__", "")
        base, part = _histogram_part(name)
        if part:
            histograms.setdefault(base, []).append((labels, part, sample.value))
        else:
            families.setdefault(name, []).append((labels, sample.value))
    made: dict[str, Metric] = {}
    for name, found in families.items():
        signal = SIGNALS.get(name)
        family = Family(signal.type, signal.help, signal.unit) if signal is not None else Family("gauge")
        _add(made, name, family, found, engine, engine_begun if name.startswith("dsobs_engine_") else begun, end)
    for name, parts in histograms.items():
        signal = SIGNALS[name]
        _add_histogram(made, name, Family("histogram", signal.help, signal.unit), parts, engine, engine_begun, end)
    status = list(_statuses(families))
    if status:
        made[STATUS] = Metric(
            STATUS, "1 for the state that a card is in.", "1", Sum(_points(status, begun, end), _CUMULATIVE, False)
        )
    ours: dict[str, Metric] = {}
    for name, family, found_samples in own:
        if family.type == "histogram":
            split = [(dict(s.labels), s.value) for s in found_samples]
            parts = [(_without_name(labels), _histogram_part_of(labels, name), value) for labels, value in split]
            _add_histogram(ours, name, family, [p for p in parts if p[1]], engine, begun, end)
        else:
            plain = [(_without_name(dict(s.labels)), s.value) for s in found_samples]
            _add(ours, name, family, plain, engine, begun, end)
    return MetricsData(
        [
            ResourceMetrics(resource, [ScopeMetrics(scope, list(metrics.values()), "")], "")
            for resource, metrics in ((server, made), (dsobs, ours))
            if metrics
        ]
    )


def _without_name(labels: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in labels.items() if name != "__name__"}


def _histogram_part(name: str) -> tuple[str, str]:
    for suffix in ("_bucket", "_sum", "_count"):
        base = name.removesuffix(suffix)
        if base != name and base in SIGNALS and SIGNALS[base].type == "histogram":
            return base, suffix
    return name, ""


def _histogram_part_of(labels: Mapping[str, str], base: str) -> str:
    part = labels.get("__name__", "").removeprefix(base)
    return part if part in ("_bucket", "_sum", "_count") else ""


def _points(points: Iterable[_Point], begun: int, end: int) -> list[NumberDataPoint]:
    return [NumberDataPoint(one.attributes, begun, end, one.value) for one in points]


def _add(
    made: dict[str, Metric],
    name: str,
    family: Family,
    found: Iterable[tuple[dict[str, str], float]],
    engine: str,
    begun: int,
    end: int,
) -> None:
    named = NAMED.get(name)
    kind, unit = (named.kind, named.unit) if named is not None else (family.type, _UNITS.get(family.unit, ""))
    points = _points(
        (
            _Point(named.attributes(labels, engine) if named is not None else dict(labels), value)
            for labels, value in found
            if not math.isnan(value)
        ),
        begun if kind in ("counter", "updowncounter") else 0,
        end,
    )
    if not points:
        return
    shown = named.name if named is not None else name
    if shown in made:
        # Two signals that OpenTelemetry has under one name.
        made[shown].data.data_points.extend(points)  # type: ignore[union-attr]
        return
    data: Sum | Gauge = Gauge(points)
    if kind in ("counter", "updowncounter"):
        data = Sum(points, _CUMULATIVE, kind == "counter")
    made[shown] = Metric(shown, family.help, unit, data)


def _add_histogram(
    made: dict[str, Metric],
    name: str,
    family: Family,
    parts: Iterable[tuple[dict[str, str], str, float]],
    engine: str,
    begun: int,
    end: int,
) -> None:
    grouped: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    for labels, part, value in parts:
        bound = labels.pop("le", "")
        key = tuple(sorted(labels.items()))
        grouped.setdefault(key, {})[bound if part == "_bucket" else part] = value
    named = NAMED.get(name)
    points = []
    for key, values in grouped.items():
        point = _histogram(values)
        if point is None:
            continue
        bounds, counts, total, number = point
        attributes = named.attributes(dict(key), engine) if named is not None else dict(key)
        points.append(
            HistogramDataPoint(
                attributes,
                begun,
                end,
                number,
                total,
                counts,
                bounds,
                min=None,  # type: ignore[arg-type]  # Optional in the protocol, and not known.
                max=None,  # type: ignore[arg-type]
            )
        )
    if points:
        shown = named.name if named is not None else name
        unit = named.unit if named is not None else _UNITS.get(family.unit, "")
        made[shown] = Metric(shown, family.help, unit, Histogram(points, _CUMULATIVE))


def _histogram(values: Mapping[str, float]) -> tuple[list[float], list[int], float, int] | None:
    """Bounds, counts between them, sum and count; None where the page gave half a histogram or one that shrinks."""
    try:
        total = values["_sum"]
        buckets = sorted((float(bound), int(count)) for bound, count in values.items() if not bound.startswith("_"))
    except (KeyError, ValueError, OverflowError):
        return None
    if not buckets or not math.isinf(buckets[-1][0]) or math.isnan(total):
        return None
    counts = [count - before for (_, count), before in zip(buckets, [0, *(c for _, c in buckets)], strict=False)]
    if min(counts) < 0:
        return None
    return [bound for bound, _ in buckets[:-1]], counts, total, buckets[-1][1]


def _statuses(families: Mapping[str, Sequence[tuple[dict[str, str], float]]]) -> Iterator[_Point]:
    """ok, degraded (the driver advises a recovery, or a row remap waits) or failed (a row remap did).

    Of a card of which nothing is known, nothing.
    """
    worse: dict[str, str] = {}
    for labels, value in families.get("dsobs_gpu_recovery_action", ()):
        if value and labels.get("action") != "none":
            worse[labels.get("uuid", "")] = "degraded"
    for name, state in (("dsobs_gpu_row_remap_pending", "degraded"), ("dsobs_gpu_row_remap_failed", "failed")):
        for labels, value in families.get(name, ()):
            if value:
                worse[labels.get("uuid", "")] = state
    for labels, value in families.get("dsobs_gpu_up", ()):
        if value:
            now = worse.get(labels.get("uuid", ""), "ok")
            for state in ("ok", "degraded", "failed"):
                yield _Point({**_gpu(labels, ""), "hw.state": state}, float(state == now))
