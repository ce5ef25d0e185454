"""Expressions to syntax trees, by promql-parser, and where that library reads something else than Prometheus 3.

What it takes and Prometheus refuses is refused here; what it reads in another way or can't read is named.
"""

import re
from typing import Any

import promql_parser as tree

from dsobs.promql.errors import PromqlError, UnsupportedError

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
        return tree.parse(expression)
    except ValueError as error:
        _check_modifiers(expression)
        raise PromqlError(str(error), position(expression, str(error))) from error


def _check_modifiers(expression: str) -> None:
    """Names what makes an expression unreadable for the library."""
    before = None
    for found in _WORDS.finditer(expression):
        after_selector = before is not None and (before.lastgroup == "word" or before.group() in ("]", "}"))
        if found.group() in ("anchored", "smoothed") and after_selector:
            raise UnsupportedError(f"the modifier {found.group()}", found.start())
        before = found


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
