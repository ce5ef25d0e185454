"""GPU readings for the sidecar, through dsobs-nvml on one thread of its own, and their form in a recording."""

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dsobs_nvml import CLOCK_EVENT_REASONS, Nvml, NvmlUnavailable, Reading

from dsobs.config.models import Gpu as Settings
from dsobs.model.clock import Clock
from dsobs.model.observation import Gpu, GpuProcess, Unknown
from dsobs.model.samples import Sample, labels

log = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
"""Between two looks for a driver that is not there."""
DEADLINE_SECONDS = 2.0
"""A reading that takes longer is unknown for now; the thread stays the only one."""


def gpu_of(reading: Reading) -> Gpu:
    """A reading in dsobs's own type: the same fields and units."""
    processes = reading.processes
    return Gpu(
        index=reading.index,
        uuid=reading.uuid,
        name=reading.name,
        memory_total_bytes=reading.memory_total_bytes,
        memory_used_bytes=reading.memory_used_bytes,
        utilization_ratio=reading.utilization_ratio,
        memory_utilization_ratio=reading.memory_utilization_ratio,
        power_watts=reading.power_watts,
        power_limit_watts=reading.power_limit_watts,
        temperature_celsius=reading.temperature_celsius,
        sm_clock_hertz=reading.sm_clock_hertz,
        memory_clock_hertz=reading.memory_clock_hertz,
        clock_event_reasons=reading.clock_event_reasons,
        energy_joules=reading.energy_joules,
        processes=None if processes is None else tuple(GpuProcess(pid, memory) for pid, memory in processes),
        xids=reading.xids,
    )


_RECORDED: tuple[tuple[str, str, float], ...] = (
    ("mem_total", "memory_total_bytes", 1),
    ("mem_used", "memory_used_bytes", 1),
    ("util_gpu", "utilization_ratio", 0.01),
    ("util_mem", "memory_utilization_ratio", 0.01),
    ("power_mw", "power_watts", 0.001),
    ("limit_mw", "power_limit_watts", 0.001),
    ("temp", "temperature_celsius", 1),
    ("sm", "sm_clock_hertz", 1e6),
    ("memclk", "memory_clock_hertz", 1e6),
    ("throttle", "clock_event_reasons", 1),
    ("energy_mj", "energy_joules", 0.001),
)
"""Name in a recording, field, and what one recorded unit is in the field's unit."""


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _gpu_of_object(index: int, told: Mapping[str, Any]) -> Gpu:
    fields: dict[str, Any] = {
        field: told[name] if factor == 1 else told[name] * factor
        for name, field, factor in _RECORDED
        if _number(told.get(name))
    }
    processes = told.get("procs")
    if isinstance(processes, list):
        fields["processes"] = tuple(
            GpuProcess(int(pair[0]), int(pair[1]) if _number(pair[1]) else None)
            for pair in processes
            if isinstance(pair, list) and len(pair) == 2 and _number(pair[0])
        )
    xids = told.get("xids")
    if isinstance(xids, list):
        fields["xids"] = tuple(int(xid) for xid in xids if _number(xid))
    number = told.get("index")
    return Gpu(
        index=int(number) if isinstance(number, int) else index,
        uuid=str(told.get("uuid") or ""),
        name=str(told.get("name") or ""),
        **fields,
    )


def gpus_of_record(told: object) -> tuple[Gpu, ...] | Unknown:
    """A record's `nvml`: one object, or a list of them for several cards; `Unknown` for anything else."""
    objects = told if isinstance(told, list) else [told]
    if not objects or not all(isinstance(one, Mapping) for one in objects):
        return Unknown("no GPU readings in the record")
    return tuple(_gpu_of_object(index, one) for index, one in enumerate(objects))


def record_of_gpus(gpus: tuple[Gpu, ...] | Unknown) -> list[dict[str, Any]] | dict[str, Any] | None:
    """The recorded form: one object for one card, a list for several, None where they are unknown."""
    if isinstance(gpus, Unknown):
        return None
    objects = []
    for gpu in gpus:
        told: dict[str, Any] = {"index": gpu.index, "uuid": gpu.uuid, "name": gpu.name}
        for name, field, factor in _RECORDED:
            value = getattr(gpu, field)
            if value is not None:
                told[name] = value if factor == 1 else round(value / factor)
        if gpu.processes is not None:
            told["procs"] = [[process.pid, process.memory_bytes] for process in gpu.processes]
        if gpu.xids:
            told["xids"] = list(gpu.xids)
        objects.append(told)
    return objects[0] if len(objects) == 1 else objects


_GAUGES = (
    ("dsobs_gpu_memory_total_bytes", "memory_total_bytes"),
    ("dsobs_gpu_memory_used_bytes", "memory_used_bytes"),
    ("dsobs_gpu_utilization_ratio", "utilization_ratio"),
    ("dsobs_gpu_memory_utilization_ratio", "memory_utilization_ratio"),
    ("dsobs_gpu_power_watts", "power_watts"),
    ("dsobs_gpu_power_limit_watts", "power_limit_watts"),
    ("dsobs_gpu_temperature_celsius", "temperature_celsius"),
    ("dsobs_gpu_sm_clock_hertz", "sm_clock_hertz"),
    ("dsobs_gpu_memory_clock_hertz", "memory_clock_hertz"),
    ("dsobs_gpu_energy_joules_total", "energy_joules"),
)


def gpu_samples(gpus: Sequence[Gpu], xids: Mapping[tuple[str, int], int] | None = None) -> list[Sample]:
    """The canonical signals; what a card does not say is absent. `xids`: (uuid, XID) → how many were seen so far."""
    out = []
    for gpu in gpus:
        names = {"gpu": str(gpu.index), "uuid": gpu.uuid}
        for metric, field in _GAUGES:
            value = getattr(gpu, field)
            if value is not None:
                out.append(Sample(labels(metric, **names), float(value)))
        if gpu.clock_event_reasons is not None:
            for bit, reason in CLOCK_EVENT_REASONS.items():
                active = float(bool(gpu.clock_event_reasons & bit))
                out.append(Sample(labels("dsobs_gpu_clock_event_active", reason=reason, **names), active))
        for (uuid, xid), count in (xids or {}).items():
            if uuid == gpu.uuid:
                out.append(Sample(labels("dsobs_gpu_xid_errors_total", xid=str(xid), **names), float(count)))
    return out


class NvmlCollector:
    """Reads all cards on one thread; a driver that hangs costs that thread and nothing else."""

    def __init__(self, settings: Settings, clock: Clock, source: Callable[[], Nvml] | None = None) -> None:
        self._clock = clock
        self._nvml = source() if source is not None else Nvml(settings.devices)
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="dsobs-nvml")
        self._reading: concurrent.futures.Future[list[Reading]] | None = None
        self._asked_at = 0.0
        self._retry_at = float("-inf")
        self._said = ""

    async def read(self) -> tuple[Gpu, ...] | Unknown:
        """All cards now, or why they are unknown."""
        now = self._clock.now()
        if self._reading is None:
            if now < self._retry_at:
                return Unknown(self._said)
            self._reading = self._thread.submit(self._nvml.read)
            self._asked_at = now
        done, _ = await asyncio.wait({asyncio.wrap_future(self._reading)}, timeout=DEADLINE_SECONDS)
        if not done:
            return Unknown(f"NVML has not answered for {self._clock.now() - self._asked_at:.0f} s")
        reading, self._reading = self._reading, None
        try:
            gpus = tuple(gpu_of(one) for one in reading.result())
        except NvmlUnavailable as error:
            self._retry_at = now + RETRY_SECONDS
            if self._said != str(error):
                self._said = str(error)
                log.info("no GPU readings, tried again every %.0f s: %s", RETRY_SECONDS, error)
            return Unknown(str(error))
        self._said = ""
        return gpus

    async def close(self) -> None:
        """Lets go of the driver; a hung thread is left behind. Legal twice."""
        if self._reading is None:
            try:
                self._thread.submit(self._nvml.close)
            except RuntimeError:
                return
        self._thread.shutdown(wait=self._reading is None)
