"""The one thread that asks NVML: a reading each interval, so that scrapes never wait for a driver."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dsobs_nvml.reading import Reading
from dsobs_nvml.series import CardSeries, Row
from dsobs_nvml.source import NvmlSource, NvmlUnavailable

LOG = logging.getLogger("dsobs.nvml")

RETRY_SECONDS = 60.0
"""Longest wait before a driver that is not there is tried again; begins with 1 s and doubles."""
STALE_SECONDS = 10.0
"""A reading older than this, and than three intervals, is not told any more: the driver does not answer."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known at one moment."""

    readings: tuple[Reading, ...] = ()
    """Where there are none, the cards that were read before, each unknown for this reason."""
    rows: tuple[Row, ...] = ()
    last_xids: tuple[int | None, ...] = ()
    """Of each reading: `CardSeries.last_xid`."""
    reason: str = ""
    """Why there are no readings; empty if there are."""
    at: float | None = None
    """When the last reading was made, Unix time."""
    duration_seconds: float | None = None
    """What it took."""
    made: int = 0
    """Readings made so far."""
    failures: int = 0
    """Readings that failed so far."""


class Reader:
    """Reads a source each `interval` seconds, from `start` to `stop`. `wall` and `monotonic` are for tests."""

    def __init__(
        self,
        source: NvmlSource,
        interval: float,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._interval = interval
        self._wall = wall
        self._monotonic = monotonic
        self._series = CardSeries()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="dsobs-nvml", daemon=True)
        self._readings: tuple[Reading, ...] = ()
        """The last that were made."""
        self._reason = "not read yet"
        self._at: float | None = None
        self._read_at = 0.0
        self._duration: float | None = None
        self._made = 0
        self._failures = 0
        self._tried = threading.Event()
        self._doomed = ""
        self._said = ""

    def start(self) -> None:
        """Begins; once in a life."""
        # A daemon: a driver call that never returns must not keep the process from ending.
        self._thread.start()

    def stop(self, timeout: float = 2.0) -> None:
        """Ends and gives the source back, unless the driver holds the thread for longer than `timeout` seconds; legal
        before `start` and twice."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def wait_for_first(self, timeout: float) -> bool:
        """Whether the first try to read has ended, within `timeout` seconds."""
        return self._tried.wait(timeout)

    @property
    def tried(self) -> bool:
        """The first try to read has ended, well or not."""
        return self._tried.is_set()

    def dead(self) -> str:
        """Why only a restart of this process can help; empty if it need not be restarted."""
        if self._doomed:
            return self._doomed
        if self._thread.ident is not None and not self._thread.is_alive() and not self._stopping.is_set():
            return "the reading thread ended"
        return ""

    def snapshot(self) -> Snapshot:
        """What is known now."""
        with self._lock:
            readings, reason = self._readings, self._reason
            limit = max(STALE_SECONDS, 3 * self._interval)
            if not reason and self._monotonic() - self._read_at > limit:
                reason = "the driver does not answer"
            if reason:
                readings = tuple(Reading(one.index, one.uuid, one.name, unknown=reason) for one in readings)
            return Snapshot(
                readings,
                tuple(self._series.rows(readings)),
                tuple(map(self._series.last_xid, readings)),
                reason,
                self._at,
                self._duration,
                self._made,
                self._failures,
            )

    def _work(self) -> None:
        started = False
        wait = 1.0
        due = self._monotonic()
        while not self._stopping.is_set():
            try:
                if not started:
                    self._source.init()
                    started = True
                self._read()
                wait = 1.0
                due = max(due + self._interval, self._monotonic())
            except Exception as error:  # noqa: BLE001 - whatever it is, the thread goes on; it is told
                started = False
                self._failed(error)
                due = self._monotonic() + wait
                wait = min(2 * wait, RETRY_SECONDS)
            self._tried.set()
            self._stopping.wait(max(due - self._monotonic(), 0.0))
        with contextlib.suppress(Exception):
            self._source.shutdown()

    def _read(self) -> None:
        began = time.perf_counter()
        readings = tuple(self._source.read())
        duration = time.perf_counter() - began
        now = self._wall()
        with self._lock:
            self._series.take(readings, now)
            self._readings, self._reason = readings, ""
            self._at, self._read_at, self._duration = now, self._monotonic(), duration
            self._made += 1
        if self._said:
            LOG.info("cards are read again")
            self._said = ""

    def _failed(self, error: Exception) -> None:
        if isinstance(error, NvmlUnavailable):
            reason = str(error)
            self._doomed = reason if error.restart else ""
        else:
            LOG.error("a reading failed", exc_info=error)
            reason = f"NVML: {type(error).__name__}"
        with self._lock:
            self._reason = reason
            self._failures += 1
        if reason != self._said:
            LOG.warning("nothing is known of any card: %s; tried again", reason)
            self._said = reason
