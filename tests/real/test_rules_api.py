"""Rules, alerts and metadata of dsobs' API against a real Prometheus 3: the same rules and samples, the same answers.

What differs is in docs/how-to/dashboards.md: expressions are compared as parsed, counters by the names of their series.
"""

import asyncio
import difflib
import json
import threading
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser
import pytest

from dsobs.api.server import serve
from dsobs.model.samples import Sample, labels
from dsobs.model.signals import SIGNALS
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import load_text
from tests.api.conftest import MemorySource
from tests.real.prometheus import Prometheus
from tests.real.test_alert_states_live import pages
from tests.real.test_query_api import DEADLINE, ask

pytestmark = pytest.mark.real("servers")
PATIENCE = 180.0
RULES = """
groups:
  - name: first
    interval: 1s
    limit: 10
    labels: {team: a}
    rules:
      - record: s:doubled
        expr: s * 2
        labels: {unit: none}
      - record: plain
        expr: sum(s)
      - alert: Fires
        expr: s > 1
        labels: {severity: warning, model: '{{ $labels.i }}'}
        annotations: {summary: '{{ $labels.i }} at {{ $value }}'}
      - alert: Waits
        expr: s > 1
        for: 1h
        keep_firing_for: 2m
      - alert: Rests
        expr: s > 1e9
  - name: second
    interval: 1s
    rules:
      - alert: Fails
        expr: s / on () group_left () (s * 0 + 1)
"""
PAGE = 's{i="1"} 1.5\ns{i="2"} 12345.678\n'
VOLATILE = {"evaluationTime", "lastEvaluation", "activeAt", "file"}
"""What hangs on the moment, or on where the file is; only its type is compared."""
REQUESTS = (
    "alerts",
    "rules",
    "rules?type=alert",
    "rules?type=record",
    "rules?exclude_alerts=true",
    "rules?rule_name[]=Waits",
    "rules?rule_name[]=Waits&rule_name[]=plain",
    "rules?rule_name[]=none",
    "rules?rule_group[]=second",
    "rules?rule_group[]=none",
    "rules?type=record&rule_group[]=second",
    "rules?type=nothing",
    "rules?exclude_alerts=perhaps",
)


class Both(NamedTuple):
    """The same rules and samples twice."""

    prometheus: Prometheus
    dsobs: int


class Evaluated(MemorySource):
    """A source whose rules are evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.evaluator = Evaluator(load_text([("rules.yaml", RULES)]), self.store)
        for name in self.evaluator.metric_names:
            self.store.want(name)

    def alert_views(self) -> list[dict[str, Any]]:
        return list(self.evaluator.alerts_view()["alerts"])

    def rule_groups(self) -> list[dict[str, Any]]:
        return list(self.evaluator.rules()["groups"])


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    source, address, ended = Evaluated(), list[int](), threading.Event()

    async def listen() -> None:
        async with serve(source, "127.0.0.1:0", None) as (_, port):
            address.append(port)
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(listen(),))
    source.samples = exposed()
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not address:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with pages() as (target, show), Prometheus(RULES, 1.0, f"{target}','127.0.0.1:{address[0]}") as prometheus:
        show(PAGE)
        deadline = time.monotonic() + PATIENCE
        while not _evaluated(prometheus):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (end,) = (points[-1] for _, points in prometheus.query(f'up{{instance="{target}"}}[1m]', time.time()).series)
        for at in (end[0] / 1000 - 1, end[0] / 1000):
            # With the labels that a scrape gives.
            page = [
                Sample(labels("s", i=i, instance=target, job="t"), value) for i, value in (("1", 1.5), ("2", 12345.678))
            ]
            source.store.append_samples(page, at, source="t")
            source.evaluator.evaluate(at)
        yield Both(prometheus, address[0])
    ended.set()
    thread.join(DEADLINE)


def exposed() -> list[Sample]:
    """A sample of every signal."""
    found = []
    for one in SIGNALS.values():
        if one.type == "histogram":
            found += [Sample(labels(f"{one.name}_bucket", le="+Inf"), 1.0)]
            found += [Sample(labels(f"{one.name}_{part}"), 1.0) for part in ("sum", "count")]
        else:
            found.append(Sample(labels(one.name), 1.0))
    return found


def _evaluated(prometheus: Prometheus) -> bool:
    groups = prometheus.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    found = {rule["name"]: rule for rule in rules}
    if len(prometheus.get("/api/v1/metadata")) < len(SIGNALS):
        return False
    return found["Fails"]["health"] == "err" and bool(found["Waits"]["alerts"]) and found["plain"]["health"] == "ok"


def shape(told: Any, key: str = "") -> Any:
    """What has to be the same; of what hangs on the moment its type."""
    if key in VOLATILE:
        return type(told).__name__ if not isinstance(told, int | float) else "number"
    if key == "query":
        return promql_parser.parse(told).prettify()
    if isinstance(told, dict):
        return {name: shape(value, name) for name, value in told.items() if name not in ("error", "lastError")}
    if isinstance(told, int) and not isinstance(told, bool):
        return float(told)
    if isinstance(told, list):
        parts = [shape(one, key) for one in told]
        return sorted(parts, key=lambda one: json.dumps(one, sort_keys=True)) if key == "alerts" else parts
    return told


def written(told: Any) -> list[str]:
    return json.dumps(shape(told), indent=1, sort_keys=True).splitlines()


@pytest.mark.parametrize("path", REQUESTS)
def test_rules_and_alerts_are_told_as_prometheus_tells_them(both: Both, path: str) -> None:
    name, _, query = path.partition("?")
    pairs = tuple(urllib.parse.parse_qsl(query))
    theirs, ours = (ask(port, name, pairs, "GET") for port in (both.prometheus.port, both.dsobs))
    assert ours[0] == theirs[0]
    different = list(difflib.unified_diff(written(theirs[1]), written(ours[1]), "Prometheus", "dsobs", n=1))
    assert different == [], "\n".join(different)


@pytest.mark.parametrize("query", ['match[]={severity="warning"}', "group_limit=1"])
def test_what_dsobs_does_not_narrow_by_gives_all_groups(both: Both, query: str) -> None:
    """The guide says so."""
    _, everything = ask(both.dsobs, "rules", (), "GET")
    assert shape(ask(both.dsobs, "rules", tuple(urllib.parse.parse_qsl(query)), "GET")[1]) == shape(everything)


def test_an_error_of_a_rule_is_told(both: Both) -> None:
    for port in (both.prometheus.port, both.dsobs):
        _, told = ask(port, "rules", (("rule_name[]", "Fails"),), "GET")
        (rule,) = told["data"]["groups"][0]["rules"]
        assert rule["health"] == "err"
        assert rule["lastError"]
        assert rule["alerts"] == []


@pytest.mark.parametrize("query", ["", "limit=3", "metric=dsobs_engine_requests_running", "metric=none", "limit=0"])
def test_metadata_is_what_prometheus_reads_from_the_page(both: Both, query: str) -> None:
    pairs = tuple(urllib.parse.parse_qsl(query))
    theirs, ours = (ask(port, "metadata", pairs, "GET") for port in (both.prometheus.port, both.dsobs))
    assert ours[0] == theirs[0] == 200
    there, here = theirs[1]["data"], ours[1]["data"]
    if query.startswith("limit"):
        assert len(here) == len(there) == int(query.partition("=")[2])
        return
    there = {f"{name}_total" if told[0]["type"] == "counter" else name: told for name, told in there.items()}
    different = {name: (told, here.get(name)) for name, told in there.items() if here.get(name) != told}
    assert different == {}
    print(f"metadata?{query}: {len(there)} of Prometheus, the same in dsobs; {len(here) - len(there)} not on its page")
