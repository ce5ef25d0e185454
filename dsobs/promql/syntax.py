"""Expressions to syntax trees, by promql-parser, and where that library reads something else than Prometheus 3.

What it takes and Prometheus refuses is refused here; what it reads in another way or can't read is named.
"""

import re
from typing import Any

import promql_parser as tree

from dsobs.promql.errors import PromqlError, UnsupportedError
from dsobs.promql.patterns import compile_pattern

_WORDS = re.compile(
    r"""(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)"""
    r"|(?P<comment>\#[^\n]*)"
    r"|(?P<at>@\s*[-+])"
    r"|(?P<word>[A-Za-z_:][\w:]*)"
    r"|(?P<number>(?:\d|\.\d)[\w.]*)"
    r"|(?P<other>\S)",
    re.ASCII,
)
_MOST_WORDS = 2_000
"""Longer expressions exhaust the library's stack, which ends the process."""
_BYTE = re.compile(r"(?<!\\)(?:\\\\)*\\(?:x[89a-fA-F]|[23]\d\d)")


def parse(expression: str) -> Any:
    """The tree; `PromqlError` for what is no PromQL, `UnsupportedError` for what the library can't read."""
    _check_words(expression)
    try:
        return tree.parse(_zero_offsets(expression))
    except ValueError as error:
        _check_modifiers(expression)
        _check_durations(expression)
        _check_pattern(expression, str(error))
        if str(error) == _NO_WORD:
            raise _unexpected(expression) from error
        raise PromqlError(str(error), position(expression, str(error))) from error


_NO_WORD = "invalid promql query"
"""What the library says where it can't say what is wrong."""
_TAILS = ("", " up", " (up)", "()", " (a) (up)", ' = "x"}', '"x"}', "}", " 5m]", " 5m", "]", " a", " 1")
"""With one of them every beginning of an expression becomes one, but for brackets that are open."""
_TOKENS = re.compile(r"""==|!=|=~|!~|>=|<=|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`|\#[^\n]*|[\w.:]+|\S""")
_MOST_TRIED = 200
"""Words of an expression that is looked through for the one that is wrong."""


def _unexpected(expression: str) -> PromqlError:
    """Names the first word after which nothing can make it an expression."""
    words = [found for found in _TOKENS.finditer(expression) if not found.group().startswith("#")]
    open_ = ""
    for number, word in enumerate(words[:_MOST_TRIED]):
        open_ = open_ + ")" if word.group() == "(" else open_[:-1] if word.group() == ")" else open_
        head = expression[: word.end()]
        ends = (open_, f"{open_[:1]} (up){open_[1:]}")
        if not any(_readable(head + tail + end) for end in ends for tail in _TAILS):
            return PromqlError(f"unexpected {word.group()!r}", word.start())
        if number + 1 == len(words):
            return PromqlError(f"it ends too early, after {word.group()!r}", word.end())
    return PromqlError(_NO_WORD)


def _readable(expression: str) -> bool:
    """Whether its words are in order, whatever else is wrong with it."""
    try:
        tree.parse(expression)
    except ValueError as error:
        return not str(error).startswith((_NO_WORD, "unexpected", "unclosed", "no expression"))
    return True


def _check_modifiers(expression: str) -> None:
    """Names what makes an expression unreadable for the library."""
    before = None
    for found in _WORDS.finditer(expression):
        after_selector = before is not None and (before.lastgroup == "word" or before.group() in ("]", "}"))
        if found.group() in ("anchored", "smoothed") and after_selector:
            raise UnsupportedError(f"the modifier {found.group()}", found.start())
        before = found


_ZERO = re.compile(r"(?:0+(?:ms|[smhdwy]))+")


def _zero_offsets(expression: str) -> str:
    """With `offset 0s` as `offset 0`, which the library takes; everything keeps its place."""
    before, out = "", expression
    for found in _WORDS.finditer(expression):
        word = found.group()
        if before == "offset" and word in "-+":
            continue
        if before == "offset" and _ZERO.fullmatch(word):
            out = out[: found.start()] + "0".ljust(len(word)) + out[found.end() :]
        before = word.lower()
    return out


def _check_durations(expression: str) -> None:
    """Names durations that are computed: in brackets, and after `offset`."""
    bracket = False
    before = ""
    for found in _WORDS.finditer(expression):
        word = found.group()
        computes = (bracket and (word in "(*/%^" or (word in "+-" and before not in "[:"))) or (
            before == "offset" and word == "("
        )
        if computes:
            raise UnsupportedError("a duration that is computed", found.start())
        bracket = word == "[" or (bracket and word != "]")
        if not (before == "offset" and word in "-+"):
            before = word.lower()


def _check_pattern(expression: str, message: str) -> None:
    """Names a regular expression that RE2 takes and the library does not."""
    pattern = message.removeprefix("illegal regex for ")
    if pattern != message:
        try:
            compile_pattern(pattern)
        except UnsupportedError:
            return
        place = expression.find("=~")
        raise UnsupportedError(f"the regular expression {pattern!r}", place if expression.count("~") == 1 else None)


def _check_words(expression: str) -> None:
    for number, found in enumerate(_WORDS.finditer(expression)):
        if number >= _MOST_WORDS:
            raise UnsupportedError(f"an expression of more than {_MOST_WORDS} words", found.start())
        kind, text = found.lastgroup, found.group()
        if kind == "at" and text.endswith("-"):
            raise UnsupportedError("@ with a time before 1970", found.start())
        if kind == "number" and "_" in text:
            raise UnsupportedError(f"the number {text} with underscores", found.start())
        if kind == "string" and not text.startswith("`") and _BYTE.search(text):
            raise UnsupportedError(f"single bytes in the string {text}", found.start())


def position(expression: str, message: str) -> int | None:
    """Where the words stand that a message speaks of; None where that is not clear."""
    if "unexpected end" in message:
        return len(expression)
    for found in re.finditer(r"'([^']+)'|([a-z_0-9]+\()\)|(@)|`(or)`", message):
        word = found[1] or found[2] or found[3] or found[4]
        before, after = (r"\b" if word[0].isalnum() else ""), (r"\b" if word[-1].isalnum() else "")
        places = [place.start() for place in re.finditer(before + re.escape(word) + after, expression)]
        if len(places) == 1:
            return places[0]
    return None


def milliseconds(duration: Any) -> int:
    """Of the parser's duration; 0 for none."""
    return round(duration.total_seconds() * 1000) if duration is not None else 0


def fixed_time(modifier: Any) -> int | str | None:
    """Of an @ modifier: milliseconds, "start", "end"; None without one."""
    if modifier is None:
        return None
    kind = str(modifier.type).rpartition(".")[2].lower()
    if kind in ("start", "end"):
        return str(kind)
    try:
        seconds: float = modifier.at.timestamp()
    except OverflowError as error:
        raise UnsupportedError("@ with a time after the year 9999") from error
    return round(seconds * 1000)
