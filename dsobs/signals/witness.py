"""A second opinion on a stand-still: CPU time of the engine's processes, and GPU utilization and power.

| CPU \\ GPU | none to ask | at work | 0 % | anything else |
|---|---|---|---|---|
| none to ask | unknown | working | still | unknown |
| busy (half a core or more) | working | working | conflicting | unknown |
| still (a tenth of a core or less) | still | conflicting | still | unknown |
| between | unknown | working | still | unknown |

"At work" is half of the time or more in kernels at twice the idle power or more: a collective that spins shows 100 %
at lower power, and the processes that wait for it spin too, so where a card says nothing a busy CPU says nothing.

Seen on an H200 at vLLM 0.32: with the engine core stopped and 16 requests outstanding the GPU fell to 0 % and its idle
126 W; a 100,000-token prefill that moved nothing else for seconds kept it at 100 % and 480 to 550 W.
"""

from collections import deque
from collections.abc import Collection

from dsobs.model.observation import Gpu, RuntimeView, Unknown
from dsobs.model.view import Witness
from dsobs.signals.gpu_cards import card_of

WINDOW_SECONDS = 5.0
STILL_CORES = 0.10
"""CPU below this is an API server that answers scrapes, not an engine that works."""
WORKING_CORES = 0.50
WORKING_UTILIZATION = 0.50
WORKING_POWER = 2.0
"""Times the least power seen at 0 %."""


class StandstillWitness:
    """Remembers the last seconds of CPU time and of the busiest card."""

    def __init__(self) -> None:
        self.still_since: float | None = None
        """Since when the verdict is STILL without a break, from the beginning of the first window that showed it."""
        self.worked_at: float | None = None
        """When a source last showed it working."""
        self.verdict = Witness.UNKNOWN
        self._cpu: deque[tuple[float, float]] = deque(maxlen=64)
        self._gpu: deque[tuple[float, bool | None]] = deque(maxlen=64)
        self._instance: tuple[str, float | None] | None = None
        self._idle_watts: dict[str, float] = {}
        self._last: tuple[object, object] = (None, None)

    def observe(
        self,
        now: float,
        runtime: RuntimeView | Unknown,
        gpus: tuple[Gpu, ...] | Unknown,
        others: Collection[str] = frozenset(),
    ) -> Witness:
        """Takes one reading of each source that is there, and says what they show together. `others`: cards (UUID, or
        index without one) that are known to be another's, whose work says nothing of this engine.

        The very object of the last call is a reading that has not come yet, not another one that is the same.
        """
        if runtime is not self._last[0]:
            self._take_cpu(now, runtime)
        if gpus is not self._last[1]:
            self._take_gpus(now, gpus, others)
        self._last = (runtime, gpus)
        self.verdict = self._together(now)
        if self.verdict is not Witness.STILL:
            self.still_since = None
        elif self.still_since is None:
            self.still_since = now - WINDOW_SECONDS
        if self.verdict in (Witness.WORKING, Witness.CONFLICTING):
            self.worked_at = now
        return self.verdict

    def _take_cpu(self, now: float, runtime: RuntimeView | Unknown) -> None:
        if isinstance(runtime, Unknown) or runtime.cpu_seconds is None:
            self._cpu.clear()
            return
        instance = (runtime.name, runtime.started_at)
        if instance != self._instance:
            self._cpu.clear()
            self._instance = instance
            self.worked_at = None
        elif self._cpu and runtime.cpu_seconds < self._cpu[-1][1]:
            self._cpu.clear()
        if not self._cpu or now > self._cpu[-1][0]:
            self._cpu.append((now, runtime.cpu_seconds))

    def _take_gpus(self, now: float, gpus: tuple[Gpu, ...] | Unknown, others: Collection[str]) -> None:
        seen = () if isinstance(gpus, Unknown) else gpus
        own = (gpu for gpu in seen if card_of(gpu) not in others)
        read = [gpu for gpu in own if gpu.utilization_ratio is not None]
        if not read:
            self._gpu.clear()
            return
        for gpu in read:
            if gpu.utilization_ratio == 0.0 and gpu.power_watts is not None:
                key = card_of(gpu)
                self._idle_watts[key] = min(gpu.power_watts, self._idle_watts.get(key, gpu.power_watts))
        if any(self._at_work(gpu) for gpu in read):
            self._gpu.append((now, True))
        else:
            self._gpu.append((now, False if all(gpu.utilization_ratio == 0.0 for gpu in read) else None))

    def _at_work(self, gpu: Gpu) -> bool:
        if gpu.utilization_ratio is None or gpu.utilization_ratio < WORKING_UTILIZATION:
            return False
        idle = self._idle_watts.get(card_of(gpu))
        return idle is None or gpu.power_watts is None or gpu.power_watts >= WORKING_POWER * idle

    def _cpu_works(self, now: float) -> bool | None:
        """Over the last 5 s; None if that is not known, or between."""
        past = [reading for reading in self._cpu if reading[0] <= now - WINDOW_SECONDS]
        if not past or now - self._cpu[-1][0] > WINDOW_SECONDS or self._cpu[-1][0] <= past[-1][0]:
            return None
        (start, before), (end, after) = past[-1], self._cpu[-1]
        cores = (after - before) / (end - start)
        return True if cores >= WORKING_CORES else False if cores < STILL_CORES else None

    def _together(self, now: float) -> Witness:
        cpu = self._cpu_works(now)
        if self._gpu and self._gpu[0][0] <= now - WINDOW_SECONDS:
            recent = {works for at, works in self._gpu if at > now - WINDOW_SECONDS}
            gpu = recent.pop() if len(recent) == 1 else None
            if gpu is None:
                return Witness.UNKNOWN
            if cpu is not None and cpu is not gpu:
                return Witness.CONFLICTING
            return Witness.WORKING if gpu else Witness.STILL
        if cpu is None:
            return Witness.UNKNOWN
        return Witness.WORKING if cpu else Witness.STILL
