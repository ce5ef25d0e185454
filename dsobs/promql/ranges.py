"""Functions over a window of one series (prometheus `promql/functions.go`).

Each takes a `Window` and the function's numeric parameters, and gives one value, or None for no result. A new one is
one entry in `RANGE_FUNCTIONS`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import lt, ne
from typing import NamedTuple

Values = Sequence[float]


class Window(NamedTuple):
    """One series' samples in (start, end], without staleness markers. Times are milliseconds."""

    times: Sequence[int]
    values: Values
    start: int
    end: int
    spacing: float = 0.0
    """Seconds between the samples at the window's start where the store has thinned them, else 0."""


RangeFunction = Callable[[Window, list[float]], float | None]


def _extrapolated(window: Window, *, counter: bool, rate: bool) -> float | None:
    """`extrapolatedRate`: to the window's edge if the gap is under 1.1 × the mean spacing, else by half a spacing.

    Never below zero at a counter's start. Where the store has thinned the window's start, the spacing there is what
    counts there: the mean of a window that is dense at its end says nothing about a gap at its start.
    """
    times, values, start, end, thinned = window
    if len(values) < 2:
        return None
    change = values[-1] - values[0]
    if counter and any(map(lt, values[1:], values)):
        previous = values[0]
        for value in values:
            if value < previous:
                change += previous
            previous = value
    to_start, to_end = (times[0] - start) / 1000, (end - times[-1]) / 1000
    sampled = (times[-1] - times[0]) / 1000
    spacing = sampled / (len(values) - 1)
    at_start = max(spacing, thinned)
    if to_start >= at_start * 1.1:
        to_start = at_start / 2
    if counter and change > 0 and values[0] >= 0:
        to_start = min(to_start, sampled * (values[0] / change))
    if to_end >= spacing * 1.1:
        to_end = spacing / 2
    factor = (sampled + to_start + to_end) / sampled
    if rate:
        factor /= (end - start) / 1000
    return change * factor


def _rate(window: Window, _: list[float]) -> float | None:
    return _extrapolated(window, counter=True, rate=True)


def _increase(window: Window, _: list[float]) -> float | None:
    return _extrapolated(window, counter=True, rate=False)


def _delta(window: Window, _: list[float]) -> float | None:
    return _extrapolated(window, counter=False, rate=False)


def _irate(window: Window, _: list[float]) -> float | None:
    times, values = window.times, window.values
    if len(values) < 2:
        return None
    change = values[-1] if values[-1] < values[-2] else values[-1] - values[-2]
    return change / ((times[-1] - times[-2]) / 1000)


def _idelta(window: Window, _: list[float]) -> float | None:
    return window.values[-1] - window.values[-2] if len(window.values) >= 2 else None


def total(values: Values) -> float:
    """Compensated, as Prometheus adds."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        # Too large on the way, or infinities of both signs: what plain addition makes of it.
        return float(sum(values))


def mean(values: Values) -> float:
    """The sum over the number; the running mean where the sum is too large."""
    added = total(values)
    if math.isinf(added) and all(map(math.isfinite, values)):
        running = 0.0
        for number, value in enumerate(values, 1):
            running += value / number - running / number
        return running
    return added / len(values)


def least(values: Values) -> float:
    """NaN only where all are."""
    found = min(values)
    return found if found == found else min(filter(_is_number, values), default=math.nan)  # noqa: PLR0124 - NaN


def most(values: Values) -> float:
    """NaN only where all are."""
    found = max(values)
    return found if found == found else max(filter(_is_number, values), default=math.nan)  # noqa: PLR0124 - NaN


def _is_number(value: float) -> bool:
    return not math.isnan(value)


def variance(values: Values) -> float:
    """Population variance."""
    middle = mean(values)
    return total([(v - middle) * (v - middle) for v in values]) / len(values)


def quantile(q: float, values: Values) -> float:
    """The φ-quantile with linear interpolation; ±Inf outside [0, 1], NaN for none."""
    if not values or math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    ordered = sorted(values, key=lambda v: (not math.isnan(v), v))
    rank = q * (len(ordered) - 1)
    low = max(0, math.floor(rank))
    high = min(len(ordered) - 1, low + 1)
    weight = rank - math.floor(rank)
    return ordered[low] * (1 - weight) + ordered[high] * weight


def _over(reduce: Callable[[Values], float]) -> RangeFunction:
    def function(window: Window, _: list[float]) -> float | None:
        return reduce(window.values) if window.values else None

    return function


def _quantile_over_time(window: Window, parameters: list[float]) -> float | None:
    return quantile(parameters[0], window.values) if window.values else None


def _changes(values: Values) -> float:
    if any(map(math.isnan, values)):
        return float(sum(1 for a, b in pairwise(values) if a != b and not (math.isnan(a) and math.isnan(b))))
    return float(sum(map(ne, values[1:], values)))


def _resets(values: Values) -> float:
    return float(sum(map(lt, values[1:], values)))


RANGE_FUNCTIONS: dict[str, RangeFunction] = {
    "rate": _rate,
    "increase": _increase,
    "delta": _delta,
    "irate": _irate,
    "idelta": _idelta,
    "changes": _over(_changes),
    "resets": _over(_resets),
    "avg_over_time": _over(mean),
    "min_over_time": _over(least),
    "max_over_time": _over(most),
    "sum_over_time": _over(total),
    "count_over_time": _over(lambda values: float(len(values))),
    "last_over_time": _over(lambda values: values[-1]),
    "present_over_time": _over(lambda _: 1.0),
    "stddev_over_time": _over(lambda values: math.sqrt(variance(values))),
    "stdvar_over_time": _over(variance),
    "quantile_over_time": _quantile_over_time,
}
KEEPS_NAME = frozenset({"last_over_time"})
"""Those whose result is still the metric."""
