"""What the collectors saw at one moment, and why they saw nothing: the input of everything that decides.

A signal that could not be read is `Unknown` with its reason, or an absent optional field; never zero.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from dsobs_nvml import Process as GpuProcess
from dsobs_nvml import Reading as Gpu

from dsobs.model.samples import Page

__all__ = [
    "Failure",
    "Gpu",
    "GpuProcess",
    "Health",
    "HostView",
    "Observation",
    "Probe",
    "ProbeOutcome",
    "RuntimeView",
    "Scrape",
    "Unknown",
]


@dataclass(frozen=True, slots=True)
class Unknown:
    """Not known, and why: `Unknown("no NVIDIA driver")`. Never healthy, never zero."""

    reason: str

    def __bool__(self) -> bool:
        return False


class Failure(StrEnum):
    """Why a request to the engine gave nothing. The values are label values of `dsobs_engine_scrape_failures_total`."""

    REFUSED = "refused"
    """Nobody listens on the port."""
    TIMEOUT = "timeout"
    """The deadline passed; the server may be busy."""
    UNREACHABLE = "unreachable"
    """Any other transport error: no route, unknown host, TLS, cut off in the middle."""
    CLOSED = "closed"
    """Accepted, then closed or reset with not one byte: nobody listens behind a port forwarder (Docker's for a
    published port accepts whatever the container does), or a proxy or server at its limit turns connections away."""
    HTTP_STATUS = "http_status"
    """Answered with another status than 200."""
    UNPARSABLE = "unparsable"
    """200 with a body that is no exposition page."""
    TOO_LARGE = "too_large"
    """The body passed the size limit; it was not read further."""
    TOO_MANY_SERIES = "too_many_series"
    """More series, or engines, than are taken in; the page was not read."""
    REDIRECT = "redirect"
    """Answered with a redirect; never followed, since it may lead to another host."""

    @property
    def is_away(self) -> bool:
        """Nobody took the request: what a server that is not there looks like, directly or behind a forwarder."""
        return self in (Failure.REFUSED, Failure.CLOSED)


@dataclass(frozen=True, slots=True)
class Scrape:
    """One try to read an engine's metrics page."""

    at: float
    """When it ended, seconds since the Unix epoch."""
    duration_seconds: float
    page: Page | None = None
    text: str | None = None
    """The body as it came, for the flight recorder; None if there was none."""
    failure: Failure | None = None
    detail: str = ""
    """The failure in words, short and without secrets."""
    status: int | None = None
    connected: bool = True
    """The TCP connection was accepted."""
    answered: bool = True
    """At least one byte came back."""

    @property
    def ok(self) -> bool:
        """A whole page was read and parsed."""
        return self.failure is None


@dataclass(frozen=True, slots=True)
class Health:
    """One try of the engine's `/health`. 200 is no proof of life: a hung vLLM engine answers it."""

    at: float
    duration_seconds: float
    status: int | None = None
    failure: Failure | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Answered with 200."""
        return self.status == 200


class ProbeOutcome(StrEnum):
    """What a one-token synthetic request proved. Label values of `dsobs_engine_probes_total`."""

    ANSWERED = "answered"
    """200 with a body: proof of life."""
    TIMEOUT = "timeout"
    """Accepted, and no answer by the deadline: confirms a hang if nothing moved meanwhile."""
    INCONCLUSIVE = "inconclusive"
    """401, 404, 429, 503 and whatever else proves neither life nor death."""
    ERROR = "error"
    """500 and the like: the server answered that it can't."""
    REFUSED = "refused"
    """The connection was not accepted."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One finished synthetic request."""

    started_at: float
    ended_at: float
    outcome: ProbeOutcome
    engine: str | None = None
    """The rank that served it, where the request could be addressed; None: it proves nothing about one of several."""
    status: int | None = None
    detail: str = ""
    model: str = ""
    """The model that was asked."""
    latency_seconds: float | None = None
    """What the answered request alone took; more than the server's own figure by the transport."""
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    finish_reason: str | None = None
    """Of the answer: with the tokens, what the request added to the server's counters."""


@dataclass(frozen=True, slots=True)
class RuntimeView:
    """What the runtime (process, Docker, …) knows about the engine's process or container."""

    runtime: str
    """The runtime's name: "process", "docker", "kubernetes"."""
    name: str
    """The container's name or the process's command."""
    running: bool | None = None
    """None: this runtime can restart the engine and can't see it (Kubernetes without the right to read its own pod)."""
    started_at: float | None = None
    """Start of the present instance, seconds since the Unix epoch."""
    exit_code: int | None = None
    """Of the last instance that ended; None if none did or it is not known."""
    oom_killed: bool | None = None
    restart_count: int | None = None
    """Restarts as the runtime counts them (Docker leaves out manual ones); only its differences mean something."""
    ended_at: float | None = None
    planned_stop: str | None = None
    """Who was seen to stop the present or last instance ("docker stop event", "SIGTERM forwarded by dsobs supervise").
    Only what was witnessed: an exit code never makes a stop planned."""
    stopping: str | None = None
    """Who was seen to ask the present instance, which still runs, to stop, or paused it."""
    cpu_seconds: float | None = None
    """CPU time of all the engine's processes so far: stands still in a hang, a second witness."""
    pids: tuple[int, ...] = ()
    started_history: tuple[float, ...] = ()
    """Starts in the last 24 hours that the runtime itself remembers, oldest first; also while dsobs was away."""
    restarts_before: tuple[float, ...] = ()
    """Restarts, in the last 24 hours, of what this instance's pod stands in for; oldest first."""
    brings_back: bool = False
    """The runtime itself starts again whatever ended (kubelet, with its back-off): dsobs restarts only what lives."""
    hold: str | None = None
    """Who or what is at work on the engine now, so that nothing may be done to it ("the pod is being deleted")."""
    look_only: str | None = None
    """Why the engine can't be restarted, though it can be seen, and what to do about it."""
    events: tuple[str, ...] = ()
    """What the runtime's own events said of the last end, for evidence."""
    log_file: str = ""
    """Path of the file that the engine's output is written to by what runs it; empty: to none that is known."""
    last_word: bool = False
    """Of a supervisor that had ended before dsobs could ask it: another engine may have been started without one."""


class Paused(StrEnum):
    """What an engine says when it is asked whether it is paused."""

    YES = "yes"
    NO = "no"
    NOT_THERE = "not_there"
    """This server can't be asked."""
    UNKNOWN = "unknown"
    """No answer in time, or none that says it."""


@dataclass(frozen=True, slots=True)
class HostView:
    """What the host gives the engine: shared memory, disk, and its cgroup's memory and CPU. What can't be read, or
    can't be told to be the engine's, is None or not there."""

    at: float
    shm_size_bytes: int | None = None
    shm_used_bytes: int | None = None
    """Of the engine's /dev/shm."""
    filesystems: tuple[tuple[str, int, int], ...] = ()
    """(mount point, bytes that are free for dsobs's user, size in bytes)."""
    memory_usage_bytes: int | None = None
    """Page cache included, which the kernel gives back before it kills."""
    memory_working_set_bytes: int | None = None
    """Without page cache that can be given back; what kubelet evicts by."""
    memory_limit_bytes: int | None = None
    """None without a limit too."""
    oom_kills: int | None = None
    """Processes of the cgroup that were killed for memory so far."""
    cpu_waiting_seconds: float | None = None
    """Time for which some process of the cgroup waited for CPU (PSI)."""
    cpu_stalled_seconds: float | None = None
    """Time for which all of them did."""
    cpu_throttled_seconds: float | None = None
    """Time for which the cgroup's quota held it back."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything seen in one tick of the live loop, or in one record of a replay."""

    at: float
    scrape: Scrape | None = None
    """None while one is in flight: nothing new is known."""
    health: Health | None = None
    gpus: tuple[Gpu, ...] | Unknown = field(default_factory=lambda: Unknown("not collected"))
    runtime: RuntimeView | Unknown = field(default_factory=lambda: Unknown("no runtime configured"))
    paused: Paused | None = None
    """An answer since the last observation; None: there was none."""
    probes: tuple[Probe, ...] = ()
    """Probes that ended since the last observation."""
    host: HostView | Unknown = field(default_factory=lambda: Unknown("not collected"))
