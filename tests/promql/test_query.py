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
        ('x{job=~"[[:alpha:]]"}', {"a", "b"}),
        ('x{job=~"\\\\pL+?"}', {"a", "b", "ab"}),
        ('x{job=~"(?U)(?<first>a)b*"}', {"a", "ab"}),
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
        ("mad_over_time(x[5m])", "experimental function mad_over_time()"),
        ("limitk(1, x)", "experimental aggregation limitk()"),
        ("histogram_avg(x)", "native histograms"),
        ("x + fill(0) y", "modifier fill"),
        ("rate(x[5m] smoothed)", "modifier smoothed"),
        ("x @ -5", "before 1970"),
        ("x @ 1e13", "after the year 9999"),
        ("1_000", "underscores"),
        ("(" * 900 + "1" + ")" * 900, "nested"),
        ("-" * 900 + "x", "nested"),
        ("+".join(["x"] * 900), "nested"),
        ("abs(" * 300 + "x" + ")" * 300, "nested"),
        ("(" * 50_000 + "1" + ")" * 50_000, "2000 words"),
        ("+".join(["x"] * 50_000), "2000 words"),
        ('count_values("v", x) == 1 or vector(0) and on() x{a="\\xff"}', "single bytes"),
        ('x{a="1" or b="2"}', "`or` between matchers"),
    ],
)
def test_what_is_not_supported_is_refused_when_it_is_compiled(expression: str, named: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        promql.compile(expression)
    assert named in str(error.value)


def test_an_expression_nested_a_hundred_deep_is_evaluated() -> None:
    assert one("(" * 100 + "+".join(["x"] * 40) + ")" * 100, store(x=[2.0])) == 80.0


@pytest.mark.parametrize("expression", ["sum(", "x[5m]", "1 > 2", "rate(x)", ""])
def test_what_is_no_promql_is_an_error(expression: str) -> None:
    with pytest.raises(PromqlError):
        promql.compile(expression)


@pytest.mark.parametrize(
    ("expression", "told", "place"),
    [
        ("up ==", "it ends too early, after '=='", 5),
        ("up and", "it ends too early, after 'and'", 6),
        ("up > bool", "it ends too early, after 'bool'", 9),
        ("up up", "unexpected 'up'", 3),
        ("up == 1 2", "unexpected '2'", 8),
        ("sum by up", "unexpected 'up'", 7),
        ("up ==== 1", "unexpected '=='", 5),
        ("(up + sum(rate(up[5m])) sum)", "unexpected 'sum'", 24),
        ('up{a="b" c="d"}', "unexpected 'c'", 9),
        ("up{a=}", "unexpected '}'", 5),
        ("sum(up) by", "it ends too early, after 'by'", 10),
    ],
)
def test_a_syntax_error_names_the_word_that_fits_nowhere(expression: str, told: str, place: int) -> None:
    with pytest.raises(PromqlError) as refused:
        promql.compile(expression)
    assert (str(refused.value), refused.value.position) == (told, place)


def test_a_query_tells_what_it_reads() -> None:
    query = promql.compile("rate(x[10m] offset 5m) / on() y > 3")
    assert query.metric_names == {"x", "y"}
    assert query.lookback_seconds == 900.0


def test_a_window_that_begins_among_thinned_samples_reads_like_one_scraped_each_15_s() -> None:
    data = Store()
    data.want("x")
    for t in range(7200):
        data.append(labels("x"), float(t), 5.0 * t + 1e6)
    for window, seconds in (("15m", 900), ("1h", 3600)):
        for at in (7199.0, 7190.0, 7186.0):
            assert one(f"increase(x[{window}])", data, at) == pytest.approx(5.0 * seconds, rel=1e-9)


def test_a_negative_offset_reads_ahead() -> None:
    assert one("x offset -20s", store(x=[1, 2, 3]), NOW - 20) == 3.0


@pytest.mark.parametrize(
    ("expression", "values", "result"),
    [
        ("min_over_time(x[1m])", [math.nan, 2.0, 1.0], 1.0),
        ("max_over_time(x[1m])", [math.nan, 2.0, 1.0], 2.0),
        ("max_over_time(x[1m])", [math.nan, math.nan], math.nan),
        ("changes(x[1m])", [math.nan, math.nan, 1.0, 1.0], 1.0),
        ("resets(x[1m])", [3.0, 1.0, 2.0, 0.0], 2.0),
        ("delta(x[30s])", [9.0, 5.0, 1.0], -12.0),
        ("irate(x[1m])", [5.0, 1.0], 0.1),
        ("quantile_over_time(0.25, x[1m])", [1.0, 2.0, 3.0, 4.0], 1.75),
        ("quantile_over_time(-1, x[1m])", [1.0], -math.inf),
        ("quantile_over_time(2, x[1m])", [1.0], math.inf),
        ("stdvar_over_time(x[1m])", [1.0, 3.0], 1.0),
        ("avg_over_time(x[1m])", [1e308, 1e308], 1e308),
        ("sum_over_time(x[1m])", [1e308, 1e308], math.inf),
        ("sum_over_time(x[1m])", [math.inf, -math.inf], math.nan),
        ("stddev_over_time(x[1m])", [1e200, -1e200], math.inf),
        ("rate(x[1m])", [math.inf, math.inf], math.nan),
    ],
)
def test_edges_of_functions_over_time(expression: str, values: list[float], result: float) -> None:
    assert one(expression, store(x=values)) == pytest.approx(result, nan_ok=True)


@pytest.mark.parametrize(
    ("expression", "value", "result"),
    [
        ("abs(x)", -2.5, 2.5),
        ("ceil(x)", 2.1, 3.0),
        ("floor(x)", -2.1, -3.0),
        ("floor(x)", math.inf, math.inf),
        ("round(x)", 2.5, 3.0),
        ("round(x)", -2.5, -2.0),
        ("round(x, 0.1)", 2.34, 2.3),
        ("round(x, 0)", 2.34, math.nan),
        ("round(x, 1e-308)", 1e10, math.inf),
        ("clamp(x, 1, 3)", 5.0, 3.0),
        ("clamp(x, 1, 3)", math.nan, math.nan),
        ("clamp_min(x, 1)", 0.5, 1.0),
        ("clamp_max(x, 1)", 5.0, 1.0),
        ("exp(x)", 709.5, math.exp(709.5)),
        ("exp(x)", 710.0, math.inf),
        ("ln(x)", 0.0, -math.inf),
        ("ln(x)", -1.0, math.nan),
        ("sqrt(x)", 9.0, 3.0),
        ("sqrt(x)", -1.0, math.nan),
        ("sgn(x)", -7.0, -1.0),
        ("x % 0", 1.0, math.nan),
        ("x % -3", 7.0, 1.0),
        ("x / 0", -1.0, -math.inf),
        ("x ^ 0.5", -1.0, math.nan),
        ("x ^ 400", 10.0, math.inf),
        ("x atan2 1", 1.0, math.pi / 4),
        ("histogram_quantile(0.5, x)", 1.0, None),
        ("clamp(x, 2, 1)", 1.0, None),
    ],
)
def test_functions_of_a_value_drop_the_name(expression: str, value: float, result: float | None) -> None:
    found = run(expression, store(x=[value]))
    assert found == ({} if result is None else {"": pytest.approx(result, nan_ok=True)})


def test_aggregations_over_nan_infinities_and_deviations() -> None:
    data = store(x__a=[1], x__b=[math.nan], x__c=[3])
    assert run("min(x)", data) == {"": 1.0}
    assert run("max(x)", data) == {"": 3.0}
    assert run("topk(2, x)", data) == {"__name__=x,job=a": 1.0, "__name__=x,job=c": 3.0}
    assert list(run("bottomk(3, x)", data)) == ["__name__=x,job=a", "__name__=x,job=c", "__name__=x,job=b"]
    assert run("topk(0, x)", data) == {}
    assert run("group by (job) (x)", data) == {"job=a": 1.0, "job=b": 1.0, "job=c": 1.0}
    data = store(x__a=[1], x__b=[5])
    assert run("stddev(x)", data) == {"": 2.0}
    assert run("stdvar(x)", data) == {"": 4.0}
    assert run("avg(x)", data) == {"": 3.0}
    assert run("quantile(-1, x)", data) == {"": -math.inf}
    with pytest.raises(EvaluationError, match="parameter NaN of topk"):
        run("topk(scalar(nothing), x)", data)


def test_count_values_prints_numbers_as_prometheus_does() -> None:
    data = store(x__a=[1e23], x__b=[0.5], x__c=[math.inf], x__d=[1e-7], x__e=[-3])
    assert set(run('count_values("v", x)', data)) == {
        "v=100000000000000000000000",
        "v=0.5",
        "v=+Inf",
        "v=0.0000001",
        "v=-3",
    }


@pytest.mark.parametrize(
    ("replacement", "value"),
    [("$1", "host"), ("${1}x", "hostx"), ("$1x", ""), ("$9-$$", "-$"), ("$port", "80"), ("a$", "a$"), ("\\1", "\\1")],
)
def test_label_replace_expands_as_go_does(replacement: str, value: str) -> None:
    data = store(**{"x__host:80": [1.0]})
    quoted = replacement.replace("\\", "\\\\")
    (sample,) = promql.compile(f'label_replace(x, "n", "{quoted}", "job", "(.*):(?P<port>.*)")').evaluate(data, NOW)  # type: ignore[misc]
    assert dict(sample.labels).get("n", "") == value


def test_ignoring_keeps_the_other_labels_and_the_name_only_in_a_filter() -> None:
    data = Store()
    for name, le, value in (("x", "1", 5.0), ("y", "2", 3.0)):
        data.want(name)
        data.append(labels(name, job="a", le=le), NOW, value)
    assert run("x - ignoring(le) y", data) == {"job=a": 2.0}
    assert run("x > ignoring(le) y", data) == {"__name__=x,job=a": 5.0}
    assert run("x > on(job) y", data) == {"job=a": 5.0}
    assert run("x > on(job) group_left y", data) == {"__name__=x,job=a,le=1": 5.0}
    assert run("y < on(job) group_right x", data) == {"__name__=x,job=a,le=1": 3.0}
    assert run("x - y", data) == {}


def test_pairs_that_a_filter_drops_are_matches_too() -> None:
    data = Store()
    for name, code, value in (("req", "200", 10.0), ("req", "500", 1.0), ("most", "", 5.0)):
        data.want(name)
        data.append(labels(name, job="a", code=code), NOW, value)
    for expression in ("req > on(job) most", "req > bool on(job) most"):
        with pytest.raises(EvaluationError, match="multiple matches"):
            run(expression, data)
    assert run("req > on(job) group_left most", data) == {"__name__=req,code=200,job=a": 10.0}


def histogram(counts: dict[str, list[float]]) -> Store:
    data = Store()
    data.want("h_bucket")
    for bound, values in counts.items():
        for index, value in enumerate(values):
            data.append(labels("h_bucket", le=bound), NOW - 10 * (len(values) - 1 - index), value)
    return data


def test_fault_23_a_restart_of_the_server_in_the_window_gives_no_negative_increase() -> None:
    data = store(x=[1000, 1010, 0, 5, 10])
    assert one("increase(x[1m])", data) > 0
    assert run("rate(x[1m]) < 0", data) == {}
    # The new process reports fewer requests than the old one: the quantile is of the new ones and the few before.
    data = histogram({"0.5": [900, 900, 0, 10, 20], "+Inf": [1000, 1000, 0, 10, 20]})
    assert one("histogram_quantile(0.99, rate(h_bucket[1m]))", data) <= 0.5


def test_fault_24_missing_samples_leave_the_expression_empty_and_absence_is_its_own_signal() -> None:
    data = store(up=[1.0], x=[9.0])
    for expression in ("x > 5", "x > 5 and on() up == 1", "sum(x) > 5", "rate(x[1m]) < 1"):
        assert run(expression, data, NOW + 300) == {}
    assert run("absent(x)", data, NOW + 300) == {"": 1.0}
    data.mark_stale(labels("x"), NOW + 1)
    assert run("x > 5", data, NOW + 1) == {}


def test_fault_25_histograms_without_inf_all_zero_or_not_monotonic_are_nan_or_repaired() -> None:
    query = "histogram_quantile(0.99, rate(h_bucket[1m]))"
    steady = [0.0, 10.0, 20.0]
    for broken in (
        {"0.5": steady, "1": steady},
        {"+Inf": steady},
        {"0.5": [7.0, 7.0, 7.0], "+Inf": [7.0, 7.0, 7.0]},
    ):
        assert math.isnan(one(query, histogram(broken)))
        assert run(f"{query} > 0", histogram(broken)) == {}
    repaired = histogram({"0.5": steady, "1": [0.0, 5.0, 9.0], "+Inf": steady})
    assert one(query, repaired) == pytest.approx(0.5 * 0.99)
    assert math.isnan(one("histogram_quantile(0, rate(h_bucket[1m]))", histogram({"1": [0, 0], "+Inf": [0, 5]})))


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ('x{a=~"b++"}', "++"),
        ('label_replace(x, "a", "", "b", "c**")', "**"),
        (r'x{a=~"\\Qa\\E"}', "the regular expression '\\\\Qa"),
        ("rate(x[5m+1m])", "a duration that is computed"),
        ("rate(x[(5m)])", "a duration that is computed"),
        ("rate(x[5m:2*1m])", "a duration that is computed"),
        ("x OFFSET -(5m)", "a duration that is computed"),
    ],
)
def test_what_would_be_read_in_another_way_is_refused_when_it_is_compiled(expression: str, named: str) -> None:
    with pytest.raises(UnsupportedError) as error:
        promql.compile(expression)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("expression", "position"),
    [
        ("1 + nope(x)", 4),
        ("x + mad_over_time(y[5m])", 4),
        ("x[5m", 4),
        ("x + y @ -100", 6),
        ("rate(x[5m] smoothed)", 11),
        ("a +", 3),
    ],
)
def test_errors_tell_where_they_are_if_that_is_known(expression: str, position: int | None) -> None:
    with pytest.raises(PromqlError) as error:
        promql.compile(expression)
    assert error.value.position == position


@pytest.mark.parametrize("expression", ['"text"', 'count_values("", x)', 'label_replace(x, "", "", "a", "")'])
def test_expressions_without_a_result_are_refused_when_they_are_compiled(expression: str) -> None:
    with pytest.raises(PromqlError):
        promql.compile(expression)


def test_a_name_out_of_several_is_named_in_full() -> None:
    assert promql.compile('{__name__=~"x|y"}').metric_names == {"x", "y"}
    with pytest.raises(EvaluationError, match="same labelset"):
        run('rate({__name__=~"x|y"}[5m])', store(x=[1, 2], y=[1, 2]))


@pytest.mark.parametrize(
    ("bound", "value"),
    [("1_0", 10), ("1_2.5_0e0_1", 125), ("0x1p3", 8), ("0x_1_0.8p1_0", 16896), ("1__0", None), ("1_.0", None),
     ("0x10", None), ("1e400", None), ("_1", None)],
)  # fmt: skip
def test_bounds_of_buckets_are_read_as_go_reads_numbers(bound: str, value: float | None) -> None:
    found = one("histogram_quantile(0.9, h_bucket)", histogram({bound: [1, 1], "+Inf": [2, 2]}))
    assert found == value if value is not None else math.isnan(found)


@pytest.mark.parametrize(
    "expression", ["x offset 0s", "x offset -0ms", "sum(x OFFSET 0m0s)", "max_over_time(x[9m] offset 0s)"]
)
def test_an_offset_of_nothing_is_none(expression: str) -> None:
    assert one(expression, store(x=[7.0])) == 7.0
    assert run(f'label_replace({expression}, "a", "offset 0s", "", "")', store(x=[7.0])) == {
        f"{'' if '(' in expression else '__name__=x,'}a=offset 0s": 7.0
    }


@pytest.mark.parametrize("expression", ["x[-5m]", "x[5m", "x[", "x{a=~'('}"])
def test_what_prometheus_refuses_too_is_not_called_unsupported(expression: str) -> None:
    with pytest.raises(PromqlError) as error:
        promql.compile(expression)
    assert not isinstance(error.value, UnsupportedError)


def test_names_may_be_any_text_in_quotes() -> None:
    data = Store()
    data.want("my.metric")
    data.append((("__name__", "my.metric"), ("pod.name", "a b")), NOW, 3.0)
    assert run('sum by ("pod.name") ({"my.metric", "pod.name"=~"a.*"})', data) == {"pod.name=a b": 3.0}
