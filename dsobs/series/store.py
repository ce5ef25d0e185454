"""The store: bounded ring buffers of the series that somebody asked for.

Each series has every sample of the last ten minutes and one in 15 s beyond, up to six hours. Of 15 s the last sample is
kept, so that counters lose no increase over a window longer than that; a reset between two kept samples that fell and
rose
again within the 15 s is seen as the smaller rise. Memory: at most 2,100 samples of 16 bytes a series.
"""

import math
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from dsobs.model.samples import Labels, Sample, metric_name
from dsobs.telemetry import STORE_DROPPED, STORE_SERIES

LOOKBACK_SECONDS = 300.0
"""How old a sample may be and still be the present one (Prometheus' `query.lookback-delta`)."""
_STALE_BITS = 0x7FF0000000000002
STALE: float = struct.unpack("<d", struct.pack("<Q", _STALE_BITS))[0]
"""Prometheus' staleness marker (model/value/value.go): the series has ended here."""


def is_stale(value: float) -> bool:
    """Whether this NaN is the staleness marker."""
    return math.isnan(value) and struct.unpack("<Q", struct.pack("<d", value))[0] == _STALE_BITS


class Series:
    """The samples of one series; `times` are milliseconds as in Prometheus, ascending."""

    __slots__ = ("labels", "old_times", "old_values", "times", "values")

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.times = array("q")
        self.values = array("d")
        self.old_times = array("q")
        self.old_values = array("d")

    @property
    def last_time(self) -> int:
        """Of the newest sample."""
        return self.times[-1]

    def at(self, t: int) -> tuple[int, float] | None:
        """The newest sample at or before `t`, the staleness marker included."""
        i = bisect_right(self.times, t)
        if i:
            return self.times[i - 1], self.values[i - 1]
        i = bisect_right(self.old_times, t)
        return (self.old_times[i - 1], self.old_values[i - 1]) if i else None

    def window(self, start: int, end: int) -> tuple[Sequence[int], Sequence[float]]:
        """Samples in (start, end] without staleness markers: milliseconds and values."""
        lo, hi = bisect_right(self.times, start), bisect_right(self.times, end)
        times, values = self.times[lo:hi], self.values[lo:hi]
        if self.old_times and self.old_times[-1] > start:
            a, b = bisect_right(self.old_times, start), bisect_right(self.old_times, end)
            times, values = self.old_times[a:b] + times, self.old_values[a:b] + values
        if any(map(math.isnan, values)):
            kept = [(t, v) for t, v in zip(times, values, strict=True) if not is_stale(v)]
            return [t for t, _ in kept], [v for _, v in kept]
        return times, values


class Store:
    """All series, by metric name. Times are seconds since the Unix epoch, kept to the millisecond."""

    def __init__(
        self,
        *,
        fine_seconds: float = 600.0,
        coarse_step: float = 15.0,
        coarse_seconds: float = 6 * 3600.0,
        max_series: int = 10_000,
    ) -> None:
        self._fine = int(fine_seconds * 1000)
        self._step = int(coarse_step * 1000)
        self._coarse = int(coarse_seconds * 1000)
        self._max_series = max_series
        self._wanted: set[str] = set()
        self._names: dict[str, dict[Labels, Series]] = {}
        self._count = 0
        self._sources: dict[str, dict[Labels, Series]] = {}
        self._unwanted: set[Labels] = set()
        self._swept = 0
        self.generation = 0
        """Grows whenever a series is added or forgotten, so that what was selected can be remembered."""

    def want(self, name: str) -> None:
        """Keeps the metric of this name from now on."""
        self._wanted.add(name)
        self._unwanted.clear()

    def _series(self, labels: Labels) -> Series | None:
        if labels in self._unwanted:
            return None
        name = metric_name(labels)
        family = self._names.get(name)
        if family is not None:
            series = family.get(labels)
            if series is not None:
                return series
        if name not in self._wanted:
            if len(self._unwanted) < 4 * self._max_series:
                self._unwanted.add(labels)
            return None
        if self._count >= self._max_series:
            STORE_DROPPED.labels("too_many_series").inc()
            return None
        series = self._names.setdefault(name, {})[labels] = Series(labels)
        self._count += 1
        self.generation += 1
        STORE_SERIES.set(self._count)
        return series

    def append(self, labels: Labels, t: float, value: float) -> None:
        """One sample of one series. Out of order or at the same time as the last: left out and counted."""
        series = self._series(labels)
        if series is not None:
            self._put(series, round(t * 1000), value)

    def _put(self, series: Series, t: int, value: float) -> None:
        times = series.times
        if times and t <= times[-1]:
            STORE_DROPPED.labels("out_of_order").inc()
            return
        times.append(t)
        series.values.append(value)
        if t - times[0] > self._fine + self._fine // 4:
            self._thin(series, t)

    def _thin(self, series: Series, now: int) -> None:
        """Moves what is older than ten minutes to the coarse part: the last sample of every 15 s, and each end."""
        cut = bisect_right(series.times, now - self._fine)
        times, values = series.old_times, series.old_values
        for t, value in zip(series.times[:cut], series.values[:cut], strict=True):
            same = times and t // self._step == times[-1] // self._step
            if same and not math.isnan(values[-1]) and not math.isnan(value):
                times[-1], values[-1] = t, value
            else:
                times.append(t)
                values.append(value)
        del series.times[:cut]
        del series.values[:cut]
        gone = bisect_right(times, now - self._coarse)
        if gone > 64:
            del times[:gone]
            del values[:gone]

    def append_samples(self, samples: Iterable[Sample], t: float, source: str) -> None:
        """All samples that `source` has at `t`. What it had the last time and has no more is stale from now on."""
        at = round(t * 1000)
        before = self._sources.get(source, {})
        now: dict[Labels, Series] = {}
        for labels, value, _ in samples:
            series = before.pop(labels, None) or self._series(labels)
            if series is not None:
                now[labels] = series
                self._put(series, at, value)
        for series in before.values():
            self._put(series, at, STALE)
        self._sources[source] = now
        if at - self._swept > 600_000:
            self._sweep(at)

    def mark_stale(self, what: Labels | str, t: float) -> None:
        """One series, or all that a source had the last time, end at `t`."""
        if isinstance(what, str):
            self.append_samples((), t, what)
        else:
            series = self._names.get(metric_name(what), {}).get(what)
            if series is not None and not is_stale(series.values[-1]):
                self._put(series, round(t * 1000), STALE)

    def _sweep(self, now: int) -> None:
        """Forgets series with no sample for as long as anything is kept."""
        self._swept = now
        for name, family in list(self._names.items()):
            for labels in [labels for labels, series in family.items() if now - series.last_time > self._coarse]:
                del family[labels]
                self._count -= 1
                self.generation += 1
            if not family:
                del self._names[name]
        STORE_SERIES.set(self._count)

    def series(self, name: str | None, fits: Callable[[Labels], bool] | None = None) -> Iterator[Series]:
        """Series of a metric (all metrics if None) whose labels fit."""
        families = self._names.values() if name is None else [self._names.get(name, {})]
        for family in families:
            for labels, series in family.items():
                if fits is None or fits(labels):
                    yield series

    def oldest(self, name: str) -> float | None:
        """Time of the oldest sample of a metric; None without one."""
        starts = [(s.old_times or s.times)[0] for s in self.series(name)]
        return min(starts) / 1000 if starts else None
