"""What logs say, and whether they arrive."""

from collections.abc import Sequence

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.builders import elasticsearch, timeseries
from grafana_foundation_sdk.builders import logs as log_panels
from grafana_foundation_sdk.builders.dashboard import Dashboard
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.elasticsearch import TermsOrder

from dashboards.lucene import BAD, INCIDENTS, TIME
from dashboards.source.parts import (
    ELASTICSEARCH,
    SERVER,
    board,
    chart,
    described,
    indicator_chart,
    query,
    row,
)

_CHOSEN = "service.name:$service AND ($search)"


def _lucene(wanted: str = "") -> str:
    return f"{_CHOSEN} AND {wanted}" if wanted else _CHOSEN


def _histogram() -> elasticsearch.DateHistogram:
    settings = elasticsearch.ElasticsearchDateHistogramSettings().interval("auto").min_doc_count("0")
    return elasticsearch.DateHistogram().field(TIME).id("2").settings(settings)


def _terms(field: str, size: int = 10) -> elasticsearch.Terms:
    settings = (
        elasticsearch.ElasticsearchTermsSettings()
        .size(str(size))
        .order(TermsOrder.DESC)
        .order_by("_count")
        .min_doc_count("1")
    )
    return elasticsearch.Terms().field(field).id("3").settings(settings)


def _counted(title: str, question: str, bad: str, wanted: str, field: str, span: int = 12) -> timeseries.Panel:
    """Records over time, by a field."""
    asked = (
        elasticsearch.Dataquery()
        .query(_lucene(wanted))
        .time_field(TIME)
        .metrics([elasticsearch.Count().id("1")])
        .bucket_aggs([_terms(field), _histogram()])
        .alias(f"{{{{term {field}}}}}")
        .ref_id("A")
    )
    return (
        timeseries.Panel()
        .title(title)
        .description(described(question, bad))
        .datasource(ELASTICSEARCH)
        .draw_style(common.GraphDrawStyle.BARS)
        .fill_opacity(60)
        .span(span)
        .height(8)
        .no_value("nothing")
        .with_target(asked)
    )


def _lines(title: str, question: str, bad: str, wanted: str) -> log_panels.Panel:
    asked = (
        elasticsearch.Dataquery()
        .query(_lucene(wanted))
        .time_field(TIME)
        .metrics([elasticsearch.Logs().id("1").settings(elasticsearch.ElasticsearchLogsSettings().limit("500"))])
        .bucket_aggs([])
        .ref_id("A")
    )
    return (
        log_panels.Panel()
        .title(title)
        .description(described(question, bad))
        .datasource(ELASTICSEARCH)
        .span(24)
        .height(12)
        .show_time(True)
        .wrap_log_message(True)
        .sort_order(common.LogsSortOrder.DESCENDING)
        .enable_log_details(True)
        .dedup_strategy(common.LogsDedupStrategy.NONE)
        .with_target(asked)
    )


_SHIPPING: Sequence[tuple[str, str, str, str, str, str]] = (
    (
        "Read",
        "How much is written?",
        "0 while tokens are generated.",
        "bytes/s",
        f"sum by (instance) (rate(dsobs_log_read_bytes_total{{{SERVER}}}[$__rate_interval]))",
        "{{instance}}",
    ),
    (
        "Records, by what became of them",
        "Do they arrive?",
        "dead_letter or quarantined.",
        "none",
        f"sum by (outcome) (rate(dsobs_log_records_total{{{SERVER}}}[$__rate_interval]))",
        "{{outcome}}",
    ),
    (
        "Behind, in bytes",
        "How much waits?",
        "Growing.",
        "bytes",
        f"topk(20, dsobs_log_behind_bytes{{{SERVER}}})",
        "{{instance}} {{source}}",
    ),
    (
        "Lost",
        "Was anything never read?",
        "Above 0: files went away before they were read.",
        "bytes",
        f"sum by (reason) (dsobs_log_lost_bytes_total{{{SERVER}}}) or 0 * sum(dsobs_log_files{{{SERVER}}})",
        "{{reason}}",
    ),
    (
        "Lines with a fault",
        "Are lines as they should be?",
        "Rising: another format than is set.",
        "none",
        f"sum by (fault) (dsobs_log_faulty_lines_total{{{SERVER}}}) or 0 * sum(dsobs_log_files{{{SERVER}}})",
        "{{fault}}",
    ),
    (
        "Fatal patterns",
        "What does the log say?",
        "Any: out of memory, NCCL, a dead engine core.",
        "none",
        f"sum by (pattern) (dsobs_log_matches_total{{{SERVER}}}) or 0 * sum(dsobs_log_files{{{SERVER}}})",
        "{{pattern}}",
    ),
    (
        "Files watched",
        "Are they found?",
        "0 with `logs.files` set.",
        "none",
        f"topk(20, dsobs_log_files{{{SERVER}}})",
        "{{instance}}",
    ),
    (
        "Held",
        "Does shipping wait for somebody?",
        "1: mend what the reason says; nothing is lost meanwhile.",
        "none",
        f"max by (reason) (dsobs_log_held{{{SERVER}}}) or 0 * sum(dsobs_log_files{{{SERVER}}})",
        "{{reason}}",
    ),
    (
        "Shipper",
        "Does the shipping process run?",
        "0.",
        "none",
        f"topk(20, dsobs_log_shipper_up{{{SERVER}}})",
        "{{instance}}",
    ),
)


def logs() -> Dashboard:
    """What do logs say, and do they arrive?"""
    made = board("logs", "Logs", "What do logs say, and do they arrive?", models=False)
    made = (
        made.with_variable(builders.DatasourceVariable("elasticsearch").label("Logs").type("elasticsearch"))
        .with_variable(
            builders.QueryVariable("service")
            .label("Service")
            .datasource(ELASTICSEARCH)
            .query('{"find": "terms", "field": "service.name"}')
            .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(False)
            .include_all(True)
            .all_value("*")
            .current(dashboard.VariableOption(text="All", value="$__all"))
        )
        .with_variable(builders.TextBoxVariable("search").label("Search").default_value("*"))
    )
    made = made.with_panel(
        _counted("Records, by level", "How much is logged?", "A rise of ERROR, or silence.", "", "log.level")
    )
    made = made.with_panel(_counted("Errors, by logger", "Who reports errors?", "A new name.", BAD, "log.logger"))
    made = made.with_panel(
        _lines("Errors", "What went wrong?", "Any line: its details have file, process and request.", BAD)
    )
    made = made.with_panel(
        _counted("Requests, by status", "What did the server answer?", "5xx.", "", "http.response.status_code")
    )
    made = made.with_panel(
        _counted(
            "Alerts and actions, by event",
            "What did dsobs see and do?",
            "Restarts, and steps that failed.",
            INCIDENTS,
            "event.action",
        )
    )
    made = made.with_panel(
        _lines("All records", "What happened around it?", "Choose the time of an incident; `$search` narrows.", "")
    )
    made = made.with_row(row("Do logs arrive?"))
    made = made.with_panel(indicator_chart("log_delay", legend="{{instance}}"))
    for title, question, bad, unit, expr, legend in _SHIPPING:
        made = made.with_panel(chart(title, question, bad, unit, query(expr, legend)))
    return made
