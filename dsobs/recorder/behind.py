"""Recording in a thread of its own: a disk that hangs costs records and holds up nobody."""

import logging
import threading
from queue import Full, Queue
from typing import Any

from dsobs.recorder.flight import FlightRecorder
from dsobs.telemetry import RECORDER_DROPPED

log = logging.getLogger(__name__)

BACKLOG = 10
"""Records that wait for the disk; each holds a metrics page."""
CLOSE_SECONDS = 2.0


class RecordsBehind:
    """Hands records to `recorder` on its own thread, in order; what the disk is too slow for is dropped and counted."""

    def __init__(self, recorder: FlightRecorder) -> None:
        self._recorder = recorder
        self._queue: Queue[dict[str, Any] | None] = Queue(BACKLOG)
        self._behind = False
        # A daemon: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="dsobs-recorder", daemon=True)
        self._thread.start()

    def write(self, record: dict[str, Any]) -> None:
        """Takes one record; never waits."""
        try:
            self._queue.put_nowait(record)
        except Full:
            RECORDER_DROPPED.labels("behind").inc()
            if not self._behind:
                self._behind = True
                log.warning("the flight recorder's disk does not answer, records are lost")
        else:
            self._behind = False

    def _run(self) -> None:
        while (record := self._queue.get()) is not None:
            self._recorder.write(record)
        self._recorder.close()

    def close(self, deadline: float = CLOSE_SECONDS) -> None:
        """Writes what waits and ends the segment, unless the disk hangs for longer; legal twice."""
        if not self._thread.is_alive():
            return
        try:
            self._queue.put(None, timeout=deadline)
        except Full:
            return
        self._thread.join(deadline)
