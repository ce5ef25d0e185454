"""Expressions over the fields of log records: `log.level = "ERROR" and url.path !~ "/(health|metrics)"`.

`and` binds before `or`; there are no parentheses. A value is a word or a text in quotes.
"""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

from dsobs.regex import RegexError, compile_regex

_TERM = re.compile(
    r"""\s*(?P<field>@?[A-Za-z_][\w.@-]*)\s*(?P<operator>=~|!~|!=|==|<=|>=|=|<|>)\s*
    (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|'(?P<single>[^']*)'|(?P<word>[^\s"']+))\s*""",
    re.VERBOSE,
)
_JOIN = re.compile(r"(and|or)\b", re.IGNORECASE)
_ESCAPE = re.compile(r'\\(["\\])')


@dataclass(frozen=True, slots=True)
class Term:
    """One comparison."""

    field: str
    operator: str
    """=, !=, =~, !~, <, <=, > or >=."""
    value: str


def parse_expression(text: str) -> tuple[tuple[Term, ...], ...]:
    """Alternatives of terms that must all hold; none for an empty text. ValueError says what is wrong where."""
    alternatives: list[list[Term]] = [[]]
    position = 0
    while text.strip():
        match = _TERM.match(text, position)
        if match is None:
            raise ValueError(
                f"{text!r} is no expression at {text[position:].strip()[:40]!r}; write FIELD OP VALUE joined by and or "
                'or, such as log.level = "ERROR" and url.path !~ "/(health|metrics)"'
            )
        alternatives[-1].append(_term(match, text))
        position = match.end()
        if position == len(text):
            break
        join = _JOIN.match(text, position)
        if join is None:
            raise ValueError(f"{text!r} has {text[position:][:40]!r} where and or or is wanted; quote a value of words")
        if join[1].lower() == "or":
            alternatives.append([])
        position = join.end()
    return tuple(tuple(terms) for terms in alternatives if terms)


def _term(match: re.Match[str], text: str) -> Term:
    operator = "=" if match["operator"] == "==" else match["operator"]
    value = match["word"] or match["single"] or _ESCAPE.sub(r"\1", match["quoted"] or "")
    if operator in ("=~", "!~"):
        try:
            compile_regex(value, dot_all=True)
        except RegexError as error:
            raise ValueError(f"{text!r} holds a bad regular expression: {error}") from error
    if operator[0] in "<>":
        try:
            float(value)
        except ValueError:
            raise ValueError(f"{text!r} compares with {value!r}, which is no number; write one") from None
    return Term(match["field"], operator, value)


def _expression(value: str) -> str:
    if not parse_expression(value):
        raise ValueError(f"{value!r} is no expression; write FIELD OP VALUE, such as log.level = ERROR")
    return value


def _field_name(value: str) -> str:
    if not re.fullmatch(r"@?[A-Za-z_][\w@-]*(\.[\w@-]+)*", value):
        raise ValueError(f"{value!r} is no field; write names joined by dots, such as http.request.method")
    if value == "@timestamp":
        raise ValueError("@timestamp can't be changed: a data stream takes no record without it")
    return value


def split_share(value: str) -> tuple[float, str]:
    """The number before an expression, and the expression; ValueError."""
    number, *rest = value.split(None, 1)
    expression = rest[0] if rest else ""
    parse_expression(expression)
    return float(number), expression


def _sample(value: str) -> str:
    if not re.match(r"(0(\.\d+)?|1(\.0+)?)(\s|$)", value):
        raise ValueError(
            f"{value!r} begins with no share of 0 to 1; write SHARE EXPRESSION, such as 0.1 log.level=INFO"
        )
    split_share(value)
    return value


def _rate_limit(value: str) -> str:
    if not re.match(r"[1-9]\d{0,8}(\s|$)", value):
        raise ValueError(
            f"{value!r} begins with no whole number above 0; write NUMBER EXPRESSION, such as 100 log.level=INFO"
        )
    split_share(value)
    return value


def _field_value(value: str) -> str:
    name, equals, _ = value.partition("=")
    if not equals:
        raise ValueError(f"{value!r} has no =; write NAME=VALUE, such as labels.site=eu-1")
    _field_name(name)
    return value


def _field_pair(value: str) -> str:
    old, equals, new = value.partition("=")
    if not equals:
        raise ValueError(f"{value!r} has no =; write OLD=NEW, such as user_id=user.id")
    _field_name(old)
    _field_name(new)
    return value


@dataclass(frozen=True, slots=True)
class LinePattern:
    """A kind of line that is counted."""

    name: str
    literal: str
    """Is in such lines; empty: not looked for."""
    regex: str
    """RE2 expression that fits somewhere in them; empty: the literal is enough. Both empty: switched off."""


def parse_pattern(value: str) -> LinePattern:
    """`NAME=TEXT`, `NAME=~EXPRESSION`, `NAME=TEXT =~ EXPRESSION` or `NAME=`; ValueError."""
    match = re.fullmatch(
        r"([a-z][a-z0-9_]{0,63})=(?:~(?P<only>.+)|(?P<literal>.*?)(?: =~ (?P<both>.+))?)", value, re.DOTALL
    )
    if match is None:
        raise ValueError(
            f"{value!r} is no pattern; write NAME=TEXT, NAME=~REGEX or NAME=TEXT =~ REGEX, such as "
            "disk_full=No space left on device"
        )
    regex = (match["only"] or match["both"] or "").strip()
    if regex:
        try:
            compile_regex(regex)
        except RegexError as error:
            raise ValueError(f"{value!r} holds a bad regular expression: {error}") from error
    return LinePattern(match[1], match["literal"] or "", regex)


def _pattern(value: str) -> str:
    parse_pattern(value)
    return value


LogExpression = Annotated[str, AfterValidator(_expression)]
LogSample = Annotated[str, AfterValidator(_sample)]
LogRateLimit = Annotated[str, AfterValidator(_rate_limit)]
LogPattern = Annotated[str, AfterValidator(_pattern)]
FieldName = Annotated[str, AfterValidator(_field_name)]
FieldPair = Annotated[str, AfterValidator(_field_pair)]
FieldValue = Annotated[str, AfterValidator(_field_value)]
