"""PromQL expressions for the differential tests: from data/*.promql, written by hand, and valid ones drawn by
hypothesis."""

from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from tests.real.promql_series import BEGIN

_DATA = Path(__file__).parent / "data"


def _lines(name: str) -> tuple[str, ...]:
    return tuple(line for line in (_DATA / name).read_text().splitlines() if line and not line.startswith("#"))


BY_HAND = _lines("alike.promql")
REFUSED = ("", "odd # and\n+", *_lines("refused.promql"))
"""What Prometheus 3 refuses, as it is started by default."""
NARROWER = {
    "1_000": "underscores",
    "odd @ -5": "before 1970",
    '"\\xff"': "string",
    "odd smoothed": "smoothed",
    "rate(odd[5m] anchored)": "anchored",
    "histogram_avg(odd)": "native histograms",
    "odd @ 1e13": "9999",
}
"""What Prometheus takes and dsobs refuses, with a word of the reason."""

GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "odd")
COUNTERS = (
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "http_requests_total",
    "process_cpu_seconds_total",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_sum",
)
BUCKETS = ("vllm:time_to_first_token_seconds_bucket", "vllm:e2e_request_latency_seconds_bucket")
RANGE_FUNCTIONS = (
    "avg_over_time",
    "changes",
    "count_over_time",
    "delta",
    "deriv",
    "first_over_time",
    "idelta",
    "increase",
    "irate",
    "last_over_time",
    "max_over_time",
    "min_over_time",
    "present_over_time",
    "rate",
    "resets",
    "stddev_over_time",
    "stdvar_over_time",
    "sum_over_time",
)
INEXACT = (
    *("exp", "ln", "log10", "log2", "deg", "rad"),
    *("acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "sin", "sinh", "tan", "tanh"),
)
"""Functions whose last bits are not the same in every library."""
MATH = ("abs", "ceil", "floor", "round", "sgn", "sqrt", *INEXACT)
DATES = ("day_of_month", "day_of_week", "day_of_year", "days_in_month", "hour", "minute", "month", "year")
REDUCING = ("sum", "avg", "min", "max", "count", "group", "stddev", "stdvar")


_durations = st.sampled_from(("7s", "15s", "20s", "45s", "1m", "90s", "3m", "5m", "10m", "17m"))
_numbers = st.sampled_from(("0", "1", "2", "-1", "0.5", "3.7", "100", "1e3", "-0.25", "NaN", "Inf", "-Inf"))
_finite = st.sampled_from(("0", "1", "2", "-1", "0.5", "3.7", "100", "-0.25"))
_ENGINES = ("", "", "", '{engine="0"}', '{engine!="1"}', '{engine=~"0|1"}', '{instance="b:8000"}', '{job="vllm"}')
_MATCHERS = {
    "http_requests_total": ("", '{engine=~".*"}', '{instance="a:8000"}'),
    "odd": (
        "",
        "",
        '{kind!~"la.*|both"}',
        '{kind=~"n.*"}',
        '{kind=~"flat|zero|negative"}',
        '{kind!="nan"}',
        '{nope="x"}',
    ),
    "vllm:request_success_total": ("", '{finished_reason="stop"}', '{engine="0",finished_reason=~"a.*|length|stop"}'),
}
_times = st.sampled_from(
    (
        *[""] * 14,
        " offset 20s",
        " offset 3m",
        " offset -45s",
        f" @ {BEGIN + 500}",
        " @ start()",
        f" @ {BEGIN + 900} offset 1m",
        " @ end()",
    )
)
_groupings = st.sampled_from(
    (
        "",
        "",
        " by (engine)",
        " by (engine, instance)",
        " by (job)",
        " by (finished_reason)",
        " without (engine)",
        " without (le, kind)",
    )
)
_metrics = st.sampled_from(GAUGES + COUNTERS)
_buckets = st.sampled_from(BUCKETS)
_ranking = st.sampled_from(("topk", "bottomk"))
_counts = st.sampled_from(("0", "1", "2", "5"))
_sources = st.sampled_from(("engine", "kind", "le", "nope"))


@st.composite
def _series(draw: st.DrawFn) -> str:
    metric: str = draw(_metrics)
    return metric + draw(st.sampled_from(_MATCHERS.get(metric, _ENGINES)))


@st.composite
def _selectors(draw: st.DrawFn) -> str:
    return f"{draw(_series())}{draw(_times)}"


@st.composite
def _matrices(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    if draw(st.integers(0, 3)) == 0:
        step = draw(st.sampled_from(("", "10s", "30s", "25s")))
        return f"({draw(inner)})[{draw(st.sampled_from(('45s', '2m', '4m')))}:{step}]{draw(_times)}"
    return f"{draw(_series())}[{draw(_durations)}]{draw(_times)}"


@st.composite
def _scalars(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    kind = draw(st.integers(0, 5))
    if kind <= 2:
        return draw(_numbers)
    if kind == 3:
        return draw(st.sampled_from(("(time() % 7)", "pi()", "(time() / 1e9)")))
    if kind == 4:
        return f"scalar({draw(inner)})"
    return f"({draw(_finite)} {draw(st.sampled_from(('+', '-', '*', '/', '^', '%')))} {draw(_finite)})"


@st.composite
def _extended(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    """One more layer around vectors."""
    made: tuple[Callable[[], str], ...] = (
        *[lambda: f"{draw(st.sampled_from(RANGE_FUNCTIONS))}({draw(_matrices(inner))})"] * 6,
        lambda: f"quantile_over_time({draw(_scalars(inner))}, {draw(_matrices(inner))})",
        lambda: f"predict_linear({draw(_matrices(inner))}, {draw(_scalars(inner))})",
        *[lambda: f"{draw(st.sampled_from(MATH))}({draw(inner)})"] * 2,
        lambda: f"clamp({draw(inner)}, {draw(_scalars(inner))}, {draw(_scalars(inner))})",
        lambda: f"round({draw(inner)}, {draw(_numbers)})",
        lambda: f"{draw(st.sampled_from(DATES))}({draw(inner)})",
        lambda: f"timestamp({draw(inner)})",
        lambda: f"absent({draw(inner)})",
        lambda: f"absent_over_time({draw(_matrices(inner))})",
        lambda: f"vector({draw(_scalars(inner))})",
        lambda: f'label_replace({draw(inner)}, "to", "$1", "{draw(_sources)}", "(.).*")',
        lambda: f'label_join({draw(inner)}, "to", "/", "engine", "kind")',
        *[lambda: f"{draw(st.sampled_from(REDUCING))}{draw(_groupings)} ({draw(inner)})"] * 5,
        # Not of any scalar: see test_a_parameter_that_varies_is_evaluated_at_each_step.
        lambda: f"quantile{draw(_groupings)} ({draw(_numbers)}, {draw(inner)})",
        lambda: f"sum({draw(_ranking)}{draw(_groupings)} ({draw(_counts)}, {draw(inner)}))",
        lambda: f"histogram_quantile({draw(_scalars(inner))}, sum by (le, engine) ({_rate(draw)}))",
        lambda: f"histogram_fraction({draw(_finite)}, {draw(_numbers)}, {_rate(draw)})",
        lambda: f"-{draw(inner)}",
        *[lambda: _binary(draw, inner)] * 6,
    )
    return str(draw(st.sampled_from(made))())


def _rate(draw: st.DrawFn) -> str:
    return f"rate({draw(_buckets)}[{draw(_durations)}])"


def _binary(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    kind = draw(st.integers(0, 3))
    arithmetic = st.sampled_from(("+", "-", "*", "/", "%", "^", "atan2"))
    comparison = st.sampled_from(("==", "!=", ">", "<", ">=", "<=", "> bool", "== bool", "<= bool"))
    matching = st.sampled_from(
        (
            *("", "", "on(engine, instance) ", "ignoring(finished_reason, le) ", "on(engine, instance) group_left() "),
            *("on(engine, instance) group_right() ", "ignoring(finished_reason) group_left(job) ", "on() "),
        )
    )
    operator = draw(st.one_of(arithmetic, comparison))
    if kind == 0:
        return f"({draw(inner)} {operator} {draw(_scalars(inner))})"
    if kind == 1:
        return f"({draw(_scalars(inner))} {operator} {draw(inner)})"
    if kind == 2:
        sets = st.sampled_from(
            ("and", "or", "unless", "and on(engine)", "or on(engine, instance)", "unless ignoring(finished_reason)")
        )
        return f"({draw(inner)} {draw(sets)} {draw(inner)})"
    left = draw(inner)
    right = left if draw(st.booleans()) else draw(inner)
    return f"({left} {operator} {draw(matching)}{right})"


_plain = _selectors()
_once = _extended(_plain)
_twice = _extended(st.one_of(_once, _once, _plain))
VECTORS = st.one_of(_once, _twice, _twice, _extended(st.one_of(_twice, _twice, _once, _plain)))
"""Expressions up to three layers deep."""
