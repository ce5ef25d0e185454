"""Compiled expressions, evaluated at one time or at many."""

import asyncio
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import promql_parser as tree

from dsobs.model.samples import Labels, Sample
from dsobs.promql import syntax
from dsobs.promql.compiler import Compiler, Evaluate
from dsobs.promql.errors import LimitError, PromqlError, UnsupportedError
from dsobs.promql.evaluation import LIMITS, Budget, Evaluation, Limits
from dsobs.promql.matchers import fits, metric_names
from dsobs.promql.slices import Slice, Sliced, finish, unhurried
from dsobs.promql.sources import Source, prepare
from dsobs.promql.vectors import Vector
from dsobs.series.store import Series, Store

_Found: TypeAlias = "dict[Labels, tuple[array[int], array[float]]]"
_AT_ONCE = 10_000
"""Samples that a query at one time may look at without being sliced: 10 ms where each is dear."""


class Points(NamedTuple):
    """One series of a range query's result."""

    labels: Labels
    times: Sequence[int]
    """Milliseconds since the Unix epoch, ascending."""
    values: Sequence[float]


class Result(NamedTuple):
    """What an instant query gives."""

    kind: str
    """vector, scalar, matrix or string."""
    value: list[Sample] | float | list[Points] | str


def _told(value: Vector | float) -> list[Sample] | float:
    return [Sample(labels, one) for labels, one in value] if isinstance(value, list) else float(value)


class Query:
    """One compiled expression."""

    def __init__(self, expression: str, evaluate: Evaluate, compiler: Compiler, kind: str) -> None:
        self.expression = expression
        self.metric_names = frozenset(compiler.names)
        """Metrics that it reads by name."""
        self.unnamed = compiler.unnamed
        """Whether it also reads metrics that it does not name, by their labels."""
        self.lookback_seconds = compiler.lookback / 1000
        """How far back it reads: longest range, offset, subquery, and the look-back of five minutes."""
        self.window_seconds = compiler.window / 1000
        """The same without the look-back; 0 where it only looks at present values."""
        self.kind = kind
        """vector or scalar."""
        self._evaluate = evaluate
        self._sources: list[Source] = compiler.sources

    def evaluate(self, store: Store, t: float, limits: Limits = LIMITS) -> list[Sample] | float:
        """The result at `t`: an instant vector or a scalar.

        `EvaluationError` if the data allow none or the query takes more than `limits`.
        """
        at = round(t * 1000)
        return _told(self._evaluate(Evaluation(store, at, at, 1, Budget(limits))))

    def in_slices(self, store: Store, t: float, limits: Limits = LIMITS) -> Sliced[list[Sample] | float]:
        """The same in slices, where it is much work; errors as `evaluate`."""
        if sum(source.work(store) for source in self._sources) <= _AT_ONCE:
            return self.evaluate(store, t, limits)
        at = round(t * 1000)
        evaluation = Evaluation(store, at, at, 1, Budget(limits))
        yield from _sliced(prepare(self._sources, evaluation), evaluation.budget)
        # All that it reads was read: operators work on what is this evaluation's own.
        result: list[Sample] | float = yield lambda: _told(self._evaluate(evaluation))
        return result

    def slices(
        self, store: Store, start: float, end: float, step: float, limits: Limits = LIMITS
    ) -> Generator[None, None, list[Points]]:
        """The results from `start` to `end`, each `step` seconds, sorted by labels; a scalar is a series without any.

        Yields after each slice, so that the caller can let others work. What has been read
        from the store by then stays as it was. Errors as `evaluate`; ValueError for a step of 0 or less.
        """
        if not step > 0 or end < start:
            raise ValueError(f"from {start:g} to {end:g} by {step:g} s: the step is above 0 and the end not before")
        first, last, by = round(start * 1000), round(end * 1000), max(1, round(step * 1000))
        if (last - first) // by + 1 > limits.steps:
            raise LimitError(f"more than {limits.steps} steps; ask for wider steps or a shorter time")
        evaluation = Evaluation(store, first, last, by, Budget(limits))
        found: _Found = {}
        yield from _sliced(self._work(evaluation, found), evaluation.budget)
        return [Points(labels, times, values) for labels, (times, values) in sorted(found.items())]

    def _work(self, evaluation: Evaluation, found: _Found) -> Iterator[None]:
        yield from prepare(self._sources, evaluation)
        for index in range(evaluation.steps):
            evaluation.go_to(index)
            result = self._evaluate(evaluation)
            vector = result if isinstance(result, list) else [((), float(result))]
            evaluation.budget.spend(len(vector))
            evaluation.budget.give(len(vector))
            for labels, value in vector:
                points = found.get(labels)
                if points is None:
                    points = found[labels] = (array("q"), array("d"))
                points[0].append(evaluation.at)
                points[1].append(value)
            yield

    def evaluate_range(
        self, store: Store, start: float, end: float, step: float, limits: Limits = LIMITS
    ) -> list[Points]:
        """`slices` in one go."""
        return finish(self.slices(store, start, end, step, limits))


def _sliced(work: Iterator[None], budget: Budget) -> Iterator[None]:
    """The same work; yields after each slice only."""
    slice_ = Slice()
    for _ in work:
        for _ in slice_.over():
            yield
            budget.check_time()


async def range_query(
    expression: str, store: Store, start: float, end: float, step: float, limits: Limits = LIMITS
) -> list[Points]:
    """Compiles and evaluates over a range without holding the event loop: see `compile` and `Query.slices`."""
    return await unhurried(compile(expression).slices(store, start, end, step, limits))


async def instant_query(expression: str, store: Store, t: float, limits: Limits = LIMITS) -> Result:
    """Compiles and evaluates at one time, any type, without holding the event loop for what subqueries evaluate."""
    parsed, compiler = syntax.parse(expression), Compiler()
    with _located(expression):
        kind = compiler.kind(parsed)
        if kind == "string":
            return Result(kind, compiler.text(parsed))
        matrix = compiler.matrix(parsed) if kind == "matrix" else None
        evaluate = compiler.expression(parsed) if matrix is None else None
    at = round(t * 1000)
    evaluation = Evaluation(store, at, at, 1, Budget(limits))
    sources = compiler.sources if matrix is None else [matrix]
    await unhurried(_prepared(sources, evaluation))
    if evaluate is not None:
        return Result(kind, _told(await asyncio.to_thread(evaluate, evaluation)))
    tracks = evaluation.prepared[matrix]
    evaluation.budget.give(sum(len(track.times) for track in tracks))
    return Result(kind, [Points(track.labels, track.times, track.values) for track in tracks])


def _prepared(sources: Sequence[Source], evaluation: Evaluation) -> Generator[None, None, None]:
    yield from _sliced(prepare(sources, evaluation), evaluation.budget)


def compile(expression: str) -> Query:  # noqa: A001 - the word for it
    """Compiles; `PromqlError` for what is no PromQL, `UnsupportedError` for what is not evaluated here."""
    parsed, compiler = syntax.parse(expression), Compiler()
    with _located(expression):
        kind = compiler.kind(parsed)
        if kind == "matrix":
            raise PromqlError("the expression gives a range vector; a function such as rate() makes it an instant one")
        if kind == "string":
            raise PromqlError("the expression gives a string")
        evaluate = compiler.expression(parsed)
    return Query(expression, evaluate, compiler, kind)


@contextmanager
def _located(expression: str) -> Iterator[None]:
    """Says where errors are, if that is known."""
    try:
        yield
    except RecursionError as error:
        raise UnsupportedError("an expression nested this deep") from error
    except PromqlError as error:
        if error.position is None:
            error.position = syntax.position(expression, str(error))
        raise


class Selection:
    """Which series a selector such as `{job="a"}` names."""

    def __init__(self, names: tuple[str, ...], fits: Callable[[Labels], bool] | None) -> None:
        self._names = names
        self._fits = fits

    def series(self, store: Store, start: int, end: int) -> Iterator[Series]:
        """Those with a sample from `start` to `end`, milliseconds."""
        for name in self._names or (None,):
            for series in store.series(name, self._fits):
                first = (series.old_times or series.times)[0]
                if first <= end and series.last_time >= start:
                    yield series


def selection(selector: str) -> Selection:
    """Compiles a selector of series; PromqlError for what is none, and for one that names no series at all."""
    parsed = syntax.parse(selector)
    with _located(selector):
        if not isinstance(parsed, tree.VectorSelector):
            raise PromqlError('a selector of series such as up{job="a"} is expected')
        matchers = list(parsed.matchers.matchers)
        if parsed.matchers.or_matchers:
            raise UnsupportedError("`or` between matchers")
        return Selection(metric_names(parsed.name, matchers), fits(matchers))
