"""PromQL over the local store, with the results of Prometheus 3; what is not supported is refused when it is
compiled."""

from dsobs.promql.errors import EvaluationError, LimitError, PromqlError, QueryTimeoutError, UnsupportedError
from dsobs.promql.evaluation import LIMITS, Limits
from dsobs.promql.query import (
    Points,
    Query,
    Result,
    Selection,
    compile,  # noqa: A004 - the word for it
    instant_query,
    range_query,
    selection,
)
from dsobs.promql.slices import Slice, Sliced, finish, unhurried

__all__ = [
    "LIMITS",
    "EvaluationError",
    "LimitError",
    "Limits",
    "Points",
    "PromqlError",
    "Query",
    "QueryTimeoutError",
    "Result",
    "Selection",
    "Slice",
    "Sliced",
    "UnsupportedError",
    "compile",
    "finish",
    "instant_query",
    "range_query",
    "selection",
    "unhurried",
]
