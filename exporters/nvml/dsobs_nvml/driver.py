"""The real source: this machine's driver, by pynvml."""

import contextlib
import ctypes
import importlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsobs_nvml.reading import Process, Reading
from dsobs_nvml.source import NvmlUnavailable

LOG = logging.getLogger("dsobs.nvml")

LIBRARY = "libnvidia-ml.so.1"
ASK_AGAIN_SECONDS = 600.0
"""A reading that a card refused is asked for again after this long, and cards that went away are looked for."""
ENERGY_SECONDS = 10.0
"""Between questions for energy, which take 3.4 ms of CPU (seen on an H200) where all the others take 0.3 together."""
MAX_EVENTS = 64
"""XID events taken in one reading; what is left waits for the next."""


class _CardLost(Exception):
    """This card does not answer; others may."""


@dataclass(slots=True, eq=False)
class _Card:
    handle: Any
    index: int
    uuid: str
    name: str
    watched: bool = False
    """Registered for XID events."""
    refused: dict[str, float] = field(default_factory=dict)
    """Reading → when to ask again, monotonic seconds."""
    energy: dict[str, float] = field(default_factory=dict)
    """The last answer; empty if there is none."""
    energy_due: float | None = None
    """When to ask for it again, monotonic seconds; None before the first time."""
    error: str = ""
    """Why it gave nothing last time; empty if it answered."""


class Nvml:
    """The cards of this machine. An `NvmlSource`.

    `devices`: UUIDs (`GPU-…`, `MIG-…`) or indices as nvidia-smi counts; empty for all cards that are visible. A MIG
    device gives its memory and processes; what only the whole card knows is None. A card that falls away while others
    answer stays, with nothing known of it. `library` is pynvml or something in its shape, `clock` gives monotonic
    seconds; both are for tests.
    """

    def __init__(
        self, devices: Sequence[str] = (), library: Any = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._devices = tuple(devices)
        self._given = library
        self._clock = clock
        self._nv: Any = None
        self._cards: list[_Card] = []
        self._events: Any = None
        self._readings: tuple[tuple[str, Callable[[Any], Any]], ...] = ()
        self._said: set[str] = set()
        self._missing = False
        self._look_again_at = 0.0

    def init(self) -> None:
        """Loads the library, connects, finds the cards and watches for XIDs; see `NvmlSource`."""
        self.shutdown()
        nv = self._given if self._given is not None else _pynvml()
        try:
            nv.nvmlInit()
        except nv.NVMLError as error:
            raise NvmlUnavailable(_no_driver(nv, error)) from error
        self._nv = nv
        try:
            self._readings = _readings(nv)
            self._cards = self._find()
            self._watch()
            self._look_again_at = self._clock() + ASK_AGAIN_SECONDS
            _trim()
        except nv.NVMLError as error:
            self.shutdown()
            raise NvmlUnavailable(f"NVML: {error}") from error
        except NvmlUnavailable:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """See `NvmlSource`."""
        nv, self._nv, self._cards = self._nv, None, []
        events, self._events = self._events, None
        if nv is None:
            return
        # What can't be given back any more went with the driver.
        if events is not None:
            with contextlib.suppress(nv.NVMLError):
                nv.nvmlEventSetFree(events)
        with contextlib.suppress(nv.NVMLError):
            nv.nvmlShutdown()

    def read(self) -> list[Reading]:
        """See `NvmlSource`."""
        if self._nv is None:
            raise NvmlUnavailable("NVML: not started")
        now = self._clock()
        xids = self._take_xids()
        readings = [self._read(card, now, xids.get(position)) for position, card in enumerate(self._cards)]
        # The last word of the last card (XID 79) is still handed on.
        if all(card.error for card in self._cards) and not any(xids.values()):
            raise NvmlUnavailable(f"NVML: {self._cards[0].error}")
        if now >= self._look_again_at and (self._missing or any(card.error for card in self._cards)):
            try:
                self.init()
            except NvmlUnavailable as error:
                self._say(str(error))
        return readings

    def _find(self) -> list[_Card]:
        nv = self._nv
        wanted = self._devices or [str(index) for index in range(nv.nvmlDeviceGetCount())]
        cards: list[_Card] = []
        missing: list[str] = []
        for name in wanted:
            try:
                by_index = name.isdecimal()
                handle = nv.nvmlDeviceGetHandleByIndex(int(name)) if by_index else nv.nvmlDeviceGetHandleByUUID(name)
                uuid = self._fact(nv.nvmlDeviceGetUUID, handle) or ("" if by_index else name)
                card = _Card(
                    handle, self._index(name, handle), str(uuid), str(self._fact(nv.nvmlDeviceGetName, handle))
                )
            except nv.NVMLError as error:
                missing.append(f"{name} ({error})")
                continue
            if card.uuid not in {other.uuid for other in cards if other.uuid}:
                cards.append(card)
        self._missing = bool(missing)
        if missing:
            self._say(f"cards that NVML does not show: {', '.join(missing)}")
        if not cards:
            what = f"does not show {', '.join(missing)}" if missing else "shows no card"
            raise NvmlUnavailable(f"the NVIDIA driver {what}")
        return cards

    def _index(self, name: str, handle: Any) -> int:
        if name.isdecimal():
            return int(name)
        nv = self._nv
        try:
            return int(nv.nvmlDeviceGetIndex(handle))
        except nv.NVMLError:
            # A MIG device has the index of its card.
            return int(nv.nvmlDeviceGetIndex(nv.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)))

    def _fact(self, call: Callable[[Any], Any], handle: Any) -> Any:
        try:
            return call(handle)
        except self._nv.NVMLError as error:
            if error.value in _lost(self._nv):
                raise
            return ""

    def _watch(self) -> None:
        nv = self._nv
        kind = nv.nvmlEventTypeXidCriticalError
        reason = "not supported by any card"
        try:
            self._events = nv.nvmlEventSetCreate()
        except nv.NVMLError as error:
            reason = str(error)
        else:
            for card in self._cards:
                try:
                    if nv.nvmlDeviceGetSupportedEventTypes(card.handle) & kind:
                        nv.nvmlDeviceRegisterEvents(card.handle, kind, self._events)
                        card.watched = True
                except nv.NVMLError as error:
                    reason = str(error)
        blind = [card.uuid or str(card.index) for card in self._cards if not card.watched]
        if blind:
            self._say(f"XID errors can't be watched on {', '.join(blind)}: {reason}")

    def _take_xids(self) -> dict[int, list[int]]:
        """Position of the card → XIDs since the last call."""
        nv = self._nv
        positions = {_address(card.handle): position for position, card in enumerate(self._cards) if card.watched}
        found: dict[int, list[int]] = {position: [] for position in positions.values()}
        if not positions:
            return found
        try:
            for _ in range(MAX_EVENTS):
                event = nv.nvmlEventSetWait_v2(self._events, 0)
                position = positions.get(_address(event.device))
                if position is None:
                    self._say(f"XID {event.eventData} of a card that is not watched")
                else:
                    found[position].append(int(event.eventData))
        except nv.NVMLError as error:
            # A card that fell off the bus ends the wait with an error; its XID came before.
            if error.value not in (nv.NVML_ERROR_TIMEOUT, nv.NVML_ERROR_GPU_IS_LOST):
                self._say(f"XID errors: {error}")
                return {position: xids for position, xids in found.items() if xids}
        return found

    def _read(self, card: _Card, now: float, xids: list[int] | None) -> Reading:
        values: dict[str, Any] = {}
        error = ""
        energy_due = now if card.energy_due is None else card.energy_due
        for name, ask in self._readings:
            if now < card.refused.get(name, now) or (name == "energy" and now < energy_due):
                continue
            try:
                values |= ask(card.handle)
            except self._nv.NVMLError as refusal:
                error = error or str(refusal)
                try:
                    self._weigh(card, name, refusal, now)
                except _CardLost:
                    values, error = {}, str(refusal)
                    break
        card.error = error if not values else ""
        if card.error:
            self._say(f"card {card.uuid or card.index} gives nothing: {card.error}")
        if now >= energy_due:
            card.energy = {key: value for key, value in values.items() if key == "energy_joules"}
            # After the first time each card waits a while of its own, so that one reading does not ask them all.
            share = (self._cards.index(card) + 1) / len(self._cards) if card.energy_due is None else 1.0
            card.energy_due = now + ENERGY_SECONDS * share
        elif values:
            values |= card.energy
        return Reading(card.index, card.uuid, card.name, xids=None if xids is None else tuple(xids), **values)

    def _weigh(self, card: _Card, name: str, error: Any, now: float) -> None:
        """Whether a refusal is of the driver, of the card, of this reading for good, or of this moment."""
        nv = self._nv
        if error.value in (nv.NVML_ERROR_UNINITIALIZED, nv.NVML_ERROR_DRIVER_NOT_LOADED):
            raise NvmlUnavailable(f"NVML: {error}") from error
        if error.value in _lost(nv):
            raise _CardLost from error
        if error.value in _unsupported(nv):
            card.refused[name] = now + ASK_AGAIN_SECONDS
            self._say(f"card {card.uuid or card.index} does not give its {name.replace('_', ' ')}: {error}")

    def _say(self, text: str) -> None:
        """Each thing once in this source's life."""
        if text not in self._said:
            self._said.add(text)
            LOG.info("%s", text)


def _pynvml() -> Any:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NvmlUnavailable(f"no NVIDIA driver: {error}") from error
    return importlib.import_module("pynvml")


def _trim() -> None:
    """Gives the memory that NVML needed for its start only, 9 MiB, back to the system, where the C library can."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _no_driver(nv: Any, error: Any) -> str:
    if error.value == nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        return f"no NVIDIA driver: {error}; the driver was changed and this process has the old library: restart it"
    return f"no NVIDIA driver: {error}"


def _lost(nv: Any) -> tuple[int, ...]:
    return (nv.NVML_ERROR_GPU_IS_LOST, nv.NVML_ERROR_GPU_NOT_FOUND)


def _unsupported(nv: Any) -> tuple[int, ...]:
    return (
        nv.NVML_ERROR_NOT_SUPPORTED,
        nv.NVML_ERROR_INVALID_ARGUMENT,  # what a MIG device answers to questions for a whole card
        nv.NVML_ERROR_NO_PERMISSION,
        nv.NVML_ERROR_FUNCTION_NOT_FOUND,
        nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        nv.NVML_ERROR_DEPRECATED,
    )


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _readings(nv: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Name → what asks for it and gives fields of `Reading`. No PCIe throughput: NVML samples that for 20 ms a call."""
    newer = nv.NVML_ERROR_FUNCTION_NOT_FOUND, nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH

    def memory(handle: Any) -> dict[str, int]:
        try:
            info = nv.nvmlDeviceGetMemoryInfo(handle, version=nv.nvmlMemory_v2)
        except nv.NVMLError as error:
            if error.value not in newer:
                raise
            info = nv.nvmlDeviceGetMemoryInfo(handle)
        return {"memory_total_bytes": int(info.total), "memory_used_bytes": int(info.used)}

    def utilization(handle: Any) -> dict[str, float]:
        rates = nv.nvmlDeviceGetUtilizationRates(handle)
        return {"utilization_ratio": rates.gpu / 100, "memory_utilization_ratio": rates.memory / 100}

    def clock_event_reasons(handle: Any) -> dict[str, int]:
        try:
            reasons = nv.nvmlDeviceGetCurrentClocksEventReasons(handle)
        except nv.NVMLError as error:
            if error.value not in newer:
                raise
            reasons = nv.nvmlDeviceGetCurrentClocksThrottleReasons(handle)  # before driver 535
        return {"clock_event_reasons": int(reasons)}

    def processes(handle: Any) -> dict[str, tuple[Process, ...]]:
        running = nv.nvmlDeviceGetComputeRunningProcesses_v3(handle)
        return {"processes": tuple(Process(process.pid, process.usedGpuMemory) for process in running)}

    def milli(name: str, call: Callable[[Any], int]) -> Callable[[Any], dict[str, float]]:
        return lambda handle: {name: call(handle) / 1000}

    def temperature(handle: Any) -> dict[str, float]:
        return {"temperature_celsius": float(nv.nvmlDeviceGetTemperature(handle, nv.NVML_TEMPERATURE_GPU))}

    def clock(name: str, domain: int) -> Callable[[Any], dict[str, float]]:
        return lambda handle: {name: nv.nvmlDeviceGetClockInfo(handle, domain) * 1e6}

    return (
        ("memory", memory),
        ("utilization", utilization),
        ("power", milli("power_watts", nv.nvmlDeviceGetPowerUsage)),
        ("power_limit", milli("power_limit_watts", nv.nvmlDeviceGetEnforcedPowerLimit)),
        ("temperature", temperature),
        ("sm_clock", clock("sm_clock_hertz", nv.NVML_CLOCK_SM)),
        ("memory_clock", clock("memory_clock_hertz", nv.NVML_CLOCK_MEM)),
        ("clock_event_reasons", clock_event_reasons),
        ("energy", milli("energy_joules", nv.nvmlDeviceGetTotalEnergyConsumption)),
        ("processes", processes),
    )
