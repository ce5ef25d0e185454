"""One evaluation of a query: over which times, with what was read from the store for it, within which limits."""

import time
from dataclasses import dataclass
from typing import Any

from dsobs.promql.errors import LimitError, QueryTimeoutError
from dsobs.series.store import Store


@dataclass(frozen=True, slots=True)
class Limits:
    """What one query may take, and the step that it takes where it names none."""

    samples: int = 5_000_000
    """Samples read from the store or made by subqueries, and values of the result."""
    seconds: float = 10.0
    """Time from its start, what others did meanwhile included."""
    points: int = 500_000
    """Values of a range query's result."""
    steps: int = 11_000
    """Evaluations of a range query, as Prometheus' API."""
    subquery_step: float = 60.0
    """Seconds between the times of a subquery that names no step; Prometheus takes its global evaluation_interval."""


LIMITS = Limits()


class Budget:
    """What is left of a query's limits."""

    __slots__ = ("_deadline", "_given", "_left", "_limits", "subquery_step")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = limits.samples
        self._given = 0
        self._deadline = time.monotonic() + limits.seconds
        self.subquery_step = max(1, round(limits.subquery_step * 1000))
        """Milliseconds."""

    def spend(self, samples: int) -> None:
        """`LimitError` where these samples are too many."""
        self._left -= samples
        if self._left < 0:
            raise LimitError(
                f"the query reads more than {self._limits.samples} samples; select fewer series, a shorter range or "
                "wider steps"
            )

    def give(self, points: int) -> None:
        """`LimitError` where the result has these values more than it may have."""
        self._given += points
        if self._given > self._limits.points:
            raise LimitError(
                f"the result has more than {self._limits.points} values; select fewer series, a shorter time or wider "
                "steps"
            )

    def check_time(self) -> None:
        """`LimitError` where the query's time is over."""
        if time.monotonic() > self._deadline:
            raise QueryTimeoutError(
                f"the query takes longer than {self._limits.seconds:g} s; select fewer series, a shorter range or "
                "wider steps"
            )


class Evaluation:
    """All times are milliseconds since the Unix epoch; `at` goes from `start` to `end` by `step`."""

    __slots__ = ("at", "budget", "end", "index", "prepared", "query_end", "query_start", "start", "step", "store")

    def __init__(self, store: Store, start: int, end: int, step: int, budget: Budget) -> None:
        self.store = store
        self.start, self.end, self.step = start, end, step
        self.at, self.index = start, 0
        self.query_start, self.query_end = start, end
        self.budget = budget
        self.prepared: dict[Any, Any] = {}
        """What sources have read or computed for all steps, by source."""

    def within(self, start: int, end: int, step: int) -> "Evaluation":
        """That of a subquery: `start()` and `end()` are still those of the query."""
        inner = Evaluation(self.store, start, end, step, self.budget)
        inner.query_start, inner.query_end = self.query_start, self.query_end
        return inner

    def go_to(self, index: int) -> None:
        """To a step, counted from 0."""
        self.index = index
        self.at = self.start + index * self.step

    @property
    def steps(self) -> int:
        """How many there are; 0 where the end is before the start."""
        return max(0, (self.end - self.start) // self.step + 1)
