"""Readings as series: the families' names and labels, XID errors counted."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dsobs_nvml.families import FAMILIES
from dsobs_nvml.reading import Reading
from dsobs_nvml.tables import CLOCK_EVENT_REASONS, XIDS

_FIELDS = tuple((family.name, family.field) for family in FAMILIES.values() if family.field)
MAX_XIDS = 256
"""Different XIDs that are counted of one card; there are some 170."""

Labels = tuple[tuple[str, str], ...]


class Row(NamedTuple):
    """One series of one card at one moment."""

    name: str
    gpu: str
    uuid: str
    labels: Labels
    """Beyond `gpu` and `uuid`."""
    value: float


class CardSeries:
    """Makes rows of readings, and remembers the XID errors that it was shown."""

    def __init__(self) -> None:
        self._xids: dict[tuple[int, str], dict[int, int]] = {}
        self._last: dict[tuple[int, str], dict[int, float]] = {}

    def take(self, readings: Sequence[Reading], at: float) -> None:
        """Counts the XIDs of these readings; once for each. `at`: when they were made, Unix time."""
        for reading in readings:
            if reading.xids is None:
                continue
            key = reading.index, reading.uuid
            counts = self._xids.setdefault(key, dict.fromkeys(XIDS, 0))
            for xid in reading.xids:
                if xid in counts or len(counts) < MAX_XIDS:
                    counts[xid] = counts.get(xid, 0) + 1
                    last = self._last.setdefault(key, {})
                    # The last one stands last.
                    last.pop(xid, None)
                    last[xid] = at

    def last_xid(self, reading: Reading) -> int | None:
        """The XID that was seen last; 0 if none was, None where nobody watches."""
        key = reading.index, reading.uuid
        if key not in self._xids:
            return None
        return next(reversed(self._last.get(key, {0: 0.0})))

    def rows(self, readings: Sequence[Reading]) -> Iterator[Row]:
        """What is known of these cards. Nothing where nothing is known, but `up`, why, and what was counted."""
        for reading in readings:
            gpu, uuid = str(reading.index), reading.uuid
            for name, labels, value in _values(reading):
                yield Row(name, gpu, uuid, labels, value)
            key = reading.index, uuid
            for xid, count in self._xids.get(key, {}).items():
                yield Row("dsobs_gpu_xid_errors_total", gpu, uuid, _xid(xid), float(count))
            for xid, at in self._last.get(key, {}).items():
                yield Row("dsobs_gpu_xid_last_time_seconds", gpu, uuid, _xid(xid), at)


def _values(reading: Reading) -> Iterator[tuple[str, Labels, float]]:
    yield "dsobs_gpu_up", (), 0.0 if reading.unknown else 1.0
    if reading.unknown:
        yield "dsobs_gpu_unknown", (("reason", reading.unknown),), 1.0
    for name, field in _FIELDS:
        value = getattr(reading, field)
        if value is not None:
            yield name, (), float(value)
    for process in reading.processes or ():
        if process.memory_bytes is not None:
            yield "dsobs_gpu_process_memory_bytes", (("pid", str(process.pid)),), float(process.memory_bytes)
    if reading.clock_event_reasons is not None:
        for reason, active in clock_events(reading.clock_event_reasons):
            yield "dsobs_gpu_clock_event_active", (("reason", reason),), float(active)
    for measure in reading.more:
        # A recording may hold what this version does not know.
        if measure.name in FAMILIES:
            yield measure


def _xid(xid: int) -> Labels:
    return ("xid", str(xid)), ("reason", XIDS[xid].meaning if xid in XIDS else "not in the table")


def clock_events(mask: int) -> list[tuple[str, bool]]:
    """Every reason that slows, and the others that are active; bits that are newer than the table as `bit_N`."""
    events = []
    for reason in CLOCK_EVENT_REASONS:
        active = bool(mask & reason.bit)
        mask &= ~reason.bit
        if active or reason.slows:
            events.append((reason.name, active))
    events += [(f"bit_{bit}", True) for bit in range(mask.bit_length()) if mask >> bit & 1]
    return events


def mask_of(active: Sequence[str]) -> int:
    """The mask in which these reasons are set; the reverse of `clock_events`."""
    bits = {reason.name: reason.bit for reason in CLOCK_EVENT_REASONS}
    mask = 0
    for name in active:
        if name in bits:
            mask |= bits[name]
        elif name.startswith("bit_") and name[4:].isdecimal() and int(name[4:]) < 64:
            mask |= 1 << int(name[4:])
    return mask
