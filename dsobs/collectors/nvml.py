"""GPU readings: NVML in a thread of its own, so that a driver that hangs takes nothing with it."""

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dsobs_nvml import CardSeries, Nvml, NvmlSource, NvmlUnavailable, Row, readings_of_record, record_of_readings

from dsobs.model.clock import Clock
from dsobs.model.observation import Gpu, RuntimeView, Unknown
from dsobs.model.samples import Labels, Sample, labels

if TYPE_CHECKING:
    from dsobs.config.models import Gpu as GpuSettings

LOG = logging.getLogger(__name__)

DEADLINE_SECONDS = 2.0
"""One reading takes about a millisecond a card; a driver under reset holds calls for seconds or for ever."""
RETRY_SECONDS = 60.0
"""Between tries to reach a driver that is not there."""

MAX_SERIES = 4096
"""Identities of series that are remembered; process ids come and go."""

_Answer = asyncio.Future["list[Gpu] | str"]
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
            replace(gpu, xids=late[gpu.uuid] + (gpu.xids or ())) if gpu.uuid in late else gpu for gpu in result
        )

    def _keep_xids(self, result: "list[Gpu] | str") -> None:
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
            result: list[Gpu] | str
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


def _settle(answer: _Answer, result: "list[Gpu] | str") -> None:
    if not answer.done():
        answer.set_result(result)


class GpuSignals:
    """Canonical `dsobs_gpu_*` samples; counts XID errors. Live and in replay.

    Each count of XIDs begins at 0, whatever the first reading tells: a rule sees an increase only.
    """

    def __init__(self) -> None:
        self._series = CardSeries()
        self._names: dict[tuple[Any, ...], Labels] = {}
        self._begun: set[Labels] = set()

    def samples(self, gpus: tuple[Gpu, ...] | Unknown, at: float) -> list[Sample]:
        """The samples of one reading; call it once for each. None for what is unknown; the ratios of memory in use are
        made where the KV cache is known.

        `at`: when it was made, Unix time.
        """
        if isinstance(gpus, Unknown):
            return []
        self._series.take(gpus, at)
        return [Sample(names := self._labels(row), self._value(names, row)) for row in self._series.rows(gpus)]

    def _value(self, names: Labels, row: Row) -> float:
        if row.name == "dsobs_gpu_xid_errors_total" and names not in self._begun:
            self._begun.add(names)
            return 0.0
        return row.value

    def _labels(self, row: Row) -> Labels:
        key = row[:-1]
        found = self._names.get(key)
        if found is None:
            if len(self._names) >= MAX_SERIES:
                self._names.clear()
            found = self._names[key] = labels(row.name, gpu=row.gpu, uuid=row.uuid, **dict(row.labels))
        return found


def engine_pids(runtime: RuntimeView | Unknown) -> tuple[int, ...] | None:
    """The engine's processes; none of them once it is known to have ended, None while they are not known."""
    if isinstance(runtime, Unknown):
        return None
    return () if runtime.running is False else (runtime.pids or None)


def gpus_of_record(record: object) -> tuple[Gpu, ...] | Unknown:
    """The cards of a flight recorder's `nvml` value (form: `dsobs_nvml.readings_of_record`); null is Unknown."""
    if record is None:
        return Unknown("not recorded")
    try:
        return tuple(readings_of_record(record))
    except ValueError as error:
        return Unknown(str(error))


def record_of_gpus(gpus: Sequence[Gpu] | Unknown) -> dict[str, Any] | list[dict[str, Any]] | None:
    """What the flight recorder keeps: one object for one card, a list for several, None for Unknown."""
    return None if isinstance(gpus, Unknown) else record_of_readings(gpus)
