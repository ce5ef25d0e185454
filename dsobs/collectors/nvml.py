"""GPU readings: NVML in a thread of its own, so that a driver that hangs takes nothing with it."""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dsobs_nvml import (
    CLOCK_EVENT_REASONS,
    XIDS,
    Nvml,
    NvmlSource,
    NvmlUnavailable,
    Process,
    Reading,
    readings_of_record,
    record_of_readings,
)

from dsobs.model.clock import Clock
from dsobs.model.observation import Gpu, GpuProcess, Unknown
from dsobs.model.samples import Sample, labels

if TYPE_CHECKING:
    from dsobs.config.models import Gpu as GpuSettings

LOG = logging.getLogger(__name__)

DEADLINE_SECONDS = 2.0
"""One reading takes about a millisecond a card; a driver under reset holds calls for seconds or for ever."""
RETRY_SECONDS = 60.0
"""Between tries to reach a driver that is not there."""

_SIGNALS = (
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

_Answer = asyncio.Future["list[Reading] | str"]
"""The readings, or why there are none."""


class NvmlCollector:
    """Reads the cards of this machine when asked, one question at a time.

    `source`: the driver unless given. `deadline`: seconds that `read` waits at most.
    """

    def __init__(
        self,
        settings: "GpuSettings",
        clock: Clock,
        source: NvmlSource | None = None,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        self._enabled = settings.enabled
        self._clock = clock
        self._source = source if source is not None else Nvml(settings.devices)
        self._deadline = deadline
        self._questions: queue.SimpleQueue[tuple[asyncio.AbstractEventLoop, _Answer] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending: tuple[float, _Answer] | None = None
        self._late_xids: dict[str, tuple[int, ...]] = {}
        self._retry_at = 0.0
        self._outage = ""
        self._seen = False
        self._closed = False

    async def read(self) -> tuple[Gpu, ...] | Unknown:
        """One reading of each card, or why there is none. Never raises; waits for the deadline at most, and while the
        driver still owes an earlier answer past its deadline not at all. One call at a time."""
        if not self._enabled:
            return Unknown("gpu.enabled is false")
        if self._closed:
            return Unknown("closed")
        now = self._clock.now()
        if self._pending is not None and self._pending[1].done():
            self._keep_xids(self._pending[1].result())
            self._pending = None
        if self._pending is None:
            if self._outage and now < self._retry_at:
                return Unknown(self._outage)
            self._pending = (now, self._ask())
            wait = self._deadline
        else:
            wait = self._deadline - (now - self._pending[0])
        asked_at, answer = self._pending
        if wait > 0:
            await asyncio.wait({answer}, timeout=wait)
        if not answer.done():
            self._say("NVML does not answer")
            return Unknown(f"NVML has not answered for {max(self._clock.now() - asked_at, self._deadline):.0f} s")
        self._pending = None
        result = answer.result()
        if isinstance(result, str):
            self._retry_at = self._clock.now() + RETRY_SECONDS
            self._say(result)
            return Unknown(result)
        if self._outage:
            LOG.info("GPU signals are known again")
            self._outage = ""
        self._seen = True
        late, self._late_xids = self._late_xids, {}
        return tuple(
            replace(gpu, xids=late[gpu.uuid] + (gpu.xids or ())) if gpu.uuid in late else gpu
            for gpu in map(_gpu, result)
        )

    def _keep_xids(self, result: "list[Reading] | str") -> None:
        """An answer past its deadline is too old, but XIDs are told once only."""
        if isinstance(result, str):
            return
        for reading in result:
            if reading.xids:
                self._late_xids[reading.uuid] = self._late_xids.get(reading.uuid, ()) + reading.xids

    def _say(self, reason: str) -> None:
        if reason != self._outage:
            level = logging.WARNING if self._seen else logging.INFO
            LOG.log(level, "GPU signals are unknown: %s; tried again every %.0f s", reason, RETRY_SECONDS)
            self._outage = reason

    def _ask(self) -> _Answer:
        loop = asyncio.get_running_loop()
        answer: _Answer = loop.create_future()
        if self._thread is None:
            # A daemon: a driver call that never returns must not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name="dsobs-nvml", daemon=True)
            self._thread.start()
        self._questions.put((loop, answer))
        return answer

    def _work(self) -> None:
        started = False
        while (question := self._questions.get()) is not None:
            loop, answer = question
            result: list[Reading] | str
            try:
                if not started:
                    self._source.init()
                    started = True
                result = self._source.read()
            except NvmlUnavailable as error:
                started = False
                result = str(error)
            except Exception as error:
                LOG.exception("NVML reading failed")
                started = False
                result = f"NVML: {type(error).__name__}: {error}"
            # A loop that is closed waits for nothing any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(_settle, answer, result)
        self._source.shutdown()

    async def close(self) -> None:
        """Ends the thread, unless the driver holds it; legal twice."""
        self._closed = True
        thread, self._thread = self._thread, None
        if thread is not None:
            self._questions.put(None)
            await asyncio.to_thread(thread.join, self._deadline)


def _settle(answer: _Answer, result: "list[Reading] | str") -> None:
    if not answer.done():
        answer.set_result(result)


class GpuSignals:
    """Canonical `dsobs_gpu_*` samples; counts XID errors. Live and in replay."""

    def __init__(self) -> None:
        self._xids: dict[tuple[int, str], dict[int, int]] = {}

    def samples(self, gpus: tuple[Gpu, ...] | Unknown) -> list[Sample]:
        """The samples of one reading; call it once for each. None for what is unknown; the ratios of memory in use are
        made where the KV cache is known.

        Where XIDs are watched each one of dsobs_nvml.XIDS is there from the start with 0, so that an increase shows
        the first one. Clock events: every reason that slows has a series, the others only while they are active.
        """
        out: list[Sample] = []
        if isinstance(gpus, Unknown):
            return out
        for gpu in gpus:
            names = {"gpu": str(gpu.index), "uuid": gpu.uuid}
            for signal, field in _SIGNALS:
                value = getattr(gpu, field)
                if value is not None:
                    out.append(Sample(labels(signal, **names), float(value)))
            if gpu.clock_event_reasons is not None:
                for reason, active in _clock_events(gpu.clock_event_reasons):
                    out.append(Sample(labels("dsobs_gpu_clock_event_active", reason=reason, **names), float(active)))
            counts = self._xids.get((gpu.index, gpu.uuid))
            if gpu.xids is not None:
                if counts is None:
                    counts = self._xids[gpu.index, gpu.uuid] = dict.fromkeys(XIDS, 0)
                for xid in gpu.xids:
                    counts[xid] = counts.get(xid, 0) + 1
            for xid, count in (counts or {}).items():
                out.append(Sample(labels("dsobs_gpu_xid_errors_total", xid=str(xid), **names), float(count)))
        return out


def _clock_events(mask: int) -> list[tuple[str, bool]]:
    events = []
    for reason in CLOCK_EVENT_REASONS:
        active = bool(mask & reason.bit)
        mask &= ~reason.bit
        if active or reason.slows:
            events.append((reason.name, active))
    # Bits that are newer than the table.
    events += [(f"bit_{bit}", True) for bit in range(mask.bit_length()) if mask >> bit & 1]
    return events


def _gpu(reading: Reading) -> Gpu:
    values = {name: getattr(reading, name) for name in Reading.__slots__}
    processes = reading.processes
    values["processes"] = None if processes is None else tuple(GpuProcess(p.pid, p.memory_bytes) for p in processes)
    return Gpu(**values)


def _reading(gpu: Gpu) -> Reading:
    values = {name: getattr(gpu, name) for name in Reading.__slots__}
    processes = gpu.processes
    values["processes"] = None if processes is None else tuple(Process(p.pid, p.memory_bytes) for p in processes)
    return Reading(**values)


def gpus_of_record(record: object) -> tuple[Gpu, ...] | Unknown:
    """The cards of a flight recorder's `nvml` value (form: `dsobs_nvml.readings_of_record`); null is Unknown."""
    if record is None:
        return Unknown("not recorded")
    try:
        return tuple(map(_gpu, readings_of_record(record)))
    except ValueError as error:
        return Unknown(str(error))


def record_of_gpus(gpus: Sequence[Gpu] | Unknown) -> dict[str, Any] | list[dict[str, Any]] | None:
    """What the flight recorder keeps: one object for one card, a list for several, None for Unknown."""
    return None if isinstance(gpus, Unknown) else record_of_readings([_reading(gpu) for gpu in gpus])
