"""The table of the indicators. A new one is one entry."""

from dsobs.config.models import Config, Rules
from dsobs.indicators.indicator import Better, Class, Indicator, Threshold, fixed

_SERVER = "cluster, namespace, tenant, instance, job"
"""What names a server, where labels can't simply be left out."""
_HARMLESS_XIDS = "43|45|63|92|154"
_TTFT = "dsobs_engine_time_to_first_token_seconds"
_E2E = "dsobs_engine_request_duration_seconds"
_GAUGE = "The gauge of that name (docs/reference/metrics.md)"


def bucket_bound(seconds: float) -> str:
    """A matcher of the histogram bucket of this bound; Prometheus 3 writes a whole one as 1.0, engines 1 or 1.0."""
    text = repr(float(seconds)).removesuffix(".0")
    return f'le="{text}"' if "." in text or "e" in text else f'le=~"{text}|{text}[.]0"'


def _p99(histogram: str) -> str:
    return f"histogram_quantile(\n  0.99,\n  sum without (engine) (rate({histogram}_bucket[5m]))\n) >= 0"


def _objective(formula: str, rules: Rules) -> str:
    return formula.replace(
        bucket_bound(Rules().objectives.ttft_threshold), bucket_bound(rules.objectives.ttft_threshold)
    )


def _memory(form: str) -> Threshold:
    def value(config: Config) -> float | None:
        rule = config.rules.gpu_memory
        return rule.threshold if rule.form == form else None

    return Threshold(value, "GPUMemoryHigh", "for 5m")


def _latency(signal: str) -> Threshold:
    def value(config: Config) -> float | None:
        rule = config.rules.latency_p99
        return rule.threshold if rule.signal == signal else None

    return Threshold(value, "LatencyP99High", "over 5m, 100 requests or more")


def _table(*indicators: Indicator) -> dict[str, Indicator]:
    return {indicator.name: indicator for indicator in indicators}


INDICATORS: dict[str, Indicator] = _table(
    # Resource use.
    Indicator(
        "gpu_memory_effective",
        "GPU memory in use for work",
        Class.RESOURCES,
        "Is the fullest card about to run out of memory?",
        "max without (gpu, uuid, source) (dsobs_gpu_memory_effective_ratio)",
        "ratio",
        Better.LOWER,
        "Above the threshold for minutes: requests will be preempted or refused; the unused part of the KV cache pool "
        "is already taken off.",
        "(used − pool × (1 − KV cache usage)) / total of each card; the documented threshold: 85 % for 5 minutes",
        _memory("effective"),
    ),
    Indicator(
        "gpu_memory_used",
        "GPU memory taken",
        Class.RESOURCES,
        "How much of the fullest card is taken, the engine's reserve included?",
        "max without (gpu, uuid) (dsobs_gpu_memory_used_ratio)",
        "ratio",
        Better.LOWER,
        "A healthy vLLM takes some 93 % at start and keeps it; a fall to nearly 0 means that the engine is gone, a "
        "rise above where it started that something else takes memory.",
        "NVML; the documented threshold in its literal form (`rules.gpu_memory.form: literal`)",
        _memory("literal"),
    ),
    Indicator(
        "kv_cache_usage",
        "KV cache in use",
        Class.RESOURCES,
        "Is there room for more requests?",
        "max without (engine) (dsobs_engine_kv_cache_usage_ratio)",
        "ratio",
        Better.LOWER,
        "Near 100 % with requests waiting: the server is full, and begins to preempt.",
        "The engine's own gauge, of the fullest rank",
        fixed(0.95, "KVCacheSaturated", "over 5m with requests waiting, for 5m"),
    ),
    Indicator(
        "gpu_utilization",
        "GPU utilization",
        Class.RESOURCES,
        "Do the cards work?",
        "avg without (gpu, uuid) (dsobs_gpu_utilization_ratio)",
        "ratio",
        Better.NEITHER,
        "0 % with requests running is a hang; 100 % says only that some kernel always runs.",
        "NVML: share of time in which a kernel ran, mean of the cards",
    ),
    Indicator(
        "gpu_power",
        "GPU power of its limit",
        Class.RESOURCES,
        "How hard do the cards work?",
        "max without (gpu, uuid) (dsobs_gpu_power_watts / dsobs_gpu_power_limit_watts)",
        "ratio",
        Better.NEITHER,
        "Idle power with requests running is a hang; at the limit the card is as fast as it may be.",
        "NVML: power drawn over the enforced limit, of the card nearest to it",
    ),
    Indicator(
        "gpu_temperature_margin",
        "GPU temperature margin",
        Class.RESOURCES,
        "How far is the hottest card from being slowed down?",
        "min without (gpu, uuid) (\n"
        "  dsobs_gpu_temperature_margin_celsius\n"
        "  or\n"
        "  (\n"
        '    dsobs_gpu_temperature_threshold_celsius{threshold="slowdown"}\n'
        "    - ignoring (threshold) dsobs_gpu_temperature_celsius\n"
        "  )\n"
        ")",
        "celsius",
        Better.HIGHER,
        "At 0 the card holds its clocks down: look at air flow, fans and its neighbours.",
        "NVML's margin; where the driver has none, its slowdown temperature less the temperature",
        fixed(0.0, "GPUThrottled", "clocks held down for 5m"),
    ),
    Indicator(
        "gpu_throttled",
        "GPU clocks held down",
        Class.RESOURCES,
        "For how much of the last 5 minutes were clocks held down by heat or power supply?",
        "max without (gpu, uuid, reason) (\n"
        "  avg_over_time(\n"
        '    dsobs_gpu_clock_event_active{reason=~"'
        'hw_slowdown|hw_thermal_slowdown|sw_thermal_slowdown|hw_power_brake_slowdown|board_limit|reliability"}[5m]\n'
        "  )\n"
        ")",
        "ratio",
        Better.LOWER,
        "Above 0 the card is slower than it could be for a reason other than its power limit.",
        "NVML's clock event reasons, the power cap left out: a busy card works at that",
        fixed(0.99, "GPUThrottled", "for 5m"),
    ),
    Indicator(
        "energy_efficiency",
        "Tokens for each joule",
        Class.RESOURCES,
        "What does the energy give?",
        "sum without (model_name, engine) (rate(dsobs_engine_generation_tokens_total[5m]))\n"
        "/ sum without (gpu, uuid) (avg_over_time(dsobs_gpu_power_watts[5m]))",
        "tokens/J",
        Better.HIGHER,
        "Low while busy: batches are small, or clocks are held down; 0 with requests running is a hang.",
        "Tokens generated over power drawn by the cards, 5 minutes",
    ),
    Indicator(
        "container_cpu",
        "CPU of the engine",
        Class.RESOURCES,
        "How many cores does the engine use?",
        "sum without (runtime, name) (rate(dsobs_container_cpu_seconds_total[1m]))",
        "cores",
        Better.NEITHER,
        "0 with requests running is a standstill; at its quota the engine's scheduler is starved.",
        "CPU time of the engine's processes, by its runtime",
    ),
    Indicator(
        "container_memory",
        "Memory of its limit",
        Class.RESOURCES,
        "Will the kernel kill the engine for memory?",
        "max without (runtime, name) (\n"
        "  dsobs_container_memory_working_set_bytes / dsobs_container_memory_limit_bytes\n"
        ")",
        "ratio",
        Better.LOWER,
        "Near 100 %: the next allocation ends the engine (OOM kill).",
        "The engine's cgroup: working set over limit",
        fixed(0.95, "ContainerMemoryHigh", "for 2m"),
    ),
    Indicator(
        "shm_used",
        "Shared memory in use",
        Class.RESOURCES,
        "Is /dev/shm full?",
        "dsobs_host_shm_used_ratio",
        "ratio",
        Better.LOWER,
        "Full: workers end with SIGBUS or ENOSPC. After crashes it stays full, since a container restart does not "
        "clear it.",
        _GAUGE,
        fixed(0.9, "HostShmNearlyFull", "for 1m"),
    ),
    Indicator(
        "disk_free",
        "Disk space left",
        Class.RESOURCES,
        "Is there room for logs and state?",
        "min without (mountpoint) (dsobs_host_filesystem_avail_bytes / dsobs_host_filesystem_size_bytes)",
        "ratio",
        Better.HIGHER,
        "Near 0: nothing is logged or recorded any more, and repairs stop, since they can't be recorded.",
        "The fullest of the file systems that are watched",
        fixed(0.05, "HostDiskNearlyFull", "for 5m"),
    ),
    # Inference performance.
    Indicator(
        "request_rate",
        "Requests finished",
        Class.PERFORMANCE,
        "How much is asked of the server?",
        "sum without (engine, finished_reason) (rate(dsobs_engine_requests_finished_total[1m]))",
        "requests/s",
        Better.NEITHER,
        "0 with requests running or waiting: nothing gets done.",
        "The engine's counter, all reasons",
    ),
    Indicator(
        "generation_throughput",
        "Tokens generated",
        Class.PERFORMANCE,
        "How much does the server give?",
        "sum without (engine) (rate(dsobs_engine_generation_tokens_total[1m]))",
        "tokens/s",
        Better.HIGHER,
        "0 with requests running is a hang, or one very long prompt; falling under the same load is a server that "
        "slows down.",
        "The engine's counter",
    ),
    Indicator(
        "prompt_throughput",
        "Prompt tokens processed",
        Class.PERFORMANCE,
        "How much does the server read?",
        "sum without (engine) (rate(dsobs_engine_prompt_tokens_total[1m]))",
        "tokens/s",
        Better.NEITHER,
        "High while few tokens are generated: long prompts push generation aside.",
        "The engine's counter",
    ),
    Indicator(
        "requests_running",
        "Requests running",
        Class.PERFORMANCE,
        "How many requests are served now?",
        "sum without (engine) (dsobs_engine_requests_running)",
        "requests",
        Better.NEITHER,
        "0 with requests waiting: the scheduler is stuck. Standing still with no tokens: a hang.",
        "The engine's gauge, sum of its ranks",
    ),
    Indicator(
        "requests_waiting",
        "Requests waiting",
        Class.PERFORMANCE,
        "Does a queue build up?",
        "sum without (engine) (dsobs_engine_requests_waiting)",
        "requests",
        Better.LOWER,
        "Above the threshold and growing: more is asked than the server can do.",
        "The engine's gauge, sum of its ranks",
        fixed(10, "QueueGrowing", "throughout 5m, and twice as many as 10m before, for 2m"),
    ),
    Indicator(
        "queue_time_p99",
        "Queue time, P99",
        Class.PERFORMANCE,
        "How long do requests wait before they are begun?",
        _p99("dsobs_engine_queue_duration_seconds"),
        "seconds",
        Better.LOWER,
        "A large part of the time to first token: the server is short of capacity, not slow.",
        "The engine's histogram, 5 minutes",
    ),
    Indicator(
        "time_to_first_token_p99",
        "Time to first token, P99",
        Class.PERFORMANCE,
        "How long do users wait until the answer begins?",
        _p99(_TTFT),
        "seconds",
        Better.LOWER,
        "Above the threshold users wait; only requests that got a first token count, so a hang shows as no value.",
        "The engine's histogram, 5 minutes; the documented threshold: 500 ms at P99",
        _latency("ttft"),
    ),
    Indicator(
        "time_to_first_token_objective",
        "First tokens in time",
        Class.PERFORMANCE,
        "Which share of requests got its first token within the objective?",
        f"sum without (engine, le) (rate({_TTFT}_bucket{{{bucket_bound(Rules().objectives.ttft_threshold)}}}[5m]))\n"
        f"/ (sum without (engine) (rate({_TTFT}_count[5m])) > 0)",
        "ratio",
        Better.HIGHER,
        "Below the target the error budget is burnt; the budget alerts say how fast.",
        "The engine's histogram, 5 minutes; `rules.objectives.ttft_threshold` and `ttft_target`",
        Threshold(lambda config: config.rules.objectives.ttft_target, "TimeToFirstTokenBudgetFast", "by burn rate"),
        _objective,
    ),
    Indicator(
        "inter_token_p99",
        "Time between tokens, P99",
        Class.PERFORMANCE,
        "Does the answer flow?",
        _p99("dsobs_engine_inter_token_latency_seconds"),
        "seconds",
        Better.LOWER,
        "Above some 100 ms readers notice it: batches are too large, or prefills push in.",
        "The engine's histogram, 5 minutes",
    ),
    Indicator(
        "request_duration_p99",
        "Request duration, P99",
        Class.PERFORMANCE,
        "How long does a whole answer take?",
        _p99(_E2E),
        "seconds",
        Better.LOWER,
        "It grows with the length of answers; compare it with the same hour of another day.",
        "The engine's histogram, 5 minutes; the documented threshold for servers of short answers "
        "(`rules.latency_p99.signal: e2e`)",
        _latency("e2e"),
    ),
    Indicator(
        "error_ratio",
        "Requests that failed",
        Class.PERFORMANCE,
        "Which share of requests ends in an error?",
        "sum without (engine, finished_reason) (\n"
        '  rate(dsobs_engine_requests_finished_total{finished_reason="error"}[5m])\n'
        ")\n"
        "/ (\n"
        "  sum without (engine, finished_reason) (\n"
        '    rate(dsobs_engine_requests_finished_total{finished_reason!="abort"}[5m])\n'
        "  ) > 0\n"
        ")",
        "ratio",
        Better.LOWER,
        "Above the threshold: look at the engine's log. Clients that give up are left out.",
        "The engine's counter, 5 minutes, aborted requests left out",
        fixed(0.05, "ErrorRateHigh", "20 requests or more, for 2m"),
    ),
    Indicator(
        "preemption_rate",
        "Preemptions",
        Class.PERFORMANCE,
        "Is work thrown away for lack of KV cache?",
        "sum without (engine) (rate(dsobs_engine_preemptions_total[5m]))",
        "preemptions/s",
        Better.LOWER,
        "Above the threshold requests are computed again and again: scale out or shed load; a restart makes it worse.",
        "The engine's counter, 5 minutes",
        fixed(0.1, "PreemptionThrash", "with the KV cache above 95%, for 5m"),
    ),
    Indicator(
        "prefix_cache_hit_ratio",
        "Prefix cache hits",
        Class.PERFORMANCE,
        "How much of the prompts need not be computed?",
        "sum without (engine) (rate(dsobs_engine_prefix_cache_hits_total[5m]))\n"
        "/ (sum without (engine) (rate(dsobs_engine_prefix_cache_queries_total[5m])) > 0)",
        "ratio",
        Better.HIGHER,
        "A fall under the same traffic: the cache is too small, or a router sends prompts elsewhere.",
        "The engine's counters of tokens, 5 minutes",
    ),
    # System health.
    Indicator(
        "engine_ready",
        "Ready",
        Class.HEALTH,
        "Does the server take requests?",
        "dsobs_engine_ready",
        "bool",
        Better.HIGHER,
        "0: it is down, starting, or its /health fails.",
        _GAUGE,
        fixed(1.0, "EngineDown", "where the process ended or its port refused 3 scrapes"),
    ),
    Indicator(
        "availability",
        "Available in the last hour",
        Class.HEALTH,
        "For which share of the last hour could it be used?",
        "avg_over_time(dsobs:engine_available:avg30s[1h])",
        "ratio",
        Better.HIGHER,
        "Below the target the error budget is burnt; planned stops burn none.",
        "`rules.objectives.availability_target`",
        Threshold(lambda config: config.rules.objectives.availability_target, "AvailabilityBudgetFast", "by burn rate"),
    ),
    Indicator(
        "engine_stall",
        "Stall of its limit",
        Class.HEALTH,
        "Does work get on?",
        "max without (model_name, engine) (dsobs_engine_stall_seconds / dsobs_engine_stall_threshold_seconds)",
        "ratio",
        Better.LOWER,
        "Above 100 %: longer without any progress than this server ever was while healthy. A failed probe makes it a "
        "hang.",
        "Time without progress while requests are outstanding, over the learned threshold, of the slowest rank",
        fixed(1.0, "EngineHung", "and a failed probe"),
    ),
    Indicator(
        "engine_unresponsive",
        "Not a byte answered",
        Class.HEALTH,
        "Does the port answer at all?",
        "dsobs_engine_unresponsive_seconds",
        "seconds",
        Better.LOWER,
        "Above 0: connections are accepted and nothing comes back.",
        "`hang.unresponsive_after`",
        Threshold(lambda config: config.hang.unresponsive_after, "EngineUnresponsive"),
    ),
    Indicator(
        "start_up",
        "Start-up of its budget",
        Class.HEALTH,
        "Does it take too long to come up?",
        "dsobs_engine_starting_seconds / dsobs_engine_startup_budget_seconds",
        "ratio",
        Better.LOWER,
        "Above 100 %: it should be up by now. 0 once it is.",
        "`startup.budget`",
        fixed(1.0, "EngineStartSlow"),
    ),
    Indicator(
        "restarts_24h",
        "Restarts in 24 hours",
        Class.HEALTH,
        "How often was it restarted?",
        "max without (runtime, name) (dsobs_container_restarts_24h)",
        "restarts",
        Better.LOWER,
        "Above the threshold something keeps ending it; dsobs restarts it no more.",
        "Runtime, or start times; the documented threshold: more than 3 in 24 hours",
        Threshold(lambda config: float(config.rules.restarts.threshold), "ContainerRestartsHigh"),
    ),
    Indicator(
        "gpu_faults",
        "GPU faults in the last hour",
        Class.HEALTH,
        "Did a card report a fault?",
        "count without (gpu, uuid, xid, reason) (\n"
        f'  time() - dsobs_gpu_xid_last_time_seconds{{xid!~"{_HARMLESS_XIDS}"}} < 3600\n'
        ")\n"
        "or 0 * max without (gpu, uuid) (dsobs_gpu_up)",
        "faults",
        Better.LOWER,
        "Above 0: the XID says whether the application, the card or the node needs help.",
        "NVML's XID events, those left out that need nothing (43, 45, 63, 92, 154)",
        fixed(
            0.0, "GPUResetNeeded", "by XID: also GPUFellOffBus, GPUNVLinkFault, GPUFaultEscalate, GPUApplicationFault"
        ),
    ),
    Indicator(
        "gpu_ecc_uncorrected",
        "ECC errors not corrected",
        Class.HEALTH,
        "Does a card's memory fail?",
        'sum without (gpu, uuid, type) (increase(dsobs_gpu_ecc_errors_total{type="uncorrected"}[1h]))',
        "errors",
        Better.LOWER,
        "Above 0: results may be wrong, and rows will be remapped at the next reset.",
        "NVML, one hour",
        fixed(0.0, "GPUECCUncorrected"),
    ),
    Indicator(
        "alerts_firing",
        "Alerts firing",
        Class.HEALTH,
        "What is known to be wrong?",
        f"count by ({_SERVER}) (\n"
        '  ALERTS{alertstate="firing",severity=~"critical|error|warning"}\n'
        ")\n"
        f"or 0 * max by ({_SERVER}) (dsobs_engine_seen)",
        "alerts",
        Better.LOWER,
        "Above 0: each has evidence and a runbook.",
        "ALERTS, as Prometheus has them; information and the watchdog left out",
        fixed(0.0, "every alert"),
    ),
    Indicator(
        "log_delay",
        "Log shipping behind",
        Class.HEALTH,
        "Do logs arrive?",
        "max without (source) (dsobs_log_behind_seconds)",
        "seconds",
        Better.LOWER,
        "Above the threshold what Elasticsearch shows is old; nothing is lost while the files last.",
        "Age of the oldest line that is not acknowledged",
        fixed(600.0, "LogShippingBehind", "while records arrive, for 10m"),
    ),
    Indicator(
        "log_fatal_lines",
        "Fatal log lines",
        Class.HEALTH,
        "Does the log tell of a fault?",
        "sum without (pattern) (increase(dsobs_log_matches_total[5m]))",
        "lines",
        Better.LOWER,
        "Above 0: out of memory, NCCL, a dead engine core; the pattern's name says which.",
        "Lines that match a pattern of the table, 5 minutes",
        fixed(0.0, "EngineLogFatal", "and no alert of the engine"),
    ),
    Indicator(
        "notification_delay",
        "Notifications behind",
        Class.HEALTH,
        "Would anybody be told?",
        "max without (notifier) (dsobs_outbox_oldest_seconds)",
        "seconds",
        Better.LOWER,
        "Above the threshold pages do not get through.",
        "Age of the oldest notification that no notifier accepted",
        fixed(300.0, "DsobsOutboxStuck"),
    ),
    Indicator(
        "turn_age",
        "Last look of dsobs",
        Class.HEALTH,
        "Does dsobs itself see anything?",
        "max without (loop) (time() - dsobs_loop_last_tick_timestamp_seconds)",
        "seconds",
        Better.LOWER,
        "Above some seconds everything else on the page is old.",
        "Time since the slowest of dsobs's loops turned",
        fixed(120.0, "DsobsLoopStalled", "for 1m"),
    ),
)
