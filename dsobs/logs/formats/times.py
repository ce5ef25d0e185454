"""Times of log lines as ISO 8601 in UTC, as `@timestamp` wants them."""

import re
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from dsobs.logs.formats.raw import iso_time

_DAY = 86400.0
_MOST_AHEAD = 90 * _DAY
_REMEMBERED = 4096
_DATE_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))?\d* ?(Z|UTC|[+-]\d\d(?::?\d\d)?)?", re.IGNORECASE
)
_SECONDS_FROM, _MILLISECONDS_FROM = 1e8, 1e11
"""Numbers from 1973 to 5138 in seconds; what is larger is milliseconds, microseconds or nanoseconds, by size."""


def zone_named(name: str) -> tzinfo | None:
    """The zone of an IANA name; None, which is this host's own, for none and for one that is not known here."""
    try:
        return ZoneInfo(name) if name else None
    except (LookupError, ValueError, OSError):
        return None


def offset_of(moment: datetime) -> str:
    """`+02:00`, the offset of a moment with a zone, as `event.timezone` has it."""
    text = moment.strftime("%z")
    return f"{text[:3]}:{text[3:5]}"


class FileTimes:
    """Times of one file's lines where they say neither year nor zone: resolved by the time of the file.

    The year is the latest in which a line is not newer than the file; a file that is followed grows, so the newest line
    and the time since it was opened count too. The zone is that of the settings, else this host's.
    """

    def __init__(self, modified_at: float, zone: tzinfo | None = None) -> None:
        self._modified_at = modified_at
        self._zone = zone
        self._newest = modified_at
        self._first_read: float | None = None
        self._last = ""
        self._known: dict[bytes, tuple[str, str]] = {}

    def without_stamp(self, read_at: float) -> str:
        """For a line that has no time: when it was read; in a file that was old by then, as of the last
        line that had one, else of the file."""
        if self._first_read is None:
            self._first_read = read_at
        if self._modified_at <= 0 or self._first_read - self._modified_at < 60:
            return iso_time(read_at)
        return self._last or iso_time(min(self._modified_at, read_at))

    def stamp(self, text: bytes, read_at: float) -> tuple[str, str]:
        """`MM-DD HH:MM:SS` as (time, `+HH:MM` of the zone that it was taken for); ("", "") for what is no time."""
        if (known := self._known.get(text)) is not None:
            return known
        if self._first_read is None:
            self._first_read = read_at
        known = self._resolve(text, read_at)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[text] = known
        self._last = known[0] or self._last
        return known

    def _resolve(self, text: bytes, read_at: float) -> tuple[str, str]:
        newest = self._newest if self._newest > 0 else read_at
        ahead = min(max(_DAY, read_at - (self._first_read or read_at)), _MOST_AHEAD)
        limit = min(newest + ahead, max(read_at, newest) + _DAY)
        try:
            month, day, hour = int(text[0:2]), int(text[3:5]), int(text[6:8])
            minute, second = int(text[9:11]), int(text[12:14])
            year = datetime.fromtimestamp(limit, UTC).year
            # Four years back there is a 29th of February, but for 1900 and its like.
            for candidate in (year + 1, year, year - 1, year - 2, year - 3, year - 4):
                try:
                    naive = datetime(candidate, month, day, hour, minute, second)  # noqa: DTZ001 - the zone comes next
                except ValueError:
                    continue
                moment = naive.astimezone() if self._zone is None else naive.replace(tzinfo=self._zone)
                at = moment.timestamp()
                if at <= limit:
                    self._newest = max(self._newest, at)
                    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), offset_of(moment)
        except (ValueError, OverflowError, OSError):
            pass
        return "", ""


def iso_of(value: Any, zone: tzinfo | None = None) -> tuple[str, str]:
    """A time of a JSON line as (ISO 8601, zone that it was taken for or ""); ("", "") for what is no time.

    Text in ISO 8601, also with a blank or a comma in it as Python's logging writes it; numbers since 1970 in seconds,
    milliseconds, microseconds or nanoseconds.
    """
    if type(value) is str:
        if len(value) == 23 and value[19] in ",." and value[20:].isdigit() and value.isascii():
            # Python's logging, and others: all times of one second come by here.
            time, taken = _iso_of_text(value[:19], zone)
            return (f"{time[:19]}.{value[20:]}Z", taken) if time else ("", "")
        return _iso_of_text(value, zone)
    if type(value) not in (int, float) or not _SECONDS_FROM <= value < 1e20:
        return "", ""
    while value >= _MILLISECONDS_FROM:
        value /= 1000
    return iso_time(round(value, 3)), ""


@lru_cache(maxsize=1024)
def _iso_of_text(text: str, zone: tzinfo | None) -> tuple[str, str]:
    match = _DATE_TIME.fullmatch(text)
    if match is None:
        return "", ""
    date, time, fraction, offset = match.groups()
    fraction = f".{fraction}" if fraction else ""
    if len(time) == 5:
        time += ":00"
    try:
        moment = datetime.fromisoformat(f"{date}T{time}")
        if offset is None:
            moment = moment.astimezone() if zone is None else moment.replace(tzinfo=zone)
            return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z", offset_of(moment)
        if offset.upper() in ("Z", "UTC"):
            return f"{date}T{time}{fraction}Z", ""
        digits = offset[1:].replace(":", "").ljust(4, "0")
        offset = f"{offset[0]}{digits[:2]}:{digits[2:]}"
        datetime.fromisoformat(f"{date}T{time}{offset}")
    except (ValueError, OverflowError, OSError):
        return "", ""
    return f"{date}T{time}{fraction}{offset}", ""
