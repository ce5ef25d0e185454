"""What Grafana and Kibana send to Elasticsearch for what the dashboards and saved objects ask.

Grafana: the Elasticsearch data source's `_msearch`, grafana/pkg/tsdb/elasticsearch. Kibana: `_search` of Discover and
Lens, kibana/packages/kbn-es-query and src/plugins/data/common/search/aggs. Times are milliseconds since the Unix epoch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dashboards.lucene import TIME
from dashboards.saved_objects import FILES

FOLDER = Path(__file__).parents[2] / "dashboards" / "kibana"
LIMIT = 500
STEPS = 60
"""Of a histogram over the whole time."""

Object = dict[str, Any]
Span = tuple[int, int]


def _query(lucene: str, span: Span) -> dict[str, Any]:
    """Both leave the query string out where it is empty."""
    begin, end = span
    within = {"range": {TIME: {"gte": begin, "lte": end, "format": "epoch_millis"}}}
    wanted = [{"query_string": {"query": lucene, "analyze_wildcard": True}}] if lucene else []
    return {"bool": {"filter": [within, *wanted]}}


def _histogram(field: str, span: Span, least: int) -> dict[str, Any]:
    begin, end = span
    return {
        "date_histogram": {
            "field": field,
            "fixed_interval": f"{max(1, (end - begin) // STEPS)}ms",
            "min_doc_count": least,
            "extended_bounds": {"min": begin, "max": end},
            "format": "epoch_millis",
        }
    }


def of_grafana(target: Mapping[str, Any], variables: Mapping[str, str], span: Span) -> dict[str, Any]:
    """The body of a panel's query; the panel's metric is Count or Logs."""
    lucene = target["query"]
    for name, value in variables.items():
        lucene = lucene.replace(f"${name}", value)
    assert "$" not in lucene, lucene
    (metric,) = target["metrics"]
    if metric["type"] == "logs":
        order = {"order": "desc"}
        return {
            "size": int(metric["settings"]["limit"]),
            "query": _query(lucene, span),
            "sort": [{TIME: {**order, "unmapped_type": "boolean"}}, {"_doc": order}],
            "fields": [{"field": "*", "include_unmapped": True}],
        }
    assert metric["type"] == "count", metric
    body: dict[str, Any] = {"size": 0, "query": _query(lucene, span)}
    place = body
    for one in target["bucketAggs"]:
        if one["type"] == "terms":
            settings = one["settings"]
            assert settings["orderBy"] == "_count"
            agg: dict[str, Any] = {
                "terms": {
                    "field": one["field"],
                    "size": int(settings["size"]),
                    "order": {"_count": settings["order"]},
                    "min_doc_count": int(settings["min_doc_count"]),
                }
            }
        else:
            assert one["type"] == "date_histogram", one
            agg = _histogram(one["field"], span, int(one["settings"]["min_doc_count"]))
        place["aggs"] = {one["id"]: agg}
        place = agg
    return body


def of_variable(field: str, span: Span) -> dict[str, Any]:
    """Of a variable that Grafana fills with a field's values."""
    terms = {"terms": {"field": field, "size": 500, "order": {"_key": "asc"}}}
    return {"size": 0, "query": _query("", span), "aggs": {"1": terms}}


def objects(name: str) -> list[Object]:
    """Of a file in dashboards/kibana, as it stands on disk."""
    return [json.loads(line) for line in (FOLDER / f"{name}.ndjson").read_text(encoding="utf-8").splitlines()]


def files() -> Sequence[str]:
    """Names of the files."""
    return list(FILES)


def view_of(one: Object) -> str:
    """Id of the data view that an object asks."""
    (view,) = {reference["id"] for reference in one["references"] if reference["type"] == "index-pattern"}
    return str(view)


def _lens_layer(one: Object) -> dict[str, Any]:
    (layer,) = one["attributes"]["state"]["datasourceStates"]["formBased"]["layers"].values()
    return dict(layer)


def fields_of(one: Object) -> dict[str, str]:
    """Every field that an object names → what Kibana makes of it: `string`, `number`, `date`, or `any`."""
    kind, attributes = one["type"], one["attributes"]
    if kind == "index-pattern":
        return {attributes["timeFieldName"]: "date"}
    if kind == "search":
        return {**dict.fromkeys(attributes["columns"], "any"), **{field: "date" for field, _ in attributes["sort"]}}
    if kind == "lens":
        columns = _lens_layer(one)["columns"].values()
        return {column["sourceField"]: column["dataType"] for column in columns if column["operationType"] != "count"}
    controls = json.loads(attributes["controlGroupInput"]["panelsJSON"])
    return {control["explicitInput"]["fieldName"]: "string" for control in controls.values()}


def lucene_of(one: Object) -> str:
    """The query of a search or chart."""
    if one["type"] == "search":
        query = json.loads(one["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])["query"]
    else:
        query = one["attributes"]["state"]["query"]
    assert query["language"] == "lucene"
    return str(query["query"])


def of_kibana(one: Object, span: Span) -> dict[str, Any]:
    """The body of a search or chart."""
    query = _query(lucene_of(one), span)
    if one["type"] == "search":
        sort = [{field: {"order": order, "unmapped_type": "boolean"}} for field, order in one["attributes"]["sort"]]
        fields = [{"field": "*", "include_unmapped": True}]
        return {"size": LIMIT, "query": query, "sort": sort, "fields": fields, "_source": False}
    layer = _lens_layer(one)
    body: dict[str, Any] = {"size": 0, "query": query}
    place = body
    leaves: dict[str, Any] = {}
    for name in layer["columnOrder"]:
        column = layer["columns"][name]
        field = column["sourceField"]
        match column["operationType"]:
            case "terms":
                by = column["params"]["orderBy"]["columnId"]
                assert layer["columns"][by]["operationType"] == "count"
                order = {"_count": column["params"]["orderDirection"]}
                agg: dict[str, Any] = {"terms": {"field": field, "size": column["params"]["size"], "order": order}}
                place["aggs"], place = {name: agg}, agg
            case "date_histogram":
                agg = _histogram(field, span, 0)
                place["aggs"], place = {name: agg}, agg
            case "count":
                pass
            case "average":
                leaves[name] = {"avg": {"field": field}}
            case "max":
                leaves[name] = {"max": {"field": field}}
            case other:
                raise AssertionError(f"{one['id']}: {other} is not known here")
    if leaves:
        place["aggs"] = leaves
    return body


def rows(answer: Mapping[str, Any]) -> int:
    """How many lines, points or numbers an answer draws: hits, or the innermost buckets that hold something."""
    if "aggregations" in answer:
        return _buckets(answer["aggregations"])
    return len(answer["hits"]["hits"]) or int(answer["hits"]["total"]["value"])


def _buckets(aggregations: Mapping[str, Any] | None) -> int:
    counts = 0
    for one in (aggregations or {}).values():
        for bucket in one.get("buckets", ()) if isinstance(one, Mapping) else ():
            inner = {name: value for name, value in bucket.items() if isinstance(value, Mapping) and "buckets" in value}
            metrics = [value for value in bucket.values() if isinstance(value, Mapping) and "value" in value]
            assert not bucket["doc_count"] or all(value["value"] is not None for value in metrics), bucket
            counts += _buckets(inner) if inner else bool(bucket["doc_count"])
    return counts
