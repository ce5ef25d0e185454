"""The canonical signals: what dsobs exports whatever the engine, and what rules and dashboards name.

One table; `/metrics`, the engine maps and the reference page are made from it.
"""

import re
from dataclasses import dataclass

from dsobs_nvml import FAMILIES


@dataclass(frozen=True, slots=True)
class Signal:
    """One exported metric family."""

    name: str
    type: str
    """counter, gauge or histogram. A counter's name ends in `_total`."""
    help: str
    unit: str = ""
    """seconds, bytes, ratio (0 to 1), watts, celsius, hertz, joules or empty."""
    labels: tuple[str, ...] = ()


_ENGINE = ("model_name", "engine")
_GPU = ("gpu", "uuid")
_CONTAINER = ("runtime", "name")


def _table(*signals: Signal) -> dict[str, Signal]:
    return {signal.name: signal for signal in signals}


SIGNALS: dict[str, Signal] = _table(
    # What the engine says of itself, by model and engine rank.
    Signal("dsobs_engine_requests_running", "gauge", "Requests in execution.", "", _ENGINE),
    Signal("dsobs_engine_requests_waiting", "gauge", "Requests queued.", "", _ENGINE),
    Signal(
        "dsobs_engine_requests_deferred",
        "gauge",
        "Queued requests that wait for something other than capacity, such as a KV transfer.",
        "",
        _ENGINE,
    ),
    Signal("dsobs_engine_kv_cache_usage_ratio", "gauge", "Share of the KV cache in use.", "ratio", _ENGINE),
    Signal(
        "dsobs_engine_time_to_first_token_seconds", "histogram", "Time to first token of requests.", "seconds", _ENGINE
    ),
    Signal("dsobs_engine_request_duration_seconds", "histogram", "End-to-end request latency.", "seconds", _ENGINE),
    Signal("dsobs_engine_inter_token_latency_seconds", "histogram", "Time between output tokens.", "seconds", _ENGINE),
    Signal(
        "dsobs_engine_queue_duration_seconds", "histogram", "Time that requests waited in queue.", "seconds", _ENGINE
    ),
    Signal("dsobs_engine_prompt_tokens_total", "counter", "Prompt tokens processed.", "", _ENGINE),
    Signal("dsobs_engine_generation_tokens_total", "counter", "Tokens generated.", "", _ENGINE),
    Signal("dsobs_engine_steps_total", "counter", "Engine steps that gave output.", "", _ENGINE),
    Signal(
        "dsobs_engine_requests_finished_total",
        "counter",
        "Requests finished, by reason (stop, length, abort, error, …).",
        "",
        (*_ENGINE, "finished_reason"),
    ),
    Signal("dsobs_engine_preemptions_total", "counter", "Requests preempted for lack of KV cache.", "", _ENGINE),
    Signal("dsobs_engine_prefix_cache_queries_total", "counter", "Tokens looked up in the prefix cache.", "", _ENGINE),
    Signal("dsobs_engine_prefix_cache_hits_total", "counter", "Tokens found in the prefix cache.", "", _ENGINE),
    Signal("dsobs_engine_awake", "gauge", "1 while the engine is awake, 0 in sleep mode.", "", _ENGINE),
    Signal(
        "dsobs_engine_demand_ratio",
        "gauge",
        "How much of a replica its requests want: 1 is a full one. Their sum over the replicas is how many are wanted.",
        "ratio",
    ),
    Signal(
        "dsobs_engine_demand_part_ratio",
        "gauge",
        "What the demand is made of, the greatest counts: queue, kv_cache, tokens, requests, late.",
        "ratio",
        ("signal",),
    ),
    Signal(
        "dsobs_engine_capacity_tokens_per_second",
        "gauge",
        "The most tokens per second that it generated over a minute in which requests waited.",
    ),
    # What the engine says of its process.
    Signal("dsobs_engine_process_start_time_seconds", "gauge", "Start of the API server, Unix time.", "seconds"),
    Signal("dsobs_engine_process_cpu_seconds_total", "counter", "CPU time of the API server's process.", "seconds"),
    Signal("dsobs_engine_kv_cache_size_bytes", "gauge", "Size of the KV cache pool.", "bytes", _ENGINE),
    # What dsobs sees of the engine from outside.
    Signal("dsobs_engine_up", "gauge", "1 if the last scrape of the engine succeeded."),
    Signal("dsobs_engine_seen", "gauge", "1 once this engine has answered a scrape."),
    Signal("dsobs_engine_ready", "gauge", "1 if the engine is up and its /health says 200."),
    Signal("dsobs_engine_scrape_duration_seconds", "gauge", "What the last scrape took.", "seconds"),
    Signal("dsobs_engine_scrape_failures_total", "counter", "Failed scrapes, by reason.", "", ("reason",)),
    # What dsobs derives.
    Signal(
        "dsobs_engine_stall_seconds",
        "gauge",
        "Time since the last progress with work outstanding; 0 with none. Absent while the engine is not read.",
        "seconds",
        _ENGINE,
    ),
    Signal(
        "dsobs_engine_stall_threshold_seconds",
        "gauge",
        "The stall at which a probe is sent: learned from this server, 60 s in a prefill.",
        "seconds",
        _ENGINE,
    ),
    Signal(
        "dsobs_engine_stall_unconfirmed_threshold_seconds",
        "gauge",
        "The stall that counts as a hang without a probe's word; only there while no probe can be had.",
        "seconds",
        _ENGINE,
    ),
    Signal(
        "dsobs_engine_probe_success",
        "gauge",
        "Last synthetic request: 1 answered, 0 failed with no progress meanwhile. Absent if it proved neither.",
        "",
        _ENGINE,
    ),
    Signal(
        "dsobs_engine_idle_probe_failures",
        "gauge",
        "Synthetic requests in a row that failed while the engine said that it was idle.",
        "",
        _ENGINE,
    ),
    Signal("dsobs_engine_paused", "gauge", "1 while the engine says that somebody paused it."),
    Signal(
        "dsobs_engine_standstill_witness",
        "gauge",
        "1 for what CPU time and GPU say of the engine beside its own page: still, working, conflicting or unknown.",
        "",
        ("verdict",),
    ),
    Signal(
        "dsobs_engine_repair_unverified",
        "gauge",
        "1 for a firing alert that was answered with a restart, until the new instance has proved that it works.",
        "",
        ("alert", *_ENGINE),
    ),
    Signal("dsobs_engine_probes_total", "counter", "Synthetic requests sent, by outcome.", "", ("outcome",)),
    Signal(
        "dsobs_engine_down",
        "gauge",
        "1 if the process is gone unplanned, or refused 3 scrapes though it was up, or no runtime knows better.",
    ),
    Signal(
        "dsobs_engine_available",
        "gauge",
        "1 if ready, or away by a planned stop that is not dsobs's own, the start after it within its budget included.",
    ),
    Signal(
        "dsobs_engine_fault",
        "gauge",
        "1 from an alert of the engine's own (one that asks for a restart, or a start over its budget) until it is "
        "ready.",
    ),
    Signal(
        "dsobs_engine_planned_stop_seconds",
        "gauge",
        "Time for which the engine has been away by a witnessed, planned stop; 0 else.",
        "seconds",
    ),
    Signal(
        "dsobs_engine_unresponsive_seconds",
        "gauge",
        "Time for which the port accepts and not one byte was answered.",
        "seconds",
    ),
    Signal(
        "dsobs_engine_starting_seconds",
        "gauge",
        "Time for which the engine has been starting: process there or expected, not yet up; 0 once up.",
        "seconds",
    ),
    Signal("dsobs_engine_startup_budget_seconds", "gauge", "Start-up time that is granted.", "seconds"),
    # GPUs.
    *(
        Signal(family.name, family.type, family.help, family.unit, (*_GPU, *family.labels))
        for family in FAMILIES.values()
    ),
    Signal(
        "dsobs_gpu_memory_used_ratio", "gauge", "Memory in use over total, reserved KV cache included.", "ratio", _GPU
    ),
    Signal(
        "dsobs_gpu_memory_effective_ratio",
        "gauge",
        "Memory in use for work over total: the unused part of the KV cache pool does not count. `source` says how it "
        "is known: pool (pool size known), kv_usage (KV-cache usage itself) or raw (this engine reserves nothing).",
        "ratio",
        (*_GPU, "source"),
    ),
    Signal(
        "dsobs_gpu_signals_up",
        "gauge",
        "1 if the cards are read, 0 if they were and are not. Absent where none was ever read.",
    ),
    Signal(
        "dsobs_gpu_foreign_memory_bytes",
        "gauge",
        "Memory of processes that are not the engine's. Absent where process ids can't be matched.",
        "bytes",
        _GPU,
    ),
    # The engine's container or process.
    Signal("dsobs_container_running", "gauge", "1 if the runtime says that it runs.", "", ("runtime", "name")),
    Signal("dsobs_container_start_time_seconds", "gauge", "Start, Unix time.", "seconds", ("runtime", "name")),
    Signal(
        "dsobs_container_restarts_24h", "gauge", "Restarts in the last 24 hours, an integer.", "", ("runtime", "name")
    ),
    Signal("dsobs_container_last_exit_code", "gauge", "Exit code of the last instance.", "", ("runtime", "name")),
    Signal(
        "dsobs_container_oom_killed", "gauge", "1 if the last instance was killed for memory.", "", ("runtime", "name")
    ),
    Signal(
        "dsobs_container_cpu_seconds_total", "counter", "CPU time of its processes.", "seconds", ("runtime", "name")
    ),
    Signal(
        "dsobs_container_memory_usage_bytes",
        "gauge",
        "Memory of the engine's cgroup, page cache included.",
        "bytes",
        _CONTAINER,
    ),
    Signal(
        "dsobs_container_memory_working_set_bytes",
        "gauge",
        "Memory of the engine's cgroup without page cache that can be given back.",
        "bytes",
        _CONTAINER,
    ),
    Signal(
        "dsobs_container_memory_limit_bytes",
        "gauge",
        "Memory limit that holds for the engine's cgroup; absent without one.",
        "bytes",
        _CONTAINER,
    ),
    Signal(
        "dsobs_container_oom_kills_total",
        "counter",
        "Processes of the engine's cgroup that were killed for memory.",
        "",
        _CONTAINER,
    ),
    Signal(
        "dsobs_container_cpu_pressure_waiting_seconds_total",
        "counter",
        "Time for which some process of the engine's cgroup waited for CPU (cgroup v2).",
        "seconds",
        _CONTAINER,
    ),
    Signal(
        "dsobs_container_cpu_pressure_stalled_seconds_total",
        "counter",
        "Time for which all processes of the engine's cgroup waited for CPU (cgroup v2).",
        "seconds",
        _CONTAINER,
    ),
    Signal(
        "dsobs_container_cpu_throttled_seconds_total",
        "counter",
        "Time for which the engine's cgroup was held back by its CPU quota.",
        "seconds",
        _CONTAINER,
    ),
    # The host.
    Signal("dsobs_host_shm_used_ratio", "gauge", "Share of the engine's /dev/shm in use.", "ratio"),
    Signal("dsobs_host_shm_used_bytes", "gauge", "The engine's /dev/shm in use.", "bytes"),
    Signal("dsobs_host_shm_size_bytes", "gauge", "Size of the engine's /dev/shm.", "bytes"),
    Signal("dsobs_host_filesystem_avail_bytes", "gauge", "Disk space left.", "bytes", ("mountpoint",)),
    Signal("dsobs_host_filesystem_size_bytes", "gauge", "Size of the file system.", "bytes", ("mountpoint",)),
)

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def is_passed(name: str) -> bool:
    """Whether an engine's own metric of this name is passed through, to the page and to rules.

    Not those of its process, which would be taken for dsobs's; not what is named like dsobs's own series; not names
    that can't be written in the formats of the page.
    """
    return not name.startswith(("process_", "python_", "dsobs_", "ALERTS")) and _NAME.fullmatch(name) is not None
