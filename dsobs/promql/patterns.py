"""Regular expressions as Prometheus reads them: RE2, anchored, `.` matches all."""

import re

from dsobs.promql.errors import UnsupportedError
from dsobs.regex import Match, RegexError, WholePattern, compile_whole

_LITERALS = re.compile(r"[a-zA-Z0-9_:]+(?:\|[a-zA-Z0-9_:]+)*")


def compile_pattern(pattern: str) -> WholePattern:
    """For `fullmatch`. `UnsupportedError` for what is no expression."""
    try:
        return compile_whole(pattern)
    except RegexError as error:
        raise UnsupportedError(f"regular expression {pattern!r}: {error}") from error


def literals(pattern: str) -> tuple[str, ...]:
    """The texts of an expression such as `a|b`; none if it is more than that."""
    return tuple(pattern.split("|")) if _LITERALS.fullmatch(pattern) else ()


_REFERENCE = re.compile(r"\$(?:(\$)|\{([^{}]*)\}|([a-zA-Z0-9_]+))")


def expanded(template: str, match: Match) -> str:
    """As Go's `Regexp.Expand`: `$1`, `${name}`, `$$`; a group that does not exist is empty."""

    def group(reference: re.Match[str]) -> str:
        if reference[1]:
            return "$"
        name = reference[2] if reference[2] is not None else reference[3]
        if name.isdecimal():
            return (match[int(name)] or "") if int(name) <= len(match.groups()) else ""
        return match.groupdict().get(name) or ""

    return _REFERENCE.sub(group, template)
