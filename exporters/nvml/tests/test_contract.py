"""What every NvmlSource does: a recording, the driver's code and, on a machine that has one, a real card."""

import math
from collections.abc import Callable, Sequence

import pytest
from dsobs_nvml import (
    FAMILIES,
    CardSeries,
    NvmlSource,
    NvmlUnavailable,
    Reading,
    readings_of_record,
    record_of_readings,
)

MakeSource = Callable[[Sequence[str]], NvmlSource]


def read_one(source: NvmlSource) -> list[Reading]:
    source.init()
    try:
        return source.read()
    finally:
        source.shutdown()


def test_shutdown_is_legal_before_init_and_twice(make_source: MakeSource) -> None:
    source = make_source(())
    source.shutdown()
    source.init()
    source.shutdown()
    source.shutdown()


def test_reading_before_init_and_after_shutdown_is_unavailable(make_source: MakeSource) -> None:
    source = make_source(())
    with pytest.raises(NvmlUnavailable, match="not started"):
        source.read()
    read_one(source)
    with pytest.raises(NvmlUnavailable, match="not started"):
        source.read()


def test_init_again_connects_anew(make_source: MakeSource) -> None:
    source = make_source(())
    source.init()
    source.init()
    assert source.read()
    source.shutdown()
    assert read_one(source)


def test_each_card_has_one_reading(make_source: MakeSource) -> None:
    readings = read_one(make_source(()))
    assert readings
    assert [reading.index for reading in readings] == sorted({reading.index for reading in readings})


def test_readings_are_in_base_units(make_source: MakeSource) -> None:
    for reading in read_one(make_source(())):
        assert reading.memory_total_bytes is not None
        assert reading.memory_used_bytes is not None
        assert 2**30 < reading.memory_total_bytes < 2**42
        assert 0 <= reading.memory_used_bytes <= reading.memory_total_bytes
        for value, low, high in (
            (reading.utilization_ratio, 0, 1),
            (reading.memory_utilization_ratio, 0, 1),
            (reading.power_watts, 1, 3000),
            (reading.power_limit_watts, 10, 3000),
            (reading.temperature_celsius, 1, 120),
            (reading.sm_clock_hertz, 1e8, 1e10),
            (reading.memory_clock_hertz, 1e8, 3e10),
            (reading.energy_joules, 0, math.inf),
        ):
            assert value is not None
            assert low <= value <= high
        assert reading.clock_event_reasons is not None
        assert reading.processes is not None
        for process in reading.processes:
            assert process.pid > 0
            assert process.memory_bytes is None or 0 < process.memory_bytes <= reading.memory_total_bytes


def test_energy_never_falls(make_source: MakeSource) -> None:
    source = make_source(())
    source.init()
    energies = [source.read()[0].energy_joules or 0.0 for _ in range(5)]
    source.shutdown()
    assert energies == sorted(energies)


def test_cards_are_chosen_by_index_or_uuid(make_source: MakeSource) -> None:
    last = read_one(make_source(()))[-1]
    by_index = read_one(make_source((str(last.index),)))
    assert [reading.index for reading in by_index] == [last.index]
    if last.uuid:
        both = read_one(make_source((last.uuid, str(last.index))))
        assert [(reading.index, reading.uuid) for reading in both] == [(last.index, last.uuid)]


@pytest.mark.parametrize("device", ["99", "GPU-11111111-2222-3333-4444-555555555555"])
def test_a_card_that_is_not_there_is_named(make_source: MakeSource, device: str) -> None:
    with pytest.raises(NvmlUnavailable, match=device):
        read_one(make_source((device,)))


def test_what_was_read_survives_the_record(make_source: MakeSource) -> None:
    readings = read_one(make_source(()))
    assert readings_of_record(record_of_readings(readings)) == readings


def test_every_series_is_of_the_table_of_families_and_there_once(make_source: MakeSource) -> None:
    readings = read_one(make_source(()))
    series = CardSeries()
    series.take(readings, 1.0)
    rows = list(series.rows(readings))
    assert len({row[:-1] for row in rows}) == len(rows)
    for row in rows:
        family = FAMILIES[row.name]
        assert {label for label, _ in row.labels} == set(family.labels)
        assert math.isfinite(row.value)
        assert row.value >= 0 or family.unit == "celsius"
        assert row.value <= 1 or family.unit != "ratio" or row.name == "dsobs_gpu_fan_speed_ratio"
        assert row.value < 1e4 or family.unit not in ("watts", "celsius", "ratio")


def test_a_card_that_answers_is_up_and_has_no_reason(make_source: MakeSource) -> None:
    readings = read_one(make_source(()))
    assert {reading.unknown for reading in readings} == {""}
    assert {row.value for row in CardSeries().rows(readings) if row.name == "dsobs_gpu_up"} == {1.0}


def test_counters_never_fall(make_source: MakeSource) -> None:
    source = make_source(())
    source.init()
    series = CardSeries()
    before: dict[object, float] = {}
    for _ in range(5):
        readings = source.read()
        series.take(readings, 1.0)
        now = {row[:-1]: row.value for row in series.rows(readings) if FAMILIES[row.name].type == "counter"}
        assert all(now[key] >= value for key, value in before.items() if key in now)
        before = now
    source.shutdown()
