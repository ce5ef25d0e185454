"""Settings of scale-out."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from dsobs.config.duration import parse_duration
from dsobs.config.fields import Model, PositiveSeconds, Seconds, Share


@dataclass(frozen=True, slots=True)
class Peak:
    """A known time of more load."""

    replicas: int
    duration: float
    """Seconds."""
    cron: str
    """When it begins: minute, hour, day, month, weekday."""


def parse_peak(text: str) -> Peak:
    """A peak as it is written; ValueError says what is wrong."""
    match = re.fullmatch(r"\s*(\d+)\s+for\s+(\S+)\s+from\s+(.+?)\s*", text)
    if match is None or int(match[1]) < 1:
        raise ValueError(f"{text!r} is no peak; write REPLICAS for DURATION from MINUTE HOUR DAY MONTH WEEKDAY")
    duration = parse_duration(match[2])
    if not isinstance(duration, int | float) or duration <= 0:
        raise ValueError(f"{text!r}: {match[2]} is no duration; write 10h")
    # A peak is rare in a configuration, and the scheduler's modules are not small.
    from apscheduler.triggers.cron import CronTrigger

    try:
        CronTrigger.from_crontab(match[3], timezone="UTC")
    except ValueError as error:
        raise ValueError(f"{text!r}: {match[3]!r} is no cron line: {error}") from None
    return Peak(int(match[1]), float(duration), match[3])


def _peak(value: str) -> str:
    parse_peak(value)
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (LookupError, ValueError, OSError):
        raise ValueError(f"{value!r} is no time zone of this host; write an IANA name, such as Europe/Berlin") from None
    return value


class Scaling(Model):
    """More replicas of a busy server. `dsobs_engine_demand_ratio` is published in any case."""

    mode: Literal["publish", "scale"] = "publish"
    """`publish`: the demand as a metric, for an autoscaler to act on; `scale`: dsobs adds replicas where no autoscaler
    does (Kubernetes, with the right to; Docker, where there is a free GPU and port), or says what it would do while
    remediation.mode is observe."""
    min_replicas: int = Field(default=1, ge=1)
    """Never fewer."""
    max_replicas: int = Field(default=1, ge=1)
    """Never more. `scale` does nothing until this is raised."""
    queue_per_replica: float = Field(default=5.0, gt=0)
    """Waiting requests that are a full replica's demand."""
    kv_usage: Share = 0.9
    """The same for the share of the KV cache in use."""
    tokens_share: Share = 0.9
    """The same for generated tokens per second, as a share of the most that this replica made while requests waited.
    Says nothing before it has been seen at its limit."""
    requests_per_second: float = Field(default=0.0, ge=0)
    """The same for finished requests per second; 0: they do not count."""
    late_share: Share = 0.1
    """The same for the share of the last minute's requests whose first token came later than
    `rules.objectives.ttft_threshold`."""
    sustained_for: Seconds = 60.0
    """A replica must be wanted for so long before it is added."""
    cooldown: Seconds = 360.0
    """Between two changes, whoever made them; never less than what an engine took to start."""
    scale_in: bool = False
    """Replicas that are wanted no more are taken away again, one at a time; false: that is left to people."""
    scale_in_after: Seconds = 1800.0
    """They must not be wanted for so long first."""
    scale_in_below: Share = 0.7
    """And the others' demand, with theirs, must stay below this."""
    peaks: tuple[Annotated[str, AfterValidator(_peak)], ...] = ()
    """Known times of more load, `REPLICAS for DURATION from MINUTE HOUR DAY MONTH WEEKDAY`, such as
    `4 for 10h from 0 8 * * mon-fri`: so many replicas at least, meanwhile."""
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    """Zone of `peaks`, by its IANA name."""
    raise_min_replicas: bool = False
    """Where a HorizontalPodAutoscaler or a KEDA ScaledObject scales the workload: raise its minReplicas, within its
    maxReplicas, and put it back. What rewrites that object (GitOps, Helm) undoes it. false: it is left alone."""
    raise_for: PositiveSeconds = 3600.0
    """After so long without a new reason the raised minimum is put back, by whichever sidecar comes first."""

    @model_validator(mode="after")
    def _in_order(self) -> "Scaling":
        if self.min_replicas > self.max_replicas and self.max_replicas != 1:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}")
        return self
