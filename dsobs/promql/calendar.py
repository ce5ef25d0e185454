"""The time functions: seconds since the Unix epoch to parts of a date in UTC, any year (Go's `time.Unix`)."""

import math
from collections.abc import Callable

_DAY = 86_400
_TOO_LARGE = 2**63


def _seconds(value: float) -> int:
    """Go's `int64(value)`; what does not fit, NaN included, ends as the second after the last on amd64."""
    return int(value) if -(2.0**63) < value < 2.0**63 else _TOO_LARGE


def _date(days: int) -> tuple[int, int, int]:
    """Year, month, day of a number of days since the epoch (Howard Hinnant, chrono-compatible low-level date
    algorithms, `civil_from_days`)."""
    days += 719_468
    era, day_of_era = divmod(days, 146_097)
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    return year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * month_from_march + 2) // 5 + 1


def _leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _days_in_month(year: int, month: int) -> int:
    return 28 + _leap(year) if month == 2 else 30 + (month in (1, 3, 5, 7, 8, 10, 12))


def _day_of_year(year: int, month: int, day: int) -> int:
    return sum(_days_in_month(year, m) for m in range(1, month)) + day


def _of_date(part: Callable[[int, int, int], int]) -> Callable[[float], float]:
    return lambda value: float(part(*_date(_seconds(value) // _DAY)))


PARTS: dict[str, Callable[[float], float]] = {
    "day_of_month": _of_date(lambda _year, _month, day: day),
    "day_of_week": lambda value: float((_seconds(value) // _DAY + 4) % 7),
    "day_of_year": _of_date(_day_of_year),
    "days_in_month": _of_date(lambda year, month, _day: _days_in_month(year, month)),
    "hour": lambda value: float(_seconds(value) // 3_600 % 24),
    "minute": lambda value: float(_seconds(value) // 60 % 60),
    "month": _of_date(lambda _year, month, _day: month),
    "year": _of_date(lambda year, _month, _day: year),
}
"""By function name. A new one is one entry."""


def whole_seconds(t: int) -> float:
    """Whole seconds of milliseconds, as the functions without an argument take the evaluation's time."""
    return float(math.trunc(t / 1000))
