"""Arithmetic with the results of Go's `math`: no exceptions, IEEE 754's infinities and NaN instead."""

import math
from collections.abc import Callable, Sequence
from decimal import Decimal


def divide(a: float, b: float) -> float:
    """A division by zero is an infinity or NaN."""
    if b:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)


def modulo(a: float, b: float) -> float:
    """With the sign of the dividend (`math.Mod`)."""
    return math.fmod(a, b) if b and math.isfinite(a) and not math.isnan(b) else math.nan


def power(a: float, b: float) -> float:
    """`math.Pow`."""
    try:
        return math.pow(a, b)
    except OverflowError:
        return math.copysign(math.inf, a) if _odd(b) else math.inf
    except ValueError:
        # Zero to a negative power, else a negative number to a fraction.
        return (math.copysign(math.inf, a) if _odd(b) else math.inf) if a == 0 else math.nan


def _odd(number: float) -> bool:
    return math.isfinite(number) and math.fmod(number, 2.0) in (1.0, -1.0)


def rounded(value: float, nearest: float = 1.0) -> float:
    """To a multiple of `nearest`; halves go up."""
    inverse = divide(1.0, nearest)
    return divide(whole(math.floor)(value * inverse + 0.5), inverse)


def whole(change: Callable[[float], float]) -> Callable[[float], float]:
    """`math.floor` or `math.ceil`; NaN and infinities as they are."""
    return lambda value: float(change(value)) if math.isfinite(value) else value


def exponential(value: float) -> float:
    """e to the power of the value."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def logarithm(function: Callable[[float], float]) -> Callable[[float], float]:
    """−Inf at 0, NaN below."""
    return lambda v: function(v) if v > 0 else (-math.inf if v == 0 else math.nan)


def defined(function: Callable[[float], float]) -> Callable[[float], float]:
    """NaN where the function has no value, an infinity where it is too large or has a pole."""

    def evaluate(value: float) -> float:
        try:
            return function(value)
        except OverflowError:
            return math.copysign(math.inf, value) if function is math.sinh else math.inf
        except ValueError:
            return math.copysign(math.inf, value) if function is math.atanh and abs(value) == 1 else math.nan

    return evaluate


def root(value: float) -> float:
    """The square root, NaN below 0."""
    return math.nan if value < 0 else math.sqrt(value)


def sign(value: float) -> float:
    """−1, 1, or the value itself where it is 0 or NaN."""
    return math.copysign(1.0, value) if value < 0 or value > 0 else value


def bounded(value: float, at_least: float, at_most: float) -> float:
    """Go's `math.Max(at_least, math.Min(at_most, value))`: NaN wins, but for an infinity on the way."""
    return larger(at_least, smaller(at_most, value))


def smaller(a: float, b: float) -> float:
    """Go's `math.Min`: −Inf wins over NaN."""
    if math.isnan(a) or math.isnan(b):
        return -math.inf if -math.inf in (a, b) else math.nan
    return min(a, b)


def larger(a: float, b: float) -> float:
    """Go's `math.Max`: +Inf wins over NaN."""
    if math.isnan(a) or math.isnan(b):
        return math.inf if math.inf in (a, b) else math.nan
    return max(a, b)


def text(value: float) -> str:
    """A value as Prometheus prints it (Go's 'f', -1)."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return format(Decimal(repr(value)), "f").removesuffix(".0")


def compensated(values: Sequence[float]) -> tuple[float, float]:
    """Neumaier's sum as Prometheus adds (util/kahansum): the running sum and what rounding took from it."""
    sum_, lost = 0.0, 0.0
    for value in values:
        after = sum_ + value
        if math.isinf(after):
            lost = 0.0
        elif abs(sum_) >= abs(value):
            lost += (sum_ - after) + value
        else:
            lost += (value - after) + sum_
        sum_ = after
    return sum_, lost


def total(values: Sequence[float]) -> float:
    """The sum. Where plain addition is exact to the last bit, Prometheus' compensated one is too."""
    plain = float(sum(values))
    if not math.isfinite(plain) or plain == math.fsum(values):
        return plain
    added, lost = compensated(values)
    return added if math.isinf(added) else added + lost


def mean(values: Sequence[float]) -> float:
    """The sum over the number; from where the sum is too large on, the running mean."""
    count = len(values)
    if all(map(float.is_integer, values)):
        plain = float(sum(values))
        if abs(plain) < 2**53:
            return plain / count
    added, lost = compensated(values)
    if not math.isinf(added):
        return added / count + lost / count
    return _running_mean(values)


def _running_mean(values: Sequence[float]) -> float:
    sum_, lost, middle = values[0], 0.0, 0.0
    running = False
    for number, value in enumerate(values[1:], 2):
        if not running:
            after, after_lost = _add(value, sum_, lost)
            if not math.isinf(after):
                sum_, lost = after, after_lost
                continue
            running, middle, lost = True, sum_ / (number - 1), lost / (number - 1)
        share = (number - 1) / number
        middle, lost = _add(value / number, share * middle, share * lost)
    return middle + lost if running else sum_ / len(values) + lost / len(values)


def _add(value: float, sum_: float, lost: float) -> tuple[float, float]:
    after = sum_ + value
    if math.isinf(after):
        return after, 0.0
    return after, lost + ((sum_ - after) + value if abs(sum_) >= abs(value) else (value - after) + sum_)


def least(values: Sequence[float]) -> float:
    """NaN only where all are."""
    found = min(values)
    return found if found == found else min(filter(_is_number, values), default=math.nan)  # noqa: PLR0124 - NaN


def most(values: Sequence[float]) -> float:
    """NaN only where all are."""
    found = max(values)
    return found if found == found else max(filter(_is_number, values), default=math.nan)  # noqa: PLR0124 - NaN


def _is_number(value: float) -> bool:
    return not math.isnan(value)


def variance(values: Sequence[float]) -> float:
    """Population variance by Welford's method, as the aggregations have it; NaN with an infinity among the values."""
    middle = squares = 0.0
    for number, value in enumerate(values, 1):
        difference = value - middle
        middle += difference / number
        squares += difference * (value - middle)
    return squares / len(values)


def variance_over_time(values: Sequence[float]) -> float:
    """The same with compensated sums, as the functions over time have it."""
    middle = middle_lost = squares = squares_lost = 0.0
    for number, value in enumerate(values, 1):
        difference = value - (middle + middle_lost)
        middle, middle_lost = _add(difference / number, middle, middle_lost)
        squares, squares_lost = _add(difference * (value - (middle + middle_lost)), squares, squares_lost)
    return (squares + squares_lost) / len(values)


def quantile(q: float, values: Sequence[float]) -> float:
    """The φ-quantile with linear interpolation, NaN being least; ±Inf outside [0, 1], NaN for none."""
    if not values or math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    ordered = sorted(values)
    if any(map(math.isnan, values)):
        ordered = sorted(values, key=lambda v: (not math.isnan(v), v))
    rank = q * (len(ordered) - 1)
    low = math.floor(rank)
    weight = rank - low
    if weight == 0:
        return ordered[low]
    return ordered[low] * (1 - weight) + ordered[min(len(ordered) - 1, low + 1)] * weight
