"""Fields of documents by their dotted names, whether they stand there dotted or as objects in objects."""

from collections.abc import Callable
from typing import Any

from dsobs.config.log_expression import Term, parse_expression
from dsobs.regex import compile_regex

Fields = dict[str, Any]
Condition = Callable[[Fields], bool]

RANKS = {
    **dict.fromkeys(("trace", "t"), 5),
    **dict.fromkeys(("debug", "d"), 10),
    **dict.fromkeys(("info", "information", "informational", "notice", "i"), 20),
    **dict.fromkeys(("warn", "warning", "w"), 30),
    **dict.fromkeys(("error", "err", "severe", "e"), 40),
    **dict.fromkeys(("critical", "fatal", "alert", "emerg", "emergency", "panic", "crit", "f", "c"), 50),
}
"""Names of levels, in small letters, by how bad they are."""


def value_of(document: Fields, name: str) -> Any:
    """The value of field `name`; None where there is none."""
    if name in document:
        return document[name]
    dot = name.find(".")
    while dot > 0:
        inner = document.get(name[:dot])
        if type(inner) is dict and (value := value_of(inner, name[dot + 1 :])) is not None:
            return value
        dot = name.find(".", dot + 1)
    return None


def remove(document: Fields, name: str) -> None:
    """Takes out field `name` and all that is in it."""
    document.pop(name, None)
    inside = name + "."
    for key in [key for key in document if key.startswith(inside)]:
        del document[key]
    dot = name.find(".")
    while dot > 0:
        inner = document.get(name[:dot])
        if type(inner) is dict:
            remove(inner, name[dot + 1 :])
            if not inner:
                del document[name[:dot]]
        dot = name.find(".", dot + 1)


def rank_of(document: Fields) -> int | None:
    """How bad its level is; None where it has none that is known. Numbers are those of pino and Python, by size."""
    level = value_of(document, "log.level")
    if level is None:
        level = value_of(document, "level")
    if type(level) is str:
        return RANKS.get(level.strip().lower())
    return level if type(level) is int else None


def text_of_value(value: Any) -> str:
    """A value as expressions compare it; "" for a field that is not there."""
    if type(value) is str:
        return value
    if value is None:
        return ""
    if type(value) is bool:
        return "true" if value else "false"
    return str(value)


def condition(text: str) -> Condition:
    """The expression `text`, which the settings have checked; an empty one is always true."""
    alternatives = [[_test(term) for term in terms] for terms in parse_expression(text)]
    if not alternatives:
        return lambda _: True
    return lambda document: any(all(test(document) for test in tests) for tests in alternatives)


def _test(term: Term) -> Condition:
    name, value = term.field, term.value
    if term.operator in ("=~", "!~"):
        fits, wanted = compile_regex(value, dot_all=True).fullmatch, term.operator == "=~"
        return lambda document: (fits(_utf8(text_of_value(value_of(document, name)))) is not None) is wanted
    if term.operator == "=":
        return lambda document: text_of_value(value_of(document, name)) == value
    if term.operator == "!=":
        return lambda document: text_of_value(value_of(document, name)) != value
    return _comparison(name, term.operator, float(value))


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _comparison(name: str, operator: str, limit: float) -> Condition:
    def test(document: Fields) -> bool:
        try:
            value = float(value_of(document, name))
        except (TypeError, ValueError, OverflowError):
            return False
        if operator == "<":
            return value < limit
        if operator == "<=":
            return value <= limit
        return value > limit if operator == ">" else value >= limit

    return test
