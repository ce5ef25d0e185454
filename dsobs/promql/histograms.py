"""`histogram_quantile` and `histogram_fraction` over classic buckets (prometheus `promql/quantile.go`)."""

import math
import re
from collections.abc import Callable, Iterable

from dsobs.model.samples import Labels
from dsobs.promql.numbers import divide
from dsobs.promql.vectors import Vector, remembered, unique, without_name

TOLERANCE = 1e-12
"""Relative differences up to this between neighbouring buckets are rounding."""
_SMALLEST_NORMAL = 2.0**-1022
_DIGITS, _HEX = r"\d+(?:_\d+)*", r"[0-9a-f]+(?:_[0-9a-f]+)*"
_BOUND = re.compile(
    rf"[+-]?(?:(?:{_DIGITS}\.?|(?:{_DIGITS})?\.{_DIGITS})(?:e[+-]?{_DIGITS})?"
    rf"|(?P<hex>0x(?:_?{_HEX}\.?|(?:_?{_HEX})?\.{_HEX})p[+-]?{_DIGITS})"
    rf"|(?P<inf>inf(?:inity)?))",
    re.ASCII | re.IGNORECASE,
)
"""Numbers as Go's `strconv.ParseFloat` takes them."""


@remembered
def _bucket(labels: Labels) -> tuple[Labels, float | None]:
    """The labels of a bucket's histogram and the bucket's upper bound; None where the series is no bucket."""
    bound = _bound(dict(labels).get("le", ""))
    return () if bound is None else tuple([pair for pair in labels if pair[0] != "le"]), bound


def _bound(text: str) -> float | None:
    match = _BOUND.fullmatch(text)
    if match is None:
        return None
    digits = text.replace("_", "")
    try:
        bound = float.fromhex(digits) if match["hex"] else float(digits)
    except OverflowError:
        return None
    # What is too large for a float is an error there.
    return None if math.isinf(bound) and not match["inf"] else bound


def over_histograms(vector: Vector, evaluate: Callable[[list[tuple[float, float]]], float]) -> Vector:
    """One value for each histogram whose buckets are in the vector; what is no bucket is left out."""
    grouped: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in vector:
        key, bound = _bucket(labels)
        if bound is not None:
            found = grouped.get(key)
            if found is None:
                grouped[key] = [(bound, value)]
            else:
                found.append((bound, value))
    return unique([(without_name(key), evaluate(buckets)) for key, buckets in grouped.items()])


def bucket_quantile(q: float, buckets: Iterable[tuple[float, float]]) -> float:
    """The φ-quantile of cumulative (upper bound, count) pairs in any order.

    NaN without a +Inf bucket, with fewer than 2 buckets or with no observation. In the top bucket the second-highest
    bound; the first interpolates from 0; buckets that decrease are raised to the one before; equal bounds are added.
    """
    if math.isnan(q):
        return math.nan
    if q < 0:
        return -math.inf
    if q > 1:
        return math.inf
    bounds, counts = _merged(buckets)
    if len(bounds) < 2 or bounds[-1] != math.inf:
        return math.nan
    counts = _monotonic(counts)
    observations = counts[-1]
    if observations == 0:
        return math.nan
    rank = q * observations
    index, above = 0, len(bounds) - 1
    while index < above:
        # Not bisect: with a NaN among the counts it is this very search that gives Prometheus' result.
        middle = (index + above) // 2
        if counts[middle] >= rank:
            above = middle
        else:
            index = middle + 1
    if index == len(bounds) - 1:
        return bounds[-2]
    if index == 0 and bounds[0] <= 0:
        return bounds[0]
    start, end = (bounds[index - 1] if index else 0.0), bounds[index]
    count = counts[index]
    if index:
        count -= counts[index - 1]
        rank -= counts[index - 1]
    # Rank 0 with nothing in the first bucket: 0/0, as there.
    return start + (end - start) * divide(rank, count)


def bucket_fraction(lower: float, upper: float, buckets: Iterable[tuple[float, float]]) -> float:
    """The share of observations between two values, of cumulative (upper bound, count) pairs in any order.

    NaN without a +Inf bucket, without an observation or with a limit that is NaN; interpolates within a bucket.
    """
    bounds, counts = _merged(buckets)
    observations = counts[-1]
    if bounds[-1] != math.inf or observations == 0 or math.isnan(lower) or math.isnan(upper):
        return math.nan
    if lower >= upper:
        return 0.0
    rank_below, rank_above = (_rank(limit, bounds, counts) for limit in (lower, upper))
    return divide(rank_above - rank_below, observations)


def _rank(limit: float, bounds: list[float], counts: list[float]) -> float:
    """How many observations are below the limit."""
    start = 0.0 if bounds[0] > 0 else -math.inf
    rank = 0.0
    for end, count in zip(bounds, counts, strict=True):
        if start >= limit:
            break
        if end > limit:
            rank = count if math.isinf(start) else rank + (count - rank) * (limit - start) / (end - start)
            break
        start, rank = end, count
    else:
        return counts[-1]
    return min(rank, counts[-1])


def _merged(buckets: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Bounds and counts in rising order, equal bounds added."""
    bounds: list[float] = []
    counts: list[float] = []
    for bound, count in sorted(buckets, key=_upper_bound):
        if bounds and bounds[-1] == bound:
            counts[-1] += count
        else:
            bounds.append(bound)
            counts.append(count)
    return bounds, counts


def _upper_bound(bucket: tuple[float, float]) -> float:
    return bucket[0]


def _monotonic(counts: list[float]) -> list[float]:
    before = counts[0]
    out = [before]
    for count in counts[1:]:
        if count > before and not _alike(before, count):
            before = count
        elif count != before and not count < before and not _alike(before, count):
            # One of the two is NaN.
            before = count
        out.append(before)
    return out


def _alike(a: float, b: float) -> bool:
    """Prometheus' `almost.Equal` of two different numbers."""
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    together = abs(a) + abs(b)
    if a == 0 or b == 0 or together < _SMALLEST_NORMAL:
        return abs(a - b) < TOLERANCE * _SMALLEST_NORMAL
    return abs(a - b) / min(together, 1.7976931348623157e308) < TOLERANCE
