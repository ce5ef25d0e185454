"""Cards: memory, work, heat, faults."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.source.parts import SERVER, WORST, board, chart, indicator_number, query, row, rows
from dsobs.config import Config
from dsobs.indicators import Better

_CARD = "{{instance}} GPU {{gpu}}"


def _worst(expr: str) -> str:
    return f"topk({WORST}, {expr})"


def _lowest(expr: str) -> str:
    return f"bottomk({WORST}, {expr})"


def gpu() -> Dashboard:
    """Is a card the reason?"""
    made = board(
        "gpu", "GPU", "Is a card the reason? Of many cards each panel shows the 20 where it is worst.", models=False
    )
    for name, how in (
        ("gpu_faults", "sum"),
        ("gpu_ecc_uncorrected", "sum"),
        ("gpu_memory_effective", "max"),
        ("gpu_throttled", "max"),
        ("gpu_temperature_margin", "min"),
        ("gpu_utilization", "avg"),
    ):
        made = made.with_panel(indicator_number(name, how))
    made = made.with_panel(
        rows(
            "Cards",
            "Which cards are there, and do they answer?",
            "0 in the last column: nothing is known of the card; the reason is in the log.",
            query(
                f"dsobs_gpu_up{{{SERVER}}} * on (instance, job, gpu, uuid) group_left (name, driver_version) "
                f"dsobs_gpu_info{{{SERVER}}} or dsobs_gpu_up{{{SERVER}}}",
                now=True,
                as_table=True,
            ),
            named=[("Value", "answers", "none")],
            span=12,
        )
    )
    made = made.with_panel(
        rows(
            "Faults",
            "Which XIDs were seen, and when?",
            "Any: the reason says whether the application, the card or the node needs help (runbooks of GPU alerts).",
            query(f"dsobs_gpu_xid_last_time_seconds{{{SERVER}}} * 1000", now=True, as_table=True),
            named=[("Value", "last seen", "time")],
            span=12,
        )
    )
    made = made.with_row(row("Memory"))
    effective = f"dsobs_gpu_memory_effective_ratio{{{SERVER}}}"
    made = made.with_panel(
        chart(
            "In use for work",
            "Is the card about to run out of memory?",
            "Above the threshold for 5 minutes; the unused part of the KV cache pool does not count.",
            "ratio",
            query(_worst(effective), f"{_CARD} ({{{{source}}}})"),
            threshold=Config().rules.gpu_memory.threshold,
            better=Better.LOWER,
        )
    )
    made = made.with_panel(
        chart(
            "Taken",
            "How much is taken, the engine's reserve included?",
            "A fall to 0 (the engine is gone), a rise above where it started.",
            "bytes",
            query(_worst(f"dsobs_gpu_memory_used_bytes{{{SERVER}}}"), _CARD),
            query(f"max(dsobs_gpu_memory_total_bytes{{{SERVER}}})", "largest card"),
        )
    )
    made = made.with_panel(
        chart(
            "Taken by others",
            "Does another process hold memory?",
            "Above 1 GiB: an engine that died and left a process behind, or a neighbour.",
            "bytes",
            query(_worst(f"dsobs_gpu_foreign_memory_bytes{{{SERVER}}}"), _CARD),
            threshold=2**30,
            better=Better.LOWER,
        )
    )
    made = made.with_row(row("Work"))
    for title, question, bad, unit, expr in (
        (
            "Utilization",
            "Do the cards work?",
            "0 with requests running: a hang.",
            "ratio",
            "dsobs_gpu_utilization_ratio",
        ),
        (
            "Memory utilization",
            "Is the card's memory the limit?",
            "Near 100 %: bound by memory bandwidth, as decoding is.",
            "ratio",
            "dsobs_gpu_memory_utilization_ratio",
        ),
        (
            "Processes' memory",
            "Who holds the memory?",
            "A process that is not the engine's.",
            "bytes",
            "dsobs_gpu_process_memory_bytes",
        ),
        (
            "SM clock",
            "How fast does it run?",
            "Low under load: clocks are held down.",
            "hertz",
            "dsobs_gpu_sm_clock_hertz",
        ),
        ("Memory clock", "And its memory?", "Low under load.", "hertz", "dsobs_gpu_memory_clock_hertz"),
    ):
        legend = f"{_CARD} {{{{pid}}}}" if "process" in expr else _CARD
        pick = _lowest if "clock" in expr or "utilization" in expr else _worst
        made = made.with_panel(chart(title, question, bad, unit, query(pick(f"{expr}{{{SERVER}}}"), legend)))
    made = made.with_panel(
        chart(
            "PCIe traffic",
            "Is much moved to and from the host?",
            "At the link's speed: it waits for the host.",
            "bytes/s",
            query(_worst(f"dsobs_gpu_pcie_throughput_bytes_per_second{{{SERVER}}}"), f"{_CARD} {{{{direction}}}}"),
        )
    )
    made = made.with_row(row("Power and heat"))
    made = made.with_panel(
        chart(
            "Power",
            "How hard do they work?",
            "Idle power with requests running: a hang. At the limit: as fast as it may be.",
            "watts",
            query(_worst(f"dsobs_gpu_power_watts{{{SERVER}}}"), _CARD),
            query(f"max(dsobs_gpu_power_limit_watts{{{SERVER}}})", "highest limit"),
        )
    )
    made = made.with_panel(
        chart(
            "Temperature",
            "How hot are they?",
            "Near the slowdown temperature of the card.",
            "celsius",
            query(_worst(f"dsobs_gpu_temperature_celsius{{{SERVER}}}"), _CARD),
            query(_worst(f"dsobs_gpu_memory_temperature_celsius{{{SERVER}}}"), f"{_CARD} memory"),
        )
    )
    made = made.with_panel(
        chart(
            "Clocks held down",
            "Why are clocks held down, and for how much of the time?",
            "Any reason but the power cap (sw_power_cap) and idleness.",
            "ratio",
            query(
                _worst(f"rate(dsobs_gpu_clock_event_seconds_total{{{SERVER}}}[$__rate_interval]) > 0")
                + " or "
                + _worst(f"dsobs_gpu_clock_event_active{{{SERVER}}} > 0"),
                f"{_CARD} {{{{reason}}}}",
            ),
        )
    )
    made = made.with_panel(
        chart(
            "Energy",
            "What do they use?",
            "More for the same tokens.",
            "watts",
            query(_worst(f"rate(dsobs_gpu_energy_joules_total{{{SERVER}}}[$__rate_interval])"), _CARD),
        )
    )
    made = made.with_row(row("Health"))
    for title, question, bad, expr, legend in (
        (
            "ECC errors",
            "Does the memory fail?",
            "Any uncorrected; many corrected.",
            f"increase(dsobs_gpu_ecc_errors_total{{{SERVER}}}[1h])",
            f"{_CARD} {{{{type}}}}",
        ),
        (
            "Remapped rows",
            "Was memory replaced?",
            "A pending remapping waits for a reset; a failed one for another card.",
            f"dsobs_gpu_row_remap_pending{{{SERVER}}} + dsobs_gpu_row_remap_failed{{{SERVER}}}",
            _CARD,
        ),
        (
            "XIDs",
            "How often did the driver report faults?",
            "A step.",
            f"dsobs_gpu_xid_errors_total{{{SERVER}}}",
            f"{_CARD} XID {{{{xid}}}}",
        ),
        (
            "What the driver advises",
            "Does the driver want something done?",
            "Anything but none.",
            f"dsobs_gpu_recovery_action{{{SERVER}}} == 1",
            f"{_CARD} {{{{action}}}}",
        ),
    ):
        made = made.with_panel(chart(title, question, bad, "none", query(_worst(expr), legend)))
    return made
