"""How much of a replica the requests want."""

import pytest

from dsobs.config.scaling import Scaling
from dsobs.model.samples import Sample, labels
from dsobs.signals.demand import DemandMeter, demand_samples

SETTINGS = Scaling()
TTFT = "dsobs_engine_time_to_first_token_seconds"


def signals(
    waiting: float | None, kv: float = 0.1, tokens: float = 0.0, finished: float = 0.0, rank: str = "0"
) -> list[Sample]:
    of = {"model_name": "m", "engine": rank}
    out = [
        Sample(labels("dsobs_engine_kv_cache_usage_ratio", **of), kv),
        Sample(labels("dsobs_engine_generation_tokens_total", **of), tokens),
        Sample(labels("dsobs_engine_requests_finished_total", finished_reason="stop", **of), finished),
    ]
    return out if waiting is None else [Sample(labels("dsobs_engine_requests_waiting", **of), waiting), *out]


def first_tokens(count: float, in_time: float) -> list[Sample]:
    return [
        Sample(labels(f"{TTFT}_bucket", le="2.5"), in_time),
        Sample(labels(f"{TTFT}_bucket", le="+Inf"), count),
        Sample(labels(f"{TTFT}_count"), count),
    ]


def test_queue_and_kv_cache_count_at_once_and_the_fuller_one_is_the_demand() -> None:
    meter = DemandMeter()
    assert meter.observe(0.0, signals(10.0), SETTINGS, 2.5) == 2.0
    assert meter.observe(1.0, signals(0.0, kv=0.45), SETTINGS, 2.5) == 0.5
    assert set(meter.parts) == {"queue", "kv_cache"}


def test_each_engine_of_a_server_takes_its_part_of_the_queue() -> None:
    both = [*signals(10.0), *signals(0.0, kv=0.9, rank="1")]
    meter = DemandMeter()
    assert meter.observe(0.0, both, SETTINGS, 2.5) == 1.0
    assert meter.parts == {"queue": 1.0, "kv_cache": 1.0}


def test_demand_without_a_queue_is_unknown_and_never_zero() -> None:
    meter = DemandMeter()
    demand = meter.observe(0.0, signals(None), SETTINGS, 2.5)
    assert demand is None
    assert demand_samples(demand, meter) == []


def test_capacity_is_learned_where_requests_waited_all_the_time_and_not_else() -> None:
    meter = DemandMeter()
    for second in range(61):
        meter.observe(float(second), signals(0.0, tokens=second * 1000.0), SETTINGS, 2.5)
    assert meter.capacity is None
    busy = DemandMeter()
    for second in range(61):
        busy.observe(float(second), signals(1.0, tokens=second * 1000.0), SETTINGS, 2.5)
    assert busy.capacity == pytest.approx(1000.0)
    for second in range(61, 200):
        demand = busy.observe(float(second), signals(0.0, tokens=60_000 + (second - 60) * 450.0), SETTINGS, 2.5)
    assert demand == pytest.approx(0.5)
    assert Sample(labels("dsobs_engine_capacity_tokens_per_second"), busy.capacity or 0.0) in demand_samples(
        demand, busy
    )


def test_rates_say_nothing_before_half_of_the_minute_is_covered() -> None:
    settings = SETTINGS.model_copy(update={"requests_per_second": 2.0})
    meter = DemandMeter()
    for second in range(30):
        meter.observe(float(second), signals(0.0, finished=second * 4.0), settings, 2.5)
        assert "requests" not in meter.parts
    assert meter.observe(30.0, signals(0.0, finished=120.0), settings, 2.5) == pytest.approx(2.0)


def test_late_first_tokens_count_once_there_are_enough_requests() -> None:
    meter = DemandMeter()
    for second in range(61):
        meter.observe(float(second), [*signals(0.0), *first_tokens(second / 4, second / 8)], SETTINGS, 2.5)
    assert "late" not in meter.parts
    for second in range(61, 130):
        demand = meter.observe(float(second), [*signals(0.0), *first_tokens(second * 2.0, second * 1.6)], SETTINGS, 2.5)
    assert meter.parts["late"] == pytest.approx(2.0)
    assert demand == pytest.approx(2.0)


def test_counters_that_begin_anew_make_no_demand() -> None:
    meter = DemandMeter()
    for second in range(61):
        meter.observe(float(second), signals(1.0, tokens=second * 1000.0), SETTINGS, 2.5)
    meter.observe(61.0, signals(0.0, tokens=5.0), SETTINGS, 2.5)
    assert set(meter.parts) == {"queue", "kv_cache"}
    meter.forget(model=True)
    assert meter.capacity is None
