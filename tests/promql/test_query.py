"""PromQL with the results of Prometheus 3."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs import promql
from dsobs.model.samples import labels
from dsobs.promql import EvaluationError, PromqlError, UnsupportedError
from dsobs.promql.histograms import bucket_quantile
from dsobs.series.store import Store

NOW = 1_000_000.0


def store(**series: list[float]) -> Store:
    """Samples 10 s apart that end at NOW; a name with two underscores at its end is `name{job="…"}`."""
    made = Store()
    for key, values in series.items():
        name, _, job = key.partition("__")
        made.want(name)
        for index, value in enumerate(values):
            made.append(labels(name, job=job), NOW - 10 * (len(values) - 1 - index), value)
    return made


def run(expression: str, data: Store, at: float = NOW) -> dict[str, float]:
    result = promql.compile(expression).evaluate(data, at)
    if isinstance(result, float):
        return {"": result}
    return {",".join(f"{k}={v}" for k, v in sample.labels): sample.value for sample in result}


def one(expression: str, data: Store, at: float = NOW) -> float:
    (value,) = run(expression, data, at).values()
    return value


def test_instant_selector_looks_back_less_than_five_minutes() -> None:
    data = store(x=[7.0])
    assert one("x", data, NOW + 299) == 7.0
    assert run("x", data, NOW + 300) == {}
    assert run("x", data, NOW - 1) == {}


def test_a_series_that_ended_is_gone_at_once() -> None:
    data = store(x=[7.0])
    data.mark_stale(labels("x"), NOW + 1)
    assert run("x", data, NOW + 1) == {}
    assert one("count_over_time(x[1m])", data, NOW + 1) == 1.0


@pytest.mark.parametrize(
    ("selector", "jobs"),
    [
        ('x{job="a"}', {"a"}),
        ('x{job!="a"}', {"b", "ab"}),
        ('x{job=~"a.?"}', {"a", "ab"}),
        ('x{job!~"a.*"}', {"b"}),
        ('{__name__="x"}', {"a", "b", "ab"}),
        ('{__name__=~"x|y", job="b"}', {"b"}),
        ('x{nope=""}', {"a", "b", "ab"}),
    ],
)
def test_matchers(selector: str, jobs: set[str]) -> None:
    data = store(x__a=[1], x__b=[2], x__ab=[3])
    found = promql.compile(selector).evaluate(data, NOW)
    assert isinstance(found, list)
    assert {dict(s.labels)["job"] for s in found} == jobs


def test_range_windows_are_open_on_the_left() -> None:
    data = store(x=[1, 2, 3, 4, 5, 6, 7])
    assert one("count_over_time(x[1m])", data) == 6.0


def test_increase_extrapolates_to_the_edges_of_the_window() -> None:
    data = store(x=[0, 10, 20, 30, 40, 50, 60])
    # Samples from 10 to 60 over 50 s in a window of 60 s: the gap of 10 s is under 1.1 spacings.
    assert one("increase(x[1m])", data) == pytest.approx(60.0)
    assert one("rate(x[1m])", data) == pytest.approx(1.0)


def test_extrapolation_stops_half_a_spacing_from_a_series_that_begins_in_the_window() -> None:
    data = store(x=[100, 110, 120])
    assert one("increase(x[5m])", data) == pytest.approx(20 * (20 + 5) / 20)


def test_extrapolation_never_goes_below_zero_at_the_start() -> None:
    data = store(x=[1, 21, 41])
    assert one("increase(x[5m])", data) == pytest.approx(40 * (20 + 20 * 1 / 40) / 20)


def test_a_counter_reset_is_no_negative_increase() -> None:
    data = store(x=[50, 60, 5, 15, 25])
    assert one("increase(x[40s])", data) == pytest.approx((5 + 20) * 40 / 30)
    assert one("resets(x[1m])", data) == 1.0


def test_one_sample_gives_no_rate_and_no_sample_no_result() -> None:
    data = store(x=[5])
    assert run("rate(x[5m])", data) == {}
    assert run("rate(y[5m])", data) == {}
    assert run("y > 0", data) == {}


@pytest.mark.parametrize(
    ("function", "value"),
    [
        ("avg_over_time", 3.0),
        ("min_over_time", 1.0),
        ("max_over_time", 6.0),
        ("sum_over_time", 12.0),
        ("count_over_time", 4.0),
        ("last_over_time", 6.0),
        ("present_over_time", 1.0),
        ("stddev_over_time", math.sqrt(3.5)),
        ("changes", 3.0),
        ("irate", 0.4),
        ("idelta", 4.0),
    ],
)
def test_functions_over_time(function: str, value: float) -> None:
    assert one(f"{function}(x[1m])", store(x=[1, 3, 2, 6])) == pytest.approx(value)


def test_offset_reads_the_past() -> None:
    assert one("x offset 20s", store(x=[1, 2, 3])) == 1.0
    assert one("sum_over_time(x[15s] offset 10s)", store(x=[1, 2, 4])) == 3.0


def test_absent_names_the_labels_that_equalities_name() -> None:
    data = store(x__a=[1])
    assert run('absent(x{job="b", y=~"z"})', data) == {"job=b": 1.0}
    assert run('absent(x{job="a"})', data) == {}
    assert run('absent_over_time(x{job="b"}[5m])', data) == {"job=b": 1.0}
    assert run('absent_over_time(x{job="a"}[5m])', data, NOW + 299) == {}


def test_comparisons_keep_the_value_of_the_left_or_of_the_vector() -> None:
    data = store(x__a=[1], x__b=[5], y__a=[3], y__b=[3])
    assert run("x > y", data) == {"__name__=x,job=b": 5.0}
    assert run("x > bool y", data) == {"job=a": 0.0, "job=b": 1.0}
    assert run("2 < x", data) == {"__name__=x,job=b": 5.0}
    assert one("1 < bool 2", data) == 1.0


def test_nan_satisfies_no_comparison() -> None:
    data = store(x=[math.nan])
    for operator in (">", "<", ">=", "<=", "=="):
        assert run(f"x {operator} 0", data) == {}


def test_set_operators_match_all_labels_or_those_named() -> None:
    data = store(x__a=[1], x__b=[2], y__a=[3], z=[4])
    assert run("x and y", data) == {"__name__=x,job=a": 1.0}
    assert run("x unless y", data) == {"__name__=x,job=b": 2.0}
    assert run("y or x", data) == {"__name__=x,job=b": 2.0, "__name__=y,job=a": 3.0}
    assert run("x and on() z", data) == {"__name__=x,job=a": 1.0, "__name__=x,job=b": 2.0}


def test_many_to_one_needs_group_left_and_takes_labels_along() -> None:
    data = Store()
    data.want("req")
    data.want("info")
    for code in ("200", "500"):
        data.append(labels("req", job="a", code=code), NOW, 10.0)
    data.append(labels("info", job="a", version="1"), NOW, 1.0)
    with pytest.raises(EvaluationError, match="multiple matches"):
        run("req * on(job) info", data)
    assert run("req * on(job) group_left(version) info", data) == {
        "code=200,job=a,version=1": 10.0,
        "code=500,job=a,version=1": 10.0,
    }
    assert run("info * on(job) group_right(version) req", data) == run("req * on(job) group_left(version) info", data)
    with pytest.raises(EvaluationError, match="many-to-many"):
        run("info + on(job) req", data)


def test_aggregations() -> None:
    data = store(x__a=[1], x__b=[5], x__c=[3])
    assert run("sum(x)", data) == {"": 9.0}
    assert run("max by (job) (x)", data) == {"job=a": 1.0, "job=b": 5.0, "job=c": 3.0}
    assert run("count without (job) (x)", data) == {"": 3.0}
    assert run("topk(2, x)", data) == {"__name__=x,job=b": 5.0, "__name__=x,job=c": 3.0}
    assert run("bottomk(1, x)", data) == {"__name__=x,job=a": 1.0}
    assert run("quantile(0.5, x)", data) == {"": 3.0}
    assert run('count_values("v", x > 1)', data) == {"v=3": 1.0, "v=5": 1.0}
    assert run("sum(nothing)", data) == {}


def test_labels_that_become_equal_are_an_error() -> None:
    with pytest.raises(EvaluationError, match="same labelset"):
        run('label_replace(x, "job", "same", "job", ".*")', store(x__a=[1], x__b=[2]))


def test_label_replace_takes_groups_of_a_full_match() -> None:
    data = store(**{"x__host-7": [1.0]})
    assert run('label_replace(x, "n", "$1", "job", "host-(.*)")', data) == {"__name__=x,job=host-7,n=7": 1.0}
    assert run('label_replace(x, "n", "$1", "job", "ost-(.*)")', data) == {"__name__=x,job=host-7": 1.0}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3 ^ 2 ^ 0", 7.0),
        ("-2 ^ 2", -4.0),
        ("7 % 3", 1.0),
        ("1 / 0", math.inf),
        ("scalar(x) + 1", 8.0),
        ("scalar(nothing)", math.nan),
        ("time()", NOW),
        ("sum(clamp(x, 0, 5))", 5.0),
        ("sum(round(x / 2, 0.5))", 3.5),
        ("sum(abs(-x))", 7.0),
        ("sum(vector(3))", 3.0),
    ],
)
def test_arithmetic(expression: str, value: float) -> None:
    assert one(expression, store(x=[7.0])) == pytest.approx(value, nan_ok=True)


BUCKETS = [(0.1, 10.0), (0.5, 60.0), (1.0, 90.0), (math.inf, 100.0)]


def test_quantile_interpolates_within_a_bucket_and_from_zero_in_the_first() -> None:
    assert bucket_quantile(0.35, BUCKETS) == pytest.approx(0.1 + 0.4 * 25 / 50)
    assert bucket_quantile(0.05, BUCKETS) == pytest.approx(0.05)


def test_quantile_in_the_top_bucket_is_the_second_highest_bound() -> None:
    assert bucket_quantile(0.99, BUCKETS) == 1.0


@pytest.mark.parametrize(
    "buckets", [BUCKETS[:-1], BUCKETS[-1:], [(b, 0.0) for b, _ in BUCKETS], []], ids=["no +Inf", "one", "zero", "none"]
)
def test_histogram_without_inf_or_all_zero_gives_nan(buckets: list[tuple[float, float]]) -> None:
    assert math.isnan(bucket_quantile(0.99, buckets))


def test_histogram_that_is_not_monotonic_is_repaired_and_equal_bounds_are_added() -> None:
    assert bucket_quantile(0.5, [(1.0, 10.0), (2.0, 8.0), (math.inf, 10.0)]) == pytest.approx(0.5)
    assert bucket_quantile(0.5, [(1.0, 5.0), (1.0, 5.0), (math.inf, 10.0)]) == pytest.approx(0.5)


@given(
    st.lists(st.integers(0, 50), min_size=2, max_size=8),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_quantiles_grow_with_phi(steps: list[int], a: float, b: float) -> None:
    counts = [float(sum(steps[: i + 1])) for i in range(len(steps))]
    buckets = list(zip([*map(float, range(1, len(steps))), math.inf], counts, strict=True))
    low, high = (bucket_quantile(q, buckets) for q in sorted((a, b)))
    assert math.isnan(low) or low <= high + 1e-9


@given(st.lists(st.floats(0, 1e9), min_size=0, max_size=20))
def test_rate_is_never_negative(values: list[float]) -> None:
    for value in run("rate(x[5m])", store(x=values)).values():
        assert value >= 0


@given(st.sets(st.sampled_from("abcd")), st.sets(st.sampled_from("abcd")))
def test_set_laws(left: set[str], right: set[str]) -> None:
    data = store(**{f"x__{j}": [1.0] for j in left}, **{f"y__{j}": [1.0] for j in right})
    both = len(run("x and y", data))
    assert both == len(left & right)
    assert len(run("x unless y", data)) == len(left) - both
    assert len(run("x or y", data)) == len(left | right)


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("max_over_time(x[5m:1m])", "subqueries"),
        ("x @ 100", "@ modifier"),
        ("predict_linear(x[5m], 60)", "predict_linear()"),
        ("histogram_fraction(0, 1, x)", "histogram_fraction()"),
        ('x{a="1" or b="2"}', "`or` between matchers"),
    ],
)
def test_what_is_not_supported_is_refused_when_it_is_compiled(expression: str, named: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        promql.compile(expression)
    assert named in str(error.value)


@pytest.mark.parametrize("expression", ["sum(", "x[5m]", "1 > 2", "rate(x)", ""])
def test_what_is_no_promql_is_an_error(expression: str) -> None:
    with pytest.raises(PromqlError):
        promql.compile(expression)


def test_a_query_tells_what_it_reads() -> None:
    query = promql.compile("rate(x[10m] offset 5m) / on() y > 3")
    assert query.metric_names == {"x", "y"}
    assert query.lookback_seconds == 900.0
