"""What can be wrong with a query."""


class PromqlError(ValueError):
    """The expression is no PromQL; the message says why."""


class UnsupportedError(PromqlError):
    """Valid PromQL that dsobs does not evaluate; the message names the construct."""


class EvaluationError(Exception):
    """The data do not allow a result: many-to-many matching, or two series with the same labels."""
