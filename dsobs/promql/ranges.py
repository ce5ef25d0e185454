"""Functions over a window of one series (prometheus `promql/functions.go`).

Each takes a `Window` and the function's numeric parameters, and gives one value, or None for no result. A new one is
one entry in `RANGE_FUNCTIONS`.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import lt, ne

from dsobs.promql.numbers import compensated, divide, least, mean, most, quantile, root, total, variance_over_time

Values = Sequence[float]
NO_FALLS: Sequence[int] = ()


class Window:
    """One series' samples in (start, end]: `times[lo:hi]` and `values[lo:hi]`, never empty, without staleness markers.

    Times are milliseconds. One object serves all series of an evaluation in turn.
    """

    __slots__ = ("at", "edges", "end", "falls", "hi", "lo", "spacing", "start", "times", "values")

    times: Sequence[int]
    values: Values
    lo: int
    hi: int
    start: int
    end: int
    at: int
    """The time of the evaluation."""
    spacing: float
    """Seconds between the samples at the window's start where the store has thinned them, else 0."""
    falls: Sequence[int] | None
    """Indices of `values` at which a value is not at or above the one before; None where nobody has looked."""
    edges: tuple[float, float, float] | None
    """Seconds from the first sample to the last, and what is added before and after them; None until it is needed."""

    def __init__(self, start: int, end: int, at: int) -> None:
        self.start, self.end, self.at = start, end, at

    def frame(self, times: Sequence[int], lo: int, hi: int, spacing: float) -> None:
        """Which samples of a series it has; `values` and `falls` are that series' too."""
        self.times, self.lo, self.hi, self.spacing, self.edges = times, lo, hi, spacing, None

    def __len__(self) -> int:
        return self.hi - self.lo

    def span(self) -> Values:
        """The values."""
        return self.values[self.lo : self.hi]

    def lost(self) -> list[float]:
        """Values before the falls: what a counter had when it was reset."""
        values, lo, hi = self.values, self.lo, self.hi
        if self.falls is not None:
            if not self.falls:
                return []
            falls = self.falls
            first = bisect_left(falls, lo + 1)
            return [values[i - 1] for i in falls[first : bisect_left(falls, hi, first)] if values[i] < values[i - 1]]
        span = values[lo:hi]
        if not any(map(lt, span[1:], span)):
            return []
        return [before for before, value in pairwise(span) if value < before]


RangeFunction = Callable[[Window, list[float]], float | None]


def _extrapolated(window: Window, *, counter: bool, rate: bool) -> float | None:
    """`extrapolatedRate`: to the window's edge if the gap is under 1.1 × the mean spacing, else by half a spacing.

    Never below zero at a counter's start. Where the store has thinned the window's start, the spacing there is what
    counts there: the mean of a window that is dense at its end says nothing about a gap at its start.
    """
    lo, last = window.lo, window.hi - 1
    if last <= lo:
        return None
    values = window.values
    first_value = values[lo]
    change = values[last] - first_value
    if counter and window.falls is not NO_FALLS:
        for before in window.lost():
            change += before
    sampled, to_start, to_end = window.edges or _edges(window)
    if counter and change > 0 and first_value >= 0:
        to_zero = sampled * (first_value / change)
        to_start = min(to_start, to_zero)
    factor = (sampled + to_start + to_end) / sampled
    if rate:
        factor /= (window.end - window.start) / 1000
    return change * factor


def _edges(window: Window) -> tuple[float, float, float]:
    """Also kept for the next series with the same times."""
    lo, last, times = window.lo, window.hi - 1, window.times
    first_time, last_time = times[lo], times[last]
    to_start, to_end = (first_time - window.start) / 1000, (window.end - last_time) / 1000
    sampled = (last_time - first_time) / 1000
    spacing = sampled / (last - lo)
    at_start = max(window.spacing, spacing)
    if to_start >= at_start * 1.1:
        to_start = at_start / 2
    if to_end >= spacing * 1.1:
        to_end = spacing / 2
    window.edges = edges = (sampled, to_start, to_end)
    return edges


def _rate(window: Window, _: list[float]) -> float | None:
    return _extrapolated(window, counter=True, rate=True)


def _increase(window: Window, _: list[float]) -> float | None:
    return _extrapolated(window, counter=True, rate=False)


def _delta(window: Window, _: list[float]) -> float | None:
    return _extrapolated(window, counter=False, rate=False)


def _irate(window: Window, _: list[float]) -> float | None:
    if len(window) < 2:
        return None
    times, values, last = window.times, window.values, window.hi - 1
    change = values[last] if values[last] < values[last - 1] else values[last] - values[last - 1]
    return change / ((times[last] - times[last - 1]) / 1000)


def _idelta(window: Window, _: list[float]) -> float | None:
    return window.values[window.hi - 1] - window.values[window.hi - 2] if len(window) >= 2 else None


def _line(window: Window, origin: int) -> tuple[float, float]:
    """Slope a second and value at `origin` of the least-squares line (`linearRegression`)."""
    values = window.span()
    if not any(map(ne, values, [values[0]] * len(values))):
        return (math.nan, math.nan) if math.isinf(values[0]) else (0.0, values[0])
    n = float(len(values))
    xs = [(t - origin) / 1e3 for t in window.times[window.lo : window.hi]]
    sum_x, sum_y, sum_xy, sum_xx = (
        sum(compensated(terms))
        for terms in (
            xs,
            values,
            [x * y for x, y in zip(xs, values, strict=True)],
            [x * x for x in xs],
        )
    )
    slope = divide(sum_xy - sum_x * sum_y / n, sum_xx - sum_x * sum_x / n)
    return slope, sum_y / n - slope * sum_x / n


def _deriv(window: Window, _: list[float]) -> float | None:
    return _line(window, window.times[window.lo])[0] if len(window) >= 2 else None


def _predict_linear(window: Window, parameters: list[float]) -> float | None:
    if len(window) < 2:
        return None
    slope, value = _line(window, window.at)
    return slope * parameters[0] + value


def _over(reduce: Callable[[Values], float]) -> RangeFunction:
    return lambda window, _: reduce(window.span())


def _changes(values: Values) -> float:
    if any(map(math.isnan, values)):
        return float(sum(1 for a, b in pairwise(values) if a != b and not (math.isnan(a) and math.isnan(b))))
    return float(sum(map(ne, values[1:], values)))


RANGE_FUNCTIONS: dict[str, RangeFunction] = {
    "avg_over_time": _over(mean),
    "changes": _over(_changes),
    "count_over_time": lambda window, _: float(len(window)),
    "delta": _delta,
    "deriv": _deriv,
    "first_over_time": lambda window, _: window.values[window.lo],
    "idelta": _idelta,
    "increase": _increase,
    "irate": _irate,
    "last_over_time": lambda window, _: window.values[window.hi - 1],
    "max_over_time": _over(most),
    "min_over_time": _over(least),
    "predict_linear": _predict_linear,
    "present_over_time": lambda _window, _: 1.0,
    "quantile_over_time": lambda window, parameters: quantile(parameters[0], window.span()),
    "rate": _rate,
    "resets": lambda window, _: float(len(window.lost())),
    "stddev_over_time": _over(lambda values: root(variance_over_time(values))),
    "stdvar_over_time": _over(variance_over_time),
    "sum_over_time": _over(total),
}
KEEPS_NAME = frozenset({"first_over_time", "last_over_time"})
"""Those whose result is still the metric."""
