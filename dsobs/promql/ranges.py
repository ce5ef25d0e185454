"""Functions over a window of one series (prometheus `promql/functions.go`).

Each takes milliseconds and values in (start, end], the window's start and end in milliseconds and its numeric
parameters,
and gives one value, or None for no result.
"""

import math
from collections.abc import Callable, Sequence

Times = Sequence[int]
Values = Sequence[float]
RangeFunction = Callable[[Times, Values, int, int, list[float]], float | None]


def _extrapolated(times: Times, values: Values, start: int, end: int, *, counter: bool, rate: bool) -> float | None:
    """`extrapolatedRate`: to the window's edge if the gap is under 1.1 × the mean spacing, else by half a spacing;
    never
    below zero at a counter's start."""
    if len(values) < 2:
        return None
    change = values[-1] - values[0]
    if counter:
        previous = values[0]
        for value in values:
            if value < previous:
                change += previous
            previous = value
    to_start, to_end = (times[0] - start) / 1000, (end - times[-1]) / 1000
    sampled = (times[-1] - times[0]) / 1000
    spacing = sampled / (len(values) - 1)
    limit = spacing * 1.1
    if to_start >= limit:
        to_start = spacing / 2
    if counter and change > 0 and values[0] >= 0:
        to_start = min(to_start, sampled * (values[0] / change))
    if to_end >= limit:
        to_end = spacing / 2
    factor = (sampled + to_start + to_end) / sampled
    if rate:
        factor /= (end - start) / 1000
    return change * factor


def _rate(times: Times, values: Values, start: int, end: int, _: list[float]) -> float | None:
    return _extrapolated(times, values, start, end, counter=True, rate=True)


def _increase(times: Times, values: Values, start: int, end: int, _: list[float]) -> float | None:
    return _extrapolated(times, values, start, end, counter=True, rate=False)


def _delta(times: Times, values: Values, start: int, end: int, _: list[float]) -> float | None:
    return _extrapolated(times, values, start, end, counter=False, rate=False)


def _irate(times: Times, values: Values, _start: int, _end: int, _: list[float]) -> float | None:
    if len(values) < 2:
        return None
    change = values[-1] if values[-1] < values[-2] else values[-1] - values[-2]
    seconds = (times[-1] - times[-2]) / 1000
    return change / seconds if seconds else None


def _idelta(_times: Times, values: Values, _start: int, _end: int, _: list[float]) -> float | None:
    return values[-1] - values[-2] if len(values) >= 2 else None


def mean(values: Values) -> float:
    """As Prometheus 3: the plain sum where it is finite, else the running mean."""
    total = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    return total / len(values)


def _least(values: Values) -> float:
    """NaN only where all are."""
    return min((v for v in values if not math.isnan(v)), default=math.nan)


def _most(values: Values) -> float:
    return max((v for v in values if not math.isnan(v)), default=math.nan)


def total(values: Values) -> float:
    """Compensated, as Prometheus adds."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


def variance(values: Values) -> float:
    """Population variance."""
    middle = mean(values)
    return total([(v - middle) ** 2 for v in values]) / len(values)


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
    def function(_times: Times, values: Values, _start: int, _end: int, _parameters: list[float]) -> float | None:
        return reduce(values) if values else None

    return function


def _quantile_over_time(_t: Times, values: Values, _s: int, _e: int, parameters: list[float]) -> float | None:
    return quantile(parameters[0], values) if values else None


def _changes(values: Values) -> float:
    pairs = zip(values, values[1:], strict=False)
    return float(sum(1 for a, b in pairs if a != b and not (math.isnan(a) and math.isnan(b))))


def _resets(values: Values) -> float:
    return float(sum(1 for a, b in zip(values, values[1:], strict=False) if b < a))


RANGE_FUNCTIONS: dict[str, RangeFunction] = {
    "rate": _rate,
    "increase": _increase,
    "delta": _delta,
    "irate": _irate,
    "idelta": _idelta,
    "changes": _over(_changes),
    "resets": _over(_resets),
    "avg_over_time": _over(mean),
    "min_over_time": _over(_least),
    "max_over_time": _over(_most),
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
