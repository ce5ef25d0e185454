"""Formatting: one form, nothing of the meaning lost, nothing else touched."""

from pathlib import Path

import promql_parser
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs.rules import shipped
from dsobs.rules.formatting import WIDTH, Formatted, format_expression, formatted

_LONG = "a_rather_long_name_of_a_metric_total"
EXPRESSIONS = [
    ("sum(rate(x[5m]))by(a)", "sum by (a) (rate(x[5m]))"),
    ("a  ==  bool on(b)group_left(c) d", "a == bool on (b) group_left (c) d"),
    ("x{a='b'}", 'x{a="b"}'),
    ("-x^2", "-x ^ 2"),
    ("x{ b='1', a=~'2,}' ,}+y{d!='{',c=''}", 'x{b="1",a=~"2,}"} + y{d!="{",c=""}'),
    ("x{a!='2',b='1',a!='1'}", 'x{a!="2",b="1",a!="1"}'),
    ("sum( x{} )by('a.b')", 'sum by ("a.b") (x)'),
    ("x >  1e9", "x > 1e9"),
    ("rate( x[90s])", "rate(x[90s])"),
    ("x  > 0x1F", "x > 0x1F"),
    ("x  > .5e-3", "x > .5e-3"),
    ("histogram_quantile( 0.990, x)", "histogram_quantile(0.990, x)"),
    ("max_over_time( x[60m:90s] offset 120s)  > 60", "max_over_time(x[60m:90s] offset 120s) > 60"),
    ("x[60s]  offset  1m", "x[60s] offset 1m"),
    ("x1e9{a='1e9'}  > 1e9 > 1000000000", 'x1e9{a="1e9"} > 1e9 > 1000000000'),
    ("job:x:5m  > 300", "job:x:5m > 300"),
    ("# Why.\n\n   # And more.\nsum( x )", "# Why.\n# And more.\nsum(x)"),
    (
        f"{_LONG} > 1e9 and rate({_LONG}[120s]) > 1 * 1e9",
        f"{_LONG} > 1e9\nand rate({_LONG}[120s]) > 1 * 1e9",
    ),
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


@pytest.mark.parametrize("text", ["sum( x )  # why", "sum( x )\n# why\n> 0", "sum( x", "x{ or='1'}  > 0 or"])
def test_what_can_not_be_formatted_is_left_alone(text: str) -> None:
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
        "1e3",
        "0x1F",
        "1.50",
        "60",
        "rate(x[60s])",
        "max_over_time(x[60m:60s])",
        "x offset 1m",
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
    - alert: I
      expr: |
        sum( y )
        # in between
        > 0
    - alert: J
      expr: | # beside the mark
        sum( y )
    - alert: K
      expr: | # beside what has its form
        sum(y)
"""


def test_only_expressions_change_and_those_that_do_not_are_named() -> None:
    done = formatted(_FILE, "f")
    assert done.problems == []
    assert done.text == (
        _FILE.replace("sum( x )by(a)>0", "sum by (a) (x) > 0")
        .replace("|-\n        # a comment of the expression\n        sum( y )", _WITH_COMMENT)
        .replace(">-\n        sum( y )\n          by (z)", "|\n        sum by (z) (y)")
        .replace("'sum( y{a=\"it''s\"} )'", "'sum(y{a=\"it''s\"})'")
        .replace('"sum( y{a=\\"b: c\\"} )"', '|\n        sum(y{a="b: c"})')
    )
    assert [str(one) for one in done.left] == [
        "f:14: the expression is left as it is: its rule stands in braces on one line",
        "f:16: the expression is left as it is: YAML gives it an anchor, an alias or a tag",
        "f:32: the expression is left as it is: comments stand among its lines",
        "f:37: the expression is left as it is: a comment stands beside the mark of its block",
    ]
    again = formatted(done.text, "f")
    assert (again.text, again.problems, len(again.left)) == (done.text, [], len(done.left))


_WITH_COMMENT = "|\n        # a comment of the expression\n        sum(y)"


def test_an_expression_that_is_none_is_named() -> None:
    text = "groups:\n- name: g\n  rules:\n  - alert: A\n    expr: sum( x\n"
    done = formatted(text, "f")
    assert (done.text, done.problems) == (text, [])
    (left,) = done.left
    assert str(left).startswith("f:5: the expression is left as it is: it can't be parsed: ")


def test_an_expression_that_would_take_minutes_is_left_alone_and_named() -> None:
    text = f"groups:\n- name: g\n  rules:\n  - alert: A\n    expr: {'(' * 900}x{')' * 900}\n"
    done = formatted(text, "f")
    assert done.text == text
    assert [str(one) for one in done.left] == [
        "f:5: the expression is left as it is: it has more than 600 words",
    ]


def test_a_file_that_holds_itself_is_left_alone() -> None:
    text = "groups: &a\n- name: x\n  rules:\n  - alert: A\n    expr: sum( x )\n  again: *a\n"
    done = formatted(text, "f")
    assert done.text == text
    assert [str(one) for one in done.left] == [
        "f:5: the expression is left as it is: it can't stand at its place in another form",
    ]


def test_line_ends_stay_as_they_are() -> None:
    text = f"groups:\r\n- name: g\r\n  rules:\r\n  - alert: A\r\n    expr: {_LONG} and {_LONG}  and {_LONG}\r\n"
    new = formatted(text, "f").text
    assert new.count("\n") == new.count("\r\n") == 8
    assert yaml.safe_load(new)["groups"][0]["rules"][0]["expr"] == f"{_LONG}\nand {_LONG}\nand {_LONG}\n"


def test_a_file_that_is_no_yaml_is_left_alone_and_named() -> None:
    done = formatted("groups: [\n", "f.yaml")
    assert done.text == "groups: [\n"
    assert [str(problem) for problem in done.problems] == [
        "f.yaml:2: no valid YAML: while parsing a flow node expected the node content, but found '<stream end>'"
    ]


@pytest.mark.parametrize("path", sorted(Path(str(shipped.directory())).rglob("*.rules.yaml")), ids=lambda p: p.name)
def test_shipped_files_are_formatted_and_formatting_keeps_their_meaning(path: Path) -> None:
    text = path.read_text()
    assert formatted(text, path.name) == Formatted(text)
    new = formatted(text.replace(" by (", " by("), path.name).text

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
