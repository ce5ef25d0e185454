"""PromQL over the local store, with the results of Prometheus 3; what is not supported is refused when it is
compiled."""

from dsobs.promql.errors import EvaluationError, PromqlError, UnsupportedError
from dsobs.promql.query import Query, compile  # noqa: A004 - the word for it

__all__ = ["EvaluationError", "PromqlError", "Query", "UnsupportedError", "compile"]
