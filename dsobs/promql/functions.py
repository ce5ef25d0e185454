"""The functions of instant vectors and scalars; those of ranges are in `ranges`."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from dsobs.promql import calendar
from dsobs.promql.evaluation import Evaluation
from dsobs.promql.histograms import bucket_fraction, bucket_quantile, over_histograms
from dsobs.promql.numbers import bounded, defined, exponential, larger, logarithm, root, rounded, sign, smaller, whole
from dsobs.promql.patterns import compile_pattern, expanded
from dsobs.promql.vectors import Value, Vector, unique, without_name

Function: TypeAlias = Callable[[Evaluation, list[Any]], Any]
"""A function of the language: (evaluation, values of its arguments) → `Value`."""


def _plain(function: Callable[..., Value]) -> Function:
    """One that needs nothing but its arguments."""
    return lambda _, arguments: function(*arguments)


def _each(change: Callable[..., float]) -> Function:
    """A function of each value of a vector and of scalars; the result has no name."""
    return _plain(
        lambda vector, *scalars: unique([(without_name(labels), change(value, *scalars)) for labels, value in vector])
    )


def _part_of_date(part: Callable[[float], float]) -> Function:
    """Of each value as seconds; of the evaluation's time without an argument."""
    each = _each(part)

    def evaluate(evaluation: Evaluation, arguments: list[Any]) -> Vector:
        if not arguments:
            return [((), part(calendar.whole_seconds(evaluation.at)))]
        return list(each(evaluation, arguments))

    return evaluate


def scalar_of(value: Any) -> float:
    """The value of a vector with one series, else NaN."""
    if isinstance(value, list):
        return value[0][1] if len(value) == 1 else math.nan
    return float(value)


def _clamp(vector: Vector, at_least: float, at_most: float) -> Vector:
    if at_most < at_least:
        return []
    return unique([(without_name(labels), bounded(value, at_least, at_most)) for labels, value in vector])


def _label_replace(vector: Vector, target: str, replacement: str, source: str, pattern: str) -> Vector:
    compiled = compile_pattern(pattern)
    out = []
    for labels, value in vector:
        found = dict(labels)
        match = compiled.fullmatch(found.get(source, ""))
        if match is not None:
            found[target] = expanded(replacement, match)
        out.append((tuple(sorted((k, v) for k, v in found.items() if v)), value))
    return unique(out)


def _label_join(vector: Vector, target: str, separator: str, *sources: str) -> Vector:
    out = []
    for labels, value in vector:
        found = dict(labels)
        found[target] = separator.join([found.get(source, "") for source in sources])
        out.append((tuple(sorted((k, v) for k, v in found.items() if v)), value))
    return unique(out)


def ranked(vector: Vector, direction: float) -> Vector:
    """By value, NaN last; by falling value with a negative direction."""
    return sorted(vector, key=lambda pair: (math.isnan(pair[1]), direction * pair[1]))


FUNCTIONS: dict[str, Function] = {
    "abs": _each(abs),
    "acos": _each(defined(math.acos)),
    "acosh": _each(defined(math.acosh)),
    "asin": _each(defined(math.asin)),
    "asinh": _each(defined(math.asinh)),
    "atan": _each(defined(math.atan)),
    "atanh": _each(defined(math.atanh)),
    "ceil": _each(whole(math.ceil)),
    "clamp": _plain(_clamp),
    "clamp_max": _each(smaller),
    "clamp_min": _each(larger),
    "cos": _each(defined(math.cos)),
    "cosh": _each(defined(math.cosh)),
    "deg": _each(lambda value: value * (180 / math.pi)),
    "exp": _each(exponential),
    "floor": _each(whole(math.floor)),
    "histogram_fraction": _plain(
        lambda lower, upper, vector: over_histograms(vector, lambda found: bucket_fraction(lower, upper, found))
    ),
    "histogram_quantile": _plain(lambda q, vector: over_histograms(vector, lambda found: bucket_quantile(q, found))),
    "label_join": _plain(_label_join),
    "label_replace": _plain(_label_replace),
    "ln": _each(logarithm(math.log)),
    "log10": _each(logarithm(math.log10)),
    "log2": _each(logarithm(math.log2)),
    "pi": _plain(lambda: math.pi),
    "rad": _each(lambda value: value * (math.pi / 180)),
    "round": _each(rounded),
    "scalar": _plain(scalar_of),
    "sgn": _each(sign),
    "sin": _each(defined(math.sin)),
    "sinh": _each(defined(math.sinh)),
    "sort": _plain(lambda vector: ranked(vector, 1.0)),
    "sort_desc": _plain(lambda vector: ranked(vector, -1.0)),
    "sqrt": _each(root),
    "tan": _each(defined(math.tan)),
    "tanh": _each(defined(math.tanh)),
    "time": lambda evaluation, _: evaluation.at / 1000,
    "vector": _plain(lambda value: [((), float(value))]),
    **{name: _part_of_date(part) for name, part in calendar.PARTS.items()},
}
"""A new one is one entry. `absent`, `absent_over_time` and `timestamp` read their selectors: see `compiler`."""
EXPERIMENTAL = frozenset(
    {
        "double_exponential_smoothing",
        "end",
        "histogram_quantiles",
        "info",
        "integral",
        "mad_over_time",
        "max_of",
        "min_of",
        "range",
        "sort_by_label",
        "sort_by_label_desc",
        "start",
        "start_timestamp",
        "step",
        "ts_of_first_over_time",
        "ts_of_last_over_time",
        "ts_of_max_over_time",
        "ts_of_min_over_time",
    }
)
"""What Prometheus 3 refuses too unless it is started with `--enable-feature=promql-experimental-functions`."""
NATIVE_HISTOGRAMS = frozenset(
    {"histogram_avg", "histogram_count", "histogram_stddev", "histogram_stdvar", "histogram_sum"}
)
"""Functions of native histograms, which the store does not hold."""
