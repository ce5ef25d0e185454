"""What one card says at one moment, in base units."""

from dataclasses import dataclass
from typing import NamedTuple


class Measure(NamedTuple):
    """One value of one card under the name that it is exported by (`dsobs_nvml.FAMILIES`), in base units."""

    name: str
    labels: tuple[tuple[str, str], ...]
    """(name, value) pairs beyond those that tell the card, in the family's order."""
    value: float


@dataclass(frozen=True, slots=True)
class Process:
    """Memory of one process on one card. Process ids are those of the driver's PID namespace."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of one card. What the card or driver does not give is None, never 0."""

    index: int
    uuid: str = ""
    name: str = ""
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    """Without what the driver reserves for itself, as nvidia-smi's "Used" (`nvmlDeviceGetMemoryInfo_v2`). Drivers
    before 510 can't tell the two apart, so there it is included, as in recordings made with the call's first version.
    """
    utilization_ratio: float | None = None
    """Share of the last sampling period (1/6 s to 1 s, by product) in which a kernel ran, 0 to 1."""
    memory_utilization_ratio: float | None = None
    """Share of the same period in which device memory was read or written, 0 to 1."""
    power_watts: float | None = None
    """Of the whole board; a mean over 1 s on Ampere and later except GA100 (nvml.h, `nvmlDeviceGetPowerUsage`)."""
    power_limit_watts: float | None = None
    """The enforced limit: the least of all that apply."""
    temperature_celsius: float | None = None
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    clock_event_reasons: int | None = None
    """Bit mask; see `dsobs_nvml.CLOCK_EVENT_REASONS`."""
    energy_joules: float | None = None
    """Since the driver was loaded; up to 10 s old, since it is a costly question."""
    processes: tuple[Process, ...] | None = None
    """Compute processes."""
    xids: tuple[int, ...] | None = None
    """XID errors since the last reading, oldest first; None where they can't be watched."""
    more: tuple[Measure, ...] = ()
    """What is asked for more rarely: ECC, remapped rows, limits, PCIe, NVLink, MIG instances, …; what is not known is
    not there. How old each may be: `dsobs_nvml.QUESTIONS`."""
    unknown: str = ""
    """Why nothing is known of this card; empty if it answers."""
