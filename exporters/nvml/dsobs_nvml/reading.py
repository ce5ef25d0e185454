"""One reading of one card, and the tables that explain it."""

from dataclasses import dataclass

CLOCK_EVENT_REASONS: dict[int, str] = {
    0x0000000000000001: "gpu_idle",
    0x0000000000000002: "applications_clocks_setting",
    0x0000000000000004: "sw_power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000010: "sync_boost",
    0x0000000000000020: "sw_thermal_slowdown",
    0x0000000000000040: "hw_thermal_slowdown",
    0x0000000000000080: "hw_power_brake_slowdown",
    0x0000000000000100: "display_clock_setting",
}
"""Bit → name of `nvmlClocksEventReasons` (NVIDIA's nvml.h, "Clocks event reasons")."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Base units throughout; None is what the card or driver does not give."""

    index: int
    uuid: str = ""
    name: str = ""
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    """Without the driver's own reserve, as nvidia-smi shows it (nvmlDeviceGetMemoryInfo_v2)."""
    utilization_ratio: float | None = None
    memory_utilization_ratio: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    temperature_celsius: float | None = None
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    clock_event_reasons: int | None = None
    energy_joules: float | None = None
    processes: tuple[tuple[int, int | None], ...] | None = None
    """(process id, bytes) of compute processes."""
    xids: tuple[int, ...] = ()
    """XID errors since the last reading."""
