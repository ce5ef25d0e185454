"""Series of real vLLM servers for the differential tests, with what goes wrong in them.

The recording of vLLM 0.23 on an H100 (1 Hz, the server hangs and dies in it) and the pages of vLLM 0.32, laid out over
half an hour as several engines: restarts with counter resets, ends with staleness markers, gaps, series that come late,
samples 1, 5, 15 and 60 s apart; and a few series of odd values.
"""

import math
from pathlib import Path

from dsobs.model.samples import Labels, labels_of, metric_name
from dsobs.recorder.records import read_records
from dsobs.series.exposition import ExpositionError, Parser
from dsobs.series.store import STALE, Store
from tests.real.prometheus import Stream

DATA = Path(__file__).parents[1] / "data"
BEGIN = 1_700_000_000
"""Unix seconds of the first sample; a multiple of 100 s, not of a minute."""
SECONDS = 1_800
METRICS = frozenset(
    {
        "http_requests_total",
        "process_cpu_seconds_total",
        "vllm:e2e_request_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_count",
        "vllm:e2e_request_latency_seconds_sum",
        "vllm:generation_tokens_total",
        "vllm:kv_cache_usage_perc",
        "vllm:num_preemptions_total",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:num_requests_waiting_by_reason",
        "vllm:request_success_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:time_to_first_token_seconds_count",
        "vllm:time_to_first_token_seconds_sum",
    }
)
_PAGES = ("idle", "load", "hang", "after", "idle", "load", "load", "after")
_ODD: dict[str, list[float]] = {
    "nan": [1.0, math.nan, 2.0, math.nan, math.nan],
    "inf": [math.inf, math.inf, 1.0],
    "both": [math.inf, 0.0, -math.inf, 3.0],
    "negative": [-1.5, -2.5, 0.5, -0.5],
    "zero": [0.0],
    "flat": [0.1],
    "large": [1e300, 1.7e308, -1e308],
    "small": [2.3e-308, 1e-300],
    "stale": [1.0, 2.0, STALE, 3.0, STALE, STALE, 0.5],
    "time": [float(BEGIN), float(BEGIN) + 2_678_400, -1.0],
}

Streams = dict[Labels, list[tuple[int, float]]]


def streams() -> list[Stream]:
    """All series with their samples in ascending time, milliseconds."""
    found: Streams = {}
    _engine(found, "0", every=1, begin=3, sets=[(0, 250), (540, 250), (1_200, 250)])
    _engine(found, "1", every=5, begin=41, sets=[(0, 180), (400, 250), (820, 250), (1_100, 120)])
    _engine(found, "2", every=15, begin=700, sets=[(0, 250), (230, 250), (460, 250)], marked=False)
    _pages(found)
    _odd(found)
    return [(labels, found[labels]) for labels in sorted(found)]


def store_of(found: list[Stream], *, fine_seconds: float = 1e7) -> Store:
    """A store that has them; it does not thin unless told to."""
    store = Store(fine_seconds=fine_seconds, coarse_seconds=max(fine_seconds, 6 * 3600.0))
    for labels, samples in found:
        store.want(metric_name(labels))
        for t, value in samples:
            store.append(labels, t / 1000, value)
    return store


def _engine(
    found: Streams, engine: str, *, every: int, begin: int, sets: list[tuple[int, int]], marked: bool = True
) -> None:
    """The recording, played from each (second, how many seconds of it) on; it ends with markers or without."""
    parser = Parser()
    records = list(read_records(DATA / "h100-vllm-0.23" / "scenario.jsonl.gz"))
    present: set[Labels] = set()
    for at, length in sets:
        origin = records[0]["t"]
        for record in records[:length:every]:
            t = round((BEGIN + begin + at + record["t"] - origin) * 1000)
            try:
                samples = parser.parse(record["metrics"]).samples
            except ExpositionError:
                samples = []
            now: set[Labels] = set()
            for labels, value, _ in samples:
                if metric_name(labels) in METRICS:
                    told = {**dict(labels), "engine": engine, "instance": "a:8000", "job": "vllm"}
                    key = labels_of(told)
                    now.add(key)
                    found.setdefault(key, []).append((t, value))
            if marked:
                for key in present - now:
                    found[key].append((t, STALE))
            present = now
    if marked:
        for key in present:
            found[key].append((found[key][-1][0] + 1_000, STALE))


def _pages(found: Streams) -> None:
    parser = Parser()
    for number in range(SECONDS // 60):
        page = (DATA / "vllm-0.32" / f"{_PAGES[number % len(_PAGES)]}.prom").read_text()
        for labels, value, _ in parser.parse(page).samples:
            if metric_name(labels) in METRICS:
                key = labels_of({**dict(labels), "instance": "b:8000", "job": "vllm"})
                found.setdefault(key, []).append(((BEGIN + 17 + number * 60) * 1000, value))


def _odd(found: Streams) -> None:
    for kind, values in _ODD.items():
        key = labels_of({"__name__": "odd", "kind": kind, "job": "odd"})
        found[key] = [
            ((BEGIN + 10 * number) * 1000 + 123, values[number % len(values)]) for number in range(SECONDS // 10)
        ]
