"""Readings as a flight recorder keeps them: JSON objects with NVML's own units."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dsobs_nvml.reading import Measure, Process, Reading

N = TypeVar("N", int, float)

_SCALED = (
    # key of the record, field of the reading, base units in one unit of the record
    ("util_gpu", "utilization_ratio", 0.01),
    ("util_mem", "memory_utilization_ratio", 0.01),
    ("power_mw", "power_watts", 0.001),
    ("limit_mw", "power_limit_watts", 0.001),
    ("temp", "temperature_celsius", 1.0),
    ("sm", "sm_clock_hertz", 1e6),
    ("memclk", "memory_clock_hertz", 1e6),
    ("energy_mj", "energy_joules", 0.001),
)
_WHOLE = (
    ("mem_total", "memory_total_bytes"),
    ("mem_used", "memory_used_bytes"),
    ("throttle", "clock_event_reasons"),
)


def _number(value: object, kind: Callable[[Any], N]) -> N | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = kind(value)
    except (OverflowError, ValueError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _scaled(value: object, unit: float) -> float | None:
    number = _number(value, float)
    if number is None:
        return None
    # Dividing is exact where multiplying by 0.001 is not: 119024 mW are 119.024 W.
    result = number * unit if unit >= 1 else number / round(1 / unit)
    return result if math.isfinite(result) else None


def _processes(value: object) -> tuple[Process, ...] | None:
    if not isinstance(value, list):
        return None
    return tuple(
        Process(pid, _number(item[1], int))
        for item in value
        if isinstance(item, list) and len(item) == 2 and (pid := _number(item[0], int)) is not None
    )


def _measures(value: object) -> tuple[Measure, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(
        Measure(item[0], tuple((str(k), str(v)) for k, v in item[1].items()), number)
        for item in value
        if isinstance(item, list)
        and len(item) == 3
        and isinstance(item[0], str)
        and isinstance(item[1], dict)
        and (number := _signed(item[2])) is not None
    )


def _signed(value: object) -> float | None:
    """Margins of temperature may be below zero."""
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        number = _number(-value, float)
        return None if number is None else -number
    return _number(value, float)


def _reading(record: dict[str, Any], position: int) -> Reading:
    index = _number(record.get("index"), int)
    xids = record.get("xids")
    values: dict[str, Any] = {field: _number(record.get(key), int) for key, field in _WHOLE}
    values |= {field: _scaled(record.get(key), unit) for key, field, unit in _SCALED}
    return Reading(
        index=position if index is None else index,
        uuid=record["uuid"] if isinstance(record.get("uuid"), str) else "",
        name=record["name"] if isinstance(record.get("name"), str) else "",
        processes=_processes(record.get("procs")),
        xids=tuple(n for x in xids if (n := _number(x, int)) is not None) if isinstance(xids, list) else None,
        more=_measures(record.get("more")),
        unknown=record["unknown"] if isinstance(record.get("unknown"), str) else "",
        **values,
    )


def readings_of_record(record: object) -> list[Reading]:
    """The readings of one record: an object (one card) or a list of them; ValueError for anything else.

    Keys: `mem_total`, `mem_used` (bytes), `util_gpu`, `util_mem` (percent), `power_mw`, `limit_mw` (milliwatts), `temp`
    (Celsius), `sm`, `memclk` (megahertz), `throttle` (bit mask), `energy_mj` (millijoules), `procs` ([pid, bytes]
    pairs), `index`, `uuid`, `name`, `xids`, `more` ([name, labels, value in base units] each), `unknown` (why nothing
    is known). A key that is missing, null or no number ≥ 0 is None; other keys are left alone.
    """
    if isinstance(record, dict):
        return [_reading(record, 0)]
    if isinstance(record, list) and all(isinstance(card, dict) for card in record):
        return [_reading(card, position) for position, card in enumerate(record)]
    raise ValueError("no NVML record: neither an object nor a list of objects")


def _card(reading: Reading) -> dict[str, Any]:
    record: dict[str, Any] = {key: getattr(reading, field) for key, field in _WHOLE}
    for key, field, unit in _SCALED:
        value = getattr(reading, field)
        record[key] = None if value is None else round(value / unit)
    processes = reading.processes
    record["procs"] = None if processes is None else [[p.pid, p.memory_bytes] for p in processes]
    record["index"] = reading.index
    record["uuid"] = reading.uuid
    record["name"] = reading.name
    record["xids"] = None if reading.xids is None else list(reading.xids)
    if reading.more:
        record["more"] = [[measure.name, dict(measure.labels), measure.value] for measure in reading.more]
    if reading.unknown:
        record["unknown"] = reading.unknown
    return record


def record_of_readings(readings: Sequence[Reading]) -> dict[str, Any] | list[dict[str, Any]]:
    """The record of these readings: one object for one card, a list for several. Fractions of NVML's units are lost."""
    cards = [_card(reading) for reading in readings]
    return cards[0] if len(cards) == 1 else cards
