"""Whether the workload is to have another number of replicas: pure functions of what is known, and a memory of how long
it has been so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from dsobs.config.scaling import Scaling, parse_peak
from dsobs.model.observation import Unknown
from dsobs.model.scaling import Replicas

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Decision:
    """What should be."""

    desired: int | None
    """Replicas that the demand and the calendar ask for, within the limits; None: not known."""
    to: int | None = None
    """Replicas to set now, one more or one fewer than there are; None: none."""
    reason: str = ""
    """Why so many, or why nothing is done though another number is desired."""


def peak_replicas(peaks: Sequence[str], timezone: str, now: float) -> int:
    """The most replicas that a known peak asks for now; 0: there is none."""
    if not peaks:
        return 0
    from apscheduler.triggers.cron import CronTrigger

    most = 0
    zone = ZoneInfo(timezone)
    at = datetime.fromtimestamp(now, UTC).astimezone(zone)
    for peak in map(parse_peak, peaks):
        earliest = at - timedelta(seconds=peak.duration)
        begun = CronTrigger.from_crontab(peak.cron, timezone=zone).get_next_fire_time(None, earliest)
        # One that began just `duration` ago is over.
        if begun is not None and begun <= at and begun + timedelta(seconds=peak.duration) > at:
            most = max(most, peak.replicas)
    return most


class Scaler:
    """Decides for one workload, look by look."""

    def __init__(self) -> None:
        self._more_since: float | None = None
        self._fewer_since: float | None = None
        self._seen: int | None = None
        self._changed_at: float | None = None
        """When the number of replicas was last seen to change, whoever changed it."""

    def decide(
        self,
        now: float,
        replicas: Replicas | Unknown,
        demands: Sequence[float | None],
        settings: Scaling,
        *,
        last_action: float | None = None,
        start_seconds: float | None = None,
    ) -> Decision:
        """`demands`: of each ready replica, None where it is not known. `last_action`: Unix seconds of the last change
        that is on record. `start_seconds`: what an engine took to start, where it has been seen."""
        if isinstance(replicas, Unknown):
            self._more_since = self._fewer_since = None
            return Decision(None, None, replicas.reason)
        if self._seen is not None and self._seen != replicas.wanted:
            self._changed_at = now
        self._seen = replicas.wanted
        peak = peak_replicas(settings.peaks, settings.timezone, now)
        by_demand = _by_demand(replicas, demands, settings)
        if isinstance(by_demand, Unknown):
            # The calendar does not depend on it, but nothing is taken away on missing data.
            self._fewer_since = None
            if peak <= replicas.wanted:
                self._more_since = None
                return Decision(None, None, by_demand.reason)
            wished, why = peak, f"a known peak asks for {peak}"
        else:
            wished, why = by_demand
            if peak > wished:
                wished, why = peak, f"a known peak asks for {peak}"
        desired = min(max(wished, settings.min_replicas), settings.max_replicas)
        if wished > settings.max_replicas >= 1 and desired <= replicas.wanted:
            why += f", and scaling.max_replicas is {settings.max_replicas}"
        return self._step(now, replicas, desired, why, peak > replicas.wanted, settings, last_action, start_seconds)

    def _step(
        self,
        now: float,
        replicas: Replicas,
        desired: int,
        why: str,
        known_peak: bool,
        settings: Scaling,
        last_action: float | None,
        start_seconds: float | None,
    ) -> Decision:
        there = replicas.wanted
        if desired <= there:
            self._more_since = None
        elif self._more_since is None:
            self._more_since = now
        if desired >= there:
            self._fewer_since = None
        elif self._fewer_since is None:
            self._fewer_since = now
        if desired == there:
            return Decision(desired, None, why)
        if desired > there:
            assert self._more_since is not None
            left = self._more_since + settings.sustained_for - now
            if left > 0 and not known_peak:
                return Decision(desired, None, f"{why}; it must be so for {left:.0f} s more")
        else:
            assert self._fewer_since is not None
            if not settings.scale_in:
                return Decision(desired, None, f"{why}; scaling.scale_in is false")
            left = self._fewer_since + settings.scale_in_after - now
            if left > 0:
                return Decision(desired, None, f"{why}; it must be so for {left:.0f} s more")
        if replicas.ready < there or replicas.pods > there:
            moving = f"{replicas.ready} of {there} replicas are ready and {replicas.pods} are there"
            return Decision(desired, None, f"{why}; {moving}")
        cooldown = max(settings.cooldown, start_seconds or 0.0)
        last = max((at for at in (last_action, self._changed_at) if at is not None), default=None)
        if last is not None and (left := last + cooldown - now) > 0:
            return Decision(desired, None, f"{why}; the cooldown lasts {left:.0f} s more")
        return Decision(desired, there + (1 if desired > there else -1), why)


def _by_demand(replicas: Replicas, demands: Sequence[float | None], settings: Scaling) -> tuple[int, str] | Unknown:
    known = [demand for demand in demands if demand is not None and math.isfinite(demand)]
    if len(known) < len(demands) or not known:
        return Unknown(f"the demand of {len(demands) - len(known) or 'all'} ready replicas is not known")
    if len(demands) < replicas.ready:
        return Unknown(f"the demand of {replicas.ready - len(demands)} ready replicas is not known")
    total = sum(known)
    more = math.ceil(total - _ROUNDING)
    why = f"1 replica wants {total:.2f}" if len(known) == 1 else f"{len(known)} replicas want {total:.2f}"
    if more > replicas.wanted:
        return more, why
    # One that is hardly needed stays: after it is gone the others must not be full.
    fewer = max(math.ceil(total / settings.scale_in_below - _ROUNDING), 1)
    return min(fewer, replicas.wanted), why
