"""How much of a replica its requests want: 1 is a full one. A horizontal autoscaler adds these up over the replicas."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dsobs.config.scaling import Scaling
from dsobs.model.samples import Sample, labels

WINDOW_SECONDS = 60.0
LEAST_COVERED = 0.5
"""Share of the window that must have been seen before rates count."""
LEAST_REQUESTS = 20
"""In the window, before late ones say anything."""
_TTFT = "dsobs_engine_time_to_first_token_seconds"


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    waiting: float
    tokens: float | None
    finished: float | None
    first_tokens: float | None
    in_time: float | None


class DemandMeter:
    """Follows one server; `capacity` is what it has been seen to make at its limit."""

    def __init__(self, capacity: float | None = None) -> None:
        """`capacity`: tokens per second, as learned before."""
        self.capacity = capacity
        self._readings: deque[_Reading] = deque()
        self.parts: Mapping[str, float] = {}
        """What makes up the demand: queue, kv_cache, tokens, requests, late; only what is known."""

    def forget(self, *, model: bool = False) -> None:
        """Another instance: counters begin anew. `model`: of something else, whose capacity is another."""
        self._readings.clear()
        self.parts = {}
        if model:
            self.capacity = None

    def observe(self, at: float, samples: Iterable[Sample], settings: Scaling, ttft_threshold: float) -> float | None:
        """Demand now; None where not even the queue is known. `samples` are the canonical ones of a server that is
        ready: what a paused or a starting one says is no demand."""
        found, kv, engines = _summed(samples, ttft_threshold)
        waiting = found.get("waiting")
        if waiting is None:
            self.forget()
            return None
        reading = _Reading(
            at, waiting, found.get("tokens"), found.get("finished"), found.get("first_tokens"), found.get("in_time")
        )
        if self._readings and (at < self._readings[-1].at or _shrank(self._readings[-1], reading)):
            self._readings.clear()
        self._readings.append(reading)
        while self._readings[0].at < at - WINDOW_SECONDS:
            self._readings.popleft()
        parts = {"queue": waiting / (settings.queue_per_replica * max(engines, 1))}
        if kv is not None:
            parts["kv_cache"] = kv / settings.kv_usage
        parts |= self._of_rates(settings)
        self.parts = parts
        return max(parts.values())

    def _of_rates(self, settings: Scaling) -> dict[str, float]:
        first, last = self._readings[0], self._readings[-1]
        span = last.at - first.at
        if span < LEAST_COVERED * WINDOW_SECONDS:
            return {}
        parts = {}
        if first.tokens is not None and last.tokens is not None:
            rate = (last.tokens - first.tokens) / span
            if all(reading.waiting > 0 for reading in self._readings):
                # Requests waited all the time, so more it can't.
                self.capacity = max(self.capacity or 0.0, rate)
            if self.capacity:
                parts["tokens"] = rate / (settings.tokens_share * self.capacity)
        if settings.requests_per_second and first.finished is not None and last.finished is not None:
            parts["requests"] = (last.finished - first.finished) / span / settings.requests_per_second
        if None not in (first.first_tokens, first.in_time, last.first_tokens, last.in_time):
            count = last.first_tokens - first.first_tokens  # type: ignore[operator]
            late = count - (last.in_time - first.in_time)  # type: ignore[operator]
            if count >= LEAST_REQUESTS:
                parts["late"] = max(late, 0.0) / count / settings.late_share
        return parts


def _summed(samples: Iterable[Sample], threshold: float) -> tuple[dict[str, float], float | None, int]:
    """Sums over models and ranks, the fullest KV cache, and how many engines there are."""
    names = {
        "dsobs_engine_requests_waiting": "waiting",
        "dsobs_engine_generation_tokens_total": "tokens",
        "dsobs_engine_requests_finished_total": "finished",
        f"{_TTFT}_count": "first_tokens",
    }
    found: dict[str, float] = {}
    kv: float | None = None
    engines: set[tuple[str, str]] = set()
    for sample in samples:
        of = dict(sample.labels)
        name = of["__name__"]
        if name == "dsobs_engine_kv_cache_usage_ratio":
            kv = sample.value if kv is None else max(kv, sample.value)
        elif name == f"{_TTFT}_bucket":
            if _is_bound(of.get("le", ""), threshold):
                found["in_time"] = found.get("in_time", 0.0) + sample.value
        elif name in names:
            found[names[name]] = found.get(names[name], 0.0) + sample.value
            if name == "dsobs_engine_requests_waiting":
                engines.add((of.get("model_name", ""), of.get("engine", "")))
    return found, kv, len(engines)


def _is_bound(text: str, threshold: float) -> bool:
    try:
        return float(text) == threshold
    except ValueError:
        return False


def _shrank(before: _Reading, after: _Reading) -> bool:
    pairs = ((before.tokens, after.tokens), (before.finished, after.finished), (before.in_time, after.in_time))
    return any(old is not None and new is not None and new < old for old, new in pairs)


def demand_samples(demand: float | None, meter: DemandMeter) -> list[Sample]:
    """For the store and for /metrics; what is not known is not among them."""
    out = [] if demand is None else [Sample(labels("dsobs_engine_demand_ratio"), demand)]
    if demand is not None:
        out += [
            Sample(labels("dsobs_engine_demand_part_ratio", signal=name), value) for name, value in meter.parts.items()
        ]
    if meter.capacity is not None:
        out.append(Sample(labels("dsobs_engine_capacity_tokens_per_second"), meter.capacity))
    return out
