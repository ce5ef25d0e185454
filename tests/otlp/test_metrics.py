"""Samples as OTLP metrics."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from dsobs.model.samples import Sample, labels
from dsobs.model.signals import SIGNALS
from dsobs.otlp.metrics import NAMED, Family, metrics_data

STARTED, SINCE, AT = 1_000.0, 1_500.0, 2_000.0
MODEL = {"model_name": "deepseek", "engine": "0"}
CARD = {"gpu": "0", "uuid": "GPU-1"}


def exported(samples: list[Sample], own: Any = ()) -> dict[str, dict[str, Any]]:
    """Name → metric, as JSON of the official protobufs, with its resource's service under `service`."""
    data = metrics_data(
        samples,
        own,
        server=Resource({"service.name": "vllm-a"}),
        dsobs=Resource({"service.name": "dsobs"}),
        scope=InstrumentationScope("dsobs", "1"),
        engine="vllm",
        at=AT,
        since=SINCE,
    )
    found = {}
    for group in MessageToDict(encode_metrics(data)).get("resourceMetrics", []):
        (service,) = [pair["value"]["stringValue"] for pair in group["resource"]["attributes"]]
        for scope in group["scopeMetrics"]:
            for metric in scope["metrics"]:
                assert metric["name"] not in found
                found[metric["name"]] = {**metric, "service": service}
    return found


def attributes(point: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in point.get("attributes", [])}


def histogram(name: str, counts: dict[str, float], total: float, **more: str) -> list[Sample]:
    buckets = [Sample(labels(f"{name}_bucket", le=bound, **more), count) for bound, count in counts.items()]
    last = list(counts.values())[-1]
    return [*buckets, Sample(labels(f"{name}_sum", **more), total), Sample(labels(f"{name}_count", **more), last)]


def test_latencies_are_histograms_of_the_genai_conventions_that_count_from_the_engines_start() -> None:
    found = exported(
        [
            Sample(labels("dsobs_engine_process_start_time_seconds"), STARTED),
            *histogram("dsobs_engine_time_to_first_token_seconds", {"0.5": 2, "1": 5, "+Inf": 6}, 4.5, **MODEL),
        ]
    )["gen_ai.server.time_to_first_token"]
    assert (found["unit"], found["service"]) == ("s", "vllm-a")
    assert found["histogram"]["aggregationTemporality"] == "AGGREGATION_TEMPORALITY_CUMULATIVE"
    (point,) = found["histogram"]["dataPoints"]
    assert point["explicitBounds"] == [0.5, 1.0]
    assert point["bucketCounts"] == ["2", "3", "1"]
    assert (point["count"], point["sum"]) == ("6", 4.5)
    assert "min" not in point
    assert int(point["startTimeUnixNano"]) == STARTED * 1e9
    assert int(point["timeUnixNano"]) == AT * 1e9
    assert attributes(point) == {
        "gen_ai.operation.name": "inference",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "deepseek",
        "dsobs.engine": "0",
    }


def test_cards_have_the_names_of_the_hardware_conventions() -> None:
    found = exported(
        [
            Sample(labels("dsobs_gpu_up", **CARD), 1),
            Sample(labels("dsobs_gpu_utilization_ratio", **CARD), 0.5),
            Sample(labels("dsobs_gpu_memory_used_bytes", **CARD), 5.0),
            Sample(labels("dsobs_gpu_memory_total_bytes", **CARD), 10.0),
            Sample(labels("dsobs_gpu_xid_errors_total", xid="79", reason="fell off", **CARD), 1),
            Sample(labels("dsobs_gpu_ecc_errors_total", type="uncorrected", **CARD), 2),
        ]
    )
    card = {"hw.id": "GPU-1", "hw.type": "gpu"}
    (point,) = found["hw.gpu.utilization"]["gauge"]["dataPoints"]
    assert (point["asDouble"], attributes(point)) == (0.5, card)
    usage = found["hw.gpu.memory.usage"]
    assert (usage["unit"], usage["sum"].get("isMonotonic", False)) == ("By", False)
    errors = found["hw.errors"]["sum"]
    assert errors["isMonotonic"]
    assert [attributes(p)["error.type"] for p in errors["dataPoints"]] == ["xid_79", "uncorrected"]
    assert int(errors["dataPoints"][0]["startTimeUnixNano"]) == SINCE * 1e9
    states = {attributes(p)["hw.state"]: p["asDouble"] for p in found["hw.status"]["sum"]["dataPoints"]}
    assert states == {"ok": 1.0, "degraded": 0.0, "failed": 0.0}


@pytest.mark.parametrize(
    ("more", "state"),
    [
        (Sample(labels("dsobs_gpu_recovery_action", action="none", **CARD), 1), "ok"),
        (Sample(labels("dsobs_gpu_recovery_action", action="reset", **CARD), 1), "degraded"),
        (Sample(labels("dsobs_gpu_row_remap_pending", **CARD), 1), "degraded"),
        (Sample(labels("dsobs_gpu_row_remap_failed", **CARD), 1), "failed"),
    ],
)
def test_status_of_a_card_is_what_its_driver_says(more: Sample, state: str) -> None:
    found = exported([Sample(labels("dsobs_gpu_up", **CARD), 1), more])["hw.status"]["sum"]["dataPoints"]
    assert [attributes(p)["hw.state"] for p in found if p["asDouble"]] == [state]


def test_card_of_which_nothing_is_known_has_no_status_and_never_a_good_one() -> None:
    found = exported([Sample(labels("dsobs_gpu_up", **CARD), 0.0)])
    assert "hw.status" not in found
    assert found["dsobs_gpu_up"]["gauge"]["dataPoints"][0]["asDouble"] == 0.0


def test_what_is_unknown_is_not_exported() -> None:
    assert exported([Sample(labels("dsobs_engine_requests_running", **MODEL), math.nan)]) == {}
    assert exported([]) == {}


@pytest.mark.parametrize("counts", [{"1": 3.0}, {"1": 3.0, "+Inf": 2.0}, {"x": 1.0, "+Inf": 2.0}, {}])
def test_half_a_histogram_is_left_out(counts: dict[str, float]) -> None:
    name = "dsobs_engine_request_duration_seconds"
    samples = [Sample(labels(f"{name}_bucket", le=b, **MODEL), c) for b, c in counts.items()]
    assert exported([*samples, Sample(labels(f"{name}_sum", **MODEL), 1.0)]) == {}


def test_other_signals_keep_their_names_with_units_of_ucum() -> None:
    found = exported(
        [
            Sample(labels("dsobs_engine_generation_tokens_total", **MODEL), 7.0),
            Sample(labels("dsobs_engine_stall_seconds", **MODEL), 1.0),
            Sample(labels("ALERTS", alertname="EngineHung", alertstate="firing"), 1.0),
        ]
    )
    assert found["dsobs_engine_generation_tokens_total"]["sum"]["isMonotonic"]
    assert found["dsobs_engine_stall_seconds"]["unit"] == "s"
    (alert,) = found["ALERTS"]["gauge"]["dataPoints"]
    assert attributes(alert) == {"alertname": "EngineHung", "alertstate": "firing"}


def test_dsobs_own_metrics_are_of_its_own_resource() -> None:
    delivery = "dsobs_notification_delivery_seconds"
    own = [
        ("dsobs_loop_ticks_total", Family("counter"), [Sample(labels("dsobs_loop_ticks_total", loop="main"), 3.0)]),
        (delivery, Family("histogram", "", "seconds"), histogram(delivery, {"1": 1, "+Inf": 1}, 0.2, notifier="x")),
    ]
    found = exported([Sample(labels("dsobs_engine_up"), 1.0)], own)
    assert {name: one["service"] for name, one in found.items()} == {
        "dsobs_engine_up": "vllm-a",
        "dsobs_loop_ticks_total": "dsobs",
        delivery: "dsobs",
    }
    (point,) = found[delivery]["histogram"]["dataPoints"]
    assert (point["bucketCounts"], attributes(point)) == (["1", "0"], {"notifier": "x"})


def test_every_name_of_the_table_is_a_signal_of_the_same_type() -> None:
    for name, named in NAMED.items():
        assert named.kind == SIGNALS[name].type or (named.kind, SIGNALS[name].type) == ("updowncounter", "gauge")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12), st.floats(0, 1e6))
def test_buckets_add_up_to_the_count(steps: list[int], total: float) -> None:
    counts, sums = {}, 0
    for place, step in enumerate(steps):
        sums += step
        counts[str(float(place)) if place < len(steps) - 1 else "+Inf"] = float(sums)
    samples = histogram("dsobs_engine_queue_duration_seconds", counts, total, **MODEL)
    (point,) = exported(samples)["dsobs_engine_queue_duration_seconds"]["histogram"]["dataPoints"]
    assert [int(count) for count in point["bucketCounts"]] == steps
    assert int(point.get("count", 0)) == sum(steps)


def test_table_in_the_docs_names_what_is_renamed() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/opentelemetry.md").read_text()
    rows = dict(re.findall(r"^\| `(dsobs_\w+)` \| `([\w.]+)`", page, re.MULTILINE))
    assert rows == {name: named.name for name, named in NAMED.items()}
