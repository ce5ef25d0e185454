"""dsobs' PromQL against a real Prometheus 3: the same samples in both, the same expressions, equal results.

A short form for CI; LONG_TESTS=1 draws nine times as many expressions.
"""

import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from dsobs import promql
from dsobs.model.samples import Labels
from dsobs.promql import aggregations, functions, operators, ranges
from dsobs.promql.evaluation import Evaluation
from dsobs.promql.functions import Function
from dsobs.series.store import Store
from tests.real import promql_expressions as expressions
from tests.real.prometheus import Answer, Prometheus
from tests.real.promql_series import BEGIN, SECONDS, store_of, streams

pytestmark = pytest.mark.real("faults")

TOLERANCE = 1e-9
DRAWN = 30_000 if os.environ.get("LONG_TESTS") == "1" else 3_500
SEED = 20_261_124
INSTANTS = (BEGIN + 905.0, BEGIN + 1_500.25)
RANGE = (BEGIN + 200.0, BEGIN + SECONDS - 100.0, 47.0)
EARLY = (BEGIN - 60.0, BEGIN + 300.0, 7.5)
"""From before the first sample on."""
_SHOWN = 20
_ASKED_AGAIN = 20

Series = list[tuple[Labels, list[tuple[int, float]]]]


class Both(NamedTuple):
    """The same samples twice."""

    prometheus: Prometheus
    store: Store


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    found = streams()
    with Prometheus() as prometheus:
        prometheus.write(found)
        yield Both(prometheus, store_of(found))


def ours(expression: str, store: Store, *times: float) -> tuple[str, Series]:
    """What dsobs says at one time, or from, to, by: ("parse", "execution" or "", series)."""
    try:
        query = promql.compile(expression)
        if len(times) == 1:
            result = query.evaluate(store, times[0])
            at = round(times[0] * 1000)
            if isinstance(result, float):
                return "", [((), [(at, result)])]
            return "", [(sample.labels, [(at, sample.value)]) for sample in result]
        start, end, step = times
        points = query.evaluate_range(store, start, end, step)
    except promql.PromqlError:
        return "parse", []
    except promql.EvaluationError:
        return "execution", []
    return "", [(one.labels, list(zip(one.times, one.values, strict=True))) for one in points]


def theirs(expression: str, prometheus: Prometheus, *times: float) -> Answer:
    """What Prometheus says."""
    return prometheus.query(expression, *times) if len(times) == 1 else prometheus.query_range(expression, *times)


def alike(a: float, b: float) -> bool:
    if math.isnan(a) or math.isnan(b):
        return math.isnan(a) and math.isnan(b)
    return a == b or (math.isfinite(a) and math.isfinite(b) and abs(a - b) <= TOLERANCE * max(abs(a), abs(b)))


def difference(expression: str, expected: Answer, error: str, got: Series) -> str:
    """What differs, in words; "" for nothing."""
    if expected.error or error:
        # A bad argument that Prometheus finds when it evaluates may be found here when it is compiled.
        agree = bool(expected.error) == bool(error) and (error == "parse" or expected.error.startswith("execution"))
        return "" if agree else f"Prometheus: {expected.error or 'a result'}; dsobs: {error or 'a result'}"
    if "topk" in expression or "bottomk" in expression:
        # Which of several series with equal values is taken is nobody's promise.
        return _other_values(expected.series, got)
    if expected.kind == "vector" and expression.startswith("sort"):
        order = [[str(points[0][1]) for _, points in side] for side in (expected.series, got)]
        if order[0] != order[1]:
            return f"order {order[0]} and {order[1]}"
    one, other = dict(expected.series), dict(got)
    if len(other) != len(got):
        return "a series twice"
    if one.keys() != other.keys():
        missing, added = one.keys() - other.keys(), other.keys() - one.keys()
        return f"only Prometheus has {sorted(missing)}, only dsobs {sorted(added)}"
    for labels, points in one.items():
        if [t for t, _ in points] != [t for t, _ in other[labels]]:
            return f"{labels}: at {[t for t, _ in points]} and at {[t for t, _ in other[labels]]}"
        for (t, a), (_, b) in zip(points, other[labels], strict=True):
            if not alike(a, b):
                return f"{labels} at {t}: {a!r} and {b!r}"
    return ""


def _other_values(expected: Series, got: Series) -> str:
    sides: list[dict[int, list[float]]] = []
    for series in (expected, got):
        values = defaultdict(list)
        for _, points in series:
            for t, value in points:
                values[t].append(value)
        sides.append({t: sorted(found, key=lambda v: (math.isnan(v), v)) for t, found in values.items()})
    for t in sides[0].keys() | sides[1].keys():
        one, other = (side.get(t, []) for side in sides)
        if len(one) != len(other) or not all(map(alike, one, other)):
            return f"at {t}: {one} and {other}"
    return ""


@dataclass
class Report:
    """Of one comparison."""

    name: str
    expressions: int = 0
    evaluations: int = 0
    series: int = 0
    points: int = 0
    refused: int = 0
    empty: int = 0
    unsteady: int = 0
    """Where Prometheus answers the same query differently from one time to the next."""
    delicate: int = 0
    """Where the last bits of a function decide."""
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.expressions} expressions, {self.evaluations} evaluations "
            f"({self.empty} without a series, {self.refused} refused by both), {self.series} series, "
            f"{self.points} points, {self.unsteady} where Prometheus differs from itself, "
            f"{self.delicate} where the last bits of a function decide: differences {len(self.differences)}"
        )


def compared(name: str, found: Iterable[str], both: Both, *ranges: tuple[float, float, float]) -> Report:
    """Each expression at two instants and over these ranges."""
    report = Report(name)
    for expression in found:
        report.expressions += 1
        for times in (*((t,) for t in INSTANTS), *ranges):
            expected = theirs(expression, both.prometheus, *times)
            error, got = ours(expression, both.store, *times)
            report.evaluations += 1
            report.refused += bool(expected.error)
            report.empty += not expected.error and not expected.series
            report.series += len(got)
            report.points += sum(len(points) for _, points in got)
            if what := difference(expression, expected, error, got):
                if unsteady(expression, expected, both, times):
                    report.unsteady += 1
                elif delicate(expression, both.store, times):
                    report.delicate += 1
                else:
                    report.differences.append(f"{expression} at {times}: {what}")
    return report


def unsteady(expression: str, expected: Answer, both: Both, times: tuple[float, ...]) -> bool:
    """Whether Prometheus' own answers differ by more than the tolerance.

    In range queries it adds up series in the order of a hash map: a variance of large numbers depends on that.
    """
    again = (theirs(expression, both.prometheus, *times) for _ in range(_ASKED_AGAIN))
    return any(difference(expression, expected, "", answer.series) for answer in again if not answer.error)


def delicate(expression: str, store: Store, times: tuple[float, ...]) -> bool:
    """Whether dsobs' own answer changes by more than the tolerance when functions change in their last two bits.

    Go's `math` and C's differ there, as both may; `cosh(x) % 3.7` of a large x makes much of it.
    """
    error, before = ours(expression, store, *times)
    power = operators.ARITHMETIC["^"]
    for factor in (1 - 2.0**-51, 1 + 2.0**-51):
        with pytest.MonkeyPatch.context() as patch:
            for name in expressions.INEXACT:
                patch.setitem(functions.FUNCTIONS, name, _scaled(functions.FUNCTIONS[name], factor))
            patch.setitem(operators.ARITHMETIC, "^", _nudged(power, factor))
            _, after = ours(expression, store, *times)
        if difference(expression, Answer(error, "", before), error, after):
            return True
    return False


def _nudged(power: Callable[[float, float], float], factor: float) -> Callable[[float, float], float]:
    return lambda a, b: power(a, b) * factor


def _scaled(function: Function, factor: float) -> Function:
    def evaluate(evaluation: Evaluation, arguments: list[Any]) -> Any:
        return [(labels, value * factor) for labels, value in function(evaluation, arguments)]

    return evaluate


def checked(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{report}")
    assert report.differences[:_SHOWN] == []


def test_expressions_written_by_hand_give_what_prometheus_gives(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    checked(compared("by hand", dict.fromkeys(expressions.BY_HAND), both, RANGE, EARLY), capsys)


def test_drawn_expressions_give_what_prometheus_gives(both: Both, capsys: pytest.CaptureFixture[str]) -> None:
    drawn: dict[str, None] = {}

    @seed(SEED)
    @settings(
        max_examples=DRAWN,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(expressions.VECTORS)
    def draw(expression: str) -> None:
        drawn[expression] = None

    draw()
    checked(compared("drawn", drawn, both, RANGE), capsys)


def test_a_result_that_hangs_on_the_last_bits_of_a_function_is_known_as_such(both: Both) -> None:
    times = (INSTANTS[0],)
    assert delicate("cosh(http_requests_total) % 3.7", both.store, times)
    for expression in ("cosh(http_requests_total)", "http_requests_total % 3.7", "sum(exp(odd)) / 3", "odd ^ 2"):
        assert not delicate(expression, both.store, times)


def test_every_function_operator_and_aggregation_is_among_the_expressions() -> None:
    text = "\n".join(expressions.BY_HAND)
    names = [*functions.FUNCTIONS, *ranges.RANGE_FUNCTIONS, "absent", "absent_over_time", "timestamp"]
    names += [*aggregations.REDUCING, *aggregations.WITH_NUMBER, "count_values"]
    assert [name for name in names if f"{name}(" not in text] == []
    signs = [*operators.ARITHMETIC, *operators.COMPARISONS, "and", "or", "unless"]
    assert [sign for sign in signs if f" {sign} " not in text] == []


@pytest.mark.parametrize("expression", expressions.REFUSED)
def test_what_prometheus_refuses_is_refused(expression: str, both: Both) -> None:
    refusal = theirs(expression, both.prometheus, INSTANTS[0]).error
    assert refusal
    error, _ = ours(expression, both.store, INSTANTS[0])
    assert error == "parse" or refusal.startswith(error)


@pytest.mark.parametrize(("expression", "word"), sorted(expressions.NARROWER.items()))
def test_what_only_dsobs_refuses_is_refused_by_name(expression: str, word: str, both: Both) -> None:
    assert not theirs(expression, both.prometheus, INSTANTS[0]).error
    with pytest.raises(promql.UnsupportedError, match=word):
        promql.compile(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "odd[5m]",
        "vllm:num_requests_running[90s] offset 1m",
        "vllm:generation_tokens_total[2m] @ 1700000800",
        "(sum by (engine) (vllm:num_requests_running))[3m:20s]",
        "odd[2m:] offset 10s",
        "absent_metric[5m]",
    ],
)
async def test_range_vectors_are_those_of_prometheus(expression: str, both: Both) -> None:
    expected = theirs(expression, both.prometheus, INSTANTS[0])
    assert not expected.error
    found = await promql.instant_query(expression, both.store, INSTANTS[0])
    assert found.kind == expected.kind == "matrix"
    assert isinstance(found.value, list)
    got = [
        (one.labels, list(zip(one.times, one.values, strict=True)))
        for one in found.value
        if isinstance(one, promql.Points)
    ]
    assert difference(expression, expected, "", got) == ""


def test_a_parameter_that_varies_is_evaluated_at_each_step(both: Both) -> None:
    # The one known difference: where the vector of an aggregation is fixed by @, Prometheus evaluates the aggregation
    # once, at the start of the range, even if its parameter varies.
    def expression(now: str) -> str:
        return f'quantile(({now} - {BEGIN}) / {SECONDS}, odd{{kind=~"flat|negative|zero"}} @ {BEGIN + 700})'

    ((_, expected),) = theirs(expression("time()"), both.prometheus, *RANGE).series
    _, ((_, got),) = ours(expression("time()"), both.store, *RANGE)
    assert got[0] == expected[0]
    assert {value for _, value in expected} == {expected[0][1]}
    for t, value in got:
        ((_, ((_, once),)),) = theirs(expression(str(t / 1000)), both.prometheus, RANGE[0]).series
        assert alike(value, once)


# A store as it runs: every sample for ten minutes, beyond that the last one of each 15 s.

END = BEGIN + SECONDS
FAR = re.compile(r"@|1h|1[57]m|20m")
"""Expressions that read further back than ten minutes."""


@pytest.fixture(scope="module")
def thinned() -> Store:
    return store_of(streams(), fine_seconds=600.0)


def test_within_ten_minutes_a_thinned_store_gives_what_prometheus_gives(both: Both, thinned: Store) -> None:
    for expression in dict.fromkeys(expressions.BY_HAND):
        if not FAR.search(expression):
            error, got = ours(expression, thinned, END)
            assert difference(expression, theirs(expression, both.prometheus, END), error, got) == "", expression


def test_a_thinned_counter_loses_no_increase(both: Both, thinned: Store) -> None:
    expression = "sum by (engine, instance) (increase(vllm:generation_tokens_total[25m]))"
    expected = dict(theirs(expression, both.prometheus, END).series)
    got = dict(ours(expression, thinned, END)[1])
    assert got.keys() == expected.keys()
    for labels, ((_, value),) in got.items():
        assert value == pytest.approx(expected[labels][0][1], rel=0.02)


def test_a_thinned_past_is_told_up_to_15_s_late(both: Both, thinned: Store) -> None:
    then = END - 1_500
    got = ours("timestamp(vllm:num_requests_running)", thinned, then)[1]
    expected = dict(theirs("timestamp(vllm:num_requests_running)", both.prometheus, then).series)
    assert {labels for labels, _ in got} == expected.keys()
    for labels, ((_, value),) in got:
        assert 0 <= expected[labels][0][1] - value <= 15
