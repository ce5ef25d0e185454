"""What can be wrong with a query."""


class PromqlError(ValueError):
    """The expression is no PromQL; the message says why.

    `position` is where in the expression, counted from 0, if that is known: the parser tells it only through the words
    that its messages quote.
    """

    def __init__(self, message: str, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class UnsupportedError(PromqlError):
    """Valid PromQL that dsobs does not evaluate; the message names the construct."""


class EvaluationError(Exception):
    """The data do not allow a result: many-to-many matching, or two series with the same labels."""


class LimitError(EvaluationError):
    """The query takes more samples or time than one query may."""


class QueryTimeoutError(LimitError):
    """It takes more time."""
