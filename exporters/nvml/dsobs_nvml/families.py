"""What is exported of a card: one table, from which the exporter's pages, the sidecar's signals and the README come."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """One metric. Every series has the labels `gpu` (index) and `uuid` besides `labels`."""

    name: str
    type: str
    """counter or gauge. A counter's name ends in `_total`."""
    help: str
    unit: str
    """seconds, bytes, ratio (0 to 1), watts, celsius, hertz, joules or empty."""
    labels: tuple[str, ...]
    question: str
    """Which row of `QUESTIONS` gives it; empty for what the source itself knows."""
    field: str = ""
    """The field of `Reading` that holds it; empty for measures and for what is made of a field."""


def _table(*families: Family) -> dict[str, Family]:
    return {family.name: family for family in families}


def _gauge(name: str, help_: str, unit: str, question: str, *labels: str, field: str = "") -> Family:
    return Family(f"dsobs_gpu_{name}", "gauge", help_, unit, labels, question, field)


def _counter(name: str, help_: str, unit: str, question: str, *labels: str, field: str = "") -> Family:
    return Family(f"dsobs_gpu_{name}", "counter", help_, unit, labels, question, field)


_MIG = ("mig_uuid", "gpu_instance", "compute_instance")

FAMILIES: dict[str, Family] = _table(
    _gauge("up", "1 if the card answers, 0 if nothing is known of it.", "", ""),
    _gauge(
        "unknown", "1 with the reason why nothing is known of the card; only there while that is so.", "", "", "reason"
    ),
    _gauge("memory_total_bytes", "Memory of the card.", "bytes", "memory", field="memory_total_bytes"),
    _gauge(
        "memory_used_bytes", "Memory in use, reserved KV cache included.", "bytes", "memory", field="memory_used_bytes"
    ),
    _gauge("memory_reserved_bytes", "Memory that the driver keeps for itself; not in the others.", "bytes", "memory"),
    _gauge("process_memory_bytes", "Memory of each compute process.", "bytes", "processes", "pid"),
    _gauge(
        "utilization_ratio", "Share of time in which a kernel ran.", "ratio", "utilization", field="utilization_ratio"
    ),
    _gauge(
        "memory_utilization_ratio",
        "Share of time in which memory was moved.",
        "ratio",
        "utilization",
        field="memory_utilization_ratio",
    ),
    _gauge("power_watts", "Power drawn.", "watts", "power", field="power_watts"),
    _gauge("power_limit_watts", "Enforced power limit.", "watts", "power_limit", field="power_limit_watts"),
    _gauge(
        "power_limit_setting_watts",
        "Power limits: requested, default, and the least and greatest that may be set (min, max).",
        "watts",
        "limits",
        "setting",
    ),
    _counter(
        "energy_joules_total", "Energy used since the driver was loaded.", "joules", "energy", field="energy_joules"
    ),
    _gauge("temperature_celsius", "Temperature of the GPU.", "celsius", "temperature", field="temperature_celsius"),
    _gauge("memory_temperature_celsius", "Temperature of the memory.", "celsius", "temperatures"),
    _gauge("temperature_margin_celsius", "Degrees left until clocks are held down.", "celsius", "temperatures"),
    _gauge(
        "temperature_threshold_celsius",
        "Temperatures at which something is done: shutdown, slowdown, gpu_max, memory_max.",
        "celsius",
        "limits",
        "threshold",
    ),
    _gauge("fan_speed_ratio", "Fan speed over the highest intended; may be above 1.", "ratio", "fan"),
    _gauge("sm_clock_hertz", "Clock of the streaming multiprocessors.", "hertz", "sm_clock", field="sm_clock_hertz"),
    _gauge("memory_clock_hertz", "Clock of the memory.", "hertz", "memory_clock", field="memory_clock_hertz"),
    _gauge("max_clock_hertz", "Highest clock, sm and memory.", "hertz", "limits", "domain"),
    _gauge("application_clock_hertz", "Clock that is asked for, sm and memory.", "hertz", "limits", "domain"),
    _gauge("clock_event_active", "1 for a reason that holds clocks down.", "", "clock_event_reasons", "reason"),
    _counter(
        "clock_event_seconds_total",
        "Time for which clocks were held down, by reason.",
        "seconds",
        "clock_event_durations",
        "reason",
    ),
    _gauge("performance_state", "0 is the fastest.", "", "performance_state"),
    _counter("xid_errors_total", "XID errors seen, by number.", "", "", "xid", "reason"),
    _gauge("xid_last_time_seconds", "When each XID was last seen, Unix time.", "seconds", "", "xid", "reason"),
    _gauge("recovery_action", "1 for what the driver advises now; `none` is good.", "", "recovery", "action"),
    _counter("ecc_errors_total", "ECC errors since the driver was loaded: corrected, uncorrected.", "", "ecc", "type"),
    _counter("ecc_errors_lifetime_total", "ECC errors in the card's life: corrected, uncorrected.", "", "ecc", "type"),
    _gauge("ecc_enabled", "1 if ECC is on.", "", "modes"),
    _gauge(
        "remapped_rows", "Memory rows remapped for correctable, uncorrectable errors.", "", "remapped_rows", "cause"
    ),
    _gauge("row_remap_pending", "1 if a remapping waits for a reset of the card.", "", "remapped_rows"),
    _gauge("row_remap_failed", "1 if a remapping failed: the card is to be replaced.", "", "remapped_rows"),
    _gauge(
        "pcie_throughput_bytes_per_second",
        "PCIe traffic in a sample of 20 ms: transmit, receive.",
        "",
        "pcie_transmit",
        "direction",
    ),
    _counter("pcie_replays_total", "PCIe packets sent again.", "", "pcie_link"),
    _gauge("pcie_link_generation", "PCIe generation in use; lower while idle.", "", "pcie_link"),
    _gauge("pcie_link_width", "PCIe lanes in use.", "", "pcie_link"),
    _gauge("pcie_link_max_generation", "PCIe generation that card and slot can do.", "", "limits"),
    _gauge("pcie_link_max_width", "PCIe lanes that card and slot can do.", "", "limits"),
    _gauge("nvlink_active", "1 if the NVLink is up.", "", "nvlink_states", "link"),
    _counter(
        "nvlink_errors_total", "NVLink errors: crc_flit, crc_data, replay, recovery.", "", "nvlink_errors", "type"
    ),
    _counter(
        "nvlink_bytes_total", "NVLink payload of all links: transmit, receive.", "bytes", "nvlink_bytes", "direction"
    ),
    _gauge("persistence_mode", "1 if the driver stays loaded without clients.", "", "modes"),
    _gauge("mig_enabled", "1 if the card is divided (MIG).", "", "mig"),
    _gauge("mig_memory_total_bytes", "Memory of each MIG device.", "bytes", "mig", *_MIG),
    _gauge("mig_memory_used_bytes", "Memory in use of each MIG device.", "bytes", "mig", *_MIG),
    _gauge(
        "info",
        "1; what does not change.",
        "",
        "modes",
        "name",
        "driver_version",
        "cuda_version",
        "pci_bus_id",
        "minor",
        "compute_mode",
    ),
)
"""By name. `clock_event_active` has a series for every reason that slows and for others only while they are active;
`xid_errors_total` one at 0 for every XID of `XIDS` from the start, so that an increase shows the first."""
