"""Formats the expressions of rule files; everything else of a file stays as it is, byte by byte.

An expression is replaced only if the new text parses to the very same syntax tree and the file, read again, differs in
nothing but this text. It is left as it is where it has comments of its own, where a number or duration in it would be
written otherwise (`1e9`, `90s`), where YAML gives it an anchor, an alias or a tag, and where it can't be parsed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser as syntax
import yaml

from dsobs.rules.notation import label_text
from dsobs.rules.reader import Problem, Reader

WIDTH = 100
"""An expression longer than this is broken into lines."""


def format_expression(text: str) -> str:
    """The expression in one form, without a line's end; the stripped text itself where that is not safe."""
    text = text.strip()
    if "#" in _STRINGS.sub("", text):
        return text
    try:
        tree = syntax.parse(text)
        new = _in_written_order("\n".join(_lines(tree)), text)
        same = repr(syntax.parse(new)) == repr(tree)
    except ValueError:
        return text
    return new if same and _numbers(new) == _numbers(text) else text


_STRINGS = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|`[^`]*`')
_NUMBERS = re.compile(r"(?<![\w:])(?:\d[\w.]*(?:(?<=[eE])[+-]\d+)?|\.\d[\w]*)")


_BRACES = re.compile(rf"{_STRINGS.pattern}|\{{((?:{_STRINGS.pattern}|[^{{}}])*)\}}")
_MATCHERS = re.compile(rf"(?:{_STRINGS.pattern}|[^,])+")


def _in_written_order(new: str, old: str) -> str:
    """`new` with the matchers of each selector in the order that they have in `old`: the library sorts them."""
    written = iter([found[1] for found in _BRACES.finditer(old) if (found[1] or "").strip()])

    def reordered(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0]
        order = [_matcher(one) for one in _MATCHERS.findall(next(written, "")) if one.strip()]
        matchers = [one.strip() for one in _MATCHERS.findall(found[1])]
        if sorted(order) != sorted(_matcher(one) for one in matchers):
            return found[0]
        return "{" + ",".join(sorted(matchers, key=lambda one: order.index(_matcher(one)))) + "}"

    return _BRACES.sub(reordered, new)


def _matcher(text: str) -> tuple[str, str, str]:
    """Name, operation and value of one matcher."""
    selector: Any = syntax.parse(f'{{{text},x="x"}}')
    found = selector.matchers
    if found.or_matchers:
        raise ValueError("`or` between matchers")
    first = found.matchers[0]
    return first.name, str(first.op), first.value


def _numbers(text: str) -> list[str]:
    """Numbers and durations as they are written, sorted, since modifiers may change places."""
    return sorted(_NUMBERS.findall(_STRINGS.sub("", text)))


_STRENGTH = {
    **dict.fromkeys(("or",), 1),
    **dict.fromkeys(("and", "unless"), 2),
    **dict.fromkeys(("==", "!=", ">", "<", ">=", "<="), 3),
    **dict.fromkeys(("+", "-"), 4),
    **dict.fromkeys(("*", "/", "%", "atan2"), 5),
    "^": 6,
}


def _lines(node: Any, *, broken: bool = False) -> list[str]:
    """The lines of a node: one, if it fits and `broken` does not ask for more."""
    one: str = node.prettify()
    if "\n" not in one and len(one) <= WIDTH and not broken:
        return [one]
    match node:
        case syntax.ParenExpr():
            return ["(", *_indented(_lines(node.expr)), ")"]
        case syntax.BinaryExpr():
            return _binary(node)
        case syntax.UnaryExpr():
            first, *rest = _lines(node.expr)
            return [f"-{first}", *rest]
        case syntax.Call():
            return _call(f"{node.func.name}(", list(node.args))
        case syntax.AggregateExpr():
            arguments = [node.expr] if node.param is None else [node.param, node.expr]
            return _call(f"{node.op}{_grouping(node.modifier)} (" if node.modifier else f"{node.op}(", arguments)
        case _:
            return one.splitlines()


def _binary(node: Any) -> list[str]:
    left, right = str(node.lhs), str(node.rhs)
    operator = str(node)[len(left) + 1 : -len(right) - 1].strip()
    # A chain of operators of one strength is broken at each of them or at none.
    chained = isinstance(node.lhs, syntax.BinaryExpr) and _STRENGTH.get(str(node.lhs.op)) == _STRENGTH.get(str(node.op))
    before, after = _lines(node.lhs, broken=chained), _lines(node.rhs)
    if str(node.op) in ("and", "or", "unless") and len(after) > 1:
        return [*before, operator, *after]
    if before[-1] == ")" and len(after) == 1 and str(node.op) not in ("and", "or", "unless"):
        return [*before[:-1], f") {operator} {after[0]}"]
    rest = after[1:] if after[0].endswith("(") and after[-1] == ")" else _indented(after[1:])
    return [*before, f"{operator} {after[0]}", *rest]


def _call(head: str, arguments: list[Any]) -> list[str]:
    lines = [head]
    for index, argument in enumerate(arguments):
        inner = _indented(_lines(argument))
        if index < len(arguments) - 1:
            inner[-1] += ","
        lines += inner
    return [*lines, ")"]


def _grouping(modifier: Any) -> str:
    word = "by" if str(modifier.type).endswith(".By") else "without"
    return f" {word} ({', '.join(map(label_text, modifier.labels))})"


def _indented(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


@dataclass(frozen=True, slots=True)
class _Place:
    """One `expr:` of a file: where its scalar stands in the text, and what is to stand there."""

    start: int
    end: int
    old: str
    new: str


def formatted(text: str, name: str) -> tuple[str, list[Problem]]:
    """The file's text with its expressions formatted; problems if it is no YAML."""
    reader = _Expressions(name)
    places = reader.places(text)
    if reader.problems or not places:
        return text, reader.problems
    changed = _replaced(text, places)
    if not _unharmed(text, changed, places):
        # One of them can't stand in this file; the others can.
        changed = text
        for place in reversed(places):
            one = _replaced(changed, [place])
            if _unharmed(changed, one, [place]):
                changed = one
    return changed, []


def _replaced(text: str, places: list[_Place]) -> str:
    for place in reversed(places):
        text = text[: place.start] + place.new + text[place.end :]
    return text


def _unharmed(before: str, after: str, places: list[_Place]) -> bool:
    """Whether both documents are the same but for these expressions, and those the same but for their layout."""
    try:
        old, new = (list(_leaves(yaml.compose(text, Loader=yaml.SafeLoader))) for text in (before, after))
    except yaml.YAMLError:
        return False
    if len(old) != len(new):
        return False
    allowed = {place.old for place in places}
    return all(
        a == b or (a[:-1] == b[:-1] and a[-1] in allowed and b[-1].strip() == format_expression(a[-1]))
        for a, b in zip(old, new, strict=True)
    )


def _leaves(node: yaml.Node | None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, yaml.MappingNode):
        yield (*path, node.tag, "{")
        for index, (key, value) in enumerate(node.value):
            yield from _leaves(key, (*path, str(index)))
            yield from _leaves(value, (*path, str(index)))
    elif isinstance(node, yaml.SequenceNode):
        yield (*path, node.tag, "[")
        for index, item in enumerate(node.value):
            yield from _leaves(item, (*path, str(index)))
    elif isinstance(node, yaml.ScalarNode):
        yield (*path, node.tag, str(node.value))


class _Expressions(Reader):
    """Finds the expressions of a file that may be written otherwise."""

    def places(self, text: str) -> list[_Place]:
        root = self._compose(text)
        found: dict[int, _Place] = {}
        for key, node in _expression_nodes(root):
            start, end = node.start_mark.index, node.end_mark.index
            old = text[start:end]
            new = format_expression(node.value)
            if new == node.value.strip() or old[:1] in "&!*" or start in found or not node.value.strip():
                continue
            if node.style in ("|", ">") and not re.match(r"[|>][-+0-9]*\r?\n", old):
                continue  # a comment stands beside the mark
            end = start + len(old.rstrip()) if node.style in ("|", ">") else end
            scalar = _scalar(new, node.style, key.start_mark.column, "\r\n" if "\r\n" in text else "\n")
            found[start] = _Place(start, end, node.value, scalar)
        return sorted(found.values(), key=lambda place: place.start)


def _scalar(value: str, style: str | None, column: int, newline: str) -> str:
    if "\n" not in value and style == "'":
        return "'" + value.replace("'", "''") + "'"
    if "\n" not in value and style is None and not re.search(r": |:$| #|^[-?:,\[\]{}#&*!|>'\"%@`]", value):
        return value
    indent = " " * (column + 2)
    return "|" + "".join(f"{newline}{indent}{line}" for line in value.splitlines())


def _expression_nodes(root: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.ScalarNode]]:
    for group in _items(root, "groups"):
        for rule in _items(group, "rules"):
            if isinstance(rule, yaml.MappingNode) and not rule.flow_style:
                for key, value in rule.value:
                    if key.value == "expr" and isinstance(value, yaml.ScalarNode):
                        yield key, value


def _items(node: yaml.Node | None, name: str) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == name and isinstance(value, yaml.SequenceNode):
                return list(value.value)
    return []
