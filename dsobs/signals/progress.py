"""Hung, or only slow: progress of each engine series, the stall, its threshold, and what probes proved.

vLLM counts tokens only for steps that give output, so a chunked prefill stands still in them for minutes. Progress is
therefore any change of any signal below, kept for each `engine` series before any summing. Numbers: the longest healthy
gap seen while decoding was 1 s at 1 Hz; a 100,000-token prefill on an H200 moved only KV usage, every 2 to 5 s; on a
slow
CPU server a 15,500-token prompt moved it every 8 to 14 s for 145 s.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from dsobs.config.models import Hang
from dsobs.model.engine import EngineKey
from dsobs.model.observation import Paused, Probe, ProbeOutcome
from dsobs.model.samples import Sample, labels
from dsobs.model.view import EngineProgress, Witness
from dsobs.signals.gaps import HealthyGaps

_OUTPUT = frozenset({"steps", "prompt_tokens", "generation_tokens", "finished"})
_FIELDS = {
    "dsobs_engine_steps_total": "steps",
    "dsobs_engine_prompt_tokens_total": "prompt_tokens",
    "dsobs_engine_generation_tokens_total": "generation_tokens",
    "dsobs_engine_kv_cache_usage_ratio": "kv_usage",
    "dsobs_engine_preemptions_total": "preemptions",
    "dsobs_engine_prefix_cache_queries_total": "prefix_queries",
    "dsobs_engine_requests_running": "running",
    "dsobs_engine_requests_waiting": "waiting",
    "dsobs_engine_requests_deferred": "deferred",
    "dsobs_engine_awake": "awake",
}
_NOT_PROGRESS = frozenset({"deferred", "awake"})
UNCONFIRMED_LEAST = 10.0
UNCONFIRMED_PREFILL_EXTRA = 5.0
"""Without a probe a hang is called at max(threshold, 10 s), or 5 s past the threshold of a prefill."""
JITTER_SECONDS = 0.05
"""A probe does not wait another second because a turn came this much early."""
ASK_PAUSED_AFTER_SECONDS = 2.0
"""A stall this long asks whether the engine is paused: before any threshold, so that a paused one is never probed."""
ASK_PAUSED_SECONDS = 5.0
"""Between two such questions."""
REPROBE_SECONDS = 15.0
"""Between two probes of one gap."""
VERDICTS_AWAITED = 4
"""Failed probes that wait for a scrape to be judged by; the newest, while no scrape succeeds."""
MISSED_SCRAPES_SECONDS = 3.0
"""A gap that holds a longer time without a scrape teaches nothing."""
CACHE_FULL = 0.95
_QUEUE = frozenset({"running", "waiting"})


def _queue(readings: Mapping[str, float]) -> float:
    """Requests that the engine holds."""
    return readings.get("running", 0.0) + readings.get("waiting", 0.0)


def _would_answer(readings: Mapping[str, float]) -> bool:
    """An engine that does nothing has room for a probe. One that waits for KV transfers may not, when those have taken
    its cache."""
    if _queue(readings) == 0:
        return True
    return readings.get("running", 0.0) == 0 and readings.get("kv_usage", 1.0) < CACHE_FULL


def readings_by_engine(samples: Iterable[Sample]) -> dict[EngineKey, dict[str, float]]:
    """The progress signals of each engine series. `finished` counts stop and length only: abort and error are clients
    giving up."""
    found: dict[EngineKey, dict[str, float]] = {}
    for series, value, _ in samples:
        names = dict(series)
        name = names["__name__"]
        slot = _FIELDS.get(name)
        if value != value:  # noqa: PLR0124  (NaN is no reading, and differs from itself)
            continue
        if slot is None:
            if name != "dsobs_engine_requests_finished_total" or names.get("finished_reason") not in ("stop", "length"):
                continue
            slot = "finished"
        readings = found.setdefault((names.get("model_name", ""), names.get("engine", "")), {})
        readings[slot] = readings.get(slot, 0.0) + value
    return found


@dataclass(slots=True)
class _Engine:
    """What is remembered of one engine series."""

    readings: dict[str, float]
    moved_at: float
    seen_at: float
    moved_tokens: bool = False
    all_new: bool = False
    """Every request that was outstanding at the last movement may have begun in that very sample."""
    outstanding: float = 0.0
    awake: bool = True
    """Neither asleep nor paused."""
    worked_since: float | None = None
    """Start of the present gap with work outstanding."""
    failed_at: float | None = None
    idle_failures: int = 0
    probed_at: float | None = None
    """Start of the last probe."""
    queue_before_probe: float = 0.0
    own_seen: int = 0
    """Own probes in the queue at the last scrape."""
    probe_success: float | None = None
    probe_useless: bool = False
    """The last probe of this gap proved neither."""
    pending: list[Probe] = field(default_factory=list)
    """Failed probes whose verdict waits for a scrape from after their deadline."""


def is_stalled(engine: EngineProgress) -> bool:
    """The stall has come to where a probe is sent."""
    return engine.outstanding > 0 and engine.stall_seconds > engine.threshold_seconds - JITTER_SECONDS


class ProgressTracker:
    """Follows every engine series of one server."""

    def __init__(self, settings: Hang, probes: str = "off") -> None:
        """`probes`: `on`; `off` (none are sent); `assumed` (a replay: a stall counts as probed)."""
        self._settings = settings
        self._probes = probes
        self._engines: dict[EngineKey, _Engine] = {}
        self.gaps: dict[EngineKey, HealthyGaps] = {}
        """What was learned, by engine series; the caller keeps it over restarts."""
        self.witness = Witness.UNKNOWN
        self.last_probe_at: float | None = None
        self.paused = False
        """The engine said, when it was asked last, that somebody paused it."""
        self._can_be_paused = True
        self._pause_asked_at = float("-inf")

    def configure(self, settings: Hang, probes: str) -> None:
        """Other settings from now on; what was seen stays."""
        self._settings = settings
        self._probes = probes

    def forget(self) -> None:
        """A new engine instance: nothing of the old one counts."""
        self._engines.clear()
        self.paused = False
        self._can_be_paused = True

    def pause_wanted(self, now: float) -> bool:
        """Whether to ask the engine now if it is paused: it stalls, or is idle and will be probed, or was paused."""
        if not self._can_be_paused or now - self._pause_asked_at < ASK_PAUSED_SECONDS - JITTER_SECONDS:
            return False
        probes_idle = self._probes == "on" and self._settings.idle_probe_interval > 0
        wanted = self.paused or any(
            now - engine.moved_at >= ASK_PAUSED_AFTER_SECONDS - JITTER_SECONDS
            and (engine.outstanding > 0 or probes_idle)
            for engine in self._engines.values()
        )
        if wanted:
            self._pause_asked_at = now
        return wanted

    def pause_told(self, told: Paused) -> None:
        """What it said. One that does not answer is not known to be paused: its core may hang."""
        self.paused = told is Paused.YES
        self._can_be_paused = told is not Paused.NOT_THERE

    def observe(
        self,
        now: float,
        samples: Iterable[Sample],
        *,
        probing: Mapping[str | None, int] | None = None,
        there: Collection[EngineKey] = (),
    ) -> None:
        """One successful scrape. `probing`: engine rank (None: not addressed) → own probes in flight at it; `there`:
        engines on the page, also those of which nothing could be read."""
        probing = probing or {}
        found = readings_by_engine(samples)
        for key in [key for key in self._engines if key not in found and key not in there]:
            del self._engines[key]
        for key in found.keys() | self._engines.keys():
            read = found.get(key, {})
            engine = self._engines.get(key)
            if engine is None:
                engine = self._engines[key] = _Engine(read, now, now)
            # What can't be read now is as it was: unknown is neither zero nor progress.
            readings = {**engine.readings, **read}
            own = probing.get(key[1], 0) + probing.get(None, 0)
            # A frozen page does not show the probe: only what came on top of the queue at its start can be it.
            own = int(min(own, max(_queue(readings) - engine.queue_before_probe, 0.0)))
            self._compare(key, engine, now, readings, own)
            awake = readings.get("awake", 1.0) != 0.0 and not self.paused
            if awake != engine.awake:
                self._fall_asleep_or_wake(engine, now, awake=awake)
            work = _queue(readings) - readings.get("deferred", 0.0) - own
            engine.outstanding = max(work, 0.0) if engine.awake else 0.0
            engine.readings = readings
            engine.seen_at = now
            if engine.outstanding == 0.0:
                engine.worked_since = None
            elif engine.worked_since is None:
                engine.worked_since = now
            self._judge(engine)

    def _compare(self, key: EngineKey, engine: _Engine, now: float, readings: dict[str, float], own: int) -> None:
        before = engine.readings
        changed = {name for name in readings if name not in _NOT_PROGRESS and readings[name] != before.get(name)}
        probed = own > 0 or engine.own_seen > 0
        if probed and changed <= _QUEUE and abs(_queue(readings) - own - _queue(before) + engine.own_seen) < 1:
            # dsobs's own probe coming and going in the queue is no work of the engine's.
            changed = set()
        engine.own_seen = own
        if not changed:
            return
        self._learn(key, engine, now)
        finished = max(readings.get("finished", 0.0) - before.get("finished", 0.0), 0.0)
        outstanding = _queue(readings)
        begun = outstanding - _queue(before) + finished
        engine.all_new = outstanding > 0 and begun >= outstanding
        engine.moved_tokens = bool(changed & _OUTPUT)
        engine.moved_at = now
        engine.failed_at = None
        engine.idle_failures = 0
        engine.probe_useless = False
        if engine.probe_success == 0.0:
            engine.probe_success = None

    def _fall_asleep_or_wake(self, engine: _Engine, now: float, *, awake: bool) -> None:
        """Or is paused or resumed. What was kept waiting by that has not stalled, and the first steps after it may be
        as slow as a prefill."""
        engine.awake = awake
        engine.moved_at = now
        engine.moved_tokens = False
        engine.all_new = False
        engine.worked_since = None
        engine.failed_at = None
        engine.idle_failures = 0
        engine.probe_useless = False
        engine.probe_success = None
        engine.pending.clear()

    def _learn(self, key: EngineKey, engine: _Engine, now: float) -> None:
        """A gap that ends is healthy if tokens were moving, scrapes covered it and it raised no alert."""
        if engine.worked_since is None or not engine.moved_tokens or engine.failed_at is not None:
            return
        if now - engine.seen_at > MISSED_SCRAPES_SECONDS:
            return
        gap = now - engine.moved_at
        threshold, prefill = self._threshold(key, engine)
        if self._unproved(engine) and gap > self._unconfirmed(threshold, prefill):
            return
        self.gaps.setdefault(key, HealthyGaps()).add(gap)

    def _unproved(self, engine: _Engine) -> bool:
        """No probe's word can be had."""
        return self._probes != "on" or engine.probe_useless

    def _judge(self, engine: _Engine) -> None:
        """Verdicts on failed probes, once a scrape from after their deadline is there."""
        waiting = []
        for probe in engine.pending:
            if engine.seen_at < probe.ended_at:
                waiting.append(probe)
            elif engine.moved_at >= probe.started_at:
                engine.probe_useless = True
            else:
                engine.probe_success = 0.0
                if engine.outstanding == 0:
                    engine.idle_failures += 1
                # A first request may compile for long: before the first token the restart's clock starts later.
                needed = 2 if engine.readings.get("generation_tokens", 0.0) > 0 else 4
                if engine.failed_at is None and (engine.outstanding > 0 or engine.idle_failures >= needed):
                    engine.failed_at = probe.ended_at
        engine.pending = waiting

    def probe_sent(self, now: float, rank: str | None) -> None:
        """A synthetic request went out to engine `rank` (None: to whichever takes it)."""
        self.last_probe_at = now
        for key, engine in self._engines.items():
            if rank is None or key[1] == rank:
                engine.probed_at = now
                engine.queue_before_probe = _queue(engine.readings)

    def probe_ended(self, probe: Probe) -> None:
        """What it brought. An answer proves only the engine that served it; with several and no address, none. Of
        several models it is the one that was asked."""
        ranks = {rank for _, rank in self._engines}
        asked = {key: engine for key, engine in self._engines.items() if probe.engine in (None, key[1])}
        models = {model for model, _ in asked}
        for key, engine in asked.items():
            if (probe.engine is None and len(ranks) > 1) or (len(models) > 1 and key[0] != probe.model):
                engine.probe_useless = True
            elif probe.outcome is ProbeOutcome.ANSWERED:
                engine.probe_success = 1.0
                engine.failed_at = None
                engine.idle_failures = 0
                engine.probe_useless = False
                engine.pending.clear()
            elif probe.outcome is ProbeOutcome.TIMEOUT:
                engine.pending.append(probe)
                del engine.pending[:-VERDICTS_AWAITED]
            else:
                engine.probe_useless = True
                engine.probe_success = None

    def probe_wanted(self, now: float) -> list[EngineKey]:
        """The engines that want a probe now: stalled past the threshold, or idle for long enough. Those whose stall was
        not asked for yet come first, then whoever was asked longest ago."""
        if self._probes != "on" or self.paused:
            return []
        wanted: list[tuple[bool, float, EngineKey]] = []
        for key, engine in self._engines.items():
            if not engine.awake:
                continue
            asked_at = engine.probed_at if engine.probed_at is not None else float("-inf")
            if engine.outstanding > 0:
                again = asked_at > engine.moved_at
                stalled = now - engine.moved_at > self._threshold(key, engine)[0] - JITTER_SECONDS
                if stalled and (not again or now - asked_at >= REPROBE_SECONDS):
                    wanted.append((again, asked_at, key))
            elif self._settings.idle_probe_interval > 0:
                idle = now - engine.moved_at >= self._settings.idle_after and _would_answer(engine.readings)
                if idle and now - asked_at >= self._settings.idle_probe_interval:
                    wanted.append((True, asked_at, key))
        return [key for _, _, key in sorted(wanted)]

    def due_at(self, now: float) -> float | None:
        """When the next stall will have lasted as long as its threshold; None where none is on its way."""
        times = [
            e.moved_at + self._threshold(k, e)[0] for k, e in self._engines.items() if e.awake and e.outstanding > 0
        ]
        return min((at for at in times if at > now), default=None)

    def _threshold(self, key: EngineKey, engine: _Engine) -> tuple[float, bool]:
        """The stall that sends a probe, and whether a prefill is assumed."""
        settings = self._settings
        # The last movement may hide a long prefill that began in the same sample as another request's end. Where CPU or
        # GPU show that it works, it gets a prefill's patience.
        hidden = engine.all_new and self.witness is Witness.WORKING
        if not engine.moved_tokens or hidden:
            return settings.max_threshold, True
        gaps = self.gaps.get(key)
        if gaps is None:
            return settings.min_threshold, False
        return gaps.threshold(settings.min_threshold, settings.max_threshold, settings.learn_after), False

    def _unconfirmed(self, threshold: float, prefill: bool) -> float:
        return threshold + UNCONFIRMED_PREFILL_EXTRA if prefill else max(threshold, UNCONFIRMED_LEAST)

    def progress(self) -> tuple[EngineProgress, ...]:
        """The state of every engine series, as of its last scrape."""
        result = []
        for key, engine in self._engines.items():
            threshold, prefill = self._threshold(key, engine)
            stall = max(engine.seen_at - engine.moved_at, 0.0) if engine.outstanding > 0 else 0.0
            failed_at = engine.failed_at
            if failed_at is None and self._probes == "assumed":
                would_fail = threshold + self._settings.probe_timeout
                failed_at = engine.moved_at + would_fail if stall >= would_fail else None
            result.append(
                EngineProgress(
                    key=key,
                    outstanding=engine.outstanding,
                    last_moved_at=engine.moved_at,
                    last_seen_at=engine.seen_at,
                    stall_seconds=stall,
                    threshold_seconds=threshold,
                    in_prefill=prefill,
                    failed_at=failed_at,
                    moved_tokens=engine.moved_tokens,
                )
            )
        return tuple(result)

    @property
    def hung(self) -> bool:
        """An engine counts as hung, by a failed probe or, where none can be had, by the length of its stall."""
        return any(self._is_hung(key, engine) for key, engine in self._engines.items())

    def _is_hung(self, key: EngineKey, engine: _Engine) -> bool:
        if engine.failed_at is not None:
            return True
        stalled = engine.outstanding > 0 and self._unproved(engine)
        return stalled and engine.seen_at - engine.moved_at > self._unconfirmed(*self._threshold(key, engine))

    @property
    def asleep(self) -> bool:
        """All engines are in sleep mode."""
        return bool(self._engines) and all(e.readings.get("awake", 1.0) == 0.0 for e in self._engines.values())

    def samples(self) -> list[Sample]:
        """The derived gauges."""
        out = []
        for key, engine in self._engines.items():
            threshold, prefill = self._threshold(key, engine)
            names = {"model_name": key[0], "engine": key[1]}
            stall = max(engine.seen_at - engine.moved_at, 0.0) if engine.outstanding > 0 else 0.0
            out.append(Sample(labels("dsobs_engine_stall_seconds", **names), stall))
            out.append(Sample(labels("dsobs_engine_stall_threshold_seconds", **names), threshold))
            if self._unproved(engine):
                unconfirmed = self._unconfirmed(threshold, prefill)
                out.append(Sample(labels("dsobs_engine_stall_unconfirmed_threshold_seconds", **names), unconfirmed))
            if engine.probe_success is not None:
                out.append(Sample(labels("dsobs_engine_probe_success", **names), engine.probe_success))
            if self._probes == "on":
                failures = float(engine.idle_failures)
                out.append(Sample(labels("dsobs_engine_idle_probe_failures", **names), failures))
        return out
