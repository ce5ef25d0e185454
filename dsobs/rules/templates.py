"""The part of Go's text/template that annotations and labels of rules use, with Prometheus' functions.

Supported: text, comments, trim markers, `if` / `else if` / `else` / `with` / `range` / `break` / `continue` / `end`,
variables, pipes, parentheses, field chains, string, number and boolean literals, and the functions named in
`FUNCTIONS`. Data is what Prometheus gives: `$labels`, `$externalLabels`, `$externalURL`, `$value`, and `.Labels`,
`.ExternalLabels`, `.ExternalURL`, `.Value`. What is not supported (`define`, `template`, `now`, methods of times and
durations, …) is refused when the template is parsed, or where it is rendered.
Functions and forms follow https://prometheus.io/docs/prometheus/latest/configuration/template_reference/.
"""

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from dsobs.model.samples import Sample
from dsobs.rules.go_text import TemplateError, UnsupportedTemplateError, printed
from dsobs.rules.template_functions import FUNCTIONS, UNSUPPORTED_FUNCTIONS, as_text, truth

QueryFunction = Callable[[str], Sequence[Sample]]
"""Evaluates an instant query at the time of the rule's evaluation."""


@dataclass(frozen=True, slots=True)
class Data:
    """What a template may name. `query` serves the function of that name; None: it fails."""

    labels: Mapping[str, str]
    value: float
    external_labels: Mapping[str, str] = field(default_factory=dict)
    external_url: str = ""
    query: QueryFunction | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further variables, `$` included."""


class Template:
    """A parsed template; `TemplateError` from the constructor says what is wrong with `text`.

    `more` are variables beside those of a rule's template, `$` included.
    """

    __slots__ = ("_nodes", "queries", "text")

    def __init__(self, text: str, more: Sequence[str] = ()) -> None:
        self.text = text
        parser = _Parser(text, more)
        self._nodes = parser.parse() if "{{" in text else None
        self.queries = tuple(parser.queries)
        """Expressions that stand in the template word for word; others are known only when it is rendered."""

    def render(self, data: Data) -> str:
        """The text for `data`; TemplateError where a function gets what it can't take."""
        if self._nodes is None:
            return self.text
        dot = _Dot(data)
        scope: dict[str, Any] = {
            "$": dot,
            "$labels": data.labels,
            "$externalLabels": data.external_labels,
            "$externalURL": data.external_url,
            "$value": data.value,
            **data.more,
        }
        out: list[str] = []
        _run(self._nodes, dot, scope, data, out)
        return "".join(out)


# Syntax tree: tuples of plain data, evaluated below.
_Node = tuple[Any, ...]


class _Dot:
    """The root `.` of a template."""

    __slots__ = ("fields",)

    def __init__(self, data: Data) -> None:
        self.fields: dict[str, Any] = {
            "Labels": data.labels,
            "ExternalLabels": data.external_labels,
            "ExternalURL": data.external_url,
            "Value": data.value,
        }


_MOST_TURNS = 10_000
"""Of a `range` over a whole number."""
_RANGE_VARIABLES = re.compile(r"\s*(?P<first>\$\w+)(?:\s*,\s*(?P<second>\$\w+))?\s*(?P<assign>:?=)")
_ROOT_FIELDS = ("ExternalLabels", "ExternalURL", "Labels", "Value")
_VARIABLES = ("$", "$externalLabels", "$externalURL", "$labels", "$value")
_ACTION = re.compile(
    r"\{\{(?:-(?=\s))?(?P<body>(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|/\*.*?\*/|[^\"`])*?)(?:(?<=\s)-)?\}\}", re.DOTALL
)
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)
    | (?P<number>[+-]?0(?:[xX]_?[0-9a-fA-F_]+|[bB]_?[01_]+|[oO]?_?[0-7_]+)(?![\w.])
                |[+-]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<variable>\$\w*)
    | (?P<field>\.[A-Za-z_]\w*)
    | (?P<name>[A-Za-z_]\w*)
    | (?P<assign>:?=)
    | (?P<mark>[|().,])
    )""",
    re.VERBOSE,
)
_UNSUPPORTED = ("block", "define", "template")


class _Parser:
    def __init__(self, text: str, more: Sequence[str]) -> None:
        self._parts = self._split(text)
        self._at = 0
        self._tokens: list[tuple[str, str, bool]] = []
        self._pos = 0
        self._known: set[str] = {*_VARIABLES, *more}
        self._root_dot = True
        self._ranges = 0
        """How many `range` are around."""
        self.queries: list[str] = []

    @staticmethod
    def _split(text: str) -> list[tuple[bool, str]]:
        """(is an action, text) in turn; trim markers are applied."""
        parts: list[tuple[bool, str]] = []
        end = 0
        trim = False
        while (start := text.find("{{", end)) >= 0:
            match = _ACTION.match(text, start)
            if match is None:
                raise TemplateError(f"unclosed action {text[start : start + 30]!r}")
            before = text[end:start]
            if trim:
                before = before.lstrip()
            action = match.group()
            if re.match(r"\{\{-\s", action):
                before = before.rstrip()
            trim = re.search(r"\s-\}\}$", action) is not None
            parts.append((False, before))
            body = match["body"].strip()
            if not (body.startswith("/*") and body.endswith("*/")):
                parts.append((True, body))
            end = match.end()
        rest = text[end:]
        parts.append((False, rest.lstrip() if trim else rest))
        return parts

    def parse(self) -> list[_Node]:
        nodes, ended = self._block()
        if ended:
            raise TemplateError(f"unexpected {{{{ {ended} }}}}")
        return nodes

    def _block(self) -> tuple[list[_Node], str]:
        """Nodes up to the end of the text, `else …` or `end`, and which of them it was."""
        nodes: list[_Node] = []
        while self._at < len(self._parts):
            is_action, text = self._parts[self._at]
            self._at += 1
            if not is_action:
                if text:
                    nodes.append(("text", text))
                continue
            word = text.split(None, 1)[0] if text.split() else ""
            if word in ("if", "with"):
                nodes.append(self._branch(word, text[len(word) :]))
            elif word == "range":
                nodes.append(self._range(text[len(word) :]))
            elif word in ("break", "continue"):
                if text != word or not self._ranges:
                    raise TemplateError(f"{{{{ {text} }}}}: {word} stands alone, inside {{{{ range }}}}")
                nodes.append((word,))
            elif word in ("end", "else"):
                return nodes, text
            elif word in _UNSUPPORTED:
                raise UnsupportedTemplateError(f"{{{{ {word} }}}} is not supported")
            else:
                nodes.append(("action", self._action(text)))
        return nodes, ""

    def _branch(self, word: str, text: str) -> _Node:
        known, root_dot = set(self._known), self._root_dot
        condition = self._action(text)
        self._root_dot = root_dot and word == "if"
        body, ended = self._block()
        self._root_dot = root_dot
        otherwise: list[_Node] = []
        if ended.split(None, 1)[:1] == ["else"]:
            rest = ended[4:].strip()
            if rest:
                inner = rest.split(None, 1)[0]
                if inner not in ("if", "with"):
                    raise TemplateError(f"{{{{ {ended} }}}} is not supported")
                # `else if` shares the `end` of the whole chain.
                otherwise = [self._branch(inner, rest[len(inner) :])]
                ended = "end"
            else:
                otherwise, ended = self._block()
        self._known = known
        if ended != "end":
            raise TemplateError(f"{{{{ {word} }}}} has no {{{{ end }}}}")
        return (word, condition, body, otherwise)

    def _range(self, text: str) -> _Node:
        """`range PIPELINE`, `range $element := PIPELINE` or `range $key, $element := PIPELINE`."""
        known, root_dot = set(self._known), self._root_dot
        variables: list[str] = []
        declares = True
        match = _RANGE_VARIABLES.match(text)
        if match is not None:
            variables = [name for name in (match["first"], match["second"]) if name]
            declares = match["assign"] == ":="
            unknown = [name for name in variables if not declares and name not in known]
            if unknown:
                raise TemplateError(f"undefined variable {unknown[0]}")
            text = text[match.end() :]
        over = self._action(text)
        if over[0] == "assign":
            raise TemplateError("{{ range }} takes one or two variables before :=")
        self._known.update(variables)
        self._root_dot = False
        self._ranges += 1
        body, ended = self._block()
        self._ranges -= 1
        self._known, self._root_dot = set(known), root_dot
        otherwise: list[_Node] = []
        if ended == "else":
            otherwise, ended = self._block()
            self._known = known
        if ended != "end":
            raise TemplateError("{{ range }} has no {{ end }}")
        return ("range", over, body, otherwise, variables, declares)

    def _action(self, text: str) -> _Node:
        self._tokens = []
        at = 0
        text = text.strip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                raise TemplateError(f"can't read {text[at:].strip()[:30]!r} in {{{{ {text} }}}}")
            self._tokens.append((match.lastgroup, match[match.lastgroup], match.group()[:1].isspace() or at == 0))
            at = match.end()
        self._pos = 0
        target: tuple[str, bool] | None = None
        if len(self._tokens) > 1 and self._tokens[0][0] == "variable" and self._tokens[1][0] == "assign":
            name, declares = self._tokens[0][1], self._tokens[1][1] == ":="
            if not declares and name not in self._known:
                raise TemplateError(f"undefined variable {name}")
            target = (name, declares)
            self._pos = 2
        pipeline = self._pipeline()
        if self._pos < len(self._tokens):
            raise TemplateError(f"unexpected {self._tokens[self._pos][1]!r} in {{{{ {text} }}}}")
        if target is not None:
            self._known.add(target[0])
            return ("assign", target[0], target[1], pipeline)
        return pipeline

    def _peek(self) -> tuple[str, str, bool]:
        return self._tokens[self._pos] if self._pos < len(self._tokens) else ("end", "", True)

    def _pipeline(self) -> _Node:
        node = self._command(None)
        while self._peek()[1] == "|" and self._peek()[0] == "mark":
            self._pos += 1
            node = self._command(node)
        return node

    def _command(self, piped: _Node | None) -> _Node:
        kind, text, _ = self._peek()
        if kind == "name" and text not in ("true", "false", "nil"):
            if text in UNSUPPORTED_FUNCTIONS:
                raise UnsupportedTemplateError(f"function {text!r} is not supported")
            if text not in FUNCTIONS:
                near = difflib.get_close_matches(text, FUNCTIONS, 1)
                hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(sorted(FUNCTIONS))}"
                raise TemplateError(f"function {text!r} is not supported{hint}")
            self._pos += 1
            arguments: list[_Node] = []
            while (operand := self._operand()) is not None:
                arguments.append(operand)
            if piped is not None:
                arguments.append(piped)
            least, most, _function = FUNCTIONS[text]
            if not least <= len(arguments) <= most:
                wanted = str(least) if least == most else f"{least} or more"
                raise TemplateError(f"{text} takes {wanted} arguments, not {len(arguments)}")
            if text == "query" and arguments[0][0] == "literal" and isinstance(arguments[0][1], str):
                self.queries.append(arguments[0][1])
            return ("call", text, tuple(arguments))
        operand = self._operand()
        if operand is None:
            raise TemplateError(f"missing value before {text!r}" if text else "missing value")
        if piped is not None or self._peek()[0] not in ("end", "mark") or self._peek()[1] == "(":
            raise TemplateError("only functions take arguments")
        return operand

    def _operand(self) -> _Node | None:
        kind, text, _ = self._peek()
        node: _Node
        if kind == "string":
            node = ("literal", text[1:-1] if text[0] == "`" else _unquote(text))
        elif kind == "number":
            node = ("literal", _number_of(text))
        elif kind == "variable":
            if text not in self._known:
                raise TemplateError(f"undefined variable {text}; there are: {', '.join(sorted(self._known))}")
            node = ("variable", text)
        elif kind == "field":
            name = text[1:]
            if self._root_dot and name not in _ROOT_FIELDS:
                raise TemplateError(f"unknown field {text}; there are: {', '.join('.' + f for f in _ROOT_FIELDS)}")
            node = ("field", ("dot",), name)
        elif kind == "mark" and text == ".":
            node = ("dot",)
        elif kind == "mark" and text == "(":
            self._pos += 1
            node = self._pipeline()
            if self._peek()[1] != ")":
                raise TemplateError("unclosed parenthesis")
        elif kind == "name" and text in ("true", "false", "nil"):
            node = ("literal", {"true": True, "false": False, "nil": None}[text])
        elif kind == "name":
            if text in UNSUPPORTED_FUNCTIONS:
                raise UnsupportedTemplateError(f"function {text!r} is not supported")
            if text not in FUNCTIONS:
                raise TemplateError(f"function {text!r} is not supported")
            if FUNCTIONS[text][0] > 0:
                raise TemplateError(f"{text} as an argument must stand in parentheses")
            node = ("call", text, ())
        else:
            return None
        self._pos += 1
        while self._peek()[0] == "field" and not self._peek()[2]:
            node = ("field", node, self._peek()[1][1:])
            self._pos += 1
        return node


def _number_of(text: str) -> float | int:
    """As Go reads a constant: with underscores between digits; a 0 in front makes it octal."""
    try:
        if re.fullmatch(r"[+-]?0[0-7_]+", text):
            return int(re.sub(r"^([+-]?)0_?", r"\g<1>0o", text), 0)
        if re.match(r"[+-]?0[xXbBoO]", text):
            return int(text, 0)
        return float(text) if set(text) & set(".eE") else int(text)
    except ValueError:
        raise TemplateError(f"can't read the number {text}") from None


def _unquote(text: str) -> str:
    try:
        value: str = json.loads(text)
    except ValueError:
        raise TemplateError(f"can't read the string {text}") from None
    return value


class _Break(Exception):
    """`{{ break }}`."""


class _Continue(Exception):
    """`{{ continue }}`."""


def _run(nodes: list[_Node], dot: Any, scope: dict[str, Any], data: Data, out: list[str]) -> None:
    for node in nodes:
        kind = node[0]
        if kind == "text":
            out.append(node[1])
        elif kind == "action":
            if node[1][0] == "assign":
                _assign(node[1], dot, scope, data)
            else:
                out.append(printed(_value(node[1], dot, scope, data)))
        elif kind == "range":
            _run_range(node, dot, scope, data, out)
        elif kind == "break":
            raise _Break
        elif kind == "continue":
            raise _Continue
        else:
            inner = _Scope(scope)
            evaluate = _assign if node[1][0] == "assign" else _value
            value = evaluate(node[1], dot, inner, data)
            if truth(value):
                _run(node[2], value if kind == "with" else dot, _Scope(inner), data, out)
            else:
                _run(node[3], dot, _Scope(inner), data, out)


def _run_range(node: _Node, dot: Any, scope: dict[str, Any], data: Data, out: list[str]) -> None:
    _, over, body, otherwise, variables, declares = node
    outer = _Scope(scope)
    pairs = _elements(_value(over, dot, outer, data))
    if not pairs:
        _run(otherwise, dot, _Scope(outer), data, out)
        return
    for key, element in pairs:
        inner = _Scope(outer)
        values = (element,) if len(variables) == 1 else (key, element)
        for name, value in zip(variables, values, strict=False):
            if declares:
                inner[name] = value
            else:
                inner.reassign(name, value)
        try:
            _run(body, element, inner, data, out)
        except _Continue:
            continue
        except _Break:
            return


def _elements(value: Any) -> list[tuple[Any, Any]]:
    """Keys and elements in Go's order: lists by index, mappings by key, a whole number counts from 0."""
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        if value > _MOST_TURNS:
            raise TemplateError(f"range over {value}: more than {_MOST_TURNS} turns")
        return [(number, number) for number in range(value)]
    if isinstance(value, Sequence) and not isinstance(value, (str, Sample)):
        return list(enumerate(value))
    if value is None:
        return []
    raise TemplateError(f"range can't go over {printed(value)}")


class _Scope(dict[str, Any]):
    """Variables of a block: its own over those of the block around it."""

    def __init__(self, outer: dict[str, Any]) -> None:
        super().__init__()
        self._outer = outer

    def __missing__(self, name: str) -> Any:
        return self._outer[name]

    def reassign(self, name: str, value: Any) -> None:
        if name in self:
            self[name] = value
        elif isinstance(self._outer, _Scope):
            self._outer.reassign(name, value)
        else:
            self._outer[name] = value


def _assign(node: _Node, dot: Any, scope: dict[str, Any], data: Data) -> Any:
    _, name, declares, pipeline = node
    value = _value(pipeline, dot, scope, data)
    if declares or not isinstance(scope, _Scope):
        scope[name] = value
    else:
        scope.reassign(name, value)
    return value


def _value(node: _Node, dot: Any, scope: dict[str, Any], data: Data) -> Any:
    kind = node[0]
    if kind == "literal":
        return node[1]
    if kind == "dot":
        return dot
    if kind == "variable":
        return scope[node[1]]
    if kind == "field":
        return _field(_value(node[1], dot, scope, data), node[2])
    name = node[1]
    if name in ("and", "or"):
        value: Any = None
        for argument in node[2]:
            value = _value(argument, dot, scope, data)
            if truth(value) is (name == "or"):
                return value
        return value
    arguments = [_value(argument, dot, scope, data) for argument in node[2]]
    if name == "query":
        return _query(data, arguments[0])
    if name == "externalURL":
        return data.external_url
    if name == "pathPrefix":
        return urlsplit(data.external_url).path
    try:
        return FUNCTIONS[name][2](*arguments)
    except TemplateError as error:
        raise TemplateError(f"{name}: {error}") from None


def _field(value: Any, name: str) -> Any:
    if isinstance(value, _Dot):
        if name not in value.fields:
            raise TemplateError(f"unknown field .{name}")
        return value.fields[name]
    if isinstance(value, Sample):
        if name == "Value":
            return value.value
        if name == "Labels":
            return dict(value.labels)
        raise TemplateError(f"a query's result has .Labels and .Value, no .{name}")
    if isinstance(value, Mapping):
        # Go's option missingkey=zero, which Prometheus sets: a label that is not there is empty.
        return value.get(name, "")
    raise TemplateError(f"{printed(value)!r} has no field .{name}")


def _query(data: Data, expression: Any) -> list[Sample]:
    if data.query is None:
        raise TemplateError("query: there is no store to ask")
    try:
        return list(data.query(as_text(expression)))
    except TemplateError:
        raise
    except Exception as error:  # whatever the engine raises is this template's failure and is shown in its text
        raise TemplateError(f"query: {error}") from error
