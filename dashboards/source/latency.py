"""What users wait for."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.source.parts import MODEL, board, chart, heat, indicator_chart, indicator_number, query, row
from dsobs.config import Config
from dsobs.indicators import INDICATORS, Better
from dsobs.indicators.catalogue import bucket_bound

_TTFT = "dsobs_engine_time_to_first_token_seconds"
_HISTOGRAMS = (
    ("Time to first token", "When does the answer begin?", _TTFT, "time_to_first_token_p99"),
    ("Time between tokens", "Does the answer flow?", "dsobs_engine_inter_token_latency_seconds", "inter_token_p99"),
    ("Queue time", "How long before a request is begun?", "dsobs_engine_queue_duration_seconds", "queue_time_p99"),
    (
        "Request duration",
        "How long does a whole answer take?",
        "dsobs_engine_request_duration_seconds",
        "request_duration_p99",
    ),
)


def _rate(metric: str, by: str = "model_name", more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{MODEL}{more}}}[$__rate_interval]))"


def _burn(window: str) -> str:
    threshold = Config().rules.objectives
    slow = (
        f"1 - sum(rate({_TTFT}_bucket{{{MODEL},{bucket_bound(threshold.ttft_threshold)}}}[{window}]))"
        f" / sum(rate({_TTFT}_count{{{MODEL}}}[{window}]))"
    )
    return f"({slow}) / (1 - {threshold.ttft_target})"


def latency() -> Dashboard:
    """Why do users wait?"""
    made = board(
        "latency",
        "Request latency",
        "Why do users wait? Histograms count requests that got so far: a hang shows as no value, not as a long one.",
    )
    for name, how in (
        ("time_to_first_token_p99", "max"),
        ("time_to_first_token_objective", "min"),
        ("inter_token_p99", "max"),
        ("request_duration_p99", "max"),
        ("queue_time_p99", "max"),
        ("requests_waiting", "max"),
    ):
        made = made.with_panel(indicator_number(name, how))
    made = made.with_row(row("Quantiles of all servers that are chosen"))
    for title, question, metric, name in _HISTOGRAMS:
        one = INDICATORS[name]
        made = made.with_panel(
            chart(
                title,
                question,
                one.bad,
                "seconds",
                *(
                    query(
                        f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket{{{MODEL}}}[$__rate_interval])))",
                        f"P{round(q * 100)}",
                    )
                    for q in (0.5, 0.9, 0.99)
                ),
                threshold=one.threshold_of(Config()),
                better=Better.LOWER,
                span=12,
            )
        )
    made = made.with_panel(
        heat(
            "Time to first token, all requests",
            "How do requests spread?",
            "A second band above the first: a part of the requests waits, in a queue or on one server.",
            _TTFT,
        )
    )
    made = made.with_row(row("Which server"))
    for name in ("time_to_first_token_p99", "inter_token_p99", "request_duration_p99"):
        made = made.with_panel(indicator_chart(name))
    made = made.with_row(row("Objective"))
    made = made.with_panel(indicator_chart("time_to_first_token_objective", span=12))
    made = made.with_panel(
        chart(
            "How fast the error budget is burnt",
            "Is the objective going to be missed?",
            "Above 14.4 over an hour the budget of a month is gone in two days: that pages.",
            "none",
            *(query(_burn(window), f"over {window}") for window in ("5m", "30m", "1h", "6h")),
            threshold=14.4,
            better=Better.LOWER,
            span=12,
        )
    )
    made = made.with_row(row("Why"))
    for title, question, bad, unit, queries in (
        (
            "Requests",
            "Is there more to do than can be done?",
            "Waiting grows while running stands.",
            "requests",
            [
                query(f"sum(dsobs_engine_requests_{state}{{{MODEL}}})", state)
                for state in ("running", "waiting", "deferred")
            ],
        ),
        (
            "Tokens",
            "Do long prompts push generation aside?",
            "Prompt tokens rise, generated ones fall.",
            "tokens/s",
            [query(_rate(f"dsobs_engine_{kind}_tokens_total", "job"), kind) for kind in ("prompt", "generation")],
        ),
        (
            "Finished, by reason",
            "How do requests end?",
            "error, or many abort: clients give up.",
            "requests/s",
            [query(_rate("dsobs_engine_requests_finished_total", "finished_reason"), "{{finished_reason}}")],
        ),
        (
            "Tokens for each step",
            "Are batches large?",
            "Small under load: something holds the scheduler up.",
            "tokens",
            [
                query(
                    f"{_rate('dsobs_engine_generation_tokens_total')} / {_rate('dsobs_engine_steps_total')}",
                    "{{model_name}}",
                )
            ],
        ),
    ):
        made = made.with_panel(chart(title, question, bad, unit, *queries, stacked="Finished" in title))
    for name in ("kv_cache_usage", "preemption_rate", "prefix_cache_hit_ratio", "error_ratio", "queue_time_p99"):
        made = made.with_panel(indicator_chart(name))
    return made
