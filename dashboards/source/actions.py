"""What is known to be wrong, what was done about it, and whether anybody was told."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.source.parts import SERVER, board, chart, indicator_chart, number, query, row, rows, states
from dsobs.config import Config

_FIRING = f'ALERTS{{{SERVER},alertstate="firing",severity!="none"}}'
_SEEN = f"0 * count(dsobs_engine_seen{{{SERVER}}})"


def _grown(counter: str, by: str) -> str:
    """Of a counter whose series begin at their first event: since the window's begin, or all of it."""
    whole = f"{counter}{{{SERVER}}}"
    return f"sum by ({by}) (increase({whole}[1h]) or ({whole} unless {whole} offset 1h))"


def actions() -> Dashboard:
    """What happened, what did dsobs do, what is left to do?"""
    made = board("actions", "Alerts and actions", "What happened, what did dsobs do, what is left to do?", models=False)
    for title, question, bad, expr, threshold in (
        (
            "Critical alerts",
            "What pages at once?",
            "Above 0.",
            f'count({_FIRING[:-1]},severity="critical"}}) or {_SEEN}',
            0,
        ),
        ("Warnings", "What else fires?", "Above 0.", f'count({_FIRING[:-1]},severity="warning"}}) or {_SEEN}', 0),
        (
            "Pending",
            "What is about to fire?",
            "Many at once.",
            f'count(ALERTS{{{SERVER},alertstate="pending"}}) or {_SEEN}',
            None,
        ),
        (
            "Servers in a fault",
            "On how many does an alert of the engine's own stand?",
            "Above 0: it was restarted and has not proved itself, or waits for somebody.",
            f"sum(dsobs_engine_fault{{{SERVER}}})",
            0,
        ),
        (
            "Restarts in 24 hours",
            "How many, at the worst server?",
            "Above 3 dsobs does no more.",
            f"max(dsobs_container_restarts_24h{{{SERVER}}})",
            Config().rules.restarts.threshold,
        ),
        (
            "Ledger can't be written",
            "On how many can no action be recorded?",
            "Above 0: nothing is repaired there.",
            f"count(dsobs_ledger_writable{{{SERVER}}} == 0) or {_SEEN}",
            0,
        ),
    ):
        made = made.with_panel(number(title, question, bad, "alerts", expr, threshold=threshold))
    made = made.with_panel(
        rows(
            "Alerts that fire",
            "What, where, how bad?",
            "Any row; each alert has a runbook of its name in docs/runbooks.",
            query(f"topk(100, {_FIRING})", now=True, as_table=True),
            left_out=("Value", "alertstate", "action", "cause"),
            link=("instance", "server"),
        )
    )
    made = made.with_panel(
        states(
            "Alerts over time",
            "Since when?",
            "Red: fires.",
            query(f"max by (instance, alertname) (topk(50, {_FIRING}))", "{{instance}} {{alertname}}"),
            words=(("1", "fires", "red"),),
        )
    )
    made = made.with_row(row("Actions"))
    for title, question, bad, unit, legend, expr in (
        (
            "Steps of dsobs within the hour",
            "What did it do?",
            "Steps that failed, or whose outcome is not known.",
            "none",
            "{{action}} {{result}}",
            _grown("dsobs_remediation_steps_total", "action, result"),
        ),
        (
            "Probes within the hour",
            "Were synthetic requests answered?",
            "timeout, with work outstanding.",
            "none",
            "{{outcome}}",
            _grown("dsobs_engine_probes_total", "outcome"),
        ),
    ):
        made = made.with_panel(chart(title, question, bad, unit, query(expr, legend)))
    made = made.with_panel(indicator_chart("restarts_24h"))
    made = made.with_panel(
        chart(
            "Stall and its limit",
            "How long without progress, and how long is normal?",
            "The stall above its limit.",
            "seconds",
            query(f"topk(10, dsobs_engine_stall_seconds{{{SERVER}}})", "{{instance}} stall"),
            query(f"topk(10, dsobs_engine_stall_threshold_seconds{{{SERVER}}})", "{{instance}} limit"),
        )
    )
    made = made.with_panel(
        chart(
            "What CPU and GPU say",
            "Is there a second witness of a standstill?",
            "still, with requests running.",
            "none",
            query(f"sum by (verdict) (dsobs_engine_standstill_witness{{{SERVER}}})", "{{verdict}}"),
            stacked=True,
        )
    )
    made = made.with_panel(
        chart(
            "Failed scrapes",
            "Why can the engine's page not be read?",
            "refused: nobody listens. timeout: it is busy, or hangs.",
            "none",
            query(
                f"sum by (reason) (rate(dsobs_engine_scrape_failures_total{{{SERVER}}}[$__rate_interval]))",
                "{{reason}}",
            ),
        )
    )
    made = made.with_row(row("Telling"))
    made = made.with_panel(
        chart(
            "Notifications within the hour",
            "Who was told, and what became of it?",
            "Anything but accepted.",
            "none",
            query(_grown("dsobs_notifications_total", "notifier, outcome"), "{{notifier}} {{outcome}}"),
        )
    )
    made = made.with_panel(indicator_chart("notification_delay", legend="{{instance}}"))
    made = made.with_panel(
        chart(
            "Time until somebody is told, P99",
            "How long from the alert to its acceptance?",
            "Above 10 s.",
            "seconds",
            query(
                "histogram_quantile(0.99, sum by (notifier, le) "
                f"(rate(dsobs_notification_delivery_seconds_bucket{{{SERVER}}}[1h])))",
                "{{notifier}}",
            ),
        )
    )
    made = made.with_row(row("dsobs itself"))
    for title, question, bad, unit, expr, legend in (
        (
            "Turns missed",
            "Does dsobs keep up?",
            "More than a tenth: the machine is short of CPU.",
            "none",
            f"topk(20, rate(dsobs_loop_missed_ticks_total{{{SERVER}}}[5m]))",
            "{{instance}} {{loop}}",
        ),
        (
            "Rules that fail",
            "Is every rule evaluated?",
            "Above 0: the rule says nothing.",
            "none",
            f"sum by (group) (rate(dsobs_rule_evaluation_failures_total{{{SERVER}}}[5m])) "
            f"or 0 * sum by (group) (rate(dsobs_rule_evaluations_total{{{SERVER}}}[5m]))",
            "{{group}}",
        ),
        (
            "Settings that were not taken",
            "Does every dsobs run with the settings that it was given?",
            "Above 0: the last file had an error, and the settings before it hold.",
            "none",
            f"sum(1 - dsobs_config_last_reload_successful{{{SERVER}}})",
            "servers",
        ),
        (
            "CPU of dsobs",
            "What does it cost?",
            "Above 10 % of a core.",
            "ratio",
            f"topk(20, rate(process_cpu_seconds_total{{{SERVER}}}[5m]) and on (instance, job) dsobs_build_info)",
            "{{instance}}",
        ),
        (
            "Memory of dsobs",
            "What does it cost?",
            "Growing for days.",
            "bytes",
            f"topk(20, process_resident_memory_bytes{{{SERVER}}} and on (instance, job) dsobs_build_info)",
            "{{instance}}",
        ),
        (
            "Series in memory",
            "Is its store full?",
            "At 5,000: more series are left out.",
            "none",
            f"topk(20, dsobs_store_series{{{SERVER}}})",
            "{{instance}}",
        ),
        (
            "Flight recorder",
            "How much does it record?",
            "0: nothing can be replayed after an incident.",
            "bytes",
            f"topk(20, dsobs_recorder_bytes{{{SERVER}}})",
            "{{instance}}",
        ),
    ):
        made = made.with_panel(chart(title, question, bad, unit, query(expr, legend)))
    return made
