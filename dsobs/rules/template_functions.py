"""Prometheus' template functions.

https://prometheus.io/docs/prometheus/latest/configuration/template_reference/
"""

import datetime
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import quote_plus

from dsobs.model.samples import Sample
from dsobs.promql.patterns import expanded
from dsobs.regex import Pattern, RegexError, compile_regex
from dsobs.rules.duration import duration_seconds
from dsobs.rules.go_text import TemplateError, format_float, go_type, printed, printf, special


def truth(value: Any) -> bool:
    """Go's: NaN is true, empty texts, lists and mappings are false."""
    if isinstance(value, float) and math.isnan(value):
        return True
    return bool(value)


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
    return special(value) or f"{value:.4g}"


def _scaled(value: float, up: Sequence[str], down: Sequence[str], factor: float) -> str:
    if value == 0 or special(value):
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
    if special(seconds):
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
    if special(seconds):
        return _g4(seconds)
    try:
        # Prometheus goes by way of whole nanoseconds, and then whole milliseconds.
        thousandths = int(int(seconds * 1e9) / 10**6) if abs(seconds) < 9e9 else int(seconds * 1000)
        moment = datetime.datetime.fromtimestamp(0, tz=datetime.UTC) + datetime.timedelta(milliseconds=thousandths)
    except (ValueError, OverflowError, OSError) as error:
        raise TemplateError(f"{seconds} is no time: {error}") from None
    fraction = f".{moment.microsecond:06d}".rstrip("0") if moment.microsecond else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction} +0000 UTC"


def _compare(a: Any, b: Any) -> tuple[Any, Any]:
    # Go compares only values of one basic kind; `gt $value 5` is an error there, `gt $value 5.0` is not.
    if type(a) is not type(b) or not isinstance(a, (str, int, float)):
        raise TemplateError(f"incompatible types for comparison: {go_type(a)} and {go_type(b)}")
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
    return not truth(value)


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


def as_text(value: Any) -> str:
    """An argument that must be a text."""
    if not isinstance(value, str):
        raise TemplateError(f"wants a string, not {go_type(value)}")
    return value


def _regex(pattern: Any) -> Pattern:
    try:
        return compile_regex(as_text(pattern))
    except RegexError as error:
        raise TemplateError(f"bad regular expression {pattern!r}: {error}") from None


def _re_replace_all(pattern: Any, replacement: Any, text: Any) -> str:
    template = as_text(replacement)
    return _regex(pattern).sub(lambda match: expanded(template, match), as_text(text))


def _match(pattern: Any, text: Any) -> bool:
    return _regex(pattern).search(as_text(text)) is not None


def _strip_port(value: Any) -> str:
    text = as_text(value)
    match = re.fullmatch(r"\[([^\]]*)\](?::[^:]*)?|([^:]*):[^:]*", text)
    if match is None:
        return text
    return match[1] if match[1] is not None else match[2]


def _strip_domain(value: Any) -> str:
    text = as_text(value)
    host = _strip_port(text)
    if re.fullmatch(r"[0-9.]+|.*:.*", host):
        return text
    return host.split(".", 1)[0] + text[len(host) :]


def _parse_duration(value: Any) -> float:
    try:
        return duration_seconds(as_text(value))
    except ValueError as error:
        raise TemplateError(str(error)) from None


def _to_duration(value: Any) -> str:
    """As Go prints a time.Duration; it has no methods here."""
    seconds = _number(value)
    if special(seconds) or abs(seconds) >= 2**63 / 1e9:
        raise TemplateError(f"{format_float(seconds)} is no duration")
    left = abs(int(seconds * 1e9))
    sign = "-" if seconds < 0 and left else ""
    if left < 10**9:
        size, unit = next((s, u) for s, u in ((10**6, "ms"), (10**3, "µs"), (1, "ns")) if left >= s or s == 1)
        return f"{sign}{_plain(left, size)}{unit}" if left else "0s"
    minutes, rest = divmod(left, 60 * 10**9)
    text = f"{_plain(rest, 10**9)}s"
    if minutes:
        text = f"{minutes % 60}m{text}"
    return f"{sign}{minutes // 60}h{text}" if minutes >= 60 else sign + text


def _plain(nanoseconds: int, unit: int) -> str:
    return f"{Decimal(nanoseconds) / unit:f}"


def _url_query_escape(value: Any) -> str:
    return quote_plus(as_text(value), safe="~")


def _url_query(*values: Any) -> str:
    return _url_query_escape(_print_all(*values))


def _html(*values: Any) -> str:
    return _print_all(*values).translate(_HTML)


def _js(*values: Any) -> str:
    escaped = (_JS.get(c) or (f"\\u{ord(c):04X}" if ord(c) < 0x20 else c) for c in _print_all(*values))
    return "".join(escaped)


_HTML = str.maketrans({"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"})
_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"', **{c: f"\\u{ord(c):04X}" for c in "<>&="}}


def _print_line(*values: Any) -> str:
    return " ".join(map(printed, values)) + "\n"


def _args(*values: Any) -> dict[str, Any]:
    return {f"arg{number}": value for number, value in enumerate(values)}


def _link(tab: int) -> Callable[[Any], str]:
    return lambda expression: f"/graph?g0.expr={_url_query_escape(expression)}&g0.tab={tab}"


def _slice(value: Any, *bounds: Any) -> Any:
    if not isinstance(value, (str, list)):
        raise TemplateError("wants a string or a query's result")
    whole = value.encode() if isinstance(value, str) else value
    if not all(isinstance(bound, int) and not isinstance(bound, bool) for bound in bounds):
        raise TemplateError("wants whole numbers for bounds")
    start = bounds[0] if bounds else 0
    end = bounds[1] if len(bounds) > 1 else len(whole)
    if not 0 <= start <= end <= len(whole):
        raise TemplateError(f"{start}:{end} is out of range of {len(whole)}")
    part = whole[start:end]
    return part.decode(errors="replace") if isinstance(part, bytes) else part


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
    return dict(_sample(value).labels).get(as_text(name), "")


def _strvalue(value: Any) -> str:
    return dict(_sample(value).labels).get("__value__", "")


def _sort_by_label(name: Any, value: Any) -> list[Sample]:
    if not isinstance(value, list):
        raise TemplateError("wants a query's result")
    label = as_text(name)
    return sorted(map(_sample, value), key=lambda sample: dict(sample.labels).get(label, ""))


def _print_all(*values: Any) -> str:
    out = ""
    for index, value in enumerate(values):
        # Go's Sprint puts a space between operands when neither is a string.
        if index and not isinstance(value, str) and not isinstance(values[index - 1], str):
            out += " "
        out += printed(value)
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
    "printf": (1, _MANY, printf),
    "humanize": (1, 1, _humanize),
    "humanize1024": (1, 1, _humanize1024),
    "humanizeDuration": (1, 1, _humanize_duration),
    "humanizePercentage": (1, 1, _humanize_percentage),
    "humanizeTimestamp": (1, 1, _humanize_timestamp),
    "title": (1, 1, lambda text: re.sub(r"(?<!\w)\w", lambda m: m[0].upper(), as_text(text))),
    "toLower": (1, 1, lambda text: as_text(text).lower()),
    "toUpper": (1, 1, lambda text: as_text(text).upper()),
    "stripPort": (1, 1, _strip_port),
    "stripDomain": (1, 1, _strip_domain),
    "match": (2, 2, _match),
    "reReplaceAll": (3, 3, _re_replace_all),
    "parseDuration": (1, 1, _parse_duration),
    "toDuration": (1, 1, _to_duration),
    "toTime": (1, 1, _humanize_timestamp),
    "urlquery": (0, _MANY, _url_query),
    "html": (0, _MANY, _html),
    "js": (0, _MANY, _js),
    "println": (0, _MANY, _print_line),
    "args": (0, _MANY, _args),
    "graphLink": (1, 1, _link(0)),
    "tableLink": (1, 1, _link(1)),
    "urlQueryEscape": (1, 1, _url_query_escape),
    "safeHtml": (1, 1, as_text),
    "slice": (1, 3, _slice),
    "externalURL": (0, 0, _by_name),
    "pathPrefix": (0, 0, _by_name),
    "query": (1, 1, _by_name),
    "first": (1, 1, _first),
    "value": (1, 1, _sample_value),
    "label": (2, 2, _sample_label),
    "strvalue": (1, 1, _strvalue),
    "sortByLabel": (2, 2, _sort_by_label),
}
"""Name → least and greatest number of arguments, and what it does."""

UNSUPPORTED_FUNCTIONS = frozenset(["call", "now"])
"""Of Prometheus (template/template.go) and Go's text/template."""
