"""What the two files hold: the log streams, and the index of the preset `deepseek-logs`."""

from collections.abc import Sequence

from dashboards.lucene import BAD, INCIDENTS
from dashboards.saved_objects.objects import Object, bars, dashboard, data_view, lines, number, search, table

_ERROR_COLUMNS = ("log.level", "service.name", "process.name", "log.logger", "message", "error.type")


def streams() -> Sequence[Object]:
    """Of the data streams `logs-dsobs.<kind>-<namespace>`."""
    view = "dsobs-logs"
    errors = search(
        "dsobs-errors",
        view,
        "dsobs: Errors",
        "ERROR and above, newest first. Open a record for its traceback, file and process.",
        BAD,
        _ERROR_COLUMNS,
    )
    tracebacks = search(
        "dsobs-tracebacks",
        view,
        "dsobs: Tracebacks",
        "Records with a Python traceback; each is one record.",
        "_exists_:error.stack_trace",
        ("service.name", "process.name", "error.type", "message"),
    )
    failed = search(
        "dsobs-failed-requests",
        view,
        "dsobs: Failed requests",
        "Answers of 400 and above in the server's access log.",
        "http.response.status_code:[400 TO *]",
        ("service.name", "http.request.method", "url.path", "http.response.status_code", "client.ip"),
    )
    incidents = search(
        "dsobs-incidents",
        view,
        "dsobs: Alerts and actions",
        "What dsobs saw and did. Filter by labels.incident_id for one incident.",
        INCIDENTS,
        ("event.action", "rule.name", "event.outcome", "labels.incident_id", "message"),
    )
    records = search(
        "dsobs-records",
        view,
        "dsobs: All records",
        "Everything around an incident.",
        "",
        ("log.level", "service.name", "host.name", "message"),
    )
    charts = (
        number("dsobs-error-count", view, "Errors", "How many? A bad value: any that you do not know.", BAD),
        bars(
            "dsobs-by-level",
            view,
            "Records, by level",
            "How much is logged? A bad value: a rise of ERROR, or silence.",
            "",
            "log.level",
        ),
        bars(
            "dsobs-errors-by-logger",
            view,
            "Errors, by logger",
            "Who reports errors? A bad value: a new name.",
            BAD,
            "log.logger",
        ),
        table(
            "dsobs-errors-by-type",
            view,
            "Errors, by type",
            "What is raised, and where? A bad value: OutOfMemoryError, EngineDeadError.",
            "_exists_:error.type",
            ("error.type", "service.name"),
        ),
        bars(
            "dsobs-requests-by-status",
            view,
            "Requests, by status",
            "What did the server answer? A bad value: 5xx.",
            "",
            "http.response.status_code",
            "number",
        ),
        bars(
            "dsobs-actions",
            view,
            "Alerts and actions, by event",
            "What did dsobs see and do? A bad value: restarts, and steps that failed.",
            INCIDENTS,
            "event.action",
        ),
        lines(
            "dsobs-engine-says",
            view,
            "Requests, as the engine's log tells",
            "How many run and wait? A bad value: more and more that wait.",
            "_exists_:vllm.requests_running",
            (("Running", "vllm.requests_running"), ("Waiting", "vllm.requests_waiting")),
        ),
        table(
            "dsobs-hosts",
            view,
            "Hosts",
            "Who writes? A bad value: a host whose last record is old.",
            "",
            ("host.name", "service.name"),
        ),
    )
    count, by_level, by_logger, by_type, by_status, actions, engine, hosts = charts
    board = dashboard(
        "dsobs-logs-dashboard",
        view,
        "dsobs: Logs",
        "What do logs say, and what did dsobs do?",
        (("Service", "service.name"), ("Host", "host.name"), ("Level", "log.level")),
        (
            (10, (count, by_level, by_logger)),
            (16, (errors,)),
            (12, (by_status, engine)),
            (12, (by_type, hosts)),
            (10, (actions,)),
            (14, (incidents,)),
        ),
    )
    return [
        data_view(view, "dsobs: logs", "logs-dsobs.*"),
        *(errors, tracebacks, failed, incidents, records),
        *charts,
        board,
    ]


def deepseek_logs() -> Sequence[Object]:
    """Of the index that `logs.preset: deepseek-logs` writes: records of level ERROR and above."""
    view = "deepseek-logs"
    errors = search(
        "deepseek-logs-errors",
        view,
        "deepseek-logs: ERROR",
        "Records of level ERROR and above, newest first.",
        BAD,
        _ERROR_COLUMNS,
    )
    count = number("deepseek-logs-count", view, "Errors", "How many? A bad value: any that you do not know.", BAD)
    by_level = bars(
        "deepseek-logs-by-level", view, "Errors, by level", "How bad? A bad value: CRITICAL.", BAD, "log.level"
    )
    by_logger = bars(
        "deepseek-logs-by-logger",
        view,
        "Errors, by logger",
        "Who reports errors? A bad value: a new name.",
        BAD,
        "log.logger",
    )
    by_type = table(
        "deepseek-logs-by-type",
        view,
        "Errors, by type",
        "What is raised, and where? A bad value: OutOfMemoryError, EngineDeadError.",
        f"{BAD} AND _exists_:error.type",
        ("error.type", "service.name"),
    )
    board = dashboard(
        "deepseek-logs-dashboard",
        view,
        "deepseek-logs: Errors",
        "What goes wrong?",
        (("Service", "service.name"), ("Host", "host.name")),
        ((10, (count, by_level, by_logger)), (16, (errors,)), (12, (by_type,))),
    )
    return [data_view(view, "deepseek-logs", "deepseek-logs"), errors, count, by_level, by_logger, by_type, board]
