"""`histogram_quantile` over classic buckets (prometheus `promql/quantile.go`, `BucketQuantile`)."""

import math
from collections.abc import Iterable

TOLERANCE = 1e-12
"""Relative differences up to this between neighbouring buckets are rounding."""


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
    merged: dict[float, float] = {}
    for bound, count in buckets:
        merged[bound] = merged.get(bound, 0.0) + count
    ordered = sorted(merged.items())
    if len(ordered) < 2 or ordered[-1][0] != math.inf:
        return math.nan
    bounds = [bound for bound, _ in ordered]
    counts = _monotonic([count for _, count in ordered])
    observations = counts[-1]
    if observations == 0 or math.isnan(observations):
        return math.nan
    rank = q * observations
    index = next(i for i, count in enumerate(counts) if count >= rank) if rank <= counts[-1] else len(counts) - 1
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
    return start + (end - start) * (rank / count) if count else math.nan


def _monotonic(counts: list[float]) -> list[float]:
    out = [counts[0]]
    for count in counts[1:]:
        before = out[-1]
        rounding = count != before and abs(count - before) < TOLERANCE * (abs(count) + abs(before))
        out.append(before if count < before or rounding else count)
    return out
