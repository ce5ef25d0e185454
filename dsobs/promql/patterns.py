"""Regular expressions as Prometheus reads them (Go's RE2, anchored, `.` matches all), by Python's `re`."""

import re

from dsobs.promql.errors import UnsupportedError

_NOT_ALIKE = re.compile(
    r"\\[pPzQECGXR]"  # classes by Unicode property, Go's end of text, literal text
    r"|\[\[:|\[[^\]]*\[:"  # POSIX classes
    r"|\(\?[a-zA-Z]*[U-]"  # the flag for non-greedy, and flags taken back
    r"|\(\?(?:[=!<>(#]|P[=>])(?!P?<?[a-zA-Z_]\w*>)"  # look-around, atomic groups, comments: not in Go
    r"|[*+?}]\+"  # possessive in Python, an error in Go
    r"|\\[1-9]"  # references back
)
_LITERALS = re.compile(r"[a-zA-Z0-9_:]+(?:\|[a-zA-Z0-9_:]+)*")


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """For `fullmatch`. `UnsupportedError` for what `re` does not have or reads in another way."""
    unlike = _NOT_ALIKE.search(re.sub(r"\\\\", "", pattern))
    if unlike is not None:
        raise UnsupportedError(f"{unlike.group()!r} in the regular expression {pattern!r}")
    try:
        return re.compile(pattern.replace("(?<", "(?P<"), re.DOTALL | re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise UnsupportedError(f"regular expression {pattern!r}: {error}") from error


def literals(pattern: str) -> tuple[str, ...]:
    """The texts of an expression such as `a|b`; none if it is more than that."""
    return tuple(pattern.split("|")) if _LITERALS.fullmatch(pattern) else ()


_REFERENCE = re.compile(r"\$(?:(\$)|\{([^{}]*)\}|([a-zA-Z0-9_]+))")


def expanded(template: str, match: re.Match[str]) -> str:
    """As Go's `Regexp.Expand`: `$1`, `${name}`, `$$`; a group that does not exist is empty."""

    def group(reference: re.Match[str]) -> str:
        if reference[1]:
            return "$"
        name = reference[2] if reference[2] is not None else reference[3]
        if name.isdecimal():
            return (match[int(name)] or "") if int(name) <= len(match.groups()) else ""
        return match.groupdict().get(name) or ""

    return _REFERENCE.sub(group, template)
