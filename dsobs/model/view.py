"""The state of the engine as remediation sees it: everything that a plan may depend on, at one moment."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from dsobs.model.engine import EngineKey
from dsobs.model.observation import RuntimeView, Unknown

CANNOT_REPLACE = "the runtime can't do that"


class Witness(StrEnum):
    """What CPU time and GPU utilization say, beside the engine's own page."""

    STILL = "still"
    """A source shows it standing still and none shows it working."""
    WORKING = "working"
    """A source shows it working and none shows it standing still."""
    CONFLICTING = "conflicting"
    """One shows it working, the other standing still: a compilation has the CPU busy and the GPU idle."""
    UNKNOWN = "unknown"
    """No source, or none that says either."""


@dataclass(frozen=True, slots=True)
class EngineProgress:
    """One engine series: what moved, and for how long nothing has."""

    key: EngineKey
    outstanding: float
    """Requests running or waiting for capacity, dsobs's own probe left out."""
    last_moved_at: float
    last_seen_at: float
    """The last scrape that showed it; a stand-still is known up to here and no further."""
    stall_seconds: float
    threshold_seconds: float
    in_prefill: bool
    """Only prefill signals moved last, so that a long stand-still is normal."""
    failed_at: float | None = None
    """Since when it counts as hung: the deadline of the first probe of this gap that failed with no progress, or of the
    second in a row while idle. In a replay: when such a probe would have failed."""
    moved_tokens: bool = False
    """Tokens, steps or finished requests moved in the last sample."""


@dataclass(frozen=True, slots=True)
class GpuFault:
    """An XID after which a restart of the engine does not help; it stands until the node was booted, the card was reset
    and is well, or somebody said that it is."""

    card: str
    """Its UUID."""
    index: int
    xid: int
    meaning: str
    at: float
    boot_id: str = ""
    """The node's boot in which it was seen; empty: unknown."""

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.at, UTC).isoformat(sep=" ", timespec="seconds")
        return f"GPU {self.index} ({self.card}) reported XID {self.xid}, {self.meaning}, at {when}"


@dataclass(frozen=True, slots=True)
class View:
    """The engine at one moment."""

    at: float
    seen: bool = False
    """It has answered a scrape, now or before a restart of dsobs."""
    up: bool = False
    """The last scrape succeeded."""
    ready: bool = False
    """Up, and `/health` said 200."""
    was_ready: bool = False
    """The present instance has been ready."""
    asleep: bool = False
    paused: bool = False
    """Somebody paused its scheduler; it says so itself."""
    starting_since: float | None = None
    down_since: float | None = None
    """Since when it is gone unplanned."""
    down_reason: str = ""
    planned_stop: str | None = None
    """Who was witnessed to stop it, while it is away for that."""
    unresponsive_since: float | None = None
    runtime: RuntimeView | Unknown = field(default_factory=lambda: Unknown("no runtime configured"))
    can_restart: bool = False
    """The runtime can restart it (assumed in a replay)."""
    cannot_replace: str = CANNOT_REPLACE
    """Why what is left of it can't be replaced as a whole; empty: it can be."""
    shm_left_over: float | None = None
    """Share of /dev/shm that is still in use though the engine has ended; None where it has not, or is not known."""
    witness: Witness = Witness.UNKNOWN
    still_since: float | None = None
    """Since when the witness shows it standing still, without a break."""
    worked_at: float | None = None
    """When a source last showed this server working, alone or against the other."""
    engines: tuple[EngineProgress, ...] = ()
    restarts_24h: int | None = None
    own_restarts_24h: int = 0
    """Those among them that dsobs made."""
    instance_started_at: float | None = None
    """Start of the present instance: the runtime's word, else the page's."""
    probe_answered_at: float | None = None
    """When a synthetic request was answered last."""
    probe_error_at: float | None = None
    """When one was last answered with a server error."""
    probe_ended_at: float | None = None
    """When the last one ended, whatever it brought; None: this instance got none."""
    probe_outcome: str = ""
    """What that was, a `ProbeOutcome`."""
    probes_enabled: bool = False
    gpu_faults: tuple[GpuFault, ...] = ()
    """Of cards that are, or may be, the engine's; oldest first."""
    others_gpus: tuple[str, ...] = ()
    """UUIDs of cards that are known not to be the engine's."""

    @property
    def outstanding(self) -> float:
        """Over all engines."""
        return sum(engine.outstanding for engine in self.engines)
