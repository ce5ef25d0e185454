"""Metrics pages: what is read, what is refused, and that it is what prometheus_client reads."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from dsobs.model.samples import Labels, Sample, labels, labels_of
from dsobs.series.exposition import ExpositionError, Parser

RECORDING = Path(__file__).parents[1] / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"


def read(body: str | bytes, openmetrics: bool = False) -> list[Sample]:
    return Parser().parse(body, openmetrics).samples


def key(labels: Labels, value: float, timestamp: float | None) -> tuple[Labels, str, str]:
    """Comparable although NaN is not equal to itself; prometheus_client loses bits of a time in seconds."""
    return labels, repr(value), "" if timestamp is None else f"{timestamp:.6f}"


def keys(samples: list[Sample]) -> list[tuple[Labels, str, str]]:
    return sorted(key(*sample) for sample in samples)


def reference(body: str, families: Callable[..., object]) -> list[tuple[Labels, str, str]]:
    out = []
    for family in families(body):  # type: ignore[attr-defined]
        for sample in family.samples:
            stamp = None if sample.timestamp is None else float(sample.timestamp)
            out.append(key(labels_of({**sample.labels, "__name__": sample.name}), float(sample.value), stamp))
    return sorted(out)


def recorded() -> list[str]:
    with gzip.open(RECORDING, "rt") as lines:
        pages = [json.loads(line)["metrics"] for line in lines]
    return [page for page in pages if page.startswith("# HELP")]


def test_a_page_gives_samples_in_order_with_types_and_helps() -> None:
    page = Parser().parse(
        "# HELP vllm:running Requests\\nrunning \\\\ now.\n# TYPE vllm:running gauge\n"
        'vllm:running{model_name="m",engine="0"} 3\n# a comment\n\nup 1\n'
    )
    assert page.samples == [Sample(labels("vllm:running", engine="0", model_name="m"), 3.0), Sample(labels("up"), 1.0)]
    assert page.types == {"vllm:running": "gauge"}
    assert page.helps == {"vllm:running": "Requests\nrunning \\ now."}


@pytest.mark.parametrize(
    ("line", "sample"),
    [
        ("a 1", Sample(labels("a"), 1.0)),
        ("a\t 1", Sample(labels("a"), 1.0)),
        ("  a 1  ", Sample(labels("a"), 1.0)),
        ("a{} 1", Sample(labels("a"), 1.0)),
        ('a{b="c",} 1', Sample(labels("a", b="c"), 1.0)),
        ('a { b = "c" , d="e" } 1', Sample(labels("a", b="c", d="e"), 1.0)),
        ('a{b="c"}1', Sample(labels("a", b="c"), 1.0)),
        ('a{b=""} 1', Sample(labels("a"), 1.0)),
        ('a{z="1",A="2"} 1', Sample(labels("a", z="1", A="2"), 1.0)),
        (r'a{b="x\"y\\z\nw\q"} 1', Sample(labels("a", b='x"y\\z\nw\\q'), 1.0)),
        ('a{b="c} 2",d=" # e,f{"} 1', Sample(labels("a", b="c} 2", d=" # e,f{"), 1.0)),
        ('a{b="é 日本"} 1', Sample(labels("a", b="é 日本"), 1.0)),
        ('{"a.b",c="d"} 1', Sample(labels("a.b", c="d"), 1.0)),
        ('a{"b.c"="d"} 1', Sample(labels_of({"__name__": "a", "b.c": "d"}), 1.0)),
        ("a 1 1500", Sample(labels("a"), 1.0, 1.5)),
        ('a{b="c"} 1 -1500', Sample(labels("a", b="c"), 1.0, -1.5)),
        ("a 1e-3", Sample(labels("a"), 0.001)),
        ("a .5", Sample(labels("a"), 0.5)),
        ("a +Inf", Sample(labels("a"), math.inf)),
        ("a -Inf", Sample(labels("a"), -math.inf)),
        ("a_created 1.5e9", Sample(labels("a_created"), 1.5e9)),
    ],
)
def test_one_line_of_text(line: str, sample: Sample) -> None:
    assert read(line + "\n") == [sample]
    assert read(line.encode() + b"\n") == [sample]


def test_nan_is_a_value() -> None:
    (sample,) = read("a NaN\n")
    assert math.isnan(sample.value)


OPENMETRICS = """\
# TYPE req counter
# UNIT req seconds
# HELP req Says \\"hello\\".
req_total{code="200"} 17 1520879607.789 # {trace_id="ab # c} d"} 0.67 1520879607.7
req_created{code="200"} 1520430000.123
# TYPE lat histogram
lat_bucket{le="0.5"} 8 # {} 0.054
lat_bucket{le="+Inf"} 10
lat_count 10
lat_sum 3
# TYPE build info
build_info{version="1"} 1
# TYPE mode stateset
mode{mode="a"} 1
mode{mode="b"} 0
# TYPE odd unknown
odd 4
# EOF
"""


def test_openmetrics_has_seconds_exemplars_and_its_own_types() -> None:
    page = Parser().parse(OPENMETRICS, openmetrics=True)
    assert page.samples[:2] == [
        Sample(labels("req_total", code="200"), 17.0, 1520879607.789),
        Sample(labels("req_created", code="200"), 1520430000.123),
    ]
    assert page.samples[2] == Sample(labels("lat_bucket", le="0.5"), 8.0)
    assert page.types == {
        "req": "counter",
        "lat": "histogram",
        "build": "info",
        "mode": "stateset",
        "odd": "unknown",
    }
    assert page.helps == {"req": 'Says "hello".'}
    assert len(page.samples) == 10


@pytest.mark.parametrize(
    ("body", "line", "reason"),
    [
        ("<html><body>Not found</body></html>\n", 1, "expected a metric name"),
        ("<!doctype html>", 1, "expected a metric name"),
        ('{"detail": "Not Found"}\n', 1, "expected `label"),
        ('{"detail": "Not Found"}', 1, "expected `label"),
        ('{"error"}\n', 1, "has no value"),
        ("Internal Server Error\n", 1, "the value 'Server' is not a number"),
        ("OK\n", 1, "'OK' has no value"),
        ("a 1\nb\n", 2, "'b' has no value"),
        ("a 1\nb 2", 2, "cut short"),
        ("a 1\nb{c=", 2, "cut short"),
        ("a one\n", 1, "the value 'one' is not a number"),
        ("a 1_000\n", 1, "the value '1_000' is not a number"),
        ("a 0x1p3\n", 1, "the value '0x1p3' is not a number"),
        ("a ١\n", 1, "is not a number"),
        ("a 1\r\n", 1, "is not a number"),
        ("a 1 x\n", 1, "the timestamp 'x' is not a number"),
        ("a 1 NaN\n", 1, "not finite"),
        ("a 1 2 3\n", 1, "unexpected '3'"),
        ("1a 1\n", 1, "expected a metric name"),
        ("a-b 1\n", 1, "'-' does not belong"),
        ('a{b="c",b="d"} 1\n', 1, "label 'b' stands there twice"),
        ('a{b="c" d="e"} 1\n', 1, "expected `label"),
        ("a{b=c} 1\n", 1, "expected `label"),
        ('a{1b="c"} 1\n', 1, "expected `label"),
        ("a{b} 1\n", 1, "label 'b' has no value"),
        ('a{__name__="b"} 1\n', 1, "'__name__' stands there twice"),
        ('a{b="c" 1\n', 1, "does not belong"),
        ('{b="c"} 1\n', 1, "without a metric name"),
        ("# TYPE a bogus\n", 1, "'bogus' is not a metric type"),
        ("# TYPE\n", 1, "TYPE without a metric name"),
        ("# HELP 1a text\n", 1, "'1a' is not a metric name"),
        ("# nothing but words\n", 1, "neither a sample nor"),
    ],
)
def test_garbage_is_named_with_its_line(body: str, line: int, reason: str) -> None:
    with pytest.raises(ExpositionError) as error:
        read(body)
    assert error.value.line == line
    assert reason in error.value.reason
    assert str(error.value) == f"line {line}: {error.value.reason}"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a 1\n", "no `# EOF`"),
        ("", "no `# EOF`"),
        ("a 1\n# EOF\nb 1\n", "no `# EOF`"),
        ("a 1\n# EOF\n# EOF\n", "text after `# EOF`"),
        ("a 1\n\n# EOF\n", "an empty line"),
        ("# words\n# EOF\n", "unknown comment"),
        ("a_total 1 # {b=c} 1\n# EOF\n", "expected `label"),
        ("a_total 1 # {} x\n# EOF\n", "the exemplar 'x' is not a number"),
        ("a_total 1 # words\n# EOF\n", "is not an exemplar"),
        ("<html>\n", "expected a metric name"),
    ],
)
def test_openmetrics_is_refused_where_it_is_cut_short_or_wrong(body: str, reason: str) -> None:
    with pytest.raises(ExpositionError) as error:
        read(body, openmetrics=True)
    assert reason in error.value.reason


def test_binary_is_refused() -> None:
    with pytest.raises(ExpositionError, match="line 2: not UTF-8"):
        read(b"a 1\n\xff\xfe\x00\n")
    with pytest.raises(ExpositionError):
        read(b"\x1f\x00\x08\n")


def test_a_page_with_too_many_lines_is_refused() -> None:
    with pytest.raises(ExpositionError, match="more than 10 lines"):
        Parser(max_lines=10).parse("\n" * 11)


def test_an_empty_page_has_no_samples() -> None:
    assert read("") == []


def test_the_recording_gives_what_prometheus_client_reads() -> None:
    parser = Parser()
    for page in recorded()[::20]:
        assert keys(parser.parse(page).samples) == reference(page, text_families)


def test_a_warm_parser_reads_every_recorded_page_like_a_cold_one() -> None:
    parser = Parser()
    for page in recorded():
        assert parser.parse(page) == Parser().parse(page)


def test_what_a_caller_does_with_a_page_does_not_reach_the_next() -> None:
    parser = Parser()
    parser.parse("a 1\nb 1\n").samples.clear()
    parser.parse("a 1\nb 2\n").samples.clear()
    assert parser.parse("a 1\nb 2\n").samples == [Sample(labels("a"), 1.0), Sample(labels("b"), 2.0)]


def test_a_bad_page_leaves_the_parser_as_it_was() -> None:
    parser = Parser()
    parser.parse("a 1\nb 1\n")
    for bad in ("a 2\nb x\n", "a 2\nb 1_0\n", "c 2\nb\n"):
        with pytest.raises(ExpositionError):
            parser.parse(bad)
    assert parser.parse("a 1\nb 3\n").samples == [Sample(labels("a"), 1.0), Sample(labels("b"), 3.0)]


def test_memory_holds_one_page_however_many_series_come_and_go() -> None:
    parser = Parser()
    for turn in range(50):
        parser.parse("".join(f'a{{n="{turn}-{n}"}} 1\n' for n in range(100)))
    assert len(parser._series) == 100


NAMES = st.from_regex(r"[a-z_:][a-z0-9_:]{0,8}", fullmatch=True).filter(
    lambda name: not name.endswith(("_total", "_created", "_bucket", "_count", "_sum", "_info", "_gsum", "_gcount"))
)
LABEL_NAMES = st.from_regex(r"[a-zA-Z][a-z0-9_]{0,4}", fullmatch=True)
LABEL_VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"], include_characters="\n"), max_size=8)
VALUES = st.one_of(st.floats(), st.integers(-(10**9), 10**9))


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


def outcome(parser: Parser, body: bytes | str, openmetrics: bool = False) -> list[tuple[Labels, str, str]] | str:
    """What parsing comes to: samples, or the error's words. Any other exception is a failed test."""
    try:
        return keys(parser.parse(body, openmetrics).samples)
    except ExpositionError as error:
        return str(error)


@st.composite
def pages(draw: st.DrawFn, openmetrics: bool) -> str:
    lines = []
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        if openmetrics or draw(st.booleans()):
            kind = draw(st.sampled_from(["gauge", "unknown" if openmetrics else "untyped"]))
            lines.append(f"# TYPE {name} {kind}")
        if draw(st.booleans()):
            lines.append(f"# HELP {name} some words")
        sets = draw(
            st.lists(st.dictionaries(LABEL_NAMES, LABEL_VALUES, max_size=3), min_size=1, max_size=3, unique_by=repr)
        )
        unlike = {labels_of(found): found for found in sets}
        for found in unlike.values():
            series = ",".join(f'{k}="{escaped(v)}"' for k, v in found.items())
            line = f"{name}{{{series}}}" if series or draw(st.booleans()) else name
            line += f" {number(draw(VALUES))}"
            if draw(st.booleans()):
                stamp = draw(st.integers(0, 2**41))
                line += f" {stamp / 1000}" if openmetrics else f" {stamp}"
            lines.append(line)
    return "\n".join(lines) + ("\n# EOF\n" if openmetrics else "\n")


@given(st.lists(pages(openmetrics=False), min_size=1, max_size=3))
def test_any_text_page_reads_as_prometheus_client_reads_it(bodies: list[str]) -> None:
    parser = Parser()
    for body in bodies:
        assert keys(parser.parse(body).samples) == reference(body, text_families)


@given(pages(openmetrics=True))
def test_any_openmetrics_page_reads_as_prometheus_client_reads_it(body: str) -> None:
    assert keys(read(body, openmetrics=True)) == reference(body, openmetrics_families)


@given(st.lists(st.tuples(st.sampled_from(["1", "2", "NaN", "x", "1_0", "1 5", ""]), VALUES.map(number)), max_size=6))
def test_a_warm_parser_agrees_with_a_cold_one_on_right_and_wrong_pages(values: list[tuple[str, str]]) -> None:
    warm = Parser()
    for first, second in values:
        body = f'a{{b="c"}} {first}\n# TYPE d gauge\nd {second}\n'
        assert outcome(warm, body) == outcome(Parser(), body)


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_anything_else_is_an_exposition_error_and_nothing_worse(body: bytes | str) -> None:
    for openmetrics in (False, True):
        found = outcome(Parser(), body, openmetrics)
        assert isinstance(found, list) or found.startswith("line ")
