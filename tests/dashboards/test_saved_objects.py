"""Kibana's saved objects, as strictly as can be said without a Kibana, which can't be had here: their form.

Their queries and fields against a real Elasticsearch: tests/real/test_logs_views.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from dashboards.saved_objects import FILES, text
from dashboards.saved_objects.objects import VERSIONS, WIDTH
from dsobs.logs.indices.fields import TYPES
from tests.dashboards.searches import FOLDER, Object, fields_of, files, lucene_of, objects

ROOT = Path(__file__).parents[2]
ATTRIBUTES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "index-pattern": {"title": str, "name": str, "timeFieldName": str},
    "search": {
        "title": str,
        "description": str,
        "columns": list,
        "sort": list,
        "grid": dict,
        "hideChart": bool,
        "isTextBasedQuery": bool,
        "kibanaSavedObjectMeta": dict,
    },
    "lens": {"title": str, "description": str, "visualizationType": str, "state": dict},
    "dashboard": {
        "title": str,
        "description": str,
        "panelsJSON": str,
        "optionsJSON": str,
        "controlGroupInput": dict,
        "timeRestore": bool,
        "timeFrom": str,
        "timeTo": str,
        "refreshInterval": dict,
        "kibanaSavedObjectMeta": dict,
    },
}
"""Attributes by type: Kibana refuses a dashboard with others (`unknowns: forbid` of its schema of 8.9)."""
OWN = {"vllm.requests_running", "vllm.requests_waiting", "labels.incident_id"}
"""Fields of dsobs's that templates map by rule and not by name."""

ALL = [(name, one) for name in files() for one in objects(name)]


def named(one: Any) -> str:
    return str(one["id"]) if isinstance(one, dict) else str(one)


def of(kind: str) -> list[tuple[str, Object]]:
    return [(name, one) for name, one in ALL if one["type"] == kind]


def test_the_streams_and_the_preset_have_a_file_each_with_a_dashboard() -> None:
    assert {name: [one["id"] for one in objects(name) if one["type"] == "dashboard"] for name in FILES} == {
        "dsobs": ["dsobs-logs-dashboard"],
        "deepseek-logs": ["deepseek-logs-dashboard"],
    }
    assert {one["attributes"]["title"] for _, one in of("index-pattern")} == {"logs-dsobs.*", "deepseek-logs"}


def test_each_file_is_what_the_code_writes_an_object_a_line() -> None:
    for name in FILES:
        assert text(name) == "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects(name))


def test_no_two_objects_share_an_id() -> None:
    keys = [(one["type"], one["id"]) for _, one in ALL]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(("name", "one"), ALL, ids=named)
def test_an_object_has_the_form_and_versions_of_its_type(name: str, one: Object) -> None:
    assert set(one) == {
        "type",
        "id",
        "attributes",
        "references",
        "coreMigrationVersion",
        "typeMigrationVersion",
        "managed",
    }
    # The newest form of Kibana 8.19 is 8.9.0 and model versions 10.x beyond it; nothing here is newer than that.
    assert (one["coreMigrationVersion"], one["typeMigrationVersion"]) == ("8.8.0", VERSIONS[one["type"]])
    wanted = ATTRIBUTES[one["type"]]
    assert {key: type(value) for key, value in one["attributes"].items()} == wanted
    assert one["attributes"]["title"]


@pytest.mark.parametrize(("name", "one"), ALL, ids=named)
def test_every_reference_is_to_an_object_before_it_in_its_file(name: str, one: Object) -> None:
    there = objects(name)
    before = {(other["type"], other["id"]) for other in there[: there.index(one)]}
    assert {(reference["type"], reference["id"]) for reference in one["references"]} <= before
    names = [reference["name"] for reference in one["references"]]
    assert len(names) == len(set(names))
    match one["type"]:
        case "index-pattern":
            assert names == []
        case "search":
            source = json.loads(one["attributes"]["kibanaSavedObjectMeta"]["searchSourceJSON"])
            assert names == [source["indexRefName"]] == ["kibanaSavedObjectMeta.searchSourceJSON.index"]
            assert "index" not in source
        case "lens":
            layers = one["attributes"]["state"]["datasourceStates"]["formBased"]["layers"]
            assert names == [f"indexpattern-datasource-layer-{layer}" for layer in layers]
        case "dashboard":
            panels = json.loads(one["attributes"]["panelsJSON"])
            controls = json.loads(one["attributes"]["controlGroupInput"]["panelsJSON"])
            assert names == [
                *(f"{panel['panelIndex']}:{panel['panelRefName']}" for panel in panels),
                *(f"controlGroup_{control}:optionsListDataView" for control in controls),
            ]
            for panel, reference in zip(panels, one["references"], strict=False):
                assert panel["type"] == reference["type"]


@pytest.mark.parametrize(("name", "one"), of("lens"), ids=named)
def test_a_chart_shows_each_of_its_columns_once(name: str, one: Object) -> None:
    state = one["attributes"]["state"]
    assert set(state) == {
        "datasourceStates",
        "visualization",
        "query",
        "filters",
        "internalReferences",
        "adHocDataViews",
    }
    ((id_, layer),) = state["datasourceStates"]["formBased"]["layers"].items()
    assert sorted(layer["columnOrder"]) == sorted(layer["columns"])
    bucketed = [layer["columns"][column]["isBucketed"] for column in layer["columnOrder"]]
    assert bucketed == sorted(bucketed, reverse=True), "buckets come first"
    for column in layer["columns"].values():
        if column["operationType"] == "terms":
            assert column["params"]["orderBy"]["columnId"] in layer["columns"]
    shown = state["visualization"]
    if one["attributes"]["visualizationType"] == "lnsXY":
        (shown,) = shown["layers"]
        drawn = [
            shown["xAccessor"],
            *shown["accessors"],
            *([shown["splitAccessor"]] if "splitAccessor" in shown else []),
        ]
    elif one["attributes"]["visualizationType"] == "lnsDatatable":
        drawn = [column["columnId"] for column in shown["columns"]]
    else:
        assert one["attributes"]["visualizationType"] == "lnsMetric"
        drawn = [shown["metricAccessor"]]
    assert (shown["layerId"], shown["layerType"]) == (id_, "data")
    assert sorted(drawn) == sorted(layer["columns"])
    question, _, bad = one["attributes"]["description"].partition(" A bad value: ")
    assert question.endswith("?")
    assert bad


@pytest.mark.parametrize(("name", "one"), of("dashboard"), ids=named)
def test_panels_lie_beside_each_other_and_all_that_is_stored_as_text_is_json(name: str, one: Object) -> None:
    attributes = one["attributes"]
    assert json.loads(attributes["kibanaSavedObjectMeta"]["searchSourceJSON"])["filter"] == []
    assert json.loads(attributes["optionsJSON"])["hidePanelTitles"] is False
    assert set(json.loads(attributes["controlGroupInput"]["ignoreParentSettingsJSON"]).values()) == {False}
    taken: set[tuple[int, int]] = set()
    panels = json.loads(attributes["panelsJSON"])
    for panel in panels:
        grid = panel["gridData"]
        assert grid["i"] == panel["panelIndex"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < WIDTH
        taken |= cells
    ids = {reference["id"] for reference in one["references"]}
    charts = {other["id"] for other in objects(name) if other["type"] == "lens"}
    assert charts <= ids, "each chart is on the dashboard"


def test_objects_ask_for_fields_that_dsobs_writes() -> None:
    known = {field for fields in TYPES.values() for field in fields} | OWN
    asked = {field for _, one in ALL for field in fields_of(one)}
    assert asked <= known
    assert {"log.level", "error.type", "event.action"} <= asked


def test_the_error_views_ask_for_error_and_above() -> None:
    views = {one["id"]: lucene_of(one) for _, one in of("search")}
    for view in ("dsobs-errors", "deepseek-logs-errors"):
        assert views[view].startswith("log.level:(ERROR OR ")


class Kibana:
    """A stand-in for Kibana's import, which says what it was sent: the answer's form is that of its published API."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    async def take(self, request: web.Request) -> web.Response:
        """https://www.elastic.co/docs/api/doc/kibana/operation/operation-post-saved-objects-import"""
        assert request.headers["kbn-xsrf"] == "true"
        assert request.query == {"overwrite": "true"}
        form = await request.post()
        file = form["file"]
        assert isinstance(file, web.FileField)
        assert file.filename.endswith(".ndjson")
        lines = file.file.read().decode()
        self.sent.append((file.filename, lines))
        return web.json_response({"success": True, "successCount": lines.count("\n")}, dumps=compact)


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


@pytest.fixture
async def kibana() -> AsyncIterator[tuple[Kibana, str]]:
    stand_in = Kibana()
    app = web.Application()
    app.router.add_post("/api/saved_objects/_import", stand_in.take)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield stand_in, f"127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def run(script: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euc", script), cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, script
    return out.decode()


async def test_the_commands_of_the_guide_import_both_files(kibana: tuple[Kibana, str]) -> None:
    stand_in, address = kibana
    guide = (ROOT / "docs/how-to/dashboards.md").read_text(encoding="utf-8")
    commands = [line for line in guide.splitlines() if line.startswith("curl ") and "saved_objects" in line]
    assert len(commands) == 2
    for command in commands:
        assert '"success":true' in await run(command.replace("127.0.0.1:5601", address))
    assert dict(stand_in.sent) == {f"{name}.ndjson": text(name) for name in FILES}


async def test_compose_imports_both_files(kibana: tuple[Kibana, str]) -> None:
    stand_in, address = kibana
    service = yaml.safe_load((ROOT / "deploy/compose/compose.yaml").read_text())["services"]["kibana-setup"]
    assert (service["entrypoint"], service["volumes"]) == (
        ["bash", "-euc"],
        ["../../dashboards/kibana:/objects:ro"],
    )
    (script,) = service["command"]
    script = script.replace("$$", "$").replace("kibana:5601", address).replace("/objects", str(FOLDER))
    assert (await run(script)).count('"success":true') == 2
    assert dict(stand_in.sent) == {f"{name}.ndjson": text(name) for name in FILES}
