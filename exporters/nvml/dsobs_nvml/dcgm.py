"""The names of NVIDIA's DCGM exporter, so that dashboards and rules made for it go on.

Units are its own: MiB, MHz, percent, millijoules, and nanoseconds for violations (dcgm_fields.h; the help texts of its
default list say microseconds). Not given, since NVML does not have them: the profiling metrics (DCGM_FI_PROF_*), and
DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dsobs_nvml.reading import Reading
from dsobs_nvml.series import Row

_MIB = 1 / 2**20


@dataclass(frozen=True, slots=True)
class DcgmName:
    """One metric of DCGM's."""

    name: str
    help: str
    family: str
    """Ours that it is made of; empty where it is made of several."""
    scale: float = 1.0
    """DCGM's units in one of ours."""
    labels: tuple[tuple[str, str], ...] = ()
    """Which series of ours."""


def _names(*names: DcgmName) -> dict[str, DcgmName]:
    return {name.name: name for name in names}


def _of(name: str, help_: str, family: str, scale: float = 1.0, **labels: str) -> DcgmName:
    return DcgmName(f"DCGM_FI_DEV_{name}", help_, f"dsobs_gpu_{family}" if family else "", scale, tuple(labels.items()))


def _violation(name: str, what: str, reason: str) -> DcgmName:
    return _of(f"{name}_VIOLATION", f"{what} violation time (ns).", "clock_event_seconds_total", 1e9, reason=reason)


DCGM_NAMES: dict[str, DcgmName] = _names(
    _of("SM_CLOCK", "SM clock frequency (in MHz).", "sm_clock_hertz", 1e-6),
    _of("MEM_CLOCK", "Memory clock frequency (in MHz).", "memory_clock_hertz", 1e-6),
    _of("APP_SM_CLOCK", "SM application clock (in MHz).", "application_clock_hertz", 1e-6, domain="sm"),
    _of("APP_MEM_CLOCK", "Memory application clock (in MHz).", "application_clock_hertz", 1e-6, domain="memory"),
    _of("MAX_SM_CLOCK", "Highest SM clock (in MHz).", "max_clock_hertz", 1e-6, domain="sm"),
    _of("MAX_MEM_CLOCK", "Highest memory clock (in MHz).", "max_clock_hertz", 1e-6, domain="memory"),
    _of("CLOCK_THROTTLE_REASONS", "Bit mask of what holds clocks down.", ""),
    _of("PSTATE", "Performance state; 0 is the fastest.", "performance_state"),
    _of("GPU_TEMP", "GPU temperature (in C).", "temperature_celsius"),
    _of("MEMORY_TEMP", "Memory temperature (in C).", "memory_temperature_celsius"),
    _of("SHUTDOWN_TEMP", "Temperature of shutdown (in C).", "temperature_threshold_celsius", threshold="shutdown"),
    _of("SLOWDOWN_TEMP", "Temperature of slowdown (in C).", "temperature_threshold_celsius", threshold="slowdown"),
    _of("FAN_SPEED", "Fan speed (in %).", "fan_speed_ratio", 100.0),
    _of("POWER_USAGE", "Power draw (in W).", "power_watts"),
    _of("TOTAL_ENERGY_CONSUMPTION", "Total energy since the driver was loaded (in mJ).", "energy_joules_total", 1e3),
    _of("ENFORCED_POWER_LIMIT", "Enforced power limit (in W).", "power_limit_watts"),
    _of("POWER_MGMT_LIMIT", "Requested power limit (in W).", "power_limit_setting_watts", setting="requested"),
    _of("POWER_MGMT_LIMIT_DEF", "Default power limit (in W).", "power_limit_setting_watts", setting="default"),
    _of("POWER_MGMT_LIMIT_MIN", "Least power limit (in W).", "power_limit_setting_watts", setting="min"),
    _of("POWER_MGMT_LIMIT_MAX", "Greatest power limit (in W).", "power_limit_setting_watts", setting="max"),
    _of("GPU_UTIL", "GPU utilization (in %).", "utilization_ratio", 100.0),
    _of("MEM_COPY_UTIL", "Memory utilization (in %).", "memory_utilization_ratio", 100.0),
    _of("FB_TOTAL", "Framebuffer memory (in MiB).", "memory_total_bytes", _MIB),
    _of("FB_USED", "Framebuffer memory used (in MiB).", "memory_used_bytes", _MIB),
    _of("FB_FREE", "Framebuffer memory free (in MiB).", ""),
    _of("FB_RESERVED", "Framebuffer memory reserved (in MiB).", "memory_reserved_bytes", _MIB),
    _of("XID_ERRORS", "Value of the last XID error encountered.", ""),
    _violation("POWER", "Power", "sw_power_cap"),
    _violation("THERMAL", "Thermal", "thermal"),
    _violation("SYNC_BOOST", "Sync boost", "sync_boost"),
    _violation("BOARD_LIMIT", "Board limit", "board_limit"),
    _violation("LOW_UTIL", "Low utilization", "low_utilization"),
    _violation("RELIABILITY", "Board reliability", "reliability"),
    _of("ECC_SBE_VOL_TOTAL", "Single-bit volatile ECC errors.", "ecc_errors_total", type="corrected"),
    _of("ECC_DBE_VOL_TOTAL", "Double-bit volatile ECC errors.", "ecc_errors_total", type="uncorrected"),
    _of("ECC_SBE_AGG_TOTAL", "Single-bit persistent ECC errors.", "ecc_errors_lifetime_total", type="corrected"),
    _of("ECC_DBE_AGG_TOTAL", "Double-bit persistent ECC errors.", "ecc_errors_lifetime_total", type="uncorrected"),
    _of("CORRECTABLE_REMAPPED_ROWS", "Rows remapped for correctable errors.", "remapped_rows", cause="correctable"),
    _of(
        "UNCORRECTABLE_REMAPPED_ROWS", "Rows remapped for uncorrectable errors.", "remapped_rows", cause="uncorrectable"
    ),
    _of("ROW_REMAP_PENDING", "Whether a row remapping is pending.", "row_remap_pending"),
    _of("ROW_REMAP_FAILURE", "Whether a row remapping has failed.", "row_remap_failed"),
    _of(
        "PCIE_TX_THROUGHPUT",
        "PCIe transmitted (in KB/s).",
        "pcie_throughput_bytes_per_second",
        1 / 1024,
        direction="transmit",
    ),
    _of(
        "PCIE_RX_THROUGHPUT",
        "PCIe received (in KB/s).",
        "pcie_throughput_bytes_per_second",
        1 / 1024,
        direction="receive",
    ),
    _of("PCIE_REPLAY_COUNTER", "PCIe retries.", "pcie_replays_total"),
    _of("PCIE_LINK_GEN", "PCIe generation in use.", "pcie_link_generation"),
    _of("PCIE_LINK_WIDTH", "PCIe lanes in use.", "pcie_link_width"),
    _of("PCIE_MAX_LINK_GEN", "Highest PCIe generation.", "pcie_link_max_generation"),
    _of("PCIE_MAX_LINK_WIDTH", "Most PCIe lanes.", "pcie_link_max_width"),
    _of("NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", "NVLink flow-control CRC errors.", "nvlink_errors_total", type="crc_flit"),
    _of("NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "NVLink data CRC errors.", "nvlink_errors_total", type="crc_data"),
    _of("NVLINK_REPLAY_ERROR_COUNT_TOTAL", "NVLink retries.", "nvlink_errors_total", type="replay"),
    _of("NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "NVLink recovery errors.", "nvlink_errors_total", type="recovery"),
)
"""By DCGM's name."""


def dcgm_labels(reading: Reading, hostname: str) -> dict[str, str]:
    """The labels that the DCGM exporter gives to every series of a card, pods apart."""
    facts = next((dict(measure.labels) for measure in reading.more if measure.name == "dsobs_gpu_info"), {})
    minor = facts.get("minor", "")
    return {
        "gpu": str(reading.index),
        "UUID": reading.uuid,
        "pci_bus_id": facts.get("pci_bus_id", ""),
        "device": f"nvidia{minor}" if minor else "",
        "modelName": reading.name,
        "Hostname": hostname,
        "DCGM_FI_DRIVER_VERSION": facts.get("driver_version", ""),
    }


def dcgm_values(reading: Reading, rows: Iterator[Row], last_xid: int | None) -> Mapping[str, float]:
    """DCGM's name → value, of one card; what is not known is not there. `rows`: ours of this card."""
    ours = {(row.name, row.labels): row.value for row in rows}
    found: dict[str, float] = {}
    for name, row in DCGM_NAMES.items():
        value = ours.get((row.family, row.labels))
        if value is not None:
            found[name] = round(value * row.scale, 6)
    if reading.memory_total_bytes is not None and reading.memory_used_bytes is not None:
        # As NVML has it: neither used nor kept by the driver.
        reserved = ours.get(("dsobs_gpu_memory_reserved_bytes", ()), 0.0)
        free = reading.memory_total_bytes - reading.memory_used_bytes - reserved
        found["DCGM_FI_DEV_FB_FREE"] = round(free * _MIB, 6)
    if reading.clock_event_reasons is not None:
        found["DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"] = float(reading.clock_event_reasons)
    if last_xid is not None:
        found["DCGM_FI_DEV_XID_ERRORS"] = float(last_xid)
    return found
