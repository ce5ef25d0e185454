"""Formatting: one form, nothing of the meaning lost, nothing else touched."""

from pathlib import Path

import promql_parser
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs.rules import shipped
from dsobs.rules.formatting import WIDTH, format_expression, formatted

_LONG = "a_rather_long_name_of_a_metric_total"
EXPRESSIONS = [
    ("sum(rate(x[5m]))by(a)", "sum by (a) (rate(x[5m]))"),
    ("a  ==  bool on(b)group_left(c) d", "a == bool on (b) group_left (c) d"),
    ("x{a='b'}", 'x{a="b"}'),
    ("-x^2", "-x ^ 2"),
    ("x{ b='1', a=~'2,}' ,}+y{d!='{',c=''}", 'x{b="1",a=~"2,}"} + y{d!="{",c=""}'),
    ("x{a!='2',b='1',a!='1'}", 'x{a!="2",b="1",a!="1"}'),
    ("sum( x{} )by('a.b')", 'sum by ("a.b") (x)'),
    (
        f"rate({_LONG}[5m]) / rate({_LONG}[5m]) * on (a) rate({_LONG}[5m]) > 0.5 and {_LONG}",
        f"rate({_LONG}[5m])\n/ rate({_LONG}[5m])\n* on (a) rate({_LONG}[5m])\n> 0.5\nand {_LONG}",
    ),
    (
        f"sum by (a) (rate({_LONG}[5m]) + rate({_LONG}[5m]) + rate({_LONG}[5m]))",
        f"sum by (a) (\n  rate({_LONG}[5m])\n  + rate({_LONG}[5m])\n  + rate({_LONG}[5m])\n)",
    ),
    (
        f"({_LONG} + {_LONG} + {_LONG}) > 1 or ({_LONG} or {_LONG} or {_LONG})",
        f"(\n  {_LONG}\n  + {_LONG}\n  + {_LONG}\n) > 1\nor\n(\n  {_LONG}\n  or {_LONG}\n  or {_LONG}\n)",
    ),
]


@pytest.mark.parametrize(("text", "expected"), EXPRESSIONS)
def test_an_expression_has_one_form(text: str, expected: str) -> None:
    assert format_expression(text) == expected
    assert format_expression(expected) == expected


def test_an_aggregation_that_is_broken_closes_under_its_operator() -> None:
    inner = f"rate({_LONG}[5m]) + rate({_LONG}[5m])"
    formatted_text = format_expression(f"x / sum by (a_label) ({inner}) > 1")
    assert formatted_text == f"x\n/ sum by (a_label) (\n  {inner}\n) > 1"


@pytest.mark.parametrize(
    "text",
    [
        "sum( x )  # why",
        "x >  1e9",
        "rate( x[90s])",
        "x  > 0x1F",
        "sum( x",
        "histogram_quantile( 0.990, x)",
    ],
)
def test_what_would_be_written_otherwise_is_left_alone(text: str) -> None:
    assert format_expression(text) == text


_leaf = st.sampled_from(
    [
        "x",
        "1",
        'y{a="b",c=~"d.*"}',
        "z{c='d', b!~'{,}',a=''}",
        "rate(x[5m])",
        "x offset 5m",
        "max_over_time(x[1h:5m])",
        "a:b",
    ]
)


def _more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    operators = ["+", "-", "*", "/", "^", "> bool", "and", "or", "unless on (a)", "* on (a) group_left (b)"]
    return st.one_of(
        st.tuples(inner, st.sampled_from(operators), inner).map(lambda p: f"{p[0]} {p[1]} {p[2]}"),
        inner.map(lambda e: f"({e})"),
        inner.map(lambda e: f"sum by (a, b) ({e})"),
        inner.map(lambda e: f"topk(3, {e})"),
        inner.map(lambda e: f"clamp({e}, 0, 1)"),
        inner.map(lambda e: f"-({e})"),
    )


@settings(deadline=None)
@given(st.recursive(_leaf, _more, max_leaves=12))
def test_a_formatted_expression_means_the_same_and_stays_as_it_is(text: str) -> None:
    try:
        tree = promql_parser.parse(text)
    except ValueError:
        assert format_expression(text) == text
        return
    new = format_expression(text)
    assert repr(promql_parser.parse(new)) == repr(tree)
    assert format_expression(new) == new
    if new != text:
        assert all(line == line.rstrip() and not line.startswith("  " * 20) for line in new.splitlines())
        assert len(max(new.splitlines(), key=len)) <= max(WIDTH, len(text))


_FILE = """\
# Head.
groups:
  - name: g   # a name
    rules:
    - alert: A
      expr: sum( x )by(a)>0   # beside it
      for:  5m

    # Between.
    - alert: B
      expr: |-
        # a comment of the expression
        sum( y )
    - {alert: C, expr: sum( y )}
    - alert: D
      expr: &shared >-
        sum( y )
    - alert: E
      expr: >-
        sum( y )
          by (z)


      labels: {a: 'b'}
    - alert: F
      expr: 'sum( y{a="it''s"} )'
    - alert: G
      expr: "sum( y{a=\\"b: c\\"} )"
    - alert: H
      expr: *shared
"""


def test_only_expressions_change() -> None:
    new, problems = formatted(_FILE, "f")
    assert problems == []
    assert new == (
        _FILE.replace("sum( x )by(a)>0", "sum by (a) (x) > 0")
        .replace(">-\n        sum( y )\n          by (z)", "|\n        sum by (z) (y)")
        .replace("'sum( y{a=\"it''s\"} )'", "'sum(y{a=\"it''s\"})'")
        .replace('"sum( y{a=\\"b: c\\"} )"', '|\n        sum(y{a="b: c"})')
    )
    assert formatted(new, "f") == (new, [])


def test_line_ends_stay_as_they_are() -> None:
    text = f"groups:\r\n- name: g\r\n  rules:\r\n  - alert: A\r\n    expr: {_LONG} and {_LONG}  and {_LONG}\r\n"
    new, _ = formatted(text, "f")
    assert new.count("\n") == new.count("\r\n") == 8
    assert yaml.safe_load(new)["groups"][0]["rules"][0]["expr"] == f"{_LONG}\nand {_LONG}\nand {_LONG}\n"


def test_a_file_that_is_no_yaml_is_left_alone_and_named() -> None:
    new, problems = formatted("groups: [\n", "f.yaml")
    assert new == "groups: [\n"
    assert [str(problem) for problem in problems] == [
        "f.yaml:2: no valid YAML: while parsing a flow node expected the node content, but found '<stream end>'"
    ]


@pytest.mark.parametrize("path", sorted(Path(str(shipped.directory())).rglob("*.rules.yaml")), ids=lambda p: p.name)
def test_shipped_files_are_formatted_and_formatting_keeps_their_meaning(path: Path) -> None:
    text = path.read_text()
    assert formatted(text, path.name) == (text, [])
    new, _ = formatted(text.replace(" by (", " by("), path.name)

    def rules(document: str) -> list[tuple[object, str]]:
        return [
            ({**rule, "expr": None}, repr(promql_parser.parse(rule["expr"])))
            for group in yaml.safe_load(document)["groups"]
            for rule in group["rules"]
        ]

    assert rules(new) == rules(text)
    assert [line for line in new.splitlines() if line.lstrip().startswith("#")] == [
        line for line in text.splitlines() if line.lstrip().startswith("#")
    ]
