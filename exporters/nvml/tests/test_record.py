"""The recorded form, and the source that replays it."""

from typing import Any

import pytest
from dsobs_nvml import NvmlUnavailable, Process, Reading, RecordedNvml, readings_of_record, record_of_readings
from hypothesis import given
from hypothesis import strategies as st

COUNTS = st.none() | st.integers(0, 2**53)
CARDS = st.fixed_dictionaries(
    {
        "mem_total": COUNTS,
        "mem_used": COUNTS,
        "util_gpu": st.none() | st.integers(0, 100),
        "util_mem": st.none() | st.integers(0, 100),
        "power_mw": st.none() | st.integers(0, 10**7),
        "limit_mw": st.none() | st.integers(0, 10**7),
        "temp": st.none() | st.integers(0, 150),
        "sm": st.none() | st.integers(0, 10**5),
        "memclk": st.none() | st.integers(0, 10**5),
        "throttle": st.none() | st.integers(0, 2**64 - 1),
        "energy_mj": st.none() | st.integers(0, 10**14),
        "procs": st.none() | st.lists(st.tuples(st.integers(0, 2**22), COUNTS).map(list), max_size=4),
        "index": st.integers(0, 31),
        "uuid": st.text(max_size=8),
        "name": st.text(max_size=8),
        "xids": st.none() | st.lists(st.integers(0, 500), max_size=4),
    }
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(CARDS)
def test_one_card_survives_unchanged(card: dict[str, Any]) -> None:
    assert record_of_readings(readings_of_record(card)) == card


@given(st.lists(CARDS, min_size=2, max_size=4))
def test_several_cards_survive_unchanged(cards: list[dict[str, Any]]) -> None:
    assert record_of_readings(readings_of_record(cards)) == cards


@given(st.sampled_from(["mem_used", "power_mw", "sm", "throttle", "procs", "xids", "index", "uuid"]), JSON)
def test_whatever_a_key_holds_is_read_or_unknown(key: str, value: Any) -> None:
    (reading,) = readings_of_record({key: value})
    assert reading.memory_total_bytes is None
    record_of_readings([reading])


@given(JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    try:
        readings = readings_of_record(value)
    except ValueError:
        return
    assert all(isinstance(reading, Reading) for reading in readings)


def test_the_recording_is_read_in_base_units(recording: list[Any]) -> None:
    (reading,) = readings_of_record(recording[99])
    assert reading == Reading(
        index=0,
        memory_total_bytes=85520809984,
        memory_used_bytes=79550021632,
        utilization_ratio=0.58,
        memory_utilization_ratio=0.4,
        power_watts=416.267,
        power_limit_watts=700.0,
        temperature_celsius=49.0,
        sm_clock_hertz=1_965_000_000.0,
        memory_clock_hertz=2_619_000_000.0,
        clock_event_reasons=4,
        energy_joules=42845.551,
        processes=(Process(776, 79037464576),),
        xids=None,
    )


def test_missing_and_unreadable_keys_are_unknown_not_zero() -> None:
    (reading,) = readings_of_record({"mem_total": "ERR NotSupported", "power_mw": None, "util_gpu": True, "temp": -1})
    assert reading == Reading(index=0)


@pytest.mark.parametrize("record", [None, "x", 1, [1], [None]])
def test_what_is_no_record_is_refused(record: object) -> None:
    with pytest.raises(ValueError, match="no NVML record"):
        readings_of_record(record)


def test_a_recording_is_given_in_order_and_its_last_record_again_without_xids() -> None:
    source = RecordedNvml([{"power_mw": 1000}, None, {"power_mw": 2000, "xids": [31]}])
    source.init()
    assert source.read() == [Reading(0, power_watts=1.0)]
    with pytest.raises(NvmlUnavailable, match="not recorded"):
        source.read()
    source.init()
    assert source.read() == [Reading(0, power_watts=2.0, xids=(31,))]
    assert source.read() == [Reading(0, power_watts=2.0, xids=())]


def test_an_empty_recording_is_unavailable() -> None:
    with pytest.raises(NvmlUnavailable, match="empty"):
        RecordedNvml([]).init()
