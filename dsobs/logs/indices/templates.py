"""Index and component templates and the lifecycle policy, as JSON that Elasticsearch's API takes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dsobs.config.logs import Elasticsearch
from dsobs.logs.indices.fields import mappings

VERSION = 1
"""Counts changes of what stands here."""
STREAMS = "logs-dsobs.*-*"
"""Data streams of all kinds and namespaces."""
PRIORITY = 250
"""Above Elasticsearch's own template for `logs-*-*`, which has 100."""
MAPPINGS, SETTINGS, CUSTOM, POLICY, TEMPLATE = (
    "dsobs-logs@mappings",
    "dsobs-logs@settings",
    "dsobs-logs@custom",
    "dsobs-logs",
    "dsobs-logs",
)
"""Names on the server. CUSTOM is the operator's own component template, which is used if it is there."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that is put to the server: `PUT /<path>` with `body`."""

    kind: str
    """For people: `component template` …"""
    name: str
    path: str
    body: dict[str, Any]


def resources(settings: Elasticsearch) -> Iterator[Resource]:
    """All templates, in the order in which they need each other."""
    meta = {"managed_by": "dsobs", "version": VERSION}
    if settings.lifecycle == "ilm":
        yield Resource("lifecycle policy", POLICY, f"_ilm/policy/{POLICY}", {"policy": _policy(settings)})
    for name, template in ((MAPPINGS, {"mappings": mappings()}), (SETTINGS, _settings(settings))):
        body: dict[str, Any] = {"template": template, "version": VERSION, "_meta": meta}
        yield Resource("component template", name, f"_component_template/{name}", body)
    names = {TEMPLATE: STREAMS}
    if settings.index:
        names[f"{TEMPLATE}-{settings.index}"] = settings.index
    for name, pattern in names.items():
        body = {
            "index_patterns": [pattern],
            "data_stream": {},
            "priority": PRIORITY,
            "composed_of": [MAPPINGS, SETTINGS, CUSTOM],
            "ignore_missing_component_templates": [CUSTOM],
            "version": VERSION,
            "_meta": meta,
        }
        yield Resource("index template", name, f"_index_template/{name}", body)


def _settings(settings: Elasticsearch) -> dict[str, Any]:
    index: dict[str, Any] = {
        "codec": "best_compression",
        # A record with a field too many or of another type is kept all the same; only that field is not searchable.
        "mapping": {"ignore_malformed": True, "total_fields": {"ignore_dynamic_beyond_limit": True}},
    }
    template: dict[str, Any] = {"settings": {"index": index}}
    if settings.lifecycle == "ilm":
        index["lifecycle"] = {"name": POLICY}
    elif settings.lifecycle == "data-stream":
        template["lifecycle"] = {"data_retention": time_value(settings.retention)} if settings.retention else {}
    if settings.failure_store:
        template["data_stream_options"] = {"failure_store": {"enabled": True}}
    return template


def _policy(settings: Elasticsearch) -> dict[str, Any]:
    phases: dict[str, Any] = {
        "hot": {"actions": {"rollover": {"max_age": "1d", "max_primary_shard_size": "50gb"}}},
    }
    if settings.retention:
        phases["delete"] = {"min_age": time_value(settings.retention), "actions": {"delete": {}}}
    return {"phases": phases, "_meta": {"managed_by": "dsobs", "version": VERSION}}


def time_value(seconds: float) -> str:
    """Seconds as Elasticsearch writes times, in the largest unit that is exact: `30d`, `36h`, `90s`."""
    whole = max(1, round(seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"
