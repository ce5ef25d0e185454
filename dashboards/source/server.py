"""One server: all key indicators."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.source.parts import SERVER, board, chart, indicator_chart, indicator_number, query, row, states
from dsobs.indicators import INDICATORS, Class

_TOP = (
    ("engine_ready", "min"),
    ("alerts_firing", "sum"),
    ("availability", "min"),
    ("time_to_first_token_p99", "max"),
    ("error_ratio", "max"),
    ("restarts_24h", "max"),
)


def server() -> Dashboard:
    """Is it healthy, and how do we know?"""
    made = board(
        "server",
        "Server",
        "Is it healthy, and how do we know? Every key indicator (docs/indicators.md); of several servers the worst 20.",
    )
    for name, how in _TOP:
        made = made.with_panel(indicator_number(name, how))
    made = made.with_panel(
        states(
            "What the engine does",
            "Since when is it up, starting, hung or down?",
            "Red: it is down, or an alert of its own stands.",
            *(
                query(f"max by (instance) ({name}{{{SERVER}}} > bool 0) * {code}", f"{{{{instance}}}} {words}")
                for name, words, code in (
                    ("dsobs_engine_ready", "ready", 1),
                    ("dsobs_engine_starting_seconds", "starting", 2),
                    ("dsobs_engine_fault", "fault", 3),
                    ("dsobs_engine_down", "down", 3),
                    ("dsobs_engine_paused", "paused", 2),
                    ("dsobs_engine_planned_stop_seconds", "planned stop", 2),
                )
            ),
            words=(("0", "no", "transparent"), ("1", "yes", "green"), ("2", "yes", "yellow"), ("3", "yes", "red")),
        )
    )
    for class_ in Class:
        made = made.with_row(row(class_.capitalize()))
        for one in INDICATORS.values():
            if one.class_ is class_:
                made = made.with_panel(indicator_chart(one.name))
        if class_ is Class.RESOURCES:
            made = made.with_panel(
                chart(
                    "Waiting for a processor",
                    "How much of the time do tasks of the container wait for a CPU?",
                    "Above 0.5: it is short of CPU.",
                    "ratio",
                    query(
                        f"topk(20, rate(dsobs_container_cpu_pressure_waiting_seconds_total{{{SERVER}}}[5m]))",
                        "{{instance}}",
                    ),
                )
            )
    return made
