"""Takes dsobs's own probes out of what the engine counts, so that they enter no latency, rate or idle signal.

The engine's counters are cumulative and hold the probes for good; here an offset is kept for each series, and what is
handed on is the engine's value less that offset. An offset only ever grows by what a series has just grown, so what is
handed on never goes down but at a restart of the engine.

- Begun while the engine was idle (nothing running or waiting), and one request finished: what moved is the probe's, to
  the last token and bucket. To know that, what grows is held back until the probe has ended.
- Otherwise the probe is one of several. It is taken from the highest bucket that has just grown and is not above the
  latency that dsobs measured, which the server's own figure can't exceed. Count, finished requests and tokens come out
  right; a bucket between the true latency and the measured one may be off by one, and so may the sum's share. Steps
  are shared with other requests and left alone, and so is the prefix cache.
- A probe that was not answered is not taken out: whether the engine counts it is not known.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dsobs.model.engine import EngineKey
from dsobs.model.observation import Probe, ProbeOutcome
from dsobs.model.samples import Labels, Sample

_RUNNING = "dsobs_engine_requests_running"
_WAITING = "dsobs_engine_requests_waiting"
_FINISHED = "dsobs_engine_requests_finished_total"
_PROMPT = "dsobs_engine_prompt_tokens_total"
_GENERATED = "dsobs_engine_generation_tokens_total"
_HISTOGRAMS = (
    "dsobs_engine_time_to_first_token_seconds",
    "dsobs_engine_request_duration_seconds",
    "dsobs_engine_queue_duration_seconds",
)
_GROWS = ("_total", "_bucket", "_sum", "_count")
_PROCESS = "dsobs_engine_process_cpu_seconds_total"
_REASONS = ("length", "stop")
# What has not been counted by then never will be (an embedding has no first token). An idle engine is not held back
# longer than the first: statistics follow an answer at once.
_HOLD_SECONDS = 5.0
_PATIENCE_SECONDS = 60.0
_MAX_REMEMBERED = 20_000

_Values = dict[Labels, float]


@dataclass(slots=True)
class _Debt:
    """One probe that is in flight or not wholly taken out."""

    keys: set[EngineKey]
    """The engines that may serve it."""
    idle: set[EngineKey]
    """Those of them that had nothing to do when it began, and have shown nothing but the probe since: held back."""
    ended: float | None = None
    """None while it is in flight."""
    key: EngineKey | None = None
    """Who served it, once that is known."""
    latency: float = float("inf")
    finished: str | None = None
    """Reason for which it finished, where the answer said so."""
    is_finished_owed: bool = True
    histograms: list[str] = field(default_factory=lambda: list(_HISTOGRAMS))
    tokens: dict[str, float] = field(default_factory=dict)


class ProbeOffset:
    """The offsets of one server. No clock, no input or output; one call for each page."""

    def __init__(self) -> None:
        self._keys: dict[Labels, EngineKey | None] = {}
        self._offset: dict[EngineKey, _Values] = {}
        self._raw: dict[EngineKey, _Values] = {}
        self._handed: dict[EngineKey, _Values] = {}
        self._idle: set[EngineKey] = set()
        self._in_flight: _Debt | None = None
        self._owed: list[_Debt] = []

    def corrected(
        self,
        samples: Sequence[Sample],
        now: float,
        *,
        ended: Iterable[Probe] = (),
        in_flight: bool = False,
        engine: str | None = None,
    ) -> list[Sample]:
        """`samples` (canonical, of one page) without the probes; gauges as they are.

        `ended`: probes that ended since the last call; `in_flight`: one is under way now, addressed to rank `engine`
        or to none. Whether the engine moves is to be judged on the samples as they came: what is handed on here may
        stand still for as long as a probe takes.
        """
        raw = self._grouped(samples)
        self._forget_restarted(raw)
        outstanding = _outstanding(samples)
        for probe in ended:
            debt = self._in_flight or self._begin(probe.engine)
            self._in_flight = None
            if probe.outcome is ProbeOutcome.ANSWERED:
                _ended(debt, probe, now)
                self._owed.append(debt)
        if not in_flight:
            self._in_flight = None
        elif self._in_flight is None:
            self._in_flight = self._begin(engine)
        open_debts = [*self._owed, *([self._in_flight] if self._in_flight is not None else [])]
        if open_debts:
            growth = {key: self._growth(key, values) for key, values in raw.items() if key in self._handed}
            for debt in open_debts:
                self._settle(debt, growth, outstanding, now)
            self._owed = [debt for debt in self._owed if not _is_over(debt, now)]
        held = {key for debt in open_debts for key in debt.idle if not _is_over(debt, now)}
        self._hand_on(raw, held)
        self._idle = {key for key, count in outstanding.items() if count == 0}
        return [self._corrected_one(sample) for sample in samples]

    def _grouped(self, samples: Sequence[Sample]) -> dict[EngineKey, _Values]:
        """The series that only grow, by engine."""
        raw: dict[EngineKey, _Values] = {}
        for series, value, _ in samples:
            key = self._key_of(series)
            if key is not None:
                raw.setdefault(key, {})[series] = value
        return raw

    def _key_of(self, series: Labels) -> EngineKey | None:
        try:
            return self._keys[series]
        except KeyError:
            if len(self._keys) >= _MAX_REMEMBERED:
                self._keys.clear()
            labels = dict(series)
            name = labels.get("__name__", "")
            grows = name.endswith(_GROWS) and name != _PROCESS
            key = (labels.get("model_name", ""), labels.get("engine", "")) if grows else None
            self._keys[series] = key
            return key

    def _forget_restarted(self, raw: dict[EngineKey, _Values]) -> None:
        for key, values in raw.items():
            before = self._raw.get(key)
            if before is None or all(value >= before.get(series, 0.0) for series, value in values.items()):
                continue
            self._offset.pop(key, None)
            self._handed.pop(key, None)
            self._owed = [debt for debt in self._owed if debt.key != key and debt.keys != {key}]
            for debt in [*self._owed, *([self._in_flight] if self._in_flight is not None else [])]:
                debt.keys.discard(key)
                debt.idle.discard(key)

    def _begin(self, engine: str | None) -> _Debt:
        """A probe that was sent since the last call: what was handed on then is free of it."""
        keys = {key for key in self._handed if engine is None or key[1] == engine}
        # While an earlier probe is owed, what moves may be either's: this one can't be told to the last token.
        return _Debt(keys=keys, idle=set() if self._owed else keys & self._idle)

    def _growth(self, key: EngineKey, values: _Values) -> _Values:
        """What each series has grown since it was last handed on."""
        offset, handed = self._offset.get(key, {}), self._handed[key]
        return {
            series: max(0.0, value - offset.get(series, 0.0) - handed.get(series, 0.0))
            for series, value in values.items()
        }

    def _settle(
        self, debt: _Debt, growth: dict[EngineKey, _Values], outstanding: dict[EngineKey, float], now: float
    ) -> None:
        finished = {key: _finished(growth[key]) for key in debt.keys if key in growth}
        # In flight, one request may be the probe; afterwards none may be.
        allowed = 1 if debt.ended is None else 0
        for key in list(debt.idle):
            if finished.get(key, 0.0) > 1 or outstanding.get(key, 0.0) > allowed:
                debt.idle.discard(key)
        if debt.ended is None:
            return
        if debt.key is None:
            alone = next((key for key in sorted(debt.idle) if finished.get(key) == 1), None)
            if alone is not None:
                for series, grown in growth[alone].items():
                    self._take(alone, series, grown, growth[alone])
                _clear(debt)
                return
            served = min((key for key in finished if finished[key] >= 1), key=lambda key: finished[key], default=None)
            if served is None:
                if now - debt.ended > _HOLD_SECONDS:
                    debt.idle.clear()
                return
            debt.key = served
            debt.idle.clear()
        if debt.key in growth:
            self._take_share(debt, debt.key, growth[debt.key])

    def _take_share(self, debt: _Debt, key: EngineKey, growth: _Values) -> None:
        """Takes one request out of what several have added."""
        for name in list(debt.histograms):
            if self._take_observation(key, name, debt.latency, growth):
                debt.histograms.remove(name)
        if debt.is_finished_owed:
            reasons = (debt.finished,) if debt.finished is not None else _REASONS
            for series in _series_of(growth, _FINISHED):
                if growth[series] >= 1 and dict(series).get("finished_reason") in reasons:
                    self._take(key, series, 1.0, growth)
                    debt.is_finished_owed = False
                    break
        for name, owed in list(debt.tokens.items()):
            for series in _series_of(growth, name):
                amount = min(owed, growth[series])
                self._take(key, series, amount, growth)
                debt.tokens[name] = owed - amount
            if debt.tokens[name] <= 0:
                del debt.tokens[name]

    def _take_observation(self, key: EngineKey, name: str, latency: float, growth: _Values) -> bool:
        """Takes one observation of at most `latency` from a histogram; False if none has come."""
        buckets = sorted((float(dict(series)["le"]), series) for series in _series_of(growth, name + "_bucket"))
        counts = _series_of(growth, name + "_count")
        if not buckets or not counts or growth[counts[0]] < 1:
            return False
        chosen: int | None = None
        below, lower = 0.0, float("-inf")
        for index, (bound, series) in enumerate(buckets):
            if lower >= latency:
                break
            if growth[series] - below >= 1:
                chosen = index
            below, lower = growth[series], bound
        if chosen is None:
            return False
        only = growth[counts[0]] == 1
        for _, series in buckets[chosen:]:
            self._take(key, series, 1.0, growth)
        self._take(key, counts[0], 1.0, growth)
        floor = max(0.0, buckets[chosen - 1][0]) if chosen else 0.0
        for series in _series_of(growth, name + "_sum"):
            share = growth[series] if only else min(growth[series], max(floor, min(latency, buckets[chosen][0])))
            self._take(key, series, share, growth)
        return True

    def _take(self, key: EngineKey, series: Labels, amount: float, growth: _Values) -> None:
        if amount > 0:
            offset = self._offset.setdefault(key, {})
            offset[series] = offset.get(series, 0.0) + amount
            growth[series] -= amount

    def _hand_on(self, raw: dict[EngineKey, _Values], held: set[EngineKey]) -> None:
        for key, values in raw.items():
            offset, before = self._offset.get(key), self._handed.get(key, {})
            if key in held:
                self._handed[key] = {series: before.get(series, value) for series, value in values.items()}
            elif offset is None:
                self._handed[key] = values
            else:
                # Sums are floating point: what rounding takes off must not look like a restart.
                self._handed[key] = {
                    series: max(before.get(series, 0.0), value - offset.get(series, 0.0))
                    for series, value in values.items()
                }
        self._raw = raw

    def _corrected_one(self, sample: Sample) -> Sample:
        key = self._key_of(sample.labels)
        if key is None:
            return sample
        value = self._handed[key][sample.labels]
        return sample if value == sample.value else sample._replace(value=value)


def _ended(debt: _Debt, probe: Probe, now: float) -> None:
    debt.ended = now
    debt.latency = probe.latency_seconds if probe.latency_seconds is not None else float("inf")
    debt.finished = probe.finish_reason
    counts = ((_PROMPT, probe.prompt_tokens), (_GENERATED, probe.generated_tokens))
    debt.tokens = {name: float(count) for name, count in counts if count}


def _clear(debt: _Debt) -> None:
    debt.histograms.clear()
    debt.tokens.clear()
    debt.is_finished_owed = False
    debt.idle.clear()


def _is_over(debt: _Debt, now: float) -> bool:
    if debt.ended is None:
        return False
    return now - debt.ended > _PATIENCE_SECONDS or not (debt.histograms or debt.tokens or debt.is_finished_owed)


def _series_of(values: _Values, name: str) -> list[Labels]:
    named = ("__name__", name)
    return [series for series in values if named in series]


def _finished(growth: _Values) -> float:
    return sum(growth[series] for series in _series_of(growth, _FINISHED))


def _outstanding(samples: Sequence[Sample]) -> dict[EngineKey, float]:
    """Requests running and waiting, by engine; an engine that does not say both is not there."""
    found: dict[EngineKey, dict[str, float]] = {}
    for series, value, _ in samples:
        for label, text in series:
            if label == "__name__":
                if text in (_RUNNING, _WAITING):
                    labels = dict(series)
                    found.setdefault((labels.get("model_name", ""), labels.get("engine", "")), {})[text] = value
                break
    return {key: sum(counts.values()) for key, counts in found.items() if len(counts) == 2}
