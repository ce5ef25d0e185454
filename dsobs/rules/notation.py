"""The notation of series in promtool's unit tests: `name{label="value"}` and `0 1+1x3 _ stale`.

https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/#series, read as Prometheus 3's parser
does (promql/parser: lexValueSequence, series_description). Native histograms are refused by name.
"""

import json
import math
import re

from dsobs.series.store import STALE

MOST_VALUES = 10_000_000
"""More values of one series are refused: a slip of the pen would fill the memory."""


class NotationError(ValueError):
    """The text is no series, or no sequence of values; the message says which part and what may stand there."""


class NativeHistogramError(NotationError):
    """A native histogram: right for Prometheus, not read here."""

    def __init__(self) -> None:
        super().__init__("native histograms are not supported; test with classic buckets")


_NUMBER = r"(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_WORD = r"(?i:inf|nan)"
_ITEM = re.compile(
    rf"(?P<blank>_)(?:x(?P<blanks>\d+))?"
    rf"|(?P<stale>stale)"
    rf"|(?P<start>[+-]?(?:{_NUMBER}|{_WORD}(?!x)))(?:(?P<step>[+-](?:{_NUMBER}))?x(?P<count>\d+))?"
)
_HELP = "write numbers, a+bxn, a-bxn, axn, _, _xn or stale"


def values(text: str) -> list[float | None]:
    """The values of a sequence, one an interval; None where there is no sample.

    `a+bxn` is n + 1 values, added up one after the other as there (so 0+0.1x3 ends at 0.30000000000000004), `axn` as
    well, `_xn` is n gaps. NotationError for anything else.
    """
    if "{{" in text:
        raise NativeHistogramError
    out: list[float | None] = []
    for item in text.split():
        match = _ITEM.fullmatch(item)
        if match is None:
            raise NotationError(f"{item!r} is no value of a series; {_HELP}")
        count = int(match["blanks"] or match["count"] or 0)
        if len(out) + count > MOST_VALUES:
            raise NotationError(f"{item!r} makes more than {MOST_VALUES:,} values of a series")
        if match["blank"]:
            out += [None] * (count if match["blanks"] else 1)
        elif match["stale"]:
            out.append(STALE)
        else:
            value, step = number(match["start"]), number(match["step"] or "0")
            for _ in range(count):
                out.append(value)
                value += step
            out.append(value)
    return out


def number(text: str) -> float:
    """A number as there: whole ones as Go reads literals (`010` is 8), others as decimal fractions."""
    sign = -1.0 if text.startswith("-") else 1.0
    digits = text.lstrip("+-")
    if digits.replace("_", "").isdecimal():
        plain = digits.replace("_", "")
        if len(plain) > 1 and plain[0] == "0" and not set(plain) & {"8", "9"}:
            return sign * float(int(plain, 8))
        return sign * float(plain)
    if "_" in digits:
        raise NotationError(f"{text!r} is no number; underscores may stand in whole numbers only")
    return sign * float(digits)


_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`[^`]*`)
    | (?P<word>[a-zA-Z_:][a-zA-Z0-9_:]*)
    | (?P<mark>[{},=])
    | (?P<end>$)
    )""",
    re.VERBOSE,
)


def metric(text: str) -> dict[str, str]:
    """The labels of `name{label="value", …}`, the name under `__name__`; NotationError where it is no such thing.

    Names that need quotes stand in the braces: `{"a.b", "c.d"="e"}`.
    """
    reader = _MetricReader(text)
    found: dict[str, str] = {}
    name = reader.take("word")
    if name is not None:
        found["__name__"] = name
    if reader.take("mark", "{") is not None:
        while reader.take("mark", "}") is None:
            quoted = reader.take("string")
            label = reader.take("word") if quoted is None else unquoted(quoted)
            if label is None:
                raise reader.wrong('a label, such as name="value"')
            if reader.take("mark", "=") is None:
                if quoted is None or "__name__" in found:
                    raise reader.wrong("`=` after the label")
                found["__name__"] = label
            else:
                value = reader.take("string")
                if value is None:
                    raise reader.wrong("a label value in quotes")
                if label in found and label != "__name__":
                    raise NotationError(f"label {label!r} twice in {text!r}")
                found[label] = unquoted(value)
            if reader.take("mark", ",") is None and not reader.peek("}"):
                raise reader.wrong("`,` or `}`")
    if reader.take("end") is None:
        raise reader.wrong("nothing more")
    return found


class _MetricReader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def take(self, kind: str, exactly: str | None = None) -> str | None:
        """The next token if it is of this kind."""
        match = _TOKEN.match(self._text, self._at)
        if match is None or match[kind] is None or (exactly is not None and match[kind] != exactly):
            return None
        self._at = match.end()
        return str(match[kind])

    def peek(self, mark: str) -> bool:
        match = _TOKEN.match(self._text, self._at)
        return match is not None and match["mark"] == mark

    def wrong(self, wanted: str) -> NotationError:
        rest = self._text[self._at :].strip()
        return NotationError(
            f"can't read the series {self._text!r}: {wanted} must stand {f'before {rest!r}' if rest else 'at its end'}"
        )


_ESCAPE = re.compile(r"\\(?:([abfnrtv\\'\"])|x([0-9a-fA-F]{2})|([0-7]{3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))")
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def unquoted(text: str) -> str:
    """What a string of PromQL stands for: in double or single quotes with Go's escapes, in backticks as it is."""
    if text[0] == "`":
        return text[1:-1]

    def one(match: re.Match[str]) -> str:
        if match[1]:
            return _SIMPLE.get(match[1], match[1])
        code = match[2] or match[4] or match[5]
        if code is None and match[3] is None:
            raise NotationError(f"unknown escape {match[0]!r} in {text}")
        try:
            return chr(int(code, 16) if code else int(match[3], 8))
        except (ValueError, OverflowError):
            raise NotationError(f"unknown escape {match[0]!r} in {text}") from None

    return _ESCAPE.sub(one, text[1:-1])


_PLAIN_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_PLAIN_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


def metric_text(labels: dict[str, str]) -> str:
    """As Prometheus writes a series: `name{a="b"}`, labels by name; `{"a.b", "c d"="e"}` where names need quotes."""
    name = labels.get("__name__", "")
    inner = [f"{label_text(key)}={_quoted(value)}" for key, value in sorted(labels.items()) if key != "__name__"]
    if name and not _PLAIN_METRIC.fullmatch(name):
        name, inner = "", [_quoted(name), *inner]
    return f"{name}{{{', '.join(inner)}}}" if inner or not name else name


def label_text(name: str) -> str:
    """A label's name, in quotes where it needs them."""
    return name if _PLAIN_LABEL.fullmatch(name) else _quoted(name)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def value_text(value: float) -> str:
    """As short as it can be and still the same number."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(value).removesuffix(".0")
