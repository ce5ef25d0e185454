"""What Grafana's logs dashboard and Kibana's saved objects ask, from a real Elasticsearch with records of dsobs's.

Neither Grafana nor Kibana, which can't be had here: tests/dashboards/searches.py writes what they send. The report is
printed: where, what is asked, the query, rows. The documents are an engine's log with an error, a traceback, statistics
and requests, an application's JSON lines, and dsobs's own alerts and actions, as the journal writes them.
"""

import asyncio
import json
import os
import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dashboards.source import document
from dsobs.cli import main
from dsobs.config.logs import Logs
from dsobs.model.alert import Alert, AlertState, Transition
from dsobs.remediation.ledger import Entry
from dsobs.sidecar.journal import INCIDENTS_FILE, Journal
from tests.dashboards import asked
from tests.dashboards.searches import (
    Object,
    fields_of,
    files,
    lucene_of,
    objects,
    of_grafana,
    of_kibana,
    of_variable,
    rows,
    view_of,
)
from tests.logs.shipping import settings, ship_once
from tests.real.elasticsearch import ADMIN, Elasticsearch

pytestmark = [pytest.mark.real("servers"), pytest.mark.asyncio(loop_scope="module")]
STREAMS, PRESET = "logs-dsobs.*", "deepseek-logs"
INCIDENT = "20261124T084003Z-5fa0"
VERSIONS = ("9.2.0", "8.19.5") if os.environ.get("LONG_TESTS") == "1" else ("9.2.0",)
VIEWS = [(name, one) for name in files() for one in objects(name)]
KINDS = {
    "date": {"date"},
    "number": {"long", "integer", "float", "double"},
    "string": {"keyword"},
    "any": {"date", "long", "keyword", "text", "match_only_text", "ip", "wildcard", "float"},
}
"""What Kibana makes of a field → the types of Elasticsearch that it does so with."""


def _engine_log(now: float) -> str:
    stamp = datetime.fromtimestamp(now - 60, UTC).strftime("%m-%d %H:%M:%S")
    engine, server = "(EngineCore pid=776)", "(APIServer pid=1)"
    statistics = (
        "Engine 000: Avg prompt throughput: 12.5 tokens/s, Avg generation throughput: 80.0 tokens/s, Running: 4 reqs, "
        "Waiting: 2 reqs, GPU KV cache usage: 12.3%, Prefix cache hit rate: 45.0%"
    )
    return (
        f"{server} INFO {stamp} [loggers.py:248] {statistics}\n"
        f'{server} INFO:     127.0.0.1:40000 - "POST /v1/completions HTTP/1.1" 200 OK\n'
        f'{server} INFO:     127.0.0.1:40001 - "POST /v1/completions HTTP/1.1" 500 Internal Server Error\n'
        f"{engine} WARNING {stamp} [core.py:10] a slow step\n"
        f"{engine} ERROR {stamp} [core.py:700] EngineCore encountered a fatal error.\n"
        f"{engine} ERROR {stamp} [core.py:700] Traceback (most recent call last):\n"
        f'{engine} ERROR {stamp} [core.py:700]   File "/vllm/v1/engine/core.py", line 690, in run_engine_core\n'
        f"{engine} ERROR {stamp} [core.py:700]     engine_core.run_busy_loop()\n"
        f"{engine} ERROR {stamp} [core.py:700] torch.OutOfMemoryError: CUDA out of memory.\n"
        f"{server} INFO {stamp} [loggers.py:248] {statistics}\n"
    )


def _application_log(now: float) -> str:
    at = datetime.fromtimestamp(now - 30, UTC).isoformat()
    levels = ("ERROR", "INFO", "CRITICAL", "WARNING")
    lines = (
        {"@timestamp": at, "level": level, "logger": f"app.{level.lower()}", "message": f"request {number}"}
        for number, level in enumerate(levels * 5)
    )
    return "".join(json.dumps(line) + "\n" for line in lines)


def _incident(path: Path, now: float) -> None:
    alert = Alert(
        "EngineHung", {"alertname": "EngineHung", "severity": "critical"}, {"summary": "hung"}, AlertState.FIRING
    )
    journal = Journal(path)
    journal.transition(Transition(now - 50, alert, None), INCIDENT)
    for number, (kind, state) in enumerate((("incident", "opened"), ("restart", "reserved"), ("restart", "done"))):
        journal.entry(Entry(now - 40 + number, INCIDENT, kind, state, {"why": "EngineHung"}, number + 1))
    journal.close()


@pytest_asyncio.fixture(scope="module", params=VERSIONS, loop_scope="module")
async def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Elasticsearch]:
    folder, now = tmp_path_factory.mktemp("views"), time.time()
    (folder / "vllm.log").write_text(_engine_log(now))
    (folder / "app.log").write_text(_application_log(now))
    _incident(folder / INCIDENTS_FILE, now)
    found = (f"vllm:{folder}/vllm.log", f"json:{folder}/app.log", f"incident:{folder}/{INCIDENTS_FILE}")

    def wanted(server: Elasticsearch, **more: Any) -> Logs:
        who = {"user": ADMIN[0], "password": ADMIN[1], "index": ""}
        return settings(server.url, *found, service="deepseek", timezone="UTC", **who, **more)

    async with Elasticsearch(request.param) as server:
        given = {"urls": server.url, "index": PRESET, "user": ADMIN[0], "password": "env:TEST_PASSWORD"}
        flags = [part for name, value in given.items() for part in ("--set", f"logs.elasticsearch.{name}={value}")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TEST_PASSWORD", ADMIN[1])
            assert await asyncio.to_thread(main, ["logs", "setup", *flags]) == 0
        await ship_once(wanted(server), folder / "streams")
        await ship_once(wanted(server, preset=PRESET), folder / "preset")
        await server.must("POST", f"/{STREAMS},{PRESET}/_refresh")
        yield server


def span() -> tuple[int, int]:
    """The last hour, as both show it when opened."""
    end = round(time.time() * 1000)
    return end - 3_600_000, end


def report(counts: list[tuple[str, str, int]]) -> list[str]:
    """Prints it; what found nothing."""
    for where, what, count in counts:
        print(f"  {where:48} | {' '.join(what.split())[:110]:110} | {count}")
    return [f"{where}: {what}" for where, what, count in counts if not count]


async def test_every_query_of_grafanas_logs_dashboard_returns_rows(server: Elasticsearch) -> None:
    queries = [one for one in asked() if one.elasticsearch]
    variables = {one["name"]: one for one in document("logs")["templating"]["list"]}
    field = json.loads(variables["service"]["query"])["field"]
    chosen = {"service": variables["service"]["allValue"], "search": variables["search"]["query"]}
    bodies = [of_grafana(one.query, chosen, span()) for one in queries]
    answers = await server.msearch(STREAMS, [*bodies, of_variable(field, span())])
    names = [(f"{one.dashboard} | {one.panel}", one.query["query"]) for one in queries]
    counts = [
        (where, what, rows(answer))
        for (where, what), answer in zip([*names, ("variable | service", field)], answers, strict=True)
    ]
    print(f"Grafana from Elasticsearch {server.version}: {len(counts)} queries")
    assert len(queries) >= 6
    assert report(counts) == []


async def test_a_service_and_words_that_are_chosen_narrow_the_dashboard(server: Elasticsearch) -> None:
    query = next(one.query for one in asked() if one.elasticsearch and one.panel == "All records")
    choices = ({"service": "deepseek", "search": "message:slow"}, {"service": "another", "search": "*"})
    some, none = await server.msearch(STREAMS, [of_grafana(query, chosen, span()) for chosen in choices])
    assert (rows(some), rows(none)) == (1, 0)


async def test_every_search_and_chart_of_kibana_returns_rows(server: Elasticsearch) -> None:
    counts = []
    for name, one in VIEWS:
        if one["type"] not in ("search", "lens"):
            continue
        body = of_kibana(one, span())
        answer = await server.must("POST", f"/{_pattern(name, one)}/_search", body)
        counts.append(
            (f"{name} | {one['attributes']['title']}", json.dumps(body["query"]["bool"]["filter"][1:]), rows(answer))
        )
    print(f"Kibana from Elasticsearch {server.version}: {len(counts)} queries")
    assert len(counts) >= 17
    assert report(counts) == []


def _pattern(name: str, one: Object) -> str:
    """The indices of its data view."""
    view = next(other for other in objects(name) if other["id"] == view_of(one))
    return str(view["attributes"]["title"])


async def test_every_field_of_kibanas_objects_is_mapped_with_its_type(server: Elasticsearch) -> None:
    different = []
    for name, one in VIEWS:
        pattern = one["attributes"]["title"] if one["type"] == "index-pattern" else _pattern(name, one)
        fields = fields_of(one)
        if one["type"] in ("search", "lens"):
            searched = re.findall(r"([\w.@]+):", lucene_of(one).replace("_exists_:", ""))
            searched += re.findall(r"_exists_:([\w.]+)", lucene_of(one))
            fields = {**dict.fromkeys(searched, "any"), **fields}
        if not fields:
            continue
        told = await server.must("GET", f"/{pattern}/_field_caps?fields={','.join(fields)}&include_unmapped=false")
        for field, kind in fields.items():
            found = told["fields"].get(field, {})
            usable = all(caps["searchable"] and (kind == "any" or caps["aggregatable"]) for caps in found.values())
            if not found or not set(found) <= KINDS[kind] or not usable:
                different.append((one["id"], field, kind, found))
    assert different == []


async def test_the_error_view_of_the_preset_has_the_errors_and_nothing_else(server: Elasticsearch) -> None:
    view = next(one for name, one in VIEWS if one["id"] == "deepseek-logs-errors")
    answer = await server.must("POST", f"/{PRESET}/_search", of_kibana(view, span()) | {"_source": True})
    shown = [hit["_source"] for hit in answer["hits"]["hits"]]
    everything = await server.documents(PRESET)
    assert len(shown) == len(everything)
    assert {one["log.level"].upper() for one in shown} == {"ERROR", "CRITICAL"}
    assert any(one["message"].startswith("EngineCore encountered") for one in shown)
