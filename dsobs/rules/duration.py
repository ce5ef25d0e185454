"""Durations as rule files have them (prometheus/common `model.ParseDuration`), stricter than those of the settings."""

import re

_DURATION = re.compile(r"(?:(\d+)y)?(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", re.ASCII)
_MILLISECONDS = (31536000000, 604800000, 86400000, 3600000, 60000, 1000, 1)


def duration_seconds(text: str) -> float:
    """Seconds of `1h30m`: units in falling order, whole numbers, `0` without a unit; ValueError says what is wanted."""
    if text == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"{text!r} is no duration; write 30s, 5m or 1h30m")
    return sum(int(n) * size for n, size in zip(match.groups(), _MILLISECONDS, strict=True) if n) / 1000
