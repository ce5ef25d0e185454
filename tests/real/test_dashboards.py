"""Every query of every dashboard against a real Prometheus 3 that scrapes dsobs through an incident, and against dsobs.

Two targets: a dsobs beside a simulated vLLM and a node's GPU page that hangs and is restarted, its logs shipped; and
one that plays the recorded incident of an H100, with faults of the host that can't be had here.
The panel report is printed: dashboard, panel, query, series.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
from aiohttp import web
from dsobs_nvml import FAMILIES

from dsobs.api.server import serve
from dsobs.config import Config
from dsobs.indicators import INDICATORS, RULES_FILE
from dsobs.model.observation import HostView, RuntimeView
from dsobs.pipeline import Pipeline, rule_groups
from dsobs.recorder.records import read_records
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Ledger
from dsobs.replay import observation_of
from dsobs.rules import shipped
from dsobs.rules.evaluator import Evaluator
from dsobs.series.exposition import Parser
from dsobs.series.store import Store
from tests.acceptance.scene import SIMULATOR, Scene, scene
from tests.api.conftest import MemorySource
from tests.dashboards import Asked, asked
from tests.real.prometheus import Prometheus

pytestmark = [pytest.mark.real("servers"), pytest.mark.asyncio(loop_scope="module")]
GIB = 2**30
ENGINE_PIDS = (776,)
"""As in the recording."""
CARD = "GPU-00000000-0000-0000-0000-000000000000"
QUERIES = [one for one in asked() if not one.elasticsearch]
VALUES = {
    "dsobs_gpu_memory_total_bytes": 80.0 * GIB,
    "dsobs_gpu_memory_used_bytes": 74.0 * GIB,
    "dsobs_gpu_process_memory_bytes": 2.0 * GIB,
    "dsobs_gpu_power_watts": 450.0,
    "dsobs_gpu_power_limit_watts": 700.0,
}
LABELS = {
    "reason": "hw_thermal_slowdown",
    "type": "uncorrected",
    "xid": "48",
    "action": "gpu_reset",
    "threshold": "slowdown",
    "pid": "4194303",
    "direction": "receive",
    "domain": "sm",
    "setting": "default",
    "cause": "uncorrectable",
    "link": "0",
}


class Node:
    """A node's GPU page: a card at rest, and then one that has every fault at once."""

    def __init__(self) -> None:
        self.broke_at: float | None = None

    async def metrics(self, _: web.Request) -> web.Response:
        """As dsobs-nvml's."""
        if self.broke_at is not None:
            return web.Response(text=broken_page(self.broke_at))
        card = f'{{gpu="0",uuid="{CARD}"}}'
        well = {
            "up": 1,
            "memory_total_bytes": 80 * GIB,
            "memory_used_bytes": 74 * GIB,
            "utilization_ratio": 0,
            "power_watts": 126,
        }
        return web.Response(
            text="dsobs_nvml_up 1\n" + "".join(f"dsobs_gpu_{name}{card} {value}\n" for name, value in well.items())
        )


def broken_page(begun: float) -> str:
    """Each family of dsobs-nvml's page."""
    lines = ["dsobs_nvml_up 1"]
    for family in FAMILIES.values():
        if "mig" in family.name or family.name == "dsobs_gpu_unknown":
            continue
        names = {"gpu": "0", "uuid": CARD, **{name: LABELS.get(name, "x") for name in family.labels}}
        if "xid" in names:
            names["reason"] = "escalate"
        value = VALUES.get(family.name, 1.0)
        if family.type == "counter":
            value = time.time() - begun
        elif family.name == "dsobs_gpu_xid_last_time_seconds":
            value = begun
        pairs = ",".join(f'{name}="{one}"' for name, one in names.items())
        lines.append(f"{family.name}{{{pairs}}} {value}")
    return "\n".join(lines) + "\n"


@contextlib.asynccontextmanager
async def gpu_exporter(node: Node) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/metrics", node.metrics)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Replayed(MemorySource):
    """A dsobs that plays the H100's recording in real time, with its host's and card's troubles beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.store.show(3600)
        config = Config()
        evaluator = Evaluator(rule_groups(config), self.store)
        self.pipeline = Pipeline(config, self.store, evaluator)
        path = Path(__file__).parents[1] / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
        self._records = list(read_records(path))[100:]
        self._parser = Parser()
        self._begun = time.time()

    def turn(self, number: int) -> None:
        """One second of it."""
        now = time.time()
        passed = now - self._begun
        seen = observation_of(self._records[number % len(self._records)] | {"t": now}, self._parser)
        host = HostView(
            now,
            shm_size_bytes=GIB,
            shm_used_bytes=GIB - 1,
            filesystems=(("/", 1, 100),),
            memory_usage_bytes=GIB,
            memory_working_set_bytes=GIB - 1,
            memory_limit_bytes=GIB,
            oom_kills=1,
            cpu_waiting_seconds=passed,
            cpu_stalled_seconds=passed,
            cpu_throttled_seconds=passed,
        )
        runtime = RuntimeView("docker", "vllm", True, started_at=self._begun, cpu_seconds=passed, pids=ENGINE_PIDS)
        self.pipeline.turn(replace(seen, host=host, runtime=runtime), Ledger(), Switches())
        self.samples = [*self.pipeline.samples(), *self.pipeline.evaluator.alert_samples()]
        self.now = now


class Watched(NamedTuple):
    """Both targets and the Prometheus that has scraped them."""

    prometheus: Prometheus
    here: Scene


def _rules() -> str:
    """The recording rules, more often than in earnest."""
    text = shipped.rule_file(["objectives.rules.yaml", RULES_FILE], Config())
    return text.replace("interval: 15s", "interval: 1s").replace("interval: 30s", "interval: 1s")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("dashboards")
    source, node = Replayed(), Node()
    async with (
        scene(folder) as here,
        gpu_exporter(node) as gpus,
        serve(source, "127.0.0.1:0", None) as (host, port),
    ):

        async def play() -> None:
            number = 0
            while True:
                source.turn(number)
                number += 1
                await asyncio.sleep(1.0)

        playing = asyncio.create_task(play())
        await here.start_engine(*SIMULATOR)
        log = folder / "app.log"
        await here.start_dsobs(
            gpu__source=gpus,
            gpu__devices="all",
            host__shm="/dev/shm",
            logs__files=f"json:{log}",
            logs__file__path=str(folder / "records.ndjson"),
        )
        targets = (f"127.0.0.1:{here.api}", f"{host}:{port}")
        with Prometheus(_rules(), interval=1.0, target="','".join(targets)) as prometheus:
            await here.start_load()
            await here.until_working()
            await _write(log)
            await here.turns(8)
            await here.stop_at_work()
            await here.until(lambda: here.happened("verified"), 240, "the hang is repaired")
            await _write(log)
            # A card that breaks before is not answered with a restart.
            node.broke_at = time.time()
            await here.turns(20)
            yield Watched(prometheus, here)
        playing.cancel()


async def _write(log: Path) -> None:
    """Lines of an application, among them one that is no JSON and one that tells of a fault."""

    def append() -> None:
        with log.open("a", encoding="utf-8") as file:
            for number in range(20):
                line = {"level": "ERROR", "message": f"request {number} failed", "@timestamp": "2026-11-24T08:00:00Z"}
                file.write(json.dumps(line) + "\n")
            file.write("torch.OutOfMemoryError: CUDA out of memory.\nno JSON\n")

    await asyncio.to_thread(append)


def report(title: str, counts: list[tuple[Asked, int]]) -> list[str]:
    """Prints the panel report; queries without a series."""
    print(f"{title}: {len(counts)} queries, {sum(rows for _, rows in counts)} series")
    for one, rows in counts:
        print(f"  {one.dashboard:8} | {one.panel:40} | {' '.join(one.query.split())[:150]} | {rows}")
    return [f"{one.dashboard} / {one.panel}: {one.query}" for one, rows in counts if not rows]


async def test_every_query_of_every_panel_returns_data_from_prometheus(watched: Watched) -> None:
    now = time.time()
    counts = []
    for one in QUERIES:
        answer = watched.prometheus.query_range(one.query, now - 60, now, 1.0)
        assert answer.error == "", one
        counts.append((one, len(answer.series)))
    assert report("Prometheus", counts) == []


async def test_the_same_queries_work_from_the_sidecar_itself(watched: Watched) -> None:
    """Of what is only seen at the other target nothing is expected here but an answer."""
    now = time.time()
    counts = []
    for one in QUERIES:
        form = {"query": one.query, "start": str(now - 60), "end": str(now), "step": "1"}
        async with watched.here.session.post(
            f"http://127.0.0.1:{watched.here.api}/api/v1/query_range", data=form
        ) as got:
            told = await got.json()
            assert got.status == 200, (one, told)
        counts.append((one, len(told["data"]["result"])))
    empty = report("sidecar", counts)
    print("\n".join(empty))
    # dsobs runs in the engine's cgroup here, and so can't tell memory and waiting of either.
    unknown = ("dsobs:container_memory:ratio", "foreign_memory", "dsobs_container_cpu_pressure")
    assert [one for one in empty if not any(name in one for name in unknown)] == []


async def test_every_indicator_is_recorded_by_prometheus_and_by_the_sidecar(watched: Watched) -> None:
    for one in INDICATORS.values():
        assert watched.prometheus.query(f"last_over_time({one.record}[1m])", time.time()).series, one.name
