"""Aggregations over an instant vector."""

import math
from collections.abc import Callable
from itertools import starmap

from dsobs.model.samples import Labels
from dsobs.promql.errors import EvaluationError
from dsobs.promql.functions import ranked
from dsobs.promql.numbers import least, mean, most, quantile, root, text, total, variance
from dsobs.promql.vectors import Vector

Grouping = Callable[[Labels], Labels]

REDUCING: dict[str, Callable[[list[float]], float]] = {
    "avg": mean,
    "count": lambda values: float(len(values)),
    "group": lambda _: 1.0,
    "max": most,
    "min": least,
    "stddev": lambda values: root(variance(values)),
    "stdvar": variance,
    "sum": total,
}
"""Aggregations without a parameter: the values of a group to one. A new one is one entry."""


def reduced(vector: Vector, grouping: Grouping, reduce: Callable[[list[float]], float]) -> Vector:
    """One value for each group."""
    grouped: dict[Labels, list[float]] = {}
    for labels, value in vector:
        key = grouping(labels)
        found = grouped.get(key)
        if found is None:
            grouped[key] = [value]
        else:
            found.append(value)
    return [(labels, reduce(values)) for labels, values in grouped.items()]


def _ranked(direction: float) -> Callable[[Vector, Grouping, float], Vector]:
    def evaluate(vector: Vector, grouping: Grouping, k: float) -> Vector:
        if k < 1:
            return []
        if not k < 2.0**63:
            raise EvaluationError(f"the parameter {text(k)} of topk or bottomk is not a whole number of 64 bits")
        grouped: dict[Labels, Vector] = {}
        for labels, value in vector:
            grouped.setdefault(grouping(labels), []).append((labels, value))
        return [pair for members in grouped.values() for pair in ranked(members, direction)[: int(k)]]

    return evaluate


def _quantile(vector: Vector, grouping: Grouping, q: float) -> Vector:
    return reduced(vector, grouping, lambda values: quantile(q, values))


WITH_NUMBER: dict[str, Callable[[Vector, Grouping, float], Vector]] = {
    "bottomk": _ranked(1.0),
    "quantile": _quantile,
    "topk": _ranked(-1.0),
}
"""Aggregations with a number as parameter. A new one is one entry."""
EXPERIMENTAL = frozenset({"limitk", "limit_ratio"})
"""What Prometheus 3 refuses too unless it is started with `--enable-feature=promql-experimental-functions`."""


def counted(vector: Vector, grouping: Grouping, label: str) -> Vector:
    """`count_values`: how often each value is there, the value being a label."""
    told = (((*(pair for pair in labels if pair[0] != label), (label, text(value))), 1.0) for labels, value in vector)
    return reduced(list(starmap(lambda labels, one: (tuple(sorted(labels)), one), told)), grouping, math.fsum)
