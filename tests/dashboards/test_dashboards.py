"""The dashboards as they are written. Their queries against real servers: tests/real/test_dashboards.py."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards.source import DASHBOARDS, document, runbooks
from dsobs import promql
from dsobs.api.exposition import ALERT_SERIES
from dsobs.config import Config
from dsobs.indicators import INDICATORS, Better, Indicator
from dsobs.logs import metrics as log_metrics
from dsobs.logs.indices.fields import TYPES
from dsobs.model.signals import SIGNALS
from dsobs.telemetry import REGISTRY
from tests.dashboards import asked, expanded

FOLDER = Path(__file__).parents[2] / "dashboards" / "grafana"
QUERIES = list(asked())
PROMETHEUS = [one for one in QUERIES if not one.elasticsearch]
RESTARTS = "Restarts in 24 hours"
COUNTED = {"requests", "restarts", "faults", "errors", "alerts", "lines", "bool"}


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in document(name)["panels"] if panel["type"] != "row"]


def test_there_are_six_dashboards_and_many_queries() -> None:
    assert len(DASHBOARDS) >= 6
    assert len([one for one in QUERIES if not one.panel.startswith("mark: ")]) >= 180
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(DASHBOARDS)


def test_no_query_asks_for_a_metric_that_dsobs_does_not_export() -> None:
    families = [family for registry in (REGISTRY, log_metrics.REGISTRY) for family in registry.collect()]
    known = {sample.name for family in families for sample in family.samples} | {family.name for family in families}
    known |= {f"{family.name}_total" for family in families if family.type == "counter"}
    known |= set(SIGNALS) | set(ALERT_SERIES) | {one.record for one in INDICATORS.values()}
    unknown = set()
    for one in PROMETHEUS:
        query = promql.compile(one.query)
        assert not query.unnamed, one
        for name in query.metric_names:
            if name not in known and re.sub("_(bucket|count|sum)$", "", name) not in known:
                unknown.add((one.dashboard, one.panel, name))
    assert unknown == set()


def test_every_panel_says_what_it_asks_and_what_a_bad_value_looks_like() -> None:
    for name in DASHBOARDS:
        titles = [(panel["type"], panel["title"]) for panel in panels(name)]
        assert len(titles) == len(set(titles)), name
        for panel in panels(name):
            question, _, bad = panel["description"].partition("\n\n**A bad value:** ")
            assert question.strip(), panel["title"]
            assert bad.strip(), panel["title"]
            assert (
                panel.get("fieldConfig", {}).get("defaults", {}).get("unit")
                or panel["type"] in ("table", "state-timeline", "logs")
                or (panel["datasource"]["type"] == "elasticsearch")
            ), panel["title"]


def test_every_query_takes_its_data_source_and_servers_from_the_dashboards_variables() -> None:
    for name in DASHBOARDS:
        made = document(name)
        variables = {one["name"] for one in made["templating"]["list"]}
        assert {"datasource", "cluster", "namespace", "tenant", "instance"} <= variables
        text = json.dumps(made)
        used = set(re.findall(r"\$\{?(\w+)", text))
        assert used - {"__data", "__url_time_range", "__rate_interval", "__all"} <= variables, name
        for panel in panels(name):
            kind = "elasticsearch" if panel["datasource"]["type"] == "elasticsearch" else "datasource"
            assert panel["datasource"]["uid"] == f"${{{kind}}}"
            for target in panel["targets"]:
                if kind == "datasource":
                    expr = target["expr"]
                    assert expr.count("{") == expr.count('{cluster=~"$cluster",namespace=~"$namespace"') + (
                        expr.count("on (instance, job) dsobs_build_info{")
                    ), expr


def test_no_panel_shows_a_series_for_each_of_1000_servers() -> None:
    """Each query adds servers up, or takes the worst of them."""
    unbounded = [
        (one.dashboard, one.panel)
        for one in PROMETHEUS
        if not re.search(r"\b(topk|bottomk|sum|count|max|min|avg|quantile)\b", one.query)
        and not one.panel.startswith("mark: ")
    ]
    # Tables of cards and of their faults: those of the servers that are chosen.
    assert set(unbounded) == {("gpu", "Cards"), ("gpu", "Faults")}


def colour(panel: dict[str, Any], value: float) -> str:
    """Grafana's: of the last step that begins at the value or below it."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    return str([step["color"] for step in steps if step.get("value") is None or step["value"] <= value][-1])


@pytest.mark.parametrize("one", INDICATORS.values(), ids=lambda one: one.name)
def test_a_panel_of_an_indicator_is_red_only_beyond_the_threshold_of_the_rules_settings(one: Indicator) -> None:
    shown = [panel for name in DASHBOARDS for panel in panels(name) if panel["title"] == one.title]
    shown = [panel for panel in shown if panel["type"] == "timeseries" or panel in panels("server") + panels("gpu")]
    assert shown
    threshold = one.threshold_of(Config())
    if threshold is None:
        server = next(panel for panel in shown if panel in panels("server"))
        assert len(server["fieldConfig"]["defaults"]["thresholds"]["steps"]) == 1
        return
    worse = -1 if one.better is Better.HIGHER else 1
    # What is measured meets its threshold to the last digit as good as never; what is counted does.
    good = threshold if one.unit in COUNTED or worse == -1 else threshold * 0.999
    bad = threshold + worse * (1 if one.unit in COUNTED else 0.001)
    assert (one.is_bad(good, Config()), one.is_bad(bad, Config())) == (False, True)
    for panel in shown:
        assert (colour(panel, good), colour(panel, bad)) == ("green", "red"), panel["type"]


def test_a_share_is_red_from_its_threshold_on_and_what_is_counted_from_the_next_number() -> None:
    charts = {panel["title"]: panel for panel in panels("server") if panel["type"] == "timeseries"}
    steps = {
        name: charts[INDICATORS[name].title]["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"]
        for name in ("gpu_memory_effective", "time_to_first_token_p99", "preemption_rate", "restarts_24h", "gpu_faults")
    }
    assert list(steps.values()) == [0.85, 0.5, 0.1, 4, 1]


def test_no_number_is_red_where_nothing_is_wrong() -> None:
    """Counts of what is wrong, at 0; the worst server restarted as often as is allowed."""
    for name in DASHBOARDS:
        for panel in panels(name):
            if panel["type"] == "stat" and panel["fieldConfig"]["defaults"]["unit"] == "none":
                assert panel["title"] == "Ready" or colour(panel, 0.0) == "green", (name, panel["title"])
    (restarts,) = [panel for panel in panels("actions") if (panel["type"], panel["title"]) == ("stat", RESTARTS)]
    assert [colour(restarts, value) for value in (3.0, 4.0)] == ["green", "red"]


def test_panels_lie_beside_each_other() -> None:
    for name in DASHBOARDS:
        places = [panel["gridPos"] for panel in document(name)["panels"]]
        for a, b in itertools.combinations(places, 2):
            apart = (
                a["x"] + a["w"] <= b["x"]
                or b["x"] + b["w"] <= a["x"]
                or a["y"] + a["h"] <= b["y"]
                or b["y"] + b["h"] <= a["y"]
            )
            assert apart, (name, a, b)
        assert max(place["x"] + place["w"] for place in places) <= 24


def test_dashboards_link_each_other_and_a_table_leads_to_its_server() -> None:
    for name in DASHBOARDS:
        made = document(name)
        assert made["uid"] == f"dsobs-{name}"
        assert made["tags"] == ["dsobs"]
        (link,) = made["links"]
        assert (link["type"], link["tags"], link["includeVars"], link["keepTime"]) == (
            "dashboards",
            ["dsobs"],
            True,
            True,
        )
    linked = set(re.findall(r"/d/dsobs-(\w+)\?", json.dumps([document(name) for name in DASHBOARDS])))
    assert linked == {"server"}


def test_the_logs_dashboard_asks_for_fields_that_dsobs_writes() -> None:
    known = {name for names in TYPES.values() for name in names}
    named = set()
    for one in QUERIES:
        if one.elasticsearch:
            named |= set(re.findall(r"([a-z@_.]+):", one.query["query"]))
            named |= {agg["field"] for agg in one.query.get("bucketAggs") or []}
    assert named <= known
    assert {"log.level", "@timestamp", "service.name"} <= named


@pytest.mark.parametrize("path", sorted((FOLDER / "provisioning").rglob("*.yaml")), ids=lambda path: path.parent.name)
def test_provisioning_files_are_version_1_and_name_what_dashboards_use(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert document["apiVersion"] == 1
    if path.parent.name == "datasources":
        assert {one["type"] for one in document["datasources"]} == {"prometheus", "elasticsearch"}
        assert len({one["uid"] for one in document["datasources"]}) == len(document["datasources"])


def names_of(expr: str) -> set[str]:
    """Metrics that an expression reads; of a recorded one those that it is made of."""
    names = set()
    for name in promql.compile(expr).metric_names:
        names |= names_of(RECORDED[name]) if name in RECORDED else {re.sub("_(bucket|count|sum)$", "", name)}
    return names


def alerts() -> dict[str, str]:
    """Name → expression of the shipped ones."""
    rules = shipped_rules()
    return {rule["alert"]: rule["expr"] for rule in rules if "alert" in rule}


def shipped_rules() -> list[dict[str, Any]]:
    files = sorted((Path(__file__).parents[2] / "alerts").glob("*.rules.yaml"))
    return [rule for file in files for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


RECORDED = {rule["record"]: rule["expr"] for rule in shipped_rules() if "record" in rule}


@pytest.mark.parametrize(("alert", "expr"), alerts().items())
def test_the_panel_of_a_runbook_shows_what_its_alert_decides_by(alert: str, expr: str) -> None:
    targets = runbooks.panel_of(alert)["targets"]
    shown = {name for target in targets for name in names_of(expanded(target["expr"]))}
    assert shown & names_of(expr) or shown == {"ALERTS"}
    assert shown != {"ALERTS"} or alert == "Watchdog"


def test_every_runbook_has_a_panel_and_every_panel_a_runbook() -> None:
    assert set(runbooks.PANELS) == set(alerts())


def test_the_address_in_a_runbook_is_that_of_the_panel_and_is_written_once() -> None:
    page = "# X\n\n## First look\n\nPanel: old\n\n```sh\n"
    once = runbooks.with_link("EngineHung", page)
    assert once == runbooks.with_link("EngineHung", once)
    (uid, number) = re.findall(r"`/d/([\w-]+)\?viewPanel=(\d+)&var-instance=INSTANCE`", once)[0]
    made = next(document(name) for name in DASHBOARDS if document(name)["uid"] == uid)
    (panel,) = [panel for panel in made["panels"] if panel["id"] == int(number)]
    assert panel["title"] == "Stall and its limit"
    assert "old" not in once
