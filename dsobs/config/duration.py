"""Durations as Prometheus writes them (prometheus/common `model.ParseDuration`: y w d h m s ms)."""

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
PATTERN = r"^\s*(\d+(\.\d+)?(ms|[ywdhms]))+\s*$|^\s*\d+(\.\d+)?\s*$"
"""What a duration written as text looks like, as an ECMA 262 regular expression."""
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|[ywdhms]))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[ywdhms])")


def parse_duration(value: object) -> object:
    """Seconds from `"1h30m"`, `"500ms"` or a number; a ValueError says what is wanted. Other types pass through."""
    if isinstance(value, str):
        text = value.strip()
        if _DURATION.fullmatch(text):
            return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{value!r} is no duration; write seconds or 500ms, 30s, 5m, 24h") from None
    return value


def format_duration(seconds: float) -> str:
    """The shortest Prometheus form: 300 → `5m`, 0.5 → `500ms`."""
    millis = round(seconds * 1000)
    if millis == 0:
        return "0s"
    for unit, size in (("d", 86400000), ("h", 3600000), ("m", 60000), ("s", 1000)):
        if millis % size == 0:
            return f"{millis // size}{unit}"
    return f"{millis}ms"
