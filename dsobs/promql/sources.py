"""Where samples come from: selectors, subqueries, and functions over their windows.

At one time (rules) a source reads the store. Over many times it is prepared first: what it needs is read once, windows
are computed series by series, in slices; each step then takes its values from there.
"""

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from dsobs.model.samples import Labels
from dsobs.promql.evaluation import Evaluation
from dsobs.promql.ranges import NO_FALLS, RangeFunction, Window
from dsobs.promql.vectors import Vector, unique, without_name
from dsobs.series.store import LOOKBACK_SECONDS, NEVER, Series, Store, is_stale

LOOKBACK = int(LOOKBACK_SECONDS * 1000)
_SERIES_WORK = 10
"""What one series costs beside its samples, in samples."""
_SLICE_SAMPLES = 2_000
"""Samples looked at between two places where a query may be interrupted."""


class Track:
    """The samples of one series, read once for many windows."""

    __slots__ = ("bare", "falls", "labels", "thinned_until", "times", "values")

    def __init__(
        self,
        labels: Labels,
        bare: Labels,
        times: Sequence[int],
        values: Sequence[float],
        thinned_until: int = NEVER,
        fell_at: int | None = None,
    ) -> None:
        self.labels, self.bare = labels, bare
        """With and without the metric's name."""
        self.times, self.values = times, values
        self.thinned_until = thinned_until
        """The time until which the store has thinned them."""
        falls = fell_at is None or fell_at > times[0]
        self.falls = [i for i in range(1, len(values)) if not values[i] >= values[i - 1]] if falls else NO_FALLS


class Moment:
    """The times that a selector or subquery is asked for: offset and @ applied."""

    def __init__(self, offset: int, fixed: int | str | None) -> None:
        self.offset = offset
        self.fixed = fixed
        """Milliseconds, "start", "end" or None: of the query's range; the evaluation's own time."""

    def at(self, evaluation: Evaluation, time: int) -> int:
        """For the evaluation at `time`."""
        if self.fixed is None:
            return time - self.offset
        if self.fixed == "start":
            return evaluation.query_start - self.offset
        if self.fixed == "end":
            return evaluation.query_end - self.offset
        return int(self.fixed) - self.offset


class Source(Protocol):
    """Something that an evaluation over many steps prepares."""

    def prepare(self, evaluation: Evaluation) -> Iterator[None]:
        """Reads or computes for all steps; yields where it may be interrupted."""
        ...

    def work(self, store: Store, /) -> float:
        """How many samples it looks at for one time, at most and about, where each series has one in a second."""
        ...


def prepare(sources: Iterable[Source], evaluation: Evaluation) -> Iterator[None]:
    """All of them, in the order in which they need each other."""
    for source in sources:
        yield from source.prepare(evaluation)


class Selector:
    """Series by names and matchers; what was selected is remembered until series come or go.

    No names: whatever the store has.
    """

    def __init__(self, names: tuple[str, ...], fits: Callable[[Labels], bool] | None, moment: Moment) -> None:
        self.names = names
        self.moment = moment
        self._fits = fits
        self._known: tuple[Store, int] | None = None
        self._found: list[tuple[Series, Labels]] = []

    def series(self, store: Store) -> list[tuple[Series, Labels]]:
        """(series, its labels without the name), in the order of their labels."""
        if self._known is None or self._known[0] is not store or self._known[1] != store.generation:
            found = [series for name in self.names or (None,) for series in store.series(name, self._fits)]
            found.sort(key=lambda series: series.labels)
            self._found = [(series, without_name(series.labels)) for series in found]
            self._known = (store, store.generation)
        return self._found


class Instant:
    """The present samples of a selector's series."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector

    def prepare(self, evaluation: Evaluation) -> Iterator[None]:
        """Reads what any of the steps needs, staleness markers included."""
        first, last = _edges(self.selector.moment, evaluation)
        tracks: list[tuple[Labels, Labels, Sequence[int], Sequence[float]]] = []
        for series, bare in self.selector.series(evaluation.store):
            times: Sequence[int]
            values: Sequence[float]
            if first == last:
                found = series.at(last)
                times, values = ((), ()) if found is None else ((found[0],), (found[1],))
            else:
                times, values = series.samples(first - LOOKBACK, last)
            evaluation.budget.spend(len(times))
            if len(times):
                tracks.append((series.labels, bare, times, values))
            yield
        evaluation.prepared[self] = tracks

    def work(self, store: Store) -> float:
        """See `Source`."""
        return len(self.selector.series(store)) * _SERIES_WORK

    def samples(self, evaluation: Evaluation) -> Iterator[tuple[Labels, Labels, int, float]]:
        """(labels, labels without the name, time, value)."""
        at = self.selector.moment.at(evaluation, evaluation.at)
        oldest = at - LOOKBACK
        tracks = evaluation.prepared.get(self)
        if tracks is None:
            for series, bare in self.selector.series(evaluation.store):
                found = series.at(at)
                if found is not None and found[0] > oldest and not is_stale(found[1]):
                    yield series.labels, bare, found[0], found[1]
            return
        for labels, bare, times, values in tracks:
            i = bisect_right(times, at)
            if i and times[i - 1] > oldest and not is_stale(values[i - 1]):
                yield labels, bare, times[i - 1], values[i - 1]

    def values(self, evaluation: Evaluation) -> Vector:
        """The instant vector."""
        return [(labels, value) for labels, _, _, value in self.samples(evaluation)]

    def times(self, evaluation: Evaluation) -> Vector:
        """`timestamp()`: seconds, without the name."""
        return unique([(bare, time / 1000) for _, bare, time, _ in self.samples(evaluation)])


class Matrix(Protocol):
    """A range vector."""

    moment: Moment
    milliseconds: int

    def prepare(self, evaluation: Evaluation) -> Iterator[None]:
        """As `Source`; afterwards `evaluation.prepared` has its tracks."""
        ...

    def work(self, store: Store, /) -> float:
        """See `Source`."""
        ...

    def fill(self, evaluation: Evaluation, window: Window) -> Iterator[tuple[Labels, Labels]]:
        """Puts the window of one series after the other into `window`: (labels, labels without the name)."""
        ...


class Ranges:
    """The last samples of a selector's series."""

    def __init__(self, selector: Selector, milliseconds: int) -> None:
        self.selector = selector
        self.moment = selector.moment
        self.milliseconds = milliseconds

    def prepare(self, evaluation: Evaluation) -> Iterator[None]:
        """Reads what any of the steps needs."""
        first, last = _edges(self.moment, evaluation)
        tracks = []
        for series, bare in self.selector.series(evaluation.store):
            times, values = series.window(first - self.milliseconds, last)
            evaluation.budget.spend(len(times))
            if len(times):
                thinned_until = series.old_times[-1] if series.old_times else NEVER
                tracks.append(Track(series.labels, bare, times, values, thinned_until, series.fell_at))
            yield
        evaluation.prepared[self] = tracks

    def work(self, store: Store) -> float:
        """See `Source`."""
        return len(self.selector.series(store)) * (_SERIES_WORK + store.samples_within(self.milliseconds))

    def fill(self, evaluation: Evaluation, window: Window) -> Iterator[tuple[Labels, Labels]]:
        """Straight from the store."""
        start, end = window.start, window.end
        spent = 0
        for series, bare in self.selector.series(evaluation.store):
            old_times = series.old_times
            thinned = bool(old_times) and old_times[-1] > start
            if thinned or series.has_nan:
                times, values = series.window(start, end)
                lo, hi = 0, len(times)
            else:
                times, values = series.times, series.values
                lo = bisect_right(times, start)
                hi = bisect_right(times, end, lo)
            if hi > lo:
                window.frame(times, lo, hi, evaluation.store.coarse_step if thinned else 0.0)
                window.values = values
                window.falls = NO_FALLS if series.fell_at <= times[lo] else None
                spent += hi - lo
                yield series.labels, bare
        evaluation.budget.spend(spent)


class Subquery:
    """The results of an expression at the multiples of a step."""

    def __init__(
        self,
        inner: Callable[[Evaluation], Any],
        sources: Sequence[Source],
        moment: Moment,
        milliseconds: int,
        step: int | None,
    ) -> None:
        """`step` in milliseconds; None for the evaluation's."""
        self.moment = moment
        self.milliseconds = milliseconds
        self._inner = inner
        self._sources = sources
        self._step = step

    def prepare(self, evaluation: Evaluation) -> Iterator[None]:
        """Evaluates at all times that any of the steps needs."""
        first, last = _edges(self.moment, evaluation)
        step = self._step or evaluation.budget.subquery_step
        start = ((first - self.milliseconds) // step + 1) * step
        inner = evaluation.within(start, last, step)
        yield from prepare(self._sources, inner)
        found: dict[Labels, tuple[array[int], array[float]]] = {}
        for index in range(inner.steps):
            inner.go_to(index)
            vector = self._inner(inner)
            evaluation.budget.spend(len(vector))
            for labels, value in vector:
                samples = found.get(labels)
                if samples is None:
                    samples = found[labels] = (array("q"), array("d"))
                samples[0].append(inner.at)
                samples[1].append(value)
            yield
        tracks = []
        for labels, (times, values) in found.items():
            tracks.append(Track(labels, without_name(labels), times, values))
            yield
        evaluation.prepared[self] = tracks

    def work(self, _: Store) -> float:
        """Of many times: always much."""
        return math.inf

    def fill(self, evaluation: Evaluation, window: Window) -> Iterator[tuple[Labels, Labels]]:
        """Evaluates for this one time."""
        now = evaluation.within(evaluation.at, evaluation.at, 1)
        for _ in self.prepare(now):
            evaluation.budget.check_time()
        for track in now.prepared[self]:
            window.frame(track.times, 0, len(track.times), 0.0)
            window.values, window.falls = track.values, track.falls
            yield track.labels, track.bare


def _edges(moment: Moment, evaluation: Evaluation) -> tuple[int, int]:
    """The first and the last time that any step asks for."""
    last = evaluation.start + max(0, evaluation.steps - 1) * evaluation.step
    return moment.at(evaluation, evaluation.start), moment.at(evaluation, last)


class RangeCall:
    """A function over the windows of a range vector."""

    def __init__(
        self,
        function: RangeFunction,
        matrix: Matrix,
        parameters: Sequence[Callable[[Evaluation], Any]],
        *,
        keeps_name: bool,
    ) -> None:
        self._function = function
        self._matrix = matrix
        self._parameters = parameters
        self._keeps_name = keeps_name

    def _window(self, evaluation: Evaluation, at: int) -> Window:
        end = self._matrix.moment.at(evaluation, at)
        return Window(end - self._matrix.milliseconds, end, at)

    def __call__(self, evaluation: Evaluation) -> Vector:
        """The instant vector."""
        columns = evaluation.prepared.get(self)
        if columns is not None:
            index = evaluation.index
            out = [(labels, column[index]) for labels, column in columns if column[index] is not None]
            return out if self._keeps_name else unique(out)
        window = self._window(evaluation, evaluation.at)
        given = [float(parameter(evaluation)) for parameter in self._parameters]
        function, keeps_name = self._function, self._keeps_name
        out = []
        for labels, bare in self._matrix.fill(evaluation, window):
            value = function(window, given)
            if value is not None:
                out.append((labels if keeps_name else bare, value))
        return out if keeps_name else unique(out)

    def work(self, store: Store) -> float:
        """See `Source`."""
        return self._matrix.work(store)

    def prepare(self, evaluation: Evaluation) -> Iterator[None]:
        """All windows, series by series."""
        yield from self._matrix.prepare(evaluation)
        windows, given = [], []
        for index in range(evaluation.steps):
            evaluation.go_to(index)
            windows.append(self._window(evaluation, evaluation.at))
            given.append([float(parameter(evaluation)) for parameter in self._parameters])
            yield
        coarse_step = evaluation.store.coarse_step
        columns = []
        framed: tuple[Sequence[int], int] | None = None
        for track in evaluation.prepared.pop(self._matrix):
            column: list[float | None] = []
            looked_at = 0
            values, falls = track.values, track.falls
            # The series of one server were scraped together: most have the times of the one before.
            if framed != (track.times, track.thinned_until):
                framed = (track.times, track.thinned_until)
                _frame(windows, *framed, coarse_step)
            for window, parameters in zip(windows, given, strict=True):
                samples = window.hi - window.lo
                if not samples:
                    column.append(None)
                    continue
                window.values, window.falls = values, falls
                column.append(self._function(window, parameters))
                looked_at += samples
                if looked_at > _SLICE_SAMPLES:
                    looked_at = 0
                    yield
            columns.append((track.labels if self._keeps_name else track.bare, column))
            evaluation.budget.spend(len(column))
            yield
        evaluation.prepared[self] = columns


def _frame(windows: Iterable[Window], times: Sequence[int], thinned_until: int, coarse_step: float) -> None:
    """Which of the samples each window has."""
    for window in windows:
        lo = bisect_right(times, window.start)
        hi = bisect_right(times, window.end, lo)
        window.frame(times, lo, hi, coarse_step if thinned_until > window.start else 0.0)


class AbsentOverTime:
    """`absent_over_time`: 1 where no series has a sample in its window."""

    def __init__(self, matrix: Matrix, labels: Labels) -> None:
        self._present = RangeCall(lambda _window, _parameters: 1.0, matrix, (), keeps_name=True)
        self._labels = labels

    def __call__(self, evaluation: Evaluation) -> Vector:
        """One series or none."""
        return [] if self._present(evaluation) else [(self._labels, 1.0)]

    def prepare(self, evaluation: Evaluation) -> Iterator[None]:
        """As `RangeCall`."""
        return self._present.prepare(evaluation)

    def work(self, store: Store) -> float:
        """See `Source`."""
        return self._present.work(store)
