"""NVML itself. One object, one thread: NVML calls of one object must not overlap."""

import ctypes
import time
from collections.abc import Callable, Sequence
from typing import Any

from dsobs_nvml.reading import Reading

RETRY_UNSUPPORTED_SECONDS = 600.0
"""What a card does not support is asked again after this long."""


class NvmlUnavailable(Exception):
    """No driver, or it was lost; the message says which."""


class Nvml:
    """All visible cards, or those that `devices` names by UUID or index."""

    def __init__(self, devices: Sequence[str] = ()) -> None:
        self._wanted = frozenset(devices)
        self._nvml: Any = None
        self._handles: list[tuple[int, Any, str, str]] = []
        self._unsupported: dict[tuple[int, str], float] = {}
        self._events: Any = None

    def _open(self) -> None:
        if self._nvml is not None:
            return
        try:
            # The bindings take 19 MiB: they are imported only where there is a driver to talk to.
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError as error:
            raise NvmlUnavailable("no NVIDIA driver: libnvidia-ml.so.1 is not there") from error
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlUnavailable(f"NVML does not start: {error}") from error
        self._nvml = pynvml
        try:
            self._find()
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlUnavailable(f"NVML lists no cards: {error}") from error

    def _find(self) -> None:
        nvml = self._nvml
        self._handles = []
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                uuid, name = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
            except nvml.NVMLError:
                # A card that has fallen off the bus, or that this process may not use.
                continue
            if not self._wanted or uuid in self._wanted or str(index) in self._wanted:
                self._handles.append((index, handle, uuid, name))
        self._watch_events()

    def _watch_events(self) -> None:
        nvml = self._nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            self._events = None
            return
        for _, handle, _, _ in self._handles:
            try:
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)
            except nvml.NVMLError:
                # Not supported on this card: its XIDs stay unseen.
                continue

    def read(self) -> list[Reading]:
        """One reading of each card; `NvmlUnavailable` without a driver or when it is lost."""
        self._open()
        nvml = self._nvml
        try:
            xids = self._xids()
            return [self._card(index, handle, uuid, name, xids) for index, handle, uuid, name in self._handles]
        except nvml.NVMLError as error:
            self.close()
            raise NvmlUnavailable(f"the driver was lost: {error}") from error

    def _xids(self) -> dict[str, list[int]]:
        nvml, found = self._nvml, dict[str, list[int]]()
        while self._events is not None:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError_Timeout:
                break
            except nvml.NVMLError_NotSupported:
                self._events = None
                break
            found.setdefault(_text(nvml.nvmlDeviceGetUUID(event.device)), []).append(int(event.eventData))
        return found

    def _ask(self, index: int, what: str, call: Callable[[], Any]) -> Any:
        """The answer, or None where the card does not give it."""
        nvml = self._nvml
        until = self._unsupported.get((index, what))
        if until is not None and time.monotonic() < until:
            return None
        try:
            return call()
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission, nvml.NVMLError_FunctionNotFound):
            self._unsupported[index, what] = time.monotonic() + RETRY_UNSUPPORTED_SECONDS
        except (nvml.NVMLError_Unknown, nvml.NVMLError_InvalidArgument):
            pass
        return None

    def _card(self, index: int, handle: Any, uuid: str, name: str, xids: dict[str, list[int]]) -> Reading:
        nvml = self._nvml

        def ask(what: str, call: Callable[[], Any]) -> Any:
            return self._ask(index, what, call)

        memory = ask("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2))
        if memory is None:
            memory = ask("memory v1", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        used = ask("utilization", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        processes = ask("processes", lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        return Reading(
            index=index,
            uuid=uuid,
            name=name,
            memory_total_bytes=None if memory is None else int(memory.total),
            memory_used_bytes=None if memory is None else int(memory.used),
            utilization_ratio=None if used is None else used.gpu / 100,
            memory_utilization_ratio=None if used is None else used.memory / 100,
            power_watts=_scaled(ask("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle)), 0.001),
            power_limit_watts=_scaled(ask("limit", lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle)), 0.001),
            temperature_celsius=_scaled(
                ask("temperature", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)), 1
            ),
            sm_clock_hertz=_scaled(
                ask("sm clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)), 1e6
            ),
            memory_clock_hertz=_scaled(
                ask("memory clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)), 1e6
            ),
            clock_event_reasons=ask("reasons", lambda: nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
            energy_joules=_scaled(ask("energy", lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)), 0.001),
            processes=None if processes is None else tuple((p.pid, p.usedGpuMemory) for p in processes),
            xids=tuple(xids.get(uuid, ())),
        )

    def close(self) -> None:
        """Shuts NVML down; legal twice."""
        nvml, self._nvml = self._nvml, None
        self._handles, self._events = [], None
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:
                return


def _scaled(value: Any, factor: float) -> float | None:
    return None if value is None else float(value) * factor


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
