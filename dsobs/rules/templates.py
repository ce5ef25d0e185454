"""The part of Go's text/template that annotations and labels of rules use, with Prometheus' functions.

Supported: text, comments, trim markers, `if` / `else if` / `else` / `with` / `end`, variables, pipes, parentheses,
field chains, string, number and boolean literals, and the functions named in `FUNCTIONS`. Data is what Prometheus
gives: `$labels`, `$externalLabels`, `$externalURL`, `$value`, and `.Labels`, `.ExternalLabels`, `.ExternalURL`,
`.Value`. What is not supported (`range`, `define`, `template`, `tableLink`, …) is refused when the template is parsed.
Functions and forms follow https://prometheus.io/docs/prometheus/latest/configuration/template_reference/.
"""

import datetime
import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from dsobs.model.samples import Sample
from dsobs.promql.patterns import expanded
from dsobs.regex import Pattern, RegexError, compile_regex
from dsobs.rules.duration import duration_seconds

QueryFunction = Callable[[str], Sequence[Sample]]
"""Evaluates an instant query at the time of the rule's evaluation."""


class TemplateError(Exception):
    """The template can't be parsed, names something that is not supported, or failed on its data."""


@dataclass(frozen=True, slots=True)
class Data:
    """What a template may name. `query` serves the function of that name; None: it fails."""

    labels: Mapping[str, str]
    value: float
    external_labels: Mapping[str, str] = field(default_factory=dict)
    external_url: str = ""
    query: QueryFunction | None = None


class Template:
    """A parsed template; `TemplateError` from the constructor says what is wrong with `text`."""

    __slots__ = ("_nodes", "queries", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        parser = _Parser(text)
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


_ROOT_FIELDS = ("ExternalLabels", "ExternalURL", "Labels", "Value")
_VARIABLES = ("$", "$externalLabels", "$externalURL", "$labels", "$value")
_ACTION = re.compile(
    r"\{\{(?:-(?=\s))?(?P<body>(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|/\*.*?\*/|[^\"`])*?)(?:(?<=\s)-)?\}\}", re.DOTALL
)
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`)
    | (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<variable>\$\w*)
    | (?P<field>\.[A-Za-z_]\w*)
    | (?P<name>[A-Za-z_]\w*)
    | (?P<assign>:?=)
    | (?P<mark>[|().,])
    )""",
    re.VERBOSE,
)
_UNSUPPORTED = ("block", "break", "continue", "define", "range", "template")


class _Parser:
    def __init__(self, text: str) -> None:
        self._parts = self._split(text)
        self._at = 0
        self._tokens: list[tuple[str, str, bool]] = []
        self._pos = 0
        self._known: set[str] = set(_VARIABLES)
        self._root_dot = True
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
            elif word in ("end", "else"):
                return nodes, text
            elif word in _UNSUPPORTED:
                raise TemplateError(f"{{{{ {word} }}}} is not supported")
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
            node = ("literal", float(text) if set(text) & set(".eE") else int(text))
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


def _unquote(text: str) -> str:
    try:
        value: str = json.loads(text)
    except ValueError:
        raise TemplateError(f"can't read the string {text}") from None
    return value


def _run(nodes: list[_Node], dot: Any, scope: dict[str, Any], data: Data, out: list[str]) -> None:
    for node in nodes:
        kind = node[0]
        if kind == "text":
            out.append(node[1])
        elif kind == "action":
            if node[1][0] == "assign":
                _assign(node[1], dot, scope, data)
            else:
                out.append(_print(_value(node[1], dot, scope, data)))
        else:
            inner = _Scope(scope)
            evaluate = _assign if node[1][0] == "assign" else _value
            value = evaluate(node[1], dot, inner, data)
            if _truth(value):
                _run(node[2], value if kind == "with" else dot, _Scope(inner), data, out)
            else:
                _run(node[3], dot, _Scope(inner), data, out)


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
            if _truth(value) is (name == "or"):
                return value
        return value
    arguments = [_value(argument, dot, scope, data) for argument in node[2]]
    if name == "query":
        return _query(data, arguments[0])
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
    raise TemplateError(f"{_print(value)!r} has no field .{name}")


def _truth(value: Any) -> bool:
    if isinstance(value, (_Dot, Sample)):
        return True
    if isinstance(value, float) and math.isnan(value):
        return True
    return bool(value)


# Values as Go prints them.


def _special(value: float) -> str | None:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return None


def format_float(value: float) -> str:
    """As Go's `%v`: the shortest digits that read back as `value`; an exponent below -4 and from 6 on."""
    special = _special(value)
    if special is not None:
        return special
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits))
    power = len(text) + exponent - 1
    if power < -4 or power >= 6:
        mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
        return f"{'-' if sign else ''}{mantissa}e{'-' if power < 0 else '+'}{abs(power):02d}"
    return f"{'-' if sign else ''}{Decimal(repr(abs(value))).normalize():f}"


def _print(value: Any) -> str:
    if value is None:
        return "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_float(value)
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{k}:{_print(value[k])}" for k in sorted(value)) + "]"
    if isinstance(value, (str, int)):
        return str(value)
    raise TemplateError("only strings, numbers, booleans and label sets can be printed")


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TemplateError("can't take a boolean for a number")
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise TemplateError(f"{value!r} is no number") from None
    raise TemplateError("wants a number")


def _g4(value: float) -> str:
    return _special(value) or f"{value:.4g}"


def _scaled(value: float, up: Sequence[str], down: Sequence[str], factor: float) -> str:
    if value == 0 or _special(value):
        return _g4(value)
    prefix = ""
    if abs(value) >= 1:
        for unit in up:
            if abs(value) < factor:
                break
            prefix = unit
            value /= factor
    else:
        for unit in down:
            if abs(value) >= 1:
                break
            prefix = unit
            value *= factor
    return f"{_g4(value)}{prefix}"


_DOWN = ("m", "u", "n", "p", "f", "a", "z", "y")


def _humanize(value: Any) -> str:
    return _scaled(_number(value), ("k", "M", "G", "T", "P", "E", "Z", "Y"), _DOWN, 1000.0)


def _humanize1024(value: Any) -> str:
    return _scaled(_number(value), ("ki", "Mi", "Gi", "Ti", "Pi", "Ei", "Zi", "Yi"), (), 1024.0)


def _humanize_percentage(value: Any) -> str:
    return f"{_g4(_number(value) * 100)}%"


def _humanize_duration(value: Any) -> str:
    seconds = _number(value)
    if _special(seconds):
        return _g4(seconds)
    if abs(seconds) < 1:
        return f"{_scaled(seconds, (), _DOWN, 1000.0)}s"
    sign = "-" if seconds < 0 else ""
    seconds = abs(seconds)
    whole = int(seconds)
    days, hours, minutes, rest = whole // 86400, whole // 3600 % 24, whole // 60 % 60, whole % 60
    if days:
        return f"{sign}{days}d {hours}h {minutes}m {rest}s"
    if hours:
        return f"{sign}{hours}h {minutes}m {rest}s"
    if minutes:
        return f"{sign}{minutes}m {rest}s"
    return f"{sign}{_g4(seconds)}s"


def _humanize_timestamp(value: Any) -> str:
    seconds = _number(value)
    if _special(seconds):
        return _g4(seconds)
    try:
        moment = datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise TemplateError(f"{seconds} is no time: {error}") from None
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"


_VERB = re.compile(r"%(?P<flags>[-+# 0]*)(?P<width>\d+)?(?:\.(?P<precision>\d*))?(?P<verb>.)", re.DOTALL)


def _printf(form: Any, *arguments: Any) -> str:
    if not isinstance(form, str):
        raise TemplateError("wants a format string first")
    left = list(arguments)

    def one(match: re.Match[str]) -> str:
        verb = match["verb"]
        if verb == "%":
            return "%"
        if not left:
            return f"%!{verb}(MISSING)"
        return _verb(left.pop(0), verb, match["flags"], match["width"], match["precision"])

    text = _VERB.sub(one, form)
    if left:
        text += "%!(EXTRA " + ", ".join(f"{_go_type(v)}={_print(v)}" for v in left) + ")"
    return text


def _go_type(value: Any) -> str:
    return {bool: "bool", int: "int", float: "float64", str: "string"}.get(type(value), "map[string]string")


def _verb(value: Any, verb: str, flags: str, width: str | None, precision: str | None) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    numeric_flags = "".join(flag for flag in flags if flag in "+ #")
    digits = None if precision is None else int(precision or 0)
    if verb == "v" or (verb == "s" and isinstance(value, str)):
        text = _print(value)
        if digits is not None and isinstance(value, str):
            text = text[:digits]
    elif verb == "q" and isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
    elif verb == "t" and isinstance(value, bool):
        text = _print(value)
    elif verb in "eEfFgG" and number and isinstance(value, float):
        if (special := _special(value)) is not None:
            text = special if "+" in flags or special != "+Inf" else "+Inf"
        elif verb in "gG" and digits is None:
            text = format_float(value)
        else:
            text = f"%{numeric_flags}.{6 if digits is None else digits}{verb}" % value
    elif verb in "dxXo" and isinstance(value, int) and not isinstance(value, bool):
        text = f"%{numeric_flags}{verb}" % value
    else:
        return f"%!{verb}({_go_type(value)}={_print(value)})"
    if width is not None:
        if "-" in flags:
            text = text.ljust(int(width))
        elif "0" in flags and number:
            text = text.zfill(int(width))
        else:
            text = text.rjust(int(width))
    return text


def _compare(a: Any, b: Any) -> tuple[Any, Any]:
    # Go compares only values of one basic kind; `gt $value 5` is an error there, `gt $value 5.0` is not.
    if type(a) is not type(b) or not isinstance(a, (str, int, float)):
        raise TemplateError(f"incompatible types for comparison: {_go_type(a)} and {_go_type(b)}")
    return a, b


def _eq(a: Any, *others: Any) -> bool:
    return any(x == y for x, y in [_compare(a, other) for other in others])


def _ne(a: Any, b: Any) -> bool:
    x, y = _compare(a, b)
    return bool(x != y)


def _lt(a: Any, b: Any) -> bool:
    x, y = _compare(a, b)
    return bool(x < y)


def _le(a: Any, b: Any) -> bool:
    x, y = _compare(a, b)
    return bool(x <= y)


def _gt(a: Any, b: Any) -> bool:
    x, y = _compare(a, b)
    return bool(x > y)


def _ge(a: Any, b: Any) -> bool:
    x, y = _compare(a, b)
    return bool(x >= y)


def _not(value: Any) -> bool:
    return not _truth(value)


def _len(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, (Mapping, list)):
        return len(value)
    raise TemplateError("wants a string, a label set or a query's result")


def _index(value: Any, key: Any) -> Any:
    if isinstance(value, list) and isinstance(key, int) and not isinstance(key, bool):
        if not 0 <= key < len(value):
            raise TemplateError(f"index {key} is out of range")
        return value[key]
    if isinstance(value, Mapping) and isinstance(key, str):
        return value.get(key, "")
    raise TemplateError("wants a label set and a name")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TemplateError(f"wants a string, not {_go_type(value)}")
    return value


def _regex(pattern: Any) -> Pattern:
    try:
        return compile_regex(_text(pattern))
    except RegexError as error:
        raise TemplateError(f"bad regular expression {pattern!r}: {error}") from None


def _re_replace_all(pattern: Any, replacement: Any, text: Any) -> str:
    template = _text(replacement)
    return _regex(pattern).sub(lambda match: expanded(template, match), _text(text))


def _match(pattern: Any, text: Any) -> bool:
    return _regex(pattern).search(_text(text)) is not None


def _strip_port(value: Any) -> str:
    text = _text(value)
    match = re.fullmatch(r"\[([^\]]*)\](?::[^:]*)?|([^:]*):[^:]*", text)
    if match is None:
        return text
    return match[1] if match[1] is not None else match[2]


def _strip_domain(value: Any) -> str:
    text = _text(value)
    host = _strip_port(text)
    if re.fullmatch(r"[0-9.]+|.*:.*", host):
        return text
    return host.split(".", 1)[0] + text[len(host) :]


def _parse_duration(value: Any) -> float:
    try:
        return duration_seconds(_text(value))
    except ValueError as error:
        raise TemplateError(str(error)) from None


def _first(value: Any) -> Sample:
    if isinstance(value, list) and value and isinstance(value[0], Sample):
        return value[0]
    raise TemplateError("the query gave nothing")


def _sample(value: Any) -> Sample:
    if isinstance(value, Sample):
        return value
    raise TemplateError("wants one sample of a query; take it with `first`")


def _sample_value(value: Any) -> float:
    return _sample(value).value


def _sample_label(name: Any, value: Any) -> str:
    return dict(_sample(value).labels).get(_text(name), "")


def _query(data: Data, expression: Any) -> list[Sample]:
    if data.query is None:
        raise TemplateError("query: there is no store to ask")
    try:
        return list(data.query(_text(expression)))
    except TemplateError:
        raise
    except Exception as error:  # whatever the engine raises is this template's failure and is shown in its text
        raise TemplateError(f"query: {error}") from error


def _print_all(*values: Any) -> str:
    out = ""
    for index, value in enumerate(values):
        # Go's Sprint puts a space between operands when neither is a string.
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            out += " "
        out += _print(value)
    return out


def _by_name(*_: Any) -> Any:
    raise AssertionError("evaluated by name in _value")


_MANY = 99

FUNCTIONS: dict[str, tuple[int, int, Callable[..., Any]]] = {
    "and": (1, _MANY, _by_name),
    "or": (1, _MANY, _by_name),
    "not": (1, 1, _not),
    "eq": (2, _MANY, _eq),
    "ne": (2, 2, _ne),
    "lt": (2, 2, _lt),
    "le": (2, 2, _le),
    "gt": (2, 2, _gt),
    "ge": (2, 2, _ge),
    "len": (1, 1, _len),
    "index": (2, 2, _index),
    "print": (0, _MANY, _print_all),
    "printf": (1, _MANY, _printf),
    "humanize": (1, 1, _humanize),
    "humanize1024": (1, 1, _humanize1024),
    "humanizeDuration": (1, 1, _humanize_duration),
    "humanizePercentage": (1, 1, _humanize_percentage),
    "humanizeTimestamp": (1, 1, _humanize_timestamp),
    "title": (1, 1, lambda text: re.sub(r"(?<!\w)\w", lambda m: m[0].upper(), _text(text))),
    "toLower": (1, 1, lambda text: _text(text).lower()),
    "toUpper": (1, 1, lambda text: _text(text).upper()),
    "stripPort": (1, 1, _strip_port),
    "stripDomain": (1, 1, _strip_domain),
    "match": (2, 2, _match),
    "reReplaceAll": (3, 3, _re_replace_all),
    "parseDuration": (1, 1, _parse_duration),
    "query": (1, 1, _by_name),
    "first": (1, 1, _first),
    "value": (1, 1, _sample_value),
    "label": (2, 2, _sample_label),
}
"""Name → least and greatest number of arguments, and what it does."""
