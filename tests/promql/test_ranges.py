"""Queries over a range: the same results as at each of its times, in slices, within limits."""

import asyncio
import math
import time
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs import promql
from dsobs.model.samples import Sample, labels
from dsobs.promql import LimitError, Limits, Points, Result
from dsobs.series.store import STALE, Store

BEGIN = 1_000_000.0
EXPRESSIONS = (
    "x",
    "rate(c[1m])",
    "sum by (job) (increase(c[2m]))",
    "x offset 30s",
    "x @ 1000100",
    "max_over_time(x[2m:10s])",
    "avg_over_time(sum(rate(c[1m]))[2m:20s] offset 20s)",
    "quantile_over_time(scalar(x{job='a'}) / 10, x[1m])",
    "timestamp(x)",
    "absent(x)",
    "absent_over_time(x[30s])",
    "predict_linear(x[1m], 60)",
    "time() - x",
    "x > 3 or c / 100",
    "{job='a'} > 0",
    "3",
)


def store(*, thinned: bool = False) -> Store:
    """Twenty minutes of a gauge with a gap and an end, and of a counter with resets, each of two jobs; 5 s apart."""
    made = Store() if thinned else Store(fine_seconds=1e6, coarse_seconds=1e6)
    for name in ("x", "c"):
        made.want(name)
    for index in range(240):
        t = BEGIN + 5 * index
        for job, shift in (("a", 0), ("b", 7)):
            if not 60 < index < 80:
                made.append(labels("x", job=job), t, float((index * 3 + shift) % 11))
            made.append(labels("c", job=job), t + 1, float((index + shift) % 50 * 10))
    made.append(labels("x", job="b"), BEGIN + 1_201, STALE)
    return made


def at_each(expression: str, data: Store, times: list[float]) -> dict[object, list[tuple[int, float]]]:
    """What the same query says at each time."""
    query = promql.compile(expression)
    found: dict[object, list[tuple[int, float]]] = {}
    for t in times:
        result = query.evaluate(data, t)
        for key, value in [((), result)] if isinstance(result, float) else [(s.labels, s.value) for s in result]:
            found.setdefault(key, []).append((round(t * 1000), value))
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
@pytest.mark.parametrize("thinned", [False, True])
def test_a_range_has_what_each_of_its_times_has(expression: str, thinned: bool) -> None:
    data = store(thinned=thinned)
    points = promql.compile(expression).evaluate_range(data, BEGIN + 100, BEGIN + 1_250, 17.5)
    times = [BEGIN + 100 + 17.5 * i for i in range(66)]
    expected = at_each(expression, data, times)
    assert {one.labels: list(zip(one.times, one.values, strict=True)) for one in points} == expected
    assert [one.labels for one in points] == sorted(one.labels for one in points)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 1_000), st.floats(0, 400), st.floats(5, 100))
def test_any_range_has_what_each_of_its_times_has(start: float, length: float, step: float) -> None:
    data = store()
    query = promql.compile("sum by (job) (rate(c[1m])) + on(job) max_over_time(x[1m:7s])")
    points = query.evaluate_range(data, BEGIN + start, BEGIN + start + length, step)
    first, by = round((BEGIN + start) * 1000), max(1, round(step * 1000))
    times = [t / 1000 for t in range(first, round((BEGIN + start + length) * 1000) + 1, by)]
    assert {one.labels: list(zip(one.times, one.values, strict=True)) for one in points} == at_each(
        query.expression, data, times
    )


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, math.nan, math.inf, STALE]), min_size=1, max_size=60), st.booleans()
)
def test_both_ways_to_look_for_falls_find_the_same(values: list[float], thinned: bool) -> None:
    # At one time the store says when a counter last fell; over a range its samples are looked through once.
    data = Store(fine_seconds=60.0 if thinned else 1e6)
    data.want("c")
    for index, value in enumerate(values):
        data.append(labels("c"), BEGIN + 5 * index, value)
    for expression in ("increase(c[47s])", "rate(c[3m])", "resets(c[2m])", "sum_over_time(c[20s])"):
        points = promql.compile(expression).evaluate_range(data, BEGIN, BEGIN + 300, 7)
        found = {one.labels: list(zip(one.times, map(repr, one.values), strict=True)) for one in points}
        expected = at_each(expression, data, [BEGIN + 7 * i for i in range(43)])
        assert found == {key: [(t, repr(value)) for t, value in told] for key, told in expected.items()}


def test_start_and_end_are_those_of_the_query_in_subqueries_too() -> None:
    query = promql.compile("sum_over_time((x{job='a'} @ start() + x{job='a'} @ end() * 100)[30s:10s])")
    (points,) = query.evaluate_range(store(), BEGIN + 50, BEGIN + 100, 25)
    assert list(points.values) == [3 * (30 % 11 + 60 % 11 * 100)] * 3


def test_subquery_without_a_step_takes_that_of_the_limits() -> None:
    told = {
        step: promql.compile("count_over_time(vector(1)[10m:])").evaluate(
            store(), BEGIN, Limits(subquery_step=step) if step else promql.LIMITS
        )
        for step in (0.0, 15.0, 120.0)
    }
    assert {step: value[0].value for step, value in told.items() if isinstance(value, list)} == {
        0.0: 10,
        15.0: 40,
        120.0: 5,
    }


def test_a_step_of_nothing_or_an_end_before_the_start_is_refused() -> None:
    query = promql.compile("x")
    for start, end, step in ((0.0, 1.0, 0.0), (0.0, 1.0, -1.0), (2.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match="the step is above 0 and the end not before"):
            query.evaluate_range(store(), start, end, step)


@pytest.mark.parametrize(
    ("expression", "limits", "told"),
    [
        ("x", Limits(samples=100), "more than 100 samples"),
        ("rate(c[1m])", Limits(samples=400), "more than 400 samples"),
        ("max_over_time(vector(1)[20m:1s])", Limits(samples=1_000), "more than 1000 samples"),
        ("x", Limits(steps=10), "more than 10 steps"),
        ("max_over_time(sum(rate(c[1m]))[10m:1s])", Limits(seconds=0.0), "longer than 0 s"),
    ],
)
def test_limits_stop_a_range_query(expression: str, limits: Limits, told: str) -> None:
    with pytest.raises(LimitError, match=told):
        promql.compile(expression).evaluate_range(store(), BEGIN, BEGIN + 1_200, 5.0, limits)


@pytest.mark.parametrize(
    ("expression", "limits", "told"),
    [
        ("sum_over_time(c[20m])", Limits(samples=100), "more than 100 samples"),
        ("max_over_time(vector(1)[20m:1s])", Limits(samples=1_000), "more than 1000 samples"),
        ("max_over_time(vector(1)[20m:1s])", Limits(seconds=0.0), "longer than 0 s"),
    ],
)
def test_limits_stop_an_instant_query(expression: str, limits: Limits, told: str) -> None:
    with pytest.raises(LimitError, match=told):
        promql.compile(expression).evaluate(store(), BEGIN + 1_200, limits)


def finished(slices: Generator[None, None, list[Points]]) -> list[Points]:
    """The result of the rest."""
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return list(end.value)


def test_what_was_read_stays_as_it_was_while_others_work() -> None:
    data = store()
    query = promql.compile("max_over_time(c[20m:1s])")
    expected = query.evaluate_range(data, BEGIN, BEGIN + 1_300, 5.0)

    slices = query.slices(data, BEGIN, BEGIN + 1_300, 5.0)
    next(slices)
    for index in range(10):
        data.append(labels("c", job="a"), BEGIN + 1_250 + index, 1e9)
    assert finished(slices) == expected


async def test_the_event_loop_runs_on_during_a_range_query() -> None:
    data = store()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    begun = time.process_time()
    await promql.range_query(
        "quantile_over_time(0.9, c[10m]) + max_over_time(x[10m:1s])", data, BEGIN, BEGIN + 1_200, 5
    )
    spent = time.process_time() - begun
    counting.cancel()
    assert turns > spent / 0.1


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_query_in_slices_gives_what_it_gives_at_once(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    query, data = promql.compile(expression), store()
    expected = query.evaluate(data, BEGIN + 1_200)
    assert promql.finish(query.in_slices(data, BEGIN + 1_200)) == expected
    monkeypatch.setattr("dsobs.promql.query._AT_ONCE", -1)
    assert promql.finish(query.in_slices(data, BEGIN + 1_200)) == expected


def test_a_selector_without_a_name_reads_all_metrics_and_says_so() -> None:
    query = promql.compile('count({job="a"}) + sum(x)')
    assert query.unnamed
    assert query.metric_names == {"x"}
    assert query.evaluate(store(), BEGIN + 100)[0].value == 2 + 60 % 11 + 67 % 11  # type: ignore[index]
    assert not promql.compile("sum(x)").unnamed


@pytest.mark.parametrize(
    ("expression", "seconds"),
    [
        ("x", 300),
        ("x offset 1h", 3_900),
        ("rate(x[6h] offset 1m)", 21_660),
        ("max_over_time(rate(x[5m])[1h:1m] offset 10m)", 4_500),
        ("max_over_time(x[1h:])", 3_900),
        ("x @ 1000", 0),
        ("1", 0),
    ],
)
def test_a_query_knows_how_far_back_it_reads(expression: str, seconds: float) -> None:
    assert promql.compile(expression).lookback_seconds == seconds


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ('"text"', Result("string", "text")),
        ("('text')", Result("string", "text")),
        ("1 + 2", Result("scalar", 3.0)),
        ("sum(x)", Result("vector", [Sample((), float(60 % 11 + 67 % 11))])),
        (
            "x{job='a'}[11s] offset 1s",
            Result("matrix", [Points(labels("x", job="a"), [1_000_090_000, 1_000_095_000], [10.0, 2.0])]),
        ),
        (
            "(sum(x))[5s:2s]",
            Result("matrix", [Points((), [1_000_096_000, 1_000_098_000, 1_000_100_000], [11.0, 11.0, 6.0])]),
        ),
    ],
)
async def test_an_instant_query_gives_any_type(expression: str, result: Result) -> None:
    found = await promql.instant_query(expression, store(), BEGIN + 100)
    assert found.kind == result.kind
    assert plain(found) == plain(result)


def plain(result: Result) -> object:
    """With lists for arrays."""
    if not isinstance(result.value, list):
        return result.value
    return [(one.labels, list(one.times), list(one.values)) if isinstance(one, Points) else one for one in result.value]


async def test_an_instant_query_keeps_the_order_and_its_limits() -> None:
    found = await promql.instant_query("sort_desc({job='a'})", store(), BEGIN + 100)
    assert isinstance(found.value, list)
    values = [sample.value for sample in found.value if isinstance(sample, Sample)]
    assert len(values) == 2
    assert values == sorted(values, reverse=True)
    with pytest.raises(LimitError, match="longer than 0 s"):
        await promql.instant_query("max_over_time(c[20m:1s])[20m:1s]", store(), BEGIN + 1_200, Limits(seconds=0.0))
