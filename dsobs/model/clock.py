"""Time as an argument.

Everything that decides gets `now` in seconds since the Unix epoch from a `Clock`. The live clock is anchored to the
wall once and then follows the monotonic clock, so that a wall clock set back or forward neither fires nor resolves
anything.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where `now` comes from."""

    def now(self) -> float:
        """Seconds since the Unix epoch; never goes back."""
        ...


class SteadyClock:
    """Wall time at its making plus monotonic time since: unmoved by steps of the wall clock."""

    def __init__(self) -> None:
        self._anchor = time.time() - time.monotonic()

    def now(self) -> float:
        """Seconds since the Unix epoch; never goes back."""
        return self._anchor + time.monotonic()


class ManualClock:
    """Virtual time, for replays and tests."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def now(self) -> float:
        """The time that was set last."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Goes `seconds` on and returns the new time."""
        return self.set(self._now + seconds)

    def set(self, now: float) -> float:
        """Goes to `now`; ValueError if that is in the past."""
        if now < self._now:
            raise ValueError(f"time cannot go back from {self._now} to {now}")
        self._now = now
        return now
