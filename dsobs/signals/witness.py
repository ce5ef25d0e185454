"""A second opinion on a stand-still: CPU time of the engine's processes and GPU utilization.

Seen on an H200 at vLLM 0.32: with the engine core stopped and 16 requests outstanding the GPU fell to 0 % and idle
power;
a 100,000-token prefill that moved nothing else for seconds kept it at 100 %.
"""

from collections import deque

from dsobs.model.observation import Gpu, RuntimeView, Unknown
from dsobs.model.view import Witness

WINDOW_SECONDS = 5.0
STILL_CORES = 0.10
"""CPU below this is an API server that answers scrapes, not an engine that works."""
WORKING_CORES = 0.50
WORKING_UTILIZATION = 0.50


class StandstillWitness:
    """Remembers the last seconds of CPU time and GPU utilization."""

    def __init__(self) -> None:
        self._cpu: deque[tuple[float, float]] = deque(maxlen=64)
        self._gpu: deque[tuple[float, float]] = deque(maxlen=64)
        self._instance: tuple[str, float | None] | None = None

    def observe(self, now: float, runtime: RuntimeView | Unknown, gpus: tuple[Gpu, ...] | Unknown) -> None:
        """Takes one reading of each source that is there."""
        if isinstance(runtime, Unknown) or runtime.cpu_seconds is None:
            self._cpu.clear()
        else:
            instance = (runtime.name, runtime.started_at)
            if instance != self._instance or (self._cpu and runtime.cpu_seconds < self._cpu[-1][1]):
                self._cpu.clear()
                self._instance = instance
            if not self._cpu or now > self._cpu[-1][0]:
                self._cpu.append((now, runtime.cpu_seconds))
        used = (
            [] if isinstance(gpus, Unknown) else [g.utilization_ratio for g in gpus if g.utilization_ratio is not None]
        )
        if used:
            self._gpu.append((now, max(used)))
        else:
            self._gpu.clear()

    def cpu_cores(self, now: float) -> float | None:
        """Mean CPU over the last 5 s, in cores; None if that is not known."""
        past = [reading for reading in self._cpu if reading[0] <= now - WINDOW_SECONDS]
        if not past or now - self._cpu[-1][0] > WINDOW_SECONDS:
            return None
        start, end = past[-1], self._cpu[-1]
        return (end[1] - start[1]) / (end[0] - start[0]) if end[0] > start[0] else None

    def gpu_utilization(self, now: float) -> tuple[float, float] | None:
        """Least and greatest utilization of the busiest card over the last 5 s; None if that is not known."""
        recent = [value for at, value in self._gpu if at > now - WINDOW_SECONDS]
        if not recent or self._gpu[0][0] > now - WINDOW_SECONDS:
            return None
        return min(recent), max(recent)

    def verdict(self, now: float) -> Witness:
        """What the sources say together."""
        cores, gpu = self.cpu_cores(now), self.gpu_utilization(now)
        # A card in full use shows work; an engine's busy CPU shows it only where there is no card to ask, since
        # processes
        # that wait for a card spin.
        if gpu is not None:
            if gpu[0] >= WORKING_UTILIZATION:
                return Witness.WORKING
            return Witness.STILL if gpu[1] == 0.0 else Witness.UNKNOWN
        if cores is None:
            return Witness.UNKNOWN
        if cores >= WORKING_CORES:
            return Witness.WORKING
        return Witness.STILL if cores < STILL_CORES else Witness.UNKNOWN
