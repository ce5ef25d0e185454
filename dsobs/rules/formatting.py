"""Formats the expressions of rule files; everything else of a file stays as it is, byte by byte.

An expression is replaced only if the new text parses to the very same syntax tree and the file, read again, differs in
nothing but this text. Comments ahead of an expression stay ahead of it, and numbers and durations as they are written
(`1e9`, `90s`). What is left as it is, and why, is told: where comments stand among its lines, where YAML gives it an
anchor, an alias, a tag or a flow mapping around it, where it can't be parsed, and where it is very long.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import promql_parser as syntax
import yaml

from dsobs.rules.notation import label_text
from dsobs.rules.reader import Problem, Reader

WIDTH = 100
"""An expression longer than this is broken into lines."""

MOST_WORDS = 600
"""An expression of more is left alone: the time that it takes grows with the third power, and beyond some thousands the
library's stack ends the process."""

_Spell: TypeAlias = Callable[[str], str]
"""Puts numbers as they were written into what the library prints."""


def format_expression(text: str) -> str:
    """The expression in one form, without a line's end; the stripped text itself where that is not safe."""
    return _form(text)[0]


def _form(text: str) -> tuple[str, str]:
    """The same, and why it was left as it is: empty where it was not."""
    text = text.strip()
    ahead = _AHEAD.match(text)
    comments, inner = (ahead[0], text[ahead.end() :]) if ahead is not None else ("", text)
    if "#" in _STRINGS.sub("", inner):
        return text, "comments stand among its lines"
    if sum(1 for _ in _ANY_WORDS.finditer(inner)) > MOST_WORDS:
        return text, f"it has more than {MOST_WORDS} words"
    try:
        tree = syntax.parse(inner)
    except ValueError as error:
        return text, f"it can't be parsed: {error}"
    spelling = _Spelling(inner)
    try:
        new = spelling.in_order(_in_written_order("\n".join(_lines(tree, spelling.first)), inner))
        same = repr(syntax.parse(new)) == repr(tree)
    except ValueError:
        same = False
    if not same or _numbers(new) != _numbers(inner):
        return text, "a number in it would be written otherwise"
    told = "".join(f"{line.strip()}\n" for line in comments.splitlines() if line.strip())
    return told + new, ""


_AHEAD = re.compile(r"(?:[ \t]*#[^\n]*\n\s*)+")
"""Comments on lines of their own, ahead of all else."""
_STRINGS = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|`[^`]*`')
_ANY_WORDS = re.compile(rf"{_STRINGS.pattern}|[\w:.]+|\S")
_NUMBERS = re.compile(
    r"(?<![\w:.])(?:\d[\w.]*(?:(?<=[eE])[+-]\d+)?|\.\d[\w]*(?:(?<=[eE])[+-]\d+)?)|(?<=:)\d\w*(?=\s*\])"
)
"""Numbers and durations, the step of a subquery among them."""
_WORDS = re.compile(rf"{_STRINGS.pattern}|(?P<number>{_NUMBERS.pattern})")
_DURATION = re.compile(r"(?:\d+(?:ms|[smhdwy]))+")
_MILLISECONDS = {
    "ms": 1,
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
    "y": 31_536_000_000,
}


class _Spelling:
    """How the numbers of an expression are written."""

    def __init__(self, text: str) -> None:
        self._written: dict[tuple[str, float], list[str]] = {}
        for word in _numbers_in_order(text):
            self._written.setdefault(_worth(word), []).append(word)

    def first(self, text: str) -> str:
        """`text` with each number as the first one of its worth: for how wide it gets."""
        return self._spelled(text, lambda worth: self._written[worth][0])

    def in_order(self, text: str) -> str:
        """`text` with the numbers of one worth as they come."""
        left = {worth: iter(words) for worth, words in self._written.items()}
        return self._spelled(text, lambda worth: next(left[worth]))

    def _spelled(self, text: str, written: Callable[[tuple[str, float]], str]) -> str:
        def spelled(found: re.Match[str]) -> str:
            if found["number"] is None:
                return found[0]
            worth = _worth(found["number"])
            return written(worth) if worth in self._written else found[0]

        return _WORDS.sub(spelled, text)


def _worth(word: str) -> tuple[str, float]:
    """A duration's milliseconds or a number's value; the word itself where it is neither."""
    if _DURATION.fullmatch(word):
        parts = re.findall(r"(\d+)(ms|[smhdwy])", word)
        return "duration", float(sum(int(count) * _MILLISECONDS[unit] for count, unit in parts))
    try:
        return "number", float(int(word, 16)) if word[:2] in ("0x", "0X") else float(word)
    except ValueError:
        return word, 0.0


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
    return sorted(_numbers_in_order(text))


def _numbers_in_order(text: str) -> list[str]:
    return [found["number"] for found in _WORDS.finditer(text) if found["number"] is not None]


_STRENGTH = {
    **dict.fromkeys(("or",), 1),
    **dict.fromkeys(("and", "unless"), 2),
    **dict.fromkeys(("==", "!=", ">", "<", ">=", "<="), 3),
    **dict.fromkeys(("+", "-"), 4),
    **dict.fromkeys(("*", "/", "%", "atan2"), 5),
    "^": 6,
}


def _lines(node: Any, spell: _Spell, *, broken: bool = False) -> list[str]:
    """The lines of a node: one, if it fits and `broken` does not ask for more."""
    one = spell(node.prettify())
    if "\n" not in one and len(one) <= WIDTH and not broken:
        return [one]
    match node:
        case syntax.ParenExpr():
            return ["(", *_indented(_lines(node.expr, spell)), ")"]
        case syntax.BinaryExpr():
            return _binary(node, spell)
        case syntax.UnaryExpr():
            first, *rest = _lines(node.expr, spell)
            return [f"-{first}", *rest]
        case syntax.Call():
            return _call(f"{node.func.name}(", list(node.args), spell)
        case syntax.AggregateExpr():
            arguments = [node.expr] if node.param is None else [node.param, node.expr]
            return _call(f"{node.op}{_grouping(node.modifier)} (" if node.modifier else f"{node.op}(", arguments, spell)
        case _:
            return one.splitlines()


def _binary(node: Any, spell: _Spell) -> list[str]:
    left, right = str(node.lhs), str(node.rhs)
    operator = str(node)[len(left) + 1 : -len(right) - 1].strip()
    # A chain of operators of one strength is broken at each of them or at none.
    chained = isinstance(node.lhs, syntax.BinaryExpr) and _STRENGTH.get(str(node.lhs.op)) == _STRENGTH.get(str(node.op))
    before, after = _lines(node.lhs, spell, broken=chained), _lines(node.rhs, spell)
    if str(node.op) in ("and", "or", "unless") and len(after) > 1:
        return [*before, operator, *after]
    if before[-1] == ")" and len(after) == 1 and str(node.op) not in ("and", "or", "unless"):
        return [*before[:-1], f") {operator} {after[0]}"]
    rest = after[1:] if after[0].endswith("(") and after[-1] == ")" else _indented(after[1:])
    return [*before, f"{operator} {after[0]}", *rest]


def _call(head: str, arguments: list[Any], spell: _Spell) -> list[str]:
    lines = [head]
    for index, argument in enumerate(arguments):
        inner = _indented(_lines(argument, spell))
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
    line: int


@dataclass(slots=True)
class Formatted:
    """A file's text with its expressions formatted."""

    text: str
    problems: list[Problem] = field(default_factory=list)
    """Why it is no YAML: then the text is as it was."""
    left: list[Problem] = field(default_factory=list)
    """Expressions that are as they were though they may not have the one form, and why."""


def formatted(text: str, name: str) -> Formatted:
    """Formats a rule file of this name."""
    reader = _Expressions(name)
    places = reader.places(text)
    if reader.problems or not places:
        return Formatted(text, reader.problems, reader.left)
    changed = _replaced(text, places)
    if not _unharmed(text, changed, places):
        # One of them can't stand in this file; the others can.
        changed = text
        for place in reversed(places):
            one = _replaced(changed, [place])
            if _unharmed(changed, one, [place]):
                changed = one
            else:
                reader.leave(place.line, "it can't stand at its place in another form")
    return Formatted(changed, [], sorted(reader.left, key=lambda problem: problem.line))


def _replaced(text: str, places: list[_Place]) -> str:
    for place in reversed(places):
        text = text[: place.start] + place.new + text[place.end :]
    return text


def _unharmed(before: str, after: str, places: list[_Place]) -> bool:
    """Whether both documents are the same but for these expressions, and those the same but for their layout."""
    try:
        old, new = (list(_leaves(yaml.compose(text, Loader=yaml.SafeLoader))) for text in (before, after))
    except (yaml.YAMLError, RecursionError):
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

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.left: list[Problem] = []

    def leave(self, line: int, why: str) -> None:
        """Notes an expression that stays as it is."""
        self.left.append(Problem(self.name, line, "", "", f"the expression is left as it is: {why}"))

    def places(self, text: str) -> list[_Place]:
        """What is to be changed."""
        found: dict[int, _Place] = {}
        seen: set[int] = set()
        for key, node, flow in _expression_nodes(self._compose(text)):
            start, end, line = node.start_mark.index, node.end_mark.index, key.start_mark.line + 1
            old = text[start:end]
            new, why = _form(node.value)
            if start in seen or not node.value.strip():
                continue  # an alias: its anchor is told of
            seen.add(start)
            if why:
                self.leave(line, why)
            elif new == node.value.strip():
                continue
            elif flow:
                self.leave(line, "its rule stands in braces on one line")
            elif old[:1] in "&!*":
                self.leave(line, "YAML gives it an anchor, an alias or a tag")
            elif node.style in ("|", ">") and not re.match(r"[|>][-+0-9]*\r?\n", old):
                self.leave(line, "a comment stands beside the mark of its block")
            else:
                end = start + len(old.rstrip()) if node.style in ("|", ">") else end
                scalar = _scalar(new, node.style, key.start_mark.column, "\r\n" if "\r\n" in text else "\n")
                found[start] = _Place(start, end, node.value, scalar, line)
        return sorted(found.values(), key=lambda place: place.start)


def _scalar(value: str, style: str | None, column: int, newline: str) -> str:
    if "\n" not in value and style == "'":
        return "'" + value.replace("'", "''") + "'"
    if "\n" not in value and style is None and not re.search(r": |:$| #|^[-?:,\[\]{}#&*!|>'\"%@`]", value):
        return value
    indent = " " * (column + 2)
    return "|" + "".join(f"{newline}{indent}{line}" for line in value.splitlines())


def _expression_nodes(root: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.ScalarNode, bool]]:
    """Key, expression, and whether its rule is a flow mapping."""
    for group in _items(root, "groups"):
        for rule in _items(group, "rules"):
            if isinstance(rule, yaml.MappingNode):
                for key, value in rule.value:
                    if key.value == "expr" and isinstance(value, yaml.ScalarNode):
                        yield key, value, bool(rule.flow_style)


def _items(node: yaml.Node | None, name: str) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == name and isinstance(value, yaml.SequenceNode):
                return list(value.value)
    return []
