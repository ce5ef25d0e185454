"""All servers at a glance."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.source.parts import (
    MODEL,
    SERVER,
    board,
    chart,
    indicator_chart,
    number,
    query,
    row,
    rows,
    series_of,
)
from dsobs.config import Config
from dsobs.indicators import INDICATORS, Better

_RESTARTS = Config().rules.restarts.threshold
_SERVED = f"max by (instance, job, model_name) (dsobs_engine_requests_running{{{MODEL}}})"
_READY = series_of(INDICATORS["engine_ready"])
_WORST_FIRST = ("alerts_firing", "engine_ready", "availability", "restarts_24h", "gpu_faults", "requests_waiting")
_COLUMNS = (*_WORST_FIRST, "time_to_first_token_p99", "error_ratio", "kv_cache_usage", "gpu_memory_effective")


def fleet() -> Dashboard:
    """Is anything wrong, and where?"""
    made = board(
        "fleet",
        "Fleet",
        "Is anything wrong, and where? Every panel shows the worst servers only: fit for 1 and for 1,000.",
    )
    for title, question, bad, expr, threshold, better in (
        ("Servers", "How many servers are watched?", "Fewer than there should be.", f"count({_READY})", None, "lower"),
        ("Ready", "How many take requests?", "Fewer than there are servers.", f"sum({_READY})", None, "lower"),
        (
            "Not ready",
            "How many take none?",
            "Above 0: down, starting, or /health fails.",
            f"count({_READY} == 0) or 0 * count({_READY})",
            0,
            "lower",
        ),
        (
            "With alerts",
            "How many have an alert that fires?",
            "Above 0: look at the table below.",
            f"count({series_of(INDICATORS['alerts_firing'])} > 0) or 0 * count({_READY})",
            0,
            "lower",
        ),
        (
            "With GPU faults",
            "How many had a fault of a card within the hour?",
            "Above 0: see the GPU dashboard.",
            f"count({series_of(INDICATORS['gpu_faults'])} > 0) or 0 * count({_READY})",
            0,
            "lower",
        ),
        (
            "Restarted too often",
            "How many were restarted more often than is allowed in 24 hours?",
            "Above 0: dsobs restarts those no more.",
            f"count({series_of(INDICATORS['restarts_24h'])} > {_RESTARTS}) or 0 * count({_READY})",
            0,
            "lower",
        ),
    ):
        made = made.with_panel(
            number(title, question, bad, "servers", expr, threshold=threshold, better=Better(better))
        )
    made = made.with_panel(
        rows(
            "Servers that need a look",
            "Which servers have alerts, and how are they otherwise?",
            "Any row: click the instance for its dashboard. Empty cells are not known.",
            *(
                query(
                    f"topk(50, {series_of(INDICATORS['alerts_firing'])} > 0)"
                    if name == "alerts_firing"
                    else f"max by (instance, job) ({series_of(INDICATORS[name])}) and on (instance, job) "
                    f"topk(50, {series_of(INDICATORS['alerts_firing'])} > 0)",
                    now=True,
                    as_table=True,
                )
                for name in _COLUMNS
            ),
            named=[
                (f"Value #{chr(ord('A') + place)}", INDICATORS[name].title, INDICATORS[name].unit)
                for place, name in enumerate(_COLUMNS)
            ],
            link=("instance", "server"),
        )
    )
    made = made.with_row(row("Users"))
    for name in ("time_to_first_token_p99", "time_to_first_token_objective", "error_ratio"):
        made = made.with_panel(indicator_chart(name))
    for name in ("requests_waiting", "queue_time_p99", "availability"):
        made = made.with_panel(indicator_chart(name))
    made = made.with_row(row("Load"))
    for title, question, name in (
        ("Tokens generated, all servers", "How much does the fleet give?", "generation_throughput"),
        ("Requests finished, all servers", "How much is asked of the fleet?", "request_rate"),
        ("Requests running, all servers", "How much is in work?", "requests_running"),
    ):
        one = INDICATORS[name]
        expr = f"sum by (model_name) ({series_of(one)})"
        made = made.with_panel(chart(title, question, one.bad, one.unit, query(expr, "{{model_name}}"), stacked=True))
    made = made.with_row(row("Capacity"))
    for name in ("kv_cache_usage", "gpu_memory_effective", "preemption_rate"):
        made = made.with_panel(indicator_chart(name))
    utilization = INDICATORS["gpu_utilization"]
    made = made.with_panel(
        chart(
            "GPU utilization, spread",
            utilization.question,
            "The lowest at 0 while others work: a server that gets no requests, or hangs.",
            "ratio",
            *(
                query(f"quantile({q}, {series_of(utilization)})", words)
                for q, words in ((1, "highest"), (0.5, "median"), (0, "lowest"))
            ),
        )
    )
    made = made.with_panel(
        chart(
            "Power, all cards",
            "What does the fleet draw?",
            "A fall under the same load: servers are gone.",
            "watts",
            query(f"sum(dsobs_gpu_power_watts{{{SERVER}}})", "all"),
        )
    )
    made = made.with_panel(indicator_chart("turn_age"))
    made = made.with_row(row("Versions and models"))
    made = made.with_panel(
        rows(
            "dsobs",
            "Which versions run, and on how many servers?",
            "More than one version long after a rollout.",
            query(f"count by (version) (dsobs_build_info{{{SERVER}}})", now=True, as_table=True),
            named=[("Value", "servers", "none")],
            span=12,
        )
    )
    return made.with_panel(
        rows(
            "Models",
            "Which models are served, and by how many servers?",
            "A model on fewer servers than it should be.",
            query(
                f"count by (model_name) ({_SERVED})",
                now=True,
                as_table=True,
            ),
            named=[("Value", "servers", "none")],
            span=12,
        )
    )
