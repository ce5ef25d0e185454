"""What an indicator is."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from dsobs.config.models import Config, Rules


class Class(StrEnum):
    """What an indicator is about."""

    RESOURCES = "resource use"
    PERFORMANCE = "inference performance"
    HEALTH = "system health"


class Better(StrEnum):
    """Which way is good."""

    LOWER = "lower"
    HIGHER = "higher"
    NEITHER = "neither"
    """It explains others; by itself it is neither good nor bad."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Where an indicator is bad: above where lower is better, below where higher is; the value itself is not."""

    value: Callable[[Config], float | None]
    """By the settings; None: they ask for none here."""
    alert: str
    """The shipped rule that decides by it, which may ask for more: a time, a number of requests."""
    words: str = ""
    """What else the rule asks for."""


def _fixed(value: float) -> Callable[[Config], float | None]:
    return lambda _: value


def fixed(value: float, alert: str, words: str = "") -> Threshold:
    """One that no setting changes."""
    return Threshold(_fixed(value), alert, words)


@dataclass(frozen=True, slots=True)
class Indicator:
    """One question about a server, and the number that answers it: one series for a server, or for a model of it."""

    name: str
    title: str
    class_: Class
    question: str
    formula: str
    """PromQL on dsobs's signals, with the default settings. No series: it is not known. It has the labels of the
    server (instance, job, and whatever the target was given), and `model_name` where a server may have several."""
    unit: str
    """ratio (0 to 1), seconds, celsius, cores, or what is counted, such as `tokens/s`."""
    better: Better
    bad: str
    """What a bad value looks like, and what it means."""
    source: str
    """Where formula and threshold come from."""
    threshold: Threshold | None = None
    formula_for: Callable[[str, Rules], str] | None = None
    """Puts the settings into the formula."""

    @property
    def record(self) -> str:
        """The name of the series that the recording rule makes."""
        return f"dsobs:{self.name}:{_ENDINGS.get(self.unit, self.unit)}"

    def expression(self, rules: Rules) -> str:
        """The formula with these settings."""
        return self.formula if self.formula_for is None else self.formula_for(self.formula, rules)

    def threshold_of(self, config: Config) -> float | None:
        """None where there is none, or none with these settings."""
        return None if self.threshold is None else self.threshold.value(config)

    def is_bad(self, value: float | None, config: Config) -> bool | None:
        """Whether it is beyond its threshold; None where that can't be said: no threshold, or the value is unknown."""
        threshold = self.threshold_of(config)
        if threshold is None or value is None or math.isnan(value):
            return None
        return value > threshold if self.better is Better.LOWER else value < threshold

    def shown(self, value: float | None) -> str:
        """For people: `93.1 %`, `480 ms`, `unknown`."""
        if value is None or math.isnan(value):
            return "unknown"
        if self.unit == "ratio":
            return f"{value * 100:.3g} %" if abs(value) < 0.9995 or value == 1 else f"{value * 100:.5g} %"
        if self.unit == "seconds":
            return _seconds(value)
        unit = {"celsius": "°C"}.get(self.unit, self.unit)
        number = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return number if self.unit == "bool" else f"{number} {unit}"


_ENDINGS = {
    "tokens/s": "tokens_per_second",
    "requests/s": "requests_per_second",
    "preemptions/s": "preemptions_per_second",
    "tokens/J": "tokens_per_joule",
}


def _seconds(value: float) -> str:
    if abs(value) < 1:
        return f"{value * 1000:.3g} ms"
    if abs(value) < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if abs(value) < 7200 else f"{value / 3600:.3g} h"
