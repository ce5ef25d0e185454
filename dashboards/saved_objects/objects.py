"""Kibana's saved objects, as its import takes them: data views, searches, Lens charts, dashboards.

The versions are the oldest that both supported Kibanas (8.19 and 9.2) know how to bring up to their own, so that one
file is imported by both: an object of a version that Kibana does not know yet is refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dashboards.lucene import TIME

CORE = "8.8.0"
"""`coreMigrationVersion`: the form of the object around its attributes."""
VERSIONS = {"index-pattern": "8.0.0", "search": "8.0.0", "lens": "8.9.0", "dashboard": "8.9.0"}
"""`typeMigrationVersion`: the form of the attributes."""
WIDTH = 48
"""Columns of a dashboard's grid."""
_SOURCE = "kibanaSavedObjectMeta.searchSourceJSON.index"
_LAYER = "layer"
_RECORDS = "___records___"
"""What Lens counts where it counts documents."""

Object = dict[str, Any]


def _packed(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _object(kind: str, name: str, attributes: Mapping[str, Any], references: Sequence[Mapping[str, str]]) -> Object:
    return {
        "type": kind,
        "id": name,
        "attributes": dict(attributes),
        "references": [dict(one) for one in references],
        "coreMigrationVersion": CORE,
        "typeMigrationVersion": VERSIONS[kind],
        "managed": False,
    }


def _lucene(wanted: str) -> dict[str, str]:
    return {"query": wanted, "language": "lucene"}


def data_view(name: str, title: str, pattern: str) -> Object:
    """The indices of `pattern`; fields come from their mappings."""
    return _object("index-pattern", name, {"title": pattern, "name": title, "timeFieldName": TIME}, [])


def search(name: str, view: str, title: str, description: str, wanted: str, columns: Sequence[str]) -> Object:
    """Records, newest first."""
    source = {
        "query": _lucene(wanted),
        "filter": [],
        "highlightAll": True,
        "version": True,
        "indexRefName": _SOURCE,
    }
    attributes = {
        "title": title,
        "description": description,
        "columns": list(columns),
        "sort": [[TIME, "desc"]],
        "grid": {},
        "hideChart": False,
        "isTextBasedQuery": False,
        "kibanaSavedObjectMeta": {"searchSourceJSON": _packed(source)},
    }
    return _object("search", name, attributes, [{"type": "index-pattern", "id": view, "name": _SOURCE}])


# Columns of Lens.


def _metric(label: str, operation: str, field: str, kind: str = "number") -> dict[str, Any]:
    return {
        "label": label,
        "customLabel": True,
        "dataType": kind,
        "operationType": operation,
        "sourceField": field,
        "isBucketed": False,
        "scale": "ratio",
        "params": {"emptyAsNull": True},
    }


def count(label: str) -> dict[str, Any]:
    """Records."""
    return _metric(label, "count", _RECORDS)


def average(label: str, field: str) -> dict[str, Any]:
    """Of a number."""
    return _metric(label, "average", field)


def latest(label: str) -> dict[str, Any]:
    """The time of the newest record."""
    return _metric(label, "max", TIME, "date")


def over_time() -> dict[str, Any]:
    """By time, in steps that fit the chosen range."""
    return {
        "label": TIME,
        "dataType": "date",
        "operationType": "date_histogram",
        "sourceField": TIME,
        "isBucketed": True,
        "scale": "interval",
        "params": {"interval": "auto", "includeEmptyRows": True, "dropPartials": False},
    }


def top(field: str, by: str, size: int = 10, kind: str = "string") -> dict[str, Any]:
    """The `size` values of a field that have most of column `by`; all others together."""
    return {
        "label": field,
        "customLabel": True,
        "dataType": kind,
        "operationType": "terms",
        "sourceField": field,
        "isBucketed": True,
        "scale": "ordinal",
        "params": {
            "size": size,
            "orderBy": {"type": "column", "columnId": by},
            "orderDirection": "desc",
            "otherBucket": True,
            "missingBucket": False,
            "parentFormat": {"id": "terms"},
            "include": [],
            "exclude": [],
            "includeIsRegex": False,
            "excludeIsRegex": False,
        },
    }


@dataclass(frozen=True)
class Chart:
    """What a Lens chart asks: `columns` by id, buckets first, as Lens orders them."""

    name: str
    title: str
    description: str
    wanted: str
    columns: Mapping[str, Mapping[str, Any]]
    kind: str
    visualization: Mapping[str, Any]


def _lens(view: str, chart: Chart) -> Object:
    layer = {
        "columns": {name: dict(column) for name, column in chart.columns.items()},
        "columnOrder": list(chart.columns),
        "incompleteColumns": {},
        "sampling": 1,
    }
    attributes = {
        "title": chart.title,
        "description": chart.description,
        "visualizationType": chart.kind,
        "state": {
            "datasourceStates": {"formBased": {"layers": {_LAYER: layer}}},
            "visualization": dict(chart.visualization),
            "query": _lucene(chart.wanted),
            "filters": [],
            "internalReferences": [],
            "adHocDataViews": {},
        },
    }
    reference = {"type": "index-pattern", "id": view, "name": f"indexpattern-datasource-layer-{_LAYER}"}
    return _object("lens", chart.name, attributes, [reference])


def _layer(**more: Any) -> dict[str, Any]:
    return {"layerId": _LAYER, "layerType": "data", **more}


def _xy(kind: str, accessors: Sequence[str], **more: Any) -> dict[str, Any]:
    return {
        "legend": {"isVisible": True, "position": "right"},
        "valueLabels": "hide",
        "preferredSeriesType": kind,
        "layers": [_layer(seriesType=kind, accessors=list(accessors), xAccessor="time", **more)],
    }


def bars(name: str, view: str, title: str, description: str, wanted: str, field: str, kind: str = "string") -> Object:
    """Records over time, stacked by a field."""
    columns = {"by": top(field, "count", kind=kind), "time": over_time(), "count": count("Records")}
    shown = _xy("bar_stacked", ["count"], splitAccessor="by")
    return _lens(view, Chart(name, title, description, wanted, columns, "lnsXY", shown))


def lines(name: str, view: str, title: str, description: str, wanted: str, fields: Sequence[tuple[str, str]]) -> Object:
    """Averages of numbers over time; `fields` are (label, field)."""
    columns = {"time": over_time()}
    columns |= {f"value{number}": average(label, field) for number, (label, field) in enumerate(fields)}
    shown = _xy("line", list(columns)[1:])
    return _lens(view, Chart(name, title, description, wanted, columns, "lnsXY", shown))


def table(name: str, view: str, title: str, description: str, wanted: str, fields: Sequence[str]) -> Object:
    """By each combination of fields how many records, and when the last one was."""
    columns = {f"by{number}": top(field, "count", 20) for number, field in enumerate(fields)}
    columns |= {"count": count("Records"), "last": latest("Last")}
    shown = _layer(columns=[{"columnId": column} for column in columns])
    return _lens(view, Chart(name, title, description, wanted, columns, "lnsDatatable", shown))


def number(name: str, view: str, title: str, description: str, wanted: str) -> Object:
    """How many records."""
    columns = {"count": count(title)}
    return _lens(view, Chart(name, title, description, wanted, columns, "lnsMetric", _layer(metricAccessor="count")))


# Dashboards.


def dashboard(
    name: str,
    view: str,
    title: str,
    description: str,
    controls: Sequence[tuple[str, str]],
    rows: Sequence[tuple[int, Sequence[Object]]],
) -> Object:
    """`rows` are (height, objects beside each other); `controls` are (label, field): lists to choose from."""
    panels: list[dict[str, Any]] = []
    references: list[dict[str, str]] = []
    y = 0
    for height, objects in rows:
        width = WIDTH // len(objects)
        for column, one in enumerate(objects):
            index = str(len(panels) + 1)
            panels.append(
                {
                    "type": one["type"],
                    "panelIndex": index,
                    "gridData": {"x": column * width, "y": y, "w": width, "h": height, "i": index},
                    "embeddableConfig": {"enhancements": {}},
                    "panelRefName": f"panel_{index}",
                }
            )
            references.append({"type": one["type"], "id": one["id"], "name": f"{index}:panel_{index}"})
        y += height
    chosen: dict[str, Any] = {}
    for order, (label, field) in enumerate(controls):
        id_ = f"{name}-{field.replace('.', '-')}"
        chosen[id_] = {
            "order": order,
            "width": "medium",
            "grow": True,
            "type": "optionsListControl",
            "explicitInput": {
                "id": id_,
                "fieldName": field,
                "title": label,
                "searchTechnique": "prefix",
                "selectedOptions": [],
                "sort": {"by": "_count", "direction": "desc"},
                "enhancements": {},
            },
        }
        references.append({"type": "index-pattern", "id": view, "name": f"controlGroup_{id_}:optionsListDataView"})
    ignored = dict.fromkeys(("ignoreFilters", "ignoreQuery", "ignoreTimerange", "ignoreValidations"), False)
    options = {"useMargins": True, "syncColors": True, "syncCursor": True, "syncTooltips": False}
    attributes = {
        "title": title,
        "description": description,
        "panelsJSON": _packed(panels),
        "optionsJSON": _packed({**options, "hidePanelTitles": False}),
        "controlGroupInput": {
            "controlStyle": "oneLine",
            "chainingSystem": "HIERARCHICAL",
            "ignoreParentSettingsJSON": _packed(ignored),
            "panelsJSON": _packed(chosen),
        },
        "timeRestore": True,
        "timeFrom": "now-1h",
        "timeTo": "now",
        "refreshInterval": {"pause": False, "value": 15_000},
        "kibanaSavedObjectMeta": {"searchSourceJSON": _packed({"query": _lucene(""), "filter": []})},
    }
    return _object("dashboard", name, attributes, references)
