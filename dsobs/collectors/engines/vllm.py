"""vLLM 0.8 to 0.32: names and labels as read in its sources (vllm/v1/metrics/loggers.py) and on real pages."""

import hashlib
from collections.abc import Mapping, Sequence

import orjson

from dsobs.model.engine import EngineFacts, EngineKey, ProbeRequest
from dsobs.model.samples import Labels, Page, Sample, labels_of

_PREFIXES = ("vllm:", "vllm_")

_GAUGES = {
    "num_requests_running": "dsobs_engine_requests_running",
    "num_requests_waiting": "dsobs_engine_requests_waiting",
    "kv_cache_usage_perc": "dsobs_engine_kv_cache_usage_ratio",
}
_COUNTERS = {
    "prompt_tokens": "dsobs_engine_prompt_tokens_total",
    "generation_tokens": "dsobs_engine_generation_tokens_total",
    "request_success": "dsobs_engine_requests_finished_total",
    "num_preemptions": "dsobs_engine_preemptions_total",
    "prefix_cache_queries": "dsobs_engine_prefix_cache_queries_total",
    "prefix_cache_hits": "dsobs_engine_prefix_cache_hits_total",
}
_HISTOGRAMS = {
    "time_to_first_token_seconds": "dsobs_engine_time_to_first_token_seconds",
    "e2e_request_latency_seconds": "dsobs_engine_request_duration_seconds",
    "inter_token_latency_seconds": "dsobs_engine_inter_token_latency_seconds",
    "request_queue_time_seconds": "dsobs_engine_queue_duration_seconds",
}
_RENAMED = {
    # Old names, gone in 0.12; 0.9 to 0.11 have the new ones beside them, which then count.
    "gpu_cache_usage_perc": "kv_cache_usage_perc",
    "gpu_prefix_cache_queries": "prefix_cache_queries",
    "gpu_prefix_cache_hits": "prefix_cache_hits",
    "time_per_output_token_seconds": "inter_token_latency_seconds",
}
_ONE_VALUE = {
    # Families of which only the series with one label value is a signal.
    "num_requests_waiting_by_reason": ("reason", "deferred", "dsobs_engine_requests_deferred"),
    "engine_sleep_state": ("sleep_state", "awake", "dsobs_engine_awake"),
}
_PROCESS = {
    # prometheus_client's own, without a prefix; not there with --api-server-count > 1.
    "process_start_time_seconds": "dsobs_engine_process_start_time_seconds",
    "process_cpu_seconds_total": "dsobs_engine_process_cpu_seconds_total",
}
_ASLEEP_SOON = "sleep_mode_operations_in_flight"
"""While a sleep, a wake-up or a release of the KV cache goes on, `engine_sleep_state` has not changed yet, or not any
more, and no request gets on. Of the server, without an engine."""
_AWAKE = "dsobs_engine_awake"
# A histogram in spite of its name; counts the steps that gave output.
_STEPS = ("iteration_tokens_total_count", "iteration_tokens_count")

_PLAIN, _OLD, _CONFIG, _CHANGING = range(4)
_MAX_REMEMBERED = 20_000


def _table() -> dict[str, tuple[str, int]]:
    """Name on the page, without prefix → canonical name and kind, for the series that need no look at labels."""
    table: dict[str, tuple[str, int]] = {}
    for name, canonical in _GAUGES.items():
        table[name] = (canonical, _PLAIN)
    for name, canonical in _COUNTERS.items():
        table[name] = table[name + "_total"] = (canonical, _PLAIN)
    for name, canonical in _HISTOGRAMS.items():
        for part in ("_bucket", "_sum", "_count"):
            table[name + part] = (canonical + part, _PLAIN)
    for old, new in _RENAMED.items():
        for part in ("", "_total", "_bucket", "_sum", "_count"):
            if new + part in table:
                table[old + part] = (table[new + part][0], _OLD)
    for name in _STEPS:
        table[name] = ("dsobs_engine_steps_total", _PLAIN)
    return table


_TABLE = _table()

_Entry = tuple[Labels, int, EngineKey | None]
"""Canonical series, kind, and the engine where the series is one that every engine has."""


class Vllm:
    """The adapter. Keeps what it made of each series, so that a page that is like the last costs a look-up a sample."""

    name = "vllm"
    metrics_path = "/metrics"
    pause_path: str | None = "/is_paused"
    reserves_memory = True

    def __init__(self) -> None:
        self._entries: dict[Labels, _Entry | None] = {}

    def recognizes(self, page: Page) -> bool:
        """One of vLLM's own signals is there, or at least its TYPE line."""
        names = {name for family in page.types if (name := _bare(family)) is not None}
        if not names:
            names = {name for series, _, _ in page.samples if (name := _bare(dict(series)["__name__"])) is not None}
        return bool(names & _GAUGES.keys()) or bool(names & _RENAMED.keys())

    def canonical(self, page: Page) -> list[Sample]:
        """The canonical signals on the page, per engine. NaN is no reading and is left out."""
        known = self._entries.get
        found: list[Sample] = []
        old: list[Sample] = []
        configs: list[Labels] = []
        keys: list[EngineKey] = []
        changing = False
        for series, value, timestamp in page.samples:
            entry = known(series, _NEW)
            if entry is _NEW:
                entry = self._enter(series)
            if entry is None or value != value:  # noqa: PLR0124  (NaN)
                continue
            labels, kind, key = entry
            if kind == _PLAIN:
                found.append(Sample(labels, value, timestamp))
            elif kind == _OLD:
                old.append(Sample(labels, value, timestamp))
            elif kind == _CONFIG:
                configs.append(series)
            else:
                changing = changing or value > 0
            if key is not None:
                keys.append(key)
        if changing:
            found = [
                sample._replace(value=0.0) if ("__name__", _AWAKE) in sample.labels else sample for sample in found
            ]
        if old:
            there = {sample.labels for sample in found}
            found += [sample for sample in old if sample.labels not in there]
        for (model, engine), size in _kv_cache_bytes(configs, keys).items():
            pairs = {"__name__": "dsobs_engine_kv_cache_size_bytes", "model_name": model, "engine": engine}
            found.append(Sample(labels_of(pairs), float(size)))
        return found

    def facts(self, page: Page) -> EngineFacts:
        """Engines, start of the API server, KV cache size, and whether a probe can address a rank.

        `X-data-parallel-rank` is read by the completion and chat endpoints since 0.11 (pull request 24945;
        `_get_data_parallel_rank` in entrypoints/generate/base/serving.py of 0.32) and counts among the ranks of this
        server (v1/engine/input_processor.py). So ranks must count from 0, and the old name of the KV usage be gone,
        which it is since 0.12.
        """
        start: float | None = None
        old = False
        configs: list[Labels] = []
        keys: list[EngineKey] = []
        for series, value, _ in page.samples:
            entry = self._entries.get(series, _NEW)
            if entry is _NEW:
                entry = self._enter(series)
            if entry is None:
                continue
            labels, kind, key = entry
            if key is not None:
                keys.append(key)
            if kind == _CONFIG:
                configs.append(series)
            elif kind == _OLD:
                old = True
            elif labels == _START and value == value:  # noqa: PLR0124  (NaN)
                start = value
        unique = tuple(dict.fromkeys(keys))
        ranks = {engine for _, engine in unique}
        return EngineFacts(
            engine_keys=unique,
            process_start_time=start,
            flags=_flags(configs),
            kv_cache_bytes=_kv_cache_bytes(configs, keys),
            addressable=not old and len(ranks) > 1 and ranks == {str(rank) for rank in range(len(ranks))},
        )

    def paused(self, body: bytes) -> bool | None:
        """`{"is_paused": true}`: only with VLLM_SERVER_DEV_MODE=1, and asked of the core, so that a hung one says
        nothing (entrypoints/rl/online/api_router.py, v1/engine/async_llm.py of 0.32)."""
        try:
            told = orjson.loads(body)
        except orjson.JSONDecodeError:
            return None
        said = told.get("is_paused") if isinstance(told, dict) else None
        return said if isinstance(said, bool) else None

    def probe_requests(self, models: Sequence[str], request_id: str, engine: str | None) -> list[ProbeRequest]:
        """One token: completion, chat, embedding. 0.32 says 501 where a model can't, older versions 400 or 404.

        A server without models gets no request. Embeddings can't be addressed to a rank.
        """
        if not models:
            return []
        model = models[0]
        headers = {"X-Request-Id": request_id}
        one_token: dict[str, object] = {"model": model, "max_tokens": 1, "temperature": 0}
        addressed = headers if engine is None else {**headers, "X-data-parallel-rank": engine}
        chat = {**one_token, "messages": [{"role": "user", "content": _PROMPT}]}
        return [
            ProbeRequest("POST", "/v1/completions", {**one_token, "prompt": _PROMPT}, addressed, engine),
            ProbeRequest("POST", "/v1/chat/completions", chat, addressed, engine),
            ProbeRequest("POST", "/v1/embeddings", {"model": model, "input": _PROMPT}, headers),
        ]

    def _enter(self, series: Labels) -> _Entry | None:
        if len(self._entries) >= _MAX_REMEMBERED:
            self._entries.clear()
        entry = _entry(dict(series))
        self._entries[series] = entry
        return entry


_NEW: _Entry = ((), -1, None)
# Not set but found out at each start, or not settings at all.
_MEASURED = frozenset(
    {"__name__", "engine", "num_gpu_blocks", "num_cpu_blocks", "kv_cache_size_tokens", "kv_cache_max_concurrency"}
)
_START: Labels = labels_of({"__name__": "dsobs_engine_process_start_time_seconds"})
_PROMPT = "ping"


def _bare(name: str) -> str | None:
    """The name without vLLM's prefix; None if it has none."""
    return name[5:] if name.startswith(_PREFIXES) else None


def _entry(values: Mapping[str, str]) -> _Entry | None:
    full = values.get("__name__", "")
    if full in _PROCESS:
        return labels_of({"__name__": _PROCESS[full]}), _PLAIN, None
    name = _bare(full)
    if name is None:
        return None
    if name == "cache_config_info":
        return (), _CONFIG, None
    if name == _ASLEEP_SOON:
        return (), _CHANGING, None
    kind = _PLAIN
    key: EngineKey | None = None
    if name in _ONE_VALUE:
        label, wanted, canonical = _ONE_VALUE[name]
        if values.get(label) != wanted:
            return None
    elif name in _TABLE:
        canonical, kind = _TABLE[name]
    else:
        return None
    kept = {"__name__": canonical}
    for label in ("model_name", "engine"):
        if label in values:
            kept[label] = values[label]
    if canonical.endswith("_bucket"):
        bound = _bound(values.get("le", ""))
        if bound is None:
            return None
        kept["le"] = bound
    if canonical == "dsobs_engine_requests_finished_total" and "finished_reason" in values:
        kept["finished_reason"] = values["finished_reason"]
    if name in _GAUGES:
        key = (values.get("model_name", ""), values.get("engine", ""))
    return labels_of(kept), kind, key


def _bound(text: str) -> str | None:
    """A bucket's bound in its shortest form ("1", "0.5", "+Inf"), so that versions agree; None if it is no number."""
    try:
        bound = float(text)
    except ValueError:
        return None
    if bound == float("inf"):
        return "+Inf"
    return repr(bound).removesuffix(".0") if bound == bound else None  # noqa: PLR0124  (NaN)


def _flags(configs: Sequence[Labels]) -> str:
    """A short hash of the cache's configuration, the only settings on the page; "" where it is not there."""
    settings = {pair for config in configs for pair in config if pair[0] not in _MEASURED}
    return hashlib.sha256(repr(sorted(settings)).encode()).hexdigest()[:16] if settings else ""


def _kv_cache_bytes(configs: Sequence[Labels], keys: Sequence[EngineKey]) -> dict[EngineKey, int]:
    """`kv_cache_memory_bytes` of `cache_config_info`: set on CPU, "None" on CUDA unless the user set it.

    The series names an engine but no model, so with two models on one rank it is not known whose it is.
    """
    sizes: dict[EngineKey, int] = {}
    for config in configs:
        values = dict(config)
        text = values.get("kv_cache_memory_bytes", "")
        if not text.isdecimal() or int(text) == 0:
            continue
        owners = {
            key for key in keys if values.get("engine", key[1]) == key[1] and values.get("model_name", key[0]) == key[0]
        }
        if len(owners) == 1:
            sizes[owners.pop()] = int(text)
    return sizes
