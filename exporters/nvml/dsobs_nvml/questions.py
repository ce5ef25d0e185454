"""What a card is asked: by which calls, how often, and what an answer costs.

Each question gives fields of `Reading`, or `more`: measures. Identifiers of fields are NVML's (nvml.h, NVML_FI_DEV_*),
written as numbers since older pynvml does not name them all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsobs_nvml.reading import Measure, Process

ALWAYS = 0.0
"""Asked in every reading."""
DEAR_MS = 10.0
"""A question from this on is asked of one card in one reading, and not at the start."""

_ALL_LINKS = 0xFFFFFFFF
_MAX_LINKS = 36
_KIB = 1024.0

Answer = dict[str, Any]
Ask = Callable[[Any, Any], Answer]
"""(pynvml, handle of the card) → fields of `Reading`; NVMLError if the card does not give them."""


@dataclass(frozen=True, slots=True)
class Question:
    """One row of the table."""

    name: str
    every: float
    """Seconds between two times that one card is asked; 0: in every reading."""
    ask: Ask
    calls: str
    """The NVML functions that are called."""
    cost_ms: float | None = None
    """What one answer of one card took, milliseconds: on an H100 and an H200 with driver 580; None: not measured."""
    wide: bool = False
    """Gives measures only: a card that refuses it is not worth a line in the log."""

    @property
    def dear(self) -> bool:
        """Held apart from others of its kind."""
        return self.cost_ms is not None and self.cost_ms >= DEAR_MS


def _measure(name: str, value: float, /, **labels: str) -> Measure:
    return Measure(f"dsobs_gpu_{name}", tuple(labels.items()), float(value))


def newer(nv: Any) -> tuple[int, int]:
    """What a driver answers to a call that it is too old for."""
    return nv.NVML_ERROR_FUNCTION_NOT_FOUND, nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def _memory(nv: Any, handle: Any) -> Answer:
    try:
        info = nv.nvmlDeviceGetMemoryInfo(handle, version=nv.nvmlMemory_v2)
    except nv.NVMLError as error:
        if error.value not in newer(nv):
            raise
        info = nv.nvmlDeviceGetMemoryInfo(handle)
        return {"memory_total_bytes": int(info.total), "memory_used_bytes": int(info.used)}
    return {
        "memory_total_bytes": int(info.total),
        "memory_used_bytes": int(info.used),
        "more": (_measure("memory_reserved_bytes", info.reserved),),
    }


def _utilization(nv: Any, handle: Any) -> Answer:
    rates = nv.nvmlDeviceGetUtilizationRates(handle)
    return {"utilization_ratio": rates.gpu / 100, "memory_utilization_ratio": rates.memory / 100}


def _clock_event_reasons(nv: Any, handle: Any) -> Answer:
    try:
        reasons = nv.nvmlDeviceGetCurrentClocksEventReasons(handle)
    except nv.NVMLError as error:
        if error.value not in newer(nv):
            raise
        reasons = nv.nvmlDeviceGetCurrentClocksThrottleReasons(handle)  # before driver 535
    return {"clock_event_reasons": int(reasons)}


def _processes(nv: Any, handle: Any) -> Answer:
    running = nv.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    return {"processes": tuple(Process(process.pid, process.usedGpuMemory) for process in running)}


def _power(nv: Any, handle: Any) -> Answer:
    return {"power_watts": nv.nvmlDeviceGetPowerUsage(handle) / 1000}


def _power_limit(nv: Any, handle: Any) -> Answer:
    return {"power_limit_watts": nv.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000}


def _temperature(nv: Any, handle: Any) -> Answer:
    return {"temperature_celsius": float(nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU))}


def _sm_clock(nv: Any, handle: Any) -> Answer:
    return {"sm_clock_hertz": nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_SM) * 1e6}


def _memory_clock(nv: Any, handle: Any) -> Answer:
    return {"memory_clock_hertz": nv.nvmlDeviceGetClockInfo(handle, nv.NVML_CLOCK_MEM) * 1e6}


def _energy(nv: Any, handle: Any) -> Answer:
    return {"energy_joules": nv.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000}


def _more(*parts: Callable[[Any, Any], Sequence[Measure]]) -> Ask:
    """Several questions in one: what a card refuses is left out, and refused only if nothing is left."""

    def ask(nv: Any, handle: Any) -> Answer:
        found: list[Measure] = []
        refusal: Exception | None = None
        for part in parts:
            try:
                found += part(nv, handle)
            except nv.NVMLError as error:
                if error.value in _of_the_whole_card(nv):
                    raise
                refusal = error
        if not found and refusal is not None:
            raise refusal
        return {"more": tuple(found)}

    return ask


def _of_the_whole_card(nv: Any) -> tuple[int, ...]:
    """Errors that are no answer to one question."""
    return (
        nv.NVML_ERROR_UNINITIALIZED,
        nv.NVML_ERROR_DRIVER_NOT_LOADED,
        nv.NVML_ERROR_GPU_IS_LOST,
        nv.NVML_ERROR_GPU_NOT_FOUND,
    )


_VALUES = {0: "dVal", 1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}
"""nvmlValueType_t → the union's member."""

_Field = tuple[int, str, float, dict[str, str]]
"""Number of NVML's field, name, base units in one of its units, labels."""


def _fields(*fields: _Field, scope: int | None = None) -> Callable[[Any, Any], Sequence[Measure]]:
    """One call for many fields; those that the card refuses are left out. `scope`: of links, all of them."""
    asked = [(number, scope) if scope is not None else number for number, _, _, _ in fields]

    def ask(nv: Any, handle: Any) -> Sequence[Measure]:
        answers = nv.nvmlDeviceGetFieldValues(handle, asked)
        found = []
        refusal = nv.NVML_ERROR_NOT_SUPPORTED
        for (_, name, unit, labels), answer in zip(fields, answers, strict=True):
            if answer.nvmlReturn != nv.NVML_SUCCESS or answer.valueType not in _VALUES:
                refusal = answer.nvmlReturn or refusal
                continue
            value = float(getattr(answer.value, _VALUES[answer.valueType]))
            # Dividing is exact where multiplying by 1e-9 is not.
            found.append(_measure(name, value * unit if unit >= 1 else value / round(1 / unit), **labels))
        if not found:
            raise nv.NVMLError(refusal)
        return found

    return ask


def _reasons(nv: Any, handle: Any) -> Sequence[Measure]:
    return _fields(*((n, "clock_event_seconds_total", 1e-9, {"reason": reason}) for n, reason in _REASONS))(nv, handle)


_REASONS = (
    (74, "sw_power_cap"),
    (75, "thermal"),
    (76, "sync_boost"),
    (77, "board_limit"),
    (78, "low_utilization"),
    (79, "reliability"),
    (269, "sw_thermal_slowdown"),
    (270, "hw_thermal_slowdown"),
    (271, "hw_power_brake_slowdown"),
)
"""Fields NVML_FI_DEV_PERF_POLICY_* and NVML_FI_DEV_CLOCKS_EVENT_REASON_*, nanoseconds."""


def _margin(nv: Any, handle: Any) -> Sequence[Measure]:
    return [_measure("temperature_margin_celsius", nv.nvmlDeviceGetMarginTemperature(handle))]


def _performance_state(nv: Any, handle: Any) -> Sequence[Measure]:
    state = nv.nvmlDeviceGetPerformanceState(handle)
    return [] if state == nv.NVML_PSTATE_UNKNOWN else [_measure("performance_state", state)]


def _fan(nv: Any, handle: Any) -> Sequence[Measure]:
    return [_measure("fan_speed_ratio", nv.nvmlDeviceGetFanSpeed(handle) / 100)]


def _ecc(name: str, counter: str, kind: str, error: str) -> Callable[[Any, Any], Sequence[Measure]]:
    def ask(nv: Any, handle: Any) -> Sequence[Measure]:
        count = nv.nvmlDeviceGetTotalEccErrors(handle, getattr(nv, error), getattr(nv, counter))
        return [_measure(name, count, type=kind)]

    return ask


def _remapped_rows(nv: Any, handle: Any) -> Sequence[Measure]:
    correctable, uncorrectable, pending, failed = nv.nvmlDeviceGetRemappedRows(handle)
    return [
        _measure("remapped_rows", correctable, cause="correctable"),
        _measure("remapped_rows", uncorrectable, cause="uncorrectable"),
        _measure("row_remap_pending", bool(pending)),
        _measure("row_remap_failed", bool(failed)),
    ]


def _recovery(nv: Any, handle: Any) -> Sequence[Measure]:
    """Only what is advised now, `none` included."""
    (wanted,) = _fields((230, "recovery_action", 1.0, {}))(nv, handle)
    name = _RECOVERY.get(int(wanted.value), f"action_{wanted.value:.0f}")
    return [_measure("recovery_action", 1.0, action=name)]


_RECOVERY = {
    0: "none",
    1: "gpu_reset",
    2: "node_reboot",
    3: "drain_p2p",
    4: "drain_and_reset",
    5: "recover_imex_domain",
    6: "bus_reset",
    7: "system_reboot",
}
"""nvmlDeviceGpuRecoveryAction_t."""


def _nvlink_states(nv: Any, handle: Any) -> Sequence[Measure]:
    found = []
    for link in range(_MAX_LINKS):
        try:
            state = nv.nvmlDeviceGetNvLinkState(handle, link)
        except nv.NVMLError as error:
            if error.value == nv.NVML_ERROR_INVALID_ARGUMENT and link:
                break  # There are no more.
            if error.value != nv.NVML_ERROR_NOT_SUPPORTED or not link:
                raise
            continue  # This one is not wired.
        found.append(_measure("nvlink_active", bool(state), link=str(link)))
    return found


_nvlink_errors = _fields(
    (38, "nvlink_errors_total", 1.0, {"type": "crc_flit"}),
    (45, "nvlink_errors_total", 1.0, {"type": "crc_data"}),
    (52, "nvlink_errors_total", 1.0, {"type": "replay"}),
    (59, "nvlink_errors_total", 1.0, {"type": "recovery"}),
)
_nvlink_bytes = _fields(
    (138, "nvlink_bytes_total", _KIB, {"direction": "transmit"}),
    (139, "nvlink_bytes_total", _KIB, {"direction": "receive"}),
    scope=_ALL_LINKS,
)


def _pcie_replays(nv: Any, handle: Any) -> Sequence[Measure]:
    return [_measure("pcie_replays_total", nv.nvmlDeviceGetPcieReplayCounter(handle))]


def _pcie_link(nv: Any, handle: Any) -> Sequence[Measure]:
    return [
        _measure("pcie_link_generation", nv.nvmlDeviceGetCurrPcieLinkGeneration(handle)),
        _measure("pcie_link_width", nv.nvmlDeviceGetCurrPcieLinkWidth(handle)),
    ]


def _pcie_link_max(nv: Any, handle: Any) -> Sequence[Measure]:
    return [
        _measure("pcie_link_max_generation", nv.nvmlDeviceGetMaxPcieLinkGeneration(handle)),
        _measure("pcie_link_max_width", nv.nvmlDeviceGetMaxPcieLinkWidth(handle)),
    ]


def _pcie_throughput(direction: str, counter: str) -> Ask:
    def ask(nv: Any, handle: Any) -> Answer:
        kib = nv.nvmlDeviceGetPcieThroughput(handle, getattr(nv, counter))
        return {"more": (_measure("pcie_throughput_bytes_per_second", kib * _KIB, direction=direction),)}

    return ask


def _limit(setting: str, call: str) -> Callable[[Any, Any], Sequence[Measure]]:
    def ask(nv: Any, handle: Any) -> Sequence[Measure]:
        return [_measure("power_limit_setting_watts", getattr(nv, call)(handle) / 1000, setting=setting)]

    return ask


def _limit_range(nv: Any, handle: Any) -> Sequence[Measure]:
    low, high = nv.nvmlDeviceGetPowerManagementLimitConstraints(handle)
    return [
        _measure("power_limit_setting_watts", low / 1000, setting="min"),
        _measure("power_limit_setting_watts", high / 1000, setting="max"),
    ]


def _clock_limit(name: str, call: str, domain: str, clock: str) -> Callable[[Any, Any], Sequence[Measure]]:
    def ask(nv: Any, handle: Any) -> Sequence[Measure]:
        return [_measure(name, getattr(nv, call)(handle, getattr(nv, clock)) * 1e6, domain=domain)]

    return ask


def _threshold(threshold: str, kind: str) -> Callable[[Any, Any], Sequence[Measure]]:
    def ask(nv: Any, handle: Any) -> Sequence[Measure]:
        celsius = nv.nvmlDeviceGetTemperatureThreshold(handle, getattr(nv, kind))
        return [_measure("temperature_threshold_celsius", celsius, threshold=threshold)]

    return ask


def _persistence(nv: Any, handle: Any) -> Sequence[Measure]:
    return [_measure("persistence_mode", nv.nvmlDeviceGetPersistenceMode(handle))]


def _ecc_mode(nv: Any, handle: Any) -> Sequence[Measure]:
    return [_measure("ecc_enabled", nv.nvmlDeviceGetEccMode(handle)[0])]


_COMPUTE_MODES = {0: "default", 1: "exclusive_thread", 2: "prohibited", 3: "exclusive_process"}


def _info(nv: Any, handle: Any) -> Sequence[Measure]:
    """What does not change: 1, and all of it in labels; what is not given is left out."""

    def fact(call: Callable[[], Any]) -> str:
        try:
            value = call()
        except nv.NVMLError as error:
            if error.value in _of_the_whole_card(nv):
                raise
            return ""
        return value.decode() if isinstance(value, bytes) else str(value)

    cuda = fact(nv.nvmlSystemGetCudaDriverVersion_v2)
    facts = {
        "name": fact(lambda: nv.nvmlDeviceGetName(handle)),
        "driver_version": fact(nv.nvmlSystemGetDriverVersion),
        "cuda_version": f"{int(cuda) // 1000}.{int(cuda) % 1000 // 10}" if cuda else "",
        "pci_bus_id": fact(lambda: nv.nvmlDeviceGetPciInfo(handle).busId),
        "minor": fact(lambda: nv.nvmlDeviceGetMinorNumber(handle)),
        "compute_mode": _COMPUTE_MODES.get(int(fact(lambda: nv.nvmlDeviceGetComputeMode(handle)) or -1), ""),
    }
    return [_measure("info", 1.0, **facts)]


def _mig(nv: Any, handle: Any) -> Sequence[Measure]:
    """Whether the card is divided, and the memory of each part. The UUIDs are those that a pod is given."""
    current, _ = nv.nvmlDeviceGetMigMode(handle)
    found = [_measure("mig_enabled", current)]
    if not current:
        return found
    for position in range(nv.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nv.nvmlDeviceGetMigDeviceHandleByIndex(handle, position)
            uuid = nv.nvmlDeviceGetUUID(part)
            ids = {
                "gpu_instance": str(nv.nvmlDeviceGetGpuInstanceId(part)),
                "compute_instance": str(nv.nvmlDeviceGetComputeInstanceId(part)),
            }
            memory = nv.nvmlDeviceGetMemoryInfo(part)
        except nv.NVMLError as error:
            if error.value in (nv.NVML_ERROR_NOT_FOUND, nv.NVML_ERROR_INVALID_ARGUMENT):
                continue  # None is made here.
            raise
        found.append(_measure("mig_memory_total_bytes", memory.total, mig_uuid=uuid, **ids))
        found.append(_measure("mig_memory_used_bytes", memory.used, mig_uuid=uuid, **ids))
    return found


QUESTIONS: tuple[Question, ...] = (
    Question("memory", ALWAYS, _memory, "GetMemoryInfo_v2, before driver 510 GetMemoryInfo", 0.11),
    Question("utilization", ALWAYS, _utilization, "GetUtilizationRates", 0.02),
    Question("power", ALWAYS, _power, "GetPowerUsage", 0.02),
    Question("power_limit", ALWAYS, _power_limit, "GetEnforcedPowerLimit", 0.02),
    Question("temperature", ALWAYS, _temperature, "GetTemperature", 0.02),
    Question("sm_clock", ALWAYS, _sm_clock, "GetClockInfo", 0.02),
    Question("memory_clock", ALWAYS, _memory_clock, "GetClockInfo", 0.02),
    Question(
        "clock_event_reasons",
        ALWAYS,
        _clock_event_reasons,
        "GetCurrentClocksEventReasons, before driver 535 GetCurrentClocksThrottleReasons",
        0.02,
    ),
    Question("processes", ALWAYS, _processes, "GetComputeRunningProcesses_v3", 0.02),
    Question("energy", 10.0, _energy, "GetTotalEnergyConsumption", 3.4),
    Question("clock_event_durations", 5.0, _more(_reasons), "GetFieldValues", 1.8, wide=True),
    Question(
        "temperatures",
        5.0,
        _more(_fields((82, "memory_temperature_celsius", 1.0, {})), _margin),
        "GetFieldValues, GetMarginTemperature",
        1.1,
        wide=True,
    ),
    Question("performance_state", 5.0, _more(_performance_state), "GetPerformanceState", 0.02, wide=True),
    Question("fan", 10.0, _more(_fan), "GetFanSpeed", wide=True),
    Question(
        "ecc",
        10.0,
        _more(
            _ecc("ecc_errors_total", "NVML_VOLATILE_ECC", "corrected", "NVML_MEMORY_ERROR_TYPE_CORRECTED"),
            _ecc("ecc_errors_total", "NVML_VOLATILE_ECC", "uncorrected", "NVML_MEMORY_ERROR_TYPE_UNCORRECTED"),
            _ecc("ecc_errors_lifetime_total", "NVML_AGGREGATE_ECC", "corrected", "NVML_MEMORY_ERROR_TYPE_CORRECTED"),
            _ecc(
                "ecc_errors_lifetime_total", "NVML_AGGREGATE_ECC", "uncorrected", "NVML_MEMORY_ERROR_TYPE_UNCORRECTED"
            ),
        ),
        "GetTotalEccErrors",
        0.05,
        wide=True,
    ),
    Question("remapped_rows", 10.0, _more(_remapped_rows), "GetRemappedRows", 0.02, wide=True),
    Question("recovery", 10.0, _more(_recovery), "GetFieldValues", 0.1, wide=True),
    Question("nvlink_states", 10.0, _more(_nvlink_states), "GetNvLinkState", wide=True),
    Question("nvlink_errors", 10.0, _more(_nvlink_errors), "GetFieldValues", wide=True),
    Question("nvlink_bytes", 10.0, _more(_nvlink_bytes), "GetFieldValues", wide=True),
    Question(
        "pcie_link",
        10.0,
        _more(_pcie_replays, _pcie_link),
        "GetPcieReplayCounter, GetCurrPcieLinkGeneration, GetCurrPcieLinkWidth",
        0.53,
        wide=True,
    ),
    Question("mig", 10.0, _more(_mig), "GetMigMode, GetMigDeviceHandleByIndex, GetMemoryInfo", 0.38, wide=True),
    Question(
        "pcie_transmit",
        30.0,
        _pcie_throughput("transmit", "NVML_PCIE_UTIL_TX_BYTES"),
        "GetPcieThroughput",
        20.0,
        wide=True,
    ),
    Question(
        "pcie_receive",
        30.0,
        _pcie_throughput("receive", "NVML_PCIE_UTIL_RX_BYTES"),
        "GetPcieThroughput",
        20.0,
        wide=True,
    ),
    Question(
        "limits",
        60.0,
        _more(
            _limit("requested", "nvmlDeviceGetPowerManagementLimit"),
            _limit("default", "nvmlDeviceGetPowerManagementDefaultLimit"),
            _limit_range,
            _clock_limit("max_clock_hertz", "nvmlDeviceGetMaxClockInfo", "sm", "NVML_CLOCK_SM"),
            _clock_limit("max_clock_hertz", "nvmlDeviceGetMaxClockInfo", "memory", "NVML_CLOCK_MEM"),
            _clock_limit("application_clock_hertz", "nvmlDeviceGetApplicationsClock", "sm", "NVML_CLOCK_SM"),
            _clock_limit("application_clock_hertz", "nvmlDeviceGetApplicationsClock", "memory", "NVML_CLOCK_MEM"),
            _threshold("shutdown", "NVML_TEMPERATURE_THRESHOLD_SHUTDOWN"),
            _threshold("slowdown", "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN"),
            _threshold("gpu_max", "NVML_TEMPERATURE_THRESHOLD_GPU_MAX"),
            _threshold("memory_max", "NVML_TEMPERATURE_THRESHOLD_MEM_MAX"),
            _pcie_link_max,
        ),
        "GetPowerManagementLimit, …DefaultLimit, …LimitConstraints, GetMaxClockInfo, GetApplicationsClock, "
        "GetTemperatureThreshold, GetMaxPcieLinkGeneration, GetMaxPcieLinkWidth",
        7.5,
        wide=True,
    ),
    Question(
        "modes",
        60.0,
        _more(_persistence, _ecc_mode, _info),
        "GetPersistenceMode, GetEccMode, GetName, GetPciInfo, GetMinorNumber, GetComputeMode, "
        "nvmlSystemGetDriverVersion, nvmlSystemGetCudaDriverVersion_v2",
        0.6,
        wide=True,
    ),
)
"""In this order in each reading. The functions' names are without `nvmlDevice` but where they have another prefix."""
