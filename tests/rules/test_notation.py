"""The notation of series in unit tests, as Prometheus' parser reads it."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs.rules.notation import NativeHistogramError, NotationError, metric, metric_text, number, values
from dsobs.series.store import is_stale

VALUES: list[tuple[str, list[float | None]]] = [
    ("", []),
    ("0 1 2", [0, 1, 2]),
    ("1x3", [1, 1, 1, 1]),
    ("0+10x3", [0, 10, 20, 30]),
    ("5-2x2", [5, 3, 1]),
    ("-2+4x2", [-2, 2, 6]),
    ("-1-1x1", [-1, -2]),
    ("+3 1x0", [3, 1]),
    ("_", [None]),
    ("_x2 1", [None, None, 1]),
    ("_x0 1", [1]),
    ("1e3 1E-3 .5 5. 1.5e+2x1", [1000, 0.001, 0.5, 5, 150, 150]),
    ("1e2+1e1x1", [100, 110]),
    ("010 09 1_000", [8, 9, 1000]),
    ("Inf -Inf +inf", [math.inf, -math.inf, math.inf]),
    ("Inf+1x1", [math.inf, math.inf]),
    ("  1 \t 2  ", [1, 2]),
    # Added up one after the other, as there: not 0.30000000000000004 by chance.
    ("0+0.1x3", [0, 0.1, 0.2, 0.1 + 0.1 + 0.1]),
]


@pytest.mark.parametrize(("text", "expected"), VALUES)
def test_values_are_those_of_prometheus_parser(text: str, expected: list[float | None]) -> None:
    assert values(text) == expected


def test_stale_and_nan_are_two_things() -> None:
    stale, nan, again = values("stale NaN nan")
    assert stale is not None
    assert nan is not None
    assert again is not None
    assert is_stale(stale)
    assert math.isnan(nan)
    assert not is_stale(nan)
    assert math.isnan(again)


@pytest.mark.parametrize(
    "text", ["x", "1+2", "1x", "1x1.5", "1x-1", "stalex2", "Infx2", "1+Infx2", "5m", "0x1F+", "--1", "1..2", "_1", "a"]
)
def test_what_is_no_value_is_refused(text: str) -> None:
    with pytest.raises(NotationError, match="is no value of a series; write numbers"):
        values(text)


def test_native_histograms_are_refused_by_name() -> None:
    with pytest.raises(NativeHistogramError, match="native histograms are not supported"):
        values("{{schema:1 sum:-0.3 buckets:[5.1 10 7]}}x2")


def test_a_slip_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(NotationError, match="more than 10,000,000 values"):
        values("1x99999999999")


def _text(value: float) -> str:
    return repr(value)


_finite = st.floats(min_value=-1e9, max_value=1e9, allow_nan=False).map(lambda v: v + 0.0)
_item = st.one_of(
    _finite.map(lambda v: (_text(v), [v])),
    st.integers(0, 5).map(lambda n: (f"_x{n}", [None] * n)),
    st.just(("_", [None])),
    st.tuples(_finite, st.integers(0, 5)).map(lambda p: (f"{_text(p[0])}x{p[1]}", [p[0]] * (p[1] + 1))),
    st.tuples(st.integers(-99, 99), st.integers(-99, 99), st.integers(0, 9)).map(
        lambda p: (f"{p[0]}{p[1]:+d}x{p[2]}", [float(p[0] + p[1] * i) for i in range(p[2] + 1)])
    ),
)


@settings(deadline=None)
@given(st.lists(_item, max_size=8))
def test_a_sequence_is_the_values_of_its_items_in_turn(items: list[tuple[str, list[float | None]]]) -> None:
    assert values(" ".join(text for text, _ in items)) == [value for _, expected in items for value in expected]


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_other_text_is_values_or_a_notation_error(text: str) -> None:
    with contextlib.suppress(NotationError):
        assert isinstance(values(text), list)


METRICS = [
    ("up", {"__name__": "up"}),
    ("a:b{}", {"__name__": "a:b"}),
    ("up{job=\"x\", instance='y:1'}", {"__name__": "up", "job": "x", "instance": "y:1"}),
    ("up{job=`a\\b`,}", {"__name__": "up", "job": "a\\b"}),
    ('{job="x"}', {"job": "x"}),
    ("", {}),
    ('{"a.b", "c.d"="e"}', {"__name__": "a.b", "c.d": "e"}),
    ('{__name__="up"}', {"__name__": "up"}),
    (r'up{a="\"\n\\\x41\101\u00e9\U0001f600"}', {"__name__": "up", "a": '"\n\\AAé😀'}),
    (' up { a = "}" } ', {"__name__": "up", "a": "}"}),
]


@pytest.mark.parametrize(("text", "expected"), METRICS)
def test_series_are_read_with_their_labels(text: str, expected: dict[str, str]) -> None:
    assert metric(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('up{job="x"', "can't read the series 'up{job=\"x\"': `,` or `}` must stand at its end"),
        ("up{job=x}", "can't read the series 'up{job=x}': a label value in quotes must stand before 'x}'"),
        ("up{job}", "can't read the series 'up{job}': `=` after the label must stand before '}'"),
        ("up 1", "can't read the series 'up 1': nothing more must stand before '1'"),
        ('up{a="1",a="2"}', "label 'a' twice in 'up{a=\"1\",a=\"2\"}'"),
        (r'up{a="\q"}', "unknown escape '\\\\q' in \"\\q\""),
        (
            'up{1="a"}',
            'can\'t read the series \'up{1="a"}\': a label, such as name="value" must stand before \'1="a"}\'',
        ),
    ],
)
def test_what_is_no_series_is_refused_with_the_place(text: str, message: str) -> None:
    with pytest.raises(NotationError) as refused:
        metric(text)
    assert str(refused.value) == message


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,6}", fullmatch=True), st.text(min_size=1, max_size=8), max_size=4
    )
)
def test_a_printed_series_reads_back(labels: dict[str, str]) -> None:
    labels = {"__name__": "x", **{k: v for k, v in labels.items() if k != "__name__"}}
    assert metric(metric_text(labels)) == labels


def test_whole_numbers_are_read_as_go_reads_literals() -> None:
    assert [number(text) for text in ("0", "-0", "017", "018", "1_0", "-5")] == [0, 0, 15, 18, 10, -5]
    with pytest.raises(NotationError, match="underscores may stand in whole numbers only"):
        number("1_0.5")


def test_names_that_need_it_are_written_in_quotes() -> None:
    text = '{"my.metric", a="1", "b c"="2"}'
    assert metric_text({"__name__": "my.metric", "b c": "2", "a": "1"}) == text
    assert metric(text) == {"__name__": "my.metric", "b c": "2", "a": "1"}
