"""Types of the fields that dsobs's formats write, by dotted name, as the Elastic Common Schema 8.11 gives them."""

from typing import Any

TYPES: dict[str, tuple[str, ...]] = {
    "date": ("@timestamp", "event.created", "event.start", "event.end"),
    "match_only_text": ("message", "error.message"),
    "wildcard": ("error.stack_trace", "url.path", "url.original"),
    "ip": ("client.ip", "source.ip", "host.ip"),
    "long": (
        "event.duration",
        "event.severity",
        "http.response.status_code",
        "log.offset",
        "log.origin.file.line",
        "process.pid",
        "process.thread.id",
        "client.port",
        "source.port",
    ),
    "keyword": (
        "client.address",
        "container.id",
        "container.image.name",
        "container.name",
        "container.runtime",
        "ecs.version",
        "error.code",
        "error.type",
        "event.action",
        "event.category",
        "event.dataset",
        "event.id",
        "event.kind",
        "event.module",
        "event.outcome",
        "event.reason",
        "host.hostname",
        "host.name",
        "http.request.method",
        "http.version",
        "log.file.path",
        "log.level",
        "log.logger",
        "log.origin.file.name",
        "log.origin.function",
        "orchestrator.cluster.name",
        "orchestrator.namespace",
        "orchestrator.resource.name",
        "orchestrator.type",
        "process.name",
        "process.thread.name",
        "rule.name",
        "service.name",
        "service.type",
        "service.version",
        "source.address",
        "span.id",
        "tags",
        "trace.id",
        "transaction.id",
        "url.query",
        "user.name",
        "user_agent.original",
    ),
}
"""Type → fields. `log.offset` is dsobs's own (where the record stands in its file); the schema has no such field."""

KEYWORD_BYTES = 1024
"""A longer value is kept and shown, but not found by its field."""


def _mapping(kind: str) -> dict[str, Any]:
    return {"type": kind, "ignore_above": KEYWORD_BYTES} if kind == "keyword" else {"type": kind}


def mappings() -> dict[str, Any]:
    """The mappings: these fields, labels and all other text as keywords, other values as they come.

    Text that looks like a date stays text, so that the first record of a day can't decide the type of a field for all
    that follow.
    """
    properties = {name: _mapping(kind) for kind, names in TYPES.items() for name in names}
    keyword = _mapping("keyword")
    return {
        "date_detection": False,
        "dynamic_templates": [
            {"labels": {"path_match": "labels.*", "mapping": keyword}},
            {"text": {"match_mapping_type": "string", "mapping": keyword}},
        ],
        "properties": dict(sorted(properties.items())),
    }
