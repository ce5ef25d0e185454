"""The store: bounded ring buffers of the series that somebody asked for.

Each series has every sample of the last ten minutes and beyond that one in 15 s, the last one, up to six hours or as
far back as anybody reads it. Where a value falls once within 15 s, as a counter does at a reset, the samples before and
after the fall are kept too: a thinned counter has lost no increase (unless it was reset twice in 15 s). Windows that
reach beyond ten minutes read like those of a Prometheus that scrapes each 15 s.

What nobody asked for can be kept for those who look (`show`): one sample in 15 s, so that a dashboard has something to
show, within a limit of its own, so that it takes no place from what rules need.

Memory: 16 bytes a sample; at one sample a second at most 750 + 1,440 samples a series, 750 where nobody reads further
back than ten minutes; of a series that is only shown 290 samples for an hour.
"""

import math
import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence

from dsobs.model.samples import Labels, Sample, metric_name
from dsobs.telemetry import STORE_DROPPED, STORE_SERIES

LOOKBACK_SECONDS = 300.0
"""How old a sample may be and still be the present one (Prometheus' `query.lookback-delta`)."""
NEVER = -(2**63)
"""Before any time in milliseconds."""
_EARLY = 500
"""Milliseconds by which a turn may come before its time."""
_STALE_BITS = 0x7FF0000000000002
STALE: float = struct.unpack("<d", struct.pack("<Q", _STALE_BITS))[0]
"""Prometheus' staleness marker (model/value/value.go): the series has ended here."""


def is_stale(value: float) -> bool:
    """Whether this NaN is the staleness marker."""
    return math.isnan(value) and struct.unpack("<Q", struct.pack("<d", value))[0] == _STALE_BITS


class Series:
    """The samples of one series; `times` are milliseconds as in Prometheus, ascending."""

    __slots__ = ("every", "fell_at", "has_nan", "keep", "labels", "old_times", "old_values", "times", "values")

    def __init__(self, labels: Labels, keep: int, every: int = 0) -> None:
        self.labels = labels
        self.keep = keep
        """Milliseconds for which samples are kept."""
        self.every = every
        """Milliseconds between samples that are kept, at least; 0: all are."""
        self.has_nan = False
        """Whether a NaN or a staleness marker was ever among the values."""
        self.fell_at = NEVER
        """Time of the last sample that was not at or above the one before it: no counter was reset since."""
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

    def samples(self, start: int, end: int) -> tuple[Sequence[int], Sequence[float]]:
        """Samples in (start, end]: milliseconds and values, staleness markers included."""
        lo, hi = bisect_right(self.times, start), bisect_right(self.times, end)
        times, values = self.times[lo:hi], self.values[lo:hi]
        if self.old_times and self.old_times[-1] > start:
            a, b = bisect_right(self.old_times, start), bisect_right(self.old_times, end)
            times, values = self.old_times[a:b] + times, self.old_values[a:b] + values
        return times, values

    def window(self, start: int, end: int) -> tuple[Sequence[int], Sequence[float]]:
        """The same without staleness markers."""
        times, values = self.samples(start, end)
        if self.has_nan and any(map(math.isnan, values)):
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
        max_series: int = 5_000,
        max_shown: int = 1_000,
    ) -> None:
        """`max_series`: all of them, of which at most `max_shown` are those that are only shown."""
        self._fine = int(fine_seconds * 1000)
        self._step = int(coarse_step * 1000)
        self._coarse = int(coarse_seconds * 1000)
        self._max_series = max_series
        self._max_shown = max_shown
        self._shown_for = 0
        """Milliseconds for which everything is kept to be shown."""
        self._shown = 0
        self._wanted: dict[str, int] = {}
        self._names: dict[str, dict[Labels, Series]] = {}
        self._count = 0
        self._sources: dict[str, dict[Labels, Series]] = {}
        self._swept = 0
        self.generation = 0
        """Grows whenever a series is added or forgotten, so that what was selected can be remembered."""

    @property
    def coarse_step(self) -> float:
        """Seconds between samples older than ten minutes."""
        return self._step / 1000

    def samples_within(self, milliseconds: int) -> float:
        """How many samples of a series are kept of the last so many, where there is one each second."""
        return min(milliseconds, self._fine) / 1000 + max(0, min(milliseconds, self._coarse) - self._fine) / self._step

    def show(self, seconds: float) -> None:
        """Keeps everything that is appended from now on, `seconds` back, for those who look; 0: only what is wanted."""
        self._shown_for = min(self._coarse, math.ceil(seconds * 1000))
        for name, keep in self._wanted.items():
            for series in self._names.get(name, {}).values():
                series.keep = max(keep, self._shown_for)

    def want(self, name: str, seconds: float | None = None) -> None:
        """Keeps the metric of this name from now on, `seconds` back (None: as far as the store goes).

        Of several calls the one that reaches furthest holds.
        """
        keep = self._coarse if seconds is None else min(self._coarse, math.ceil(seconds * 1000))
        keep = self._wanted[name] = max(keep, self._wanted.get(name, 0))
        for series in self._names.get(name, {}).values():
            self._shown -= bool(series.every)
            series.keep, series.every = max(keep, self._shown_for), 0

    def _series(self, labels: Labels) -> Series | None:
        name = metric_name(labels)
        family = self._names.get(name)
        if family is not None:
            series = family.get(labels)
            if series is not None:
                return series
        wanted = self._wanted.get(name)
        if wanted is None and not self._shown_for:
            return None
        if wanted is None and self._shown >= self._max_shown:
            STORE_DROPPED.labels("too_many_shown").inc()
            return None
        if self._count >= self._max_series:
            STORE_DROPPED.labels("too_many_series").inc()
            return None
        if wanted is None:
            series = Series(labels, self._shown_for, self._step)
            self._shown += 1
        else:
            series = Series(labels, max(wanted, self._shown_for))
        self._names.setdefault(name, {})[labels] = series
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
        if series.every and times and 0 < t - times[-1] < series.every - _EARLY and not is_stale(series.values[-1]):
            return
        if times and t <= times[-1]:
            STORE_DROPPED.labels("out_of_order").inc()
            return
        if math.isnan(value):
            series.has_nan = True
        if times and not value >= series.values[-1]:
            series.fell_at = t
        times.append(t)
        series.values.append(value)
        if t - times[0] > self._fine + self._fine // 4:
            self._thin(series, t)

    def _end(self, series: Series, t: int) -> None:
        """Puts the staleness marker: after the last sample even if that came at the same time."""
        if not is_stale(series.values[-1]):
            every, series.every = series.every, 0
            self._put(series, max(t, series.last_time + 1), STALE)
            series.every = every

    def _thin(self, series: Series, now: int) -> None:
        """Moves what is older than ten minutes, in whole steps of 15 s, to the coarse part."""
        edge = (now - self._fine) // self._step * self._step
        cut = bisect_left(series.times, edge)
        old_times, old_values = series.old_times, series.old_values
        if series.keep > self._fine:
            for i in _kept(series.times[:cut], series.values[:cut], old_values[-1:], self._step):
                old_times.append(series.times[i])
                old_values.append(series.values[i])
        del series.times[:cut]
        del series.values[:cut]
        gone = bisect_right(old_times, now - series.keep)
        del old_times[:gone]
        del old_values[:gone]

    def append_samples(self, samples: Iterable[Sample], t: float, source: str) -> None:
        """All samples that `source` has at `t`, which counts whatever time they carry themselves.

        What it had the last time and has no more is stale from now on.
        """
        at = round(t * 1000)
        before = self._sources.get(source, {})
        now: dict[Labels, Series] = {}
        for labels, value, _ in samples:
            series = before.pop(labels, None) or self._series(labels)
            if series is not None:
                now[labels] = series
                self._put(series, at, value)
        for series in before.values():
            self._end(series, at)
        self._sources[source] = now
        if at - self._swept > 600_000:
            self._sweep(at)

    def mark_stale(self, what: Labels | str, t: float) -> None:
        """One series, or all that a source had the last time, end at `t`."""
        if isinstance(what, str):
            self.append_samples((), t, what)
        else:
            series = self._names.get(metric_name(what), {}).get(what)
            if series is not None:
                self._end(series, round(t * 1000))

    def _sweep(self, now: int) -> None:
        """Forgets series with no sample for as long as anything is kept."""
        self._swept = now
        for source in self._sources.values():
            for labels in [labels for labels, series in source.items() if now - series.last_time > self._coarse]:
                del source[labels]
        for name, family in list(self._names.items()):
            for labels in [labels for labels, series in family.items() if now - series.last_time > self._coarse]:
                self._shown -= bool(family.pop(labels).every)
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

    def names(self) -> list[str]:
        """Of the metrics that it has, in order."""
        return sorted(self._names)

    def oldest(self, name: str) -> float | None:
        """Time of the oldest sample of a metric; None without one."""
        starts = [(s.old_times or s.times)[0] for s in self.series(name)]
        return min(starts) / 1000 if starts else None


def _kept(times: Sequence[int], values: Sequence[float], before: Sequence[float], step: int) -> Iterator[int]:
    """Indices of the samples that thinning keeps; `before` is the last value kept earlier, if any."""
    previous = before[0] if before else math.nan
    first = 0
    while first < len(times):
        last = bisect_left(times, (times[first] // step + 1) * step, first) - 1
        falls = []
        for i in range(first, last + 1):
            value = values[i]
            if value < previous:
                falls.append(i)
            if not is_stale(value):
                previous = value
        if len(falls) == 1:
            # A staleness marker can stand between the two; both sides of the fall are real samples.
            peak = next((i for i in range(falls[0] - 1, first - 1, -1) if not is_stale(values[i])), None)
            if peak is not None:
                yield peak
            if falls[0] != last:
                yield falls[0]
        yield last
        first = last + 1
