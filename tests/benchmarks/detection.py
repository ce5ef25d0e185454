"""From fault to page, side by side: dsobs at 1 Hz, and Prometheus 3 with Alertmanager at 15 s and at 1 min.

`python -m tests.benchmarks.detection [--only ALERT …]` prints one JSON object. It takes about 20 minutes and 3 GiB, and
before the first run the builds of `tests/real/prometheus.sh`. Every fault has a server of its own with a `dsobs run`
beside it. Each Prometheus scrapes those servers (and their GPU exporter) with `NATIVE_RULES`, and every dsobs with
`alerts/` unchanged. Its Alertmanager routes and waits as the shipped alertmanager.yaml. All pages go to one receiver on
loopback; what is told is the time from the fault until the receiver has the page.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml
from aiohttp import web

from dsobs.demo import child, engine_cores
from dsobs.simulator.process import free_port
from tests.benchmarks.faults import FAULTS, NATIVE_RULES, Fault, Server
from tests.real.prometheus import tool

ALERTS = Path(__file__).parents[2] / "alerts"
SCRAPES = {"15s": "15s", "1m": "1m"}
"""Name of a chain → Prometheus' scrape and evaluation interval. Groups of `alerts/` have their own interval."""
HISTORY_SECONDS = 360.0
"""Of the healthy server before the fault: more than the longest window."""
STAGGER_SECONDS = 3.7
"""Between two faults, so that they fall at different points of the scrapes' intervals."""
RESTART_SECONDS = 75.0
"""Between the restarts before the one that is too many: longer than a scrape interval, so that each can be seen."""
PATIENCE_SECONDS = 960.0
SIMULATOR = ("--exit-with-parent", "--disable-uvicorn-access-log", "--decode-step-seconds", "0.05")


@dataclass(eq=False)
class Scene:
    """One fault's server, and when its fault began."""

    fault: Fault
    number: int
    port: int = field(default_factory=free_port)
    gpu_port: int = field(default_factory=free_port)
    api: int = field(default_factory=free_port)
    server: Server | None = None
    engine_pid: int = 0
    begun: float = 0.0

    @property
    def name(self) -> str:
        """The label `instance` everywhere."""
        return f"server-{self.number}"

    def begin(self) -> None:
        """The fault."""
        self.begun = time.time()
        if self.server is not None and self.fault.begin is not None:
            self.fault.begin(self.server)
            return
        number = signal.SIGKILL if self.fault.alert == "EngineDown" else signal.SIGSTOP
        for core in engine_cores(self.engine_pid):
            os.kill(core, number)


class Pages:
    """The receiver of all pages: when each was first accepted."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, str, str], list[float]] = {}
        """(chain, instance, alert) → times."""

    def _add(self, chain: str, instance: str, alert: str) -> None:
        self.first.setdefault((chain, instance, alert), []).append(time.time())

    async def from_dsobs(self, request: web.Request) -> web.Response:
        """A notification of dsobs's webhook."""
        body = orjson.loads(await request.read())
        if body["event"] == "trigger":
            self._add("dsobs", body["source"], body["labels"].get("alertname", ""))
        return web.Response()

    async def from_alertmanager(self, request: web.Request) -> web.Response:
        """A notification of Alertmanager's webhook."""
        for alert in orjson.loads(await request.read())["alerts"]:
            if alert["status"] == "firing":
                labels = alert["labels"]
                self._add(request.match_info["chain"], labels.get("instance", ""), labels["alertname"])
        return web.Response()

    def after(self, chain: str, scene: Scene, alert: str) -> float | str | None:
        """Seconds from the fault to the page; "before" where it came before the fault; None for none."""
        times = self.first.get((chain, scene.name, alert), [])
        if times and times[0] < scene.begun:
            return "before"
        return round(times[0] - scene.begun, 1) if times else None


async def serve(stack: contextlib.AsyncExitStack, app: web.Application, port: int) -> None:
    """On loopback, until the stack is closed."""
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", port).start()


async def answers(session: aiohttp.ClientSession, url: str, seconds: float = 60.0) -> None:
    """Waits for a 200; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


async def start_server(stack: contextlib.AsyncExitStack, session: aiohttp.ClientSession, scene: Scene) -> None:
    """A page server, or a simulator with its clients."""
    if scene.fault.begin is not None:
        scene.server = Server()
        stack.callback(scene.server.for_ever.set)
        await serve(stack, scene.server.application(), scene.port)
        await serve(stack, scene.server.exporter(), scene.gpu_port)
        return
    words = (sys.executable, "-m", "dsobs.simulator", "--port", str(scene.port), *SIMULATOR)
    engine = await stack.enter_async_context(child(*words, output=asyncio.subprocess.DEVNULL))
    scene.engine_pid = engine.pid
    await answers(session, f"http://127.0.0.1:{scene.port}/health")
    if not scene.fault.idle:
        load = (sys.executable, "-m", "dsobs.simulator.load", "--url", f"http://127.0.0.1:{scene.port}")
        more = ("--clients", "2", "--duration", "3600")
        await stack.enter_async_context(child(*load, *more, output=asyncio.subprocess.DEVNULL))


async def start_dsobs(
    stack: contextlib.AsyncExitStack, session: aiohttp.ClientSession, scene: Scene, receiver: str, folder: Path
) -> None:
    """`dsobs run` as shipped beside the server, told its name, its GPUs and where to page."""
    url = f"http://127.0.0.1:{scene.port}"
    wanted = {
        "target.url": url,
        "target.name": scene.name,
        "notifiers.webhook.url": f"{receiver}/dsobs",
        "state.directory": str(folder / scene.name),
        "api.listen": f"127.0.0.1:{scene.api}",
        "gpu.source": f"http://127.0.0.1:{scene.gpu_port}",
        "gpu.enabled": str(scene.fault.gpu).lower(),
        "gpu.devices": "all",
    }
    flags = [word for name, value in wanted.items() for word in ("--set", f"{name}={value}")]
    log = folder / f"{scene.name}.log"
    await stack.enter_async_context(child(sys.executable, "-m", "dsobs.cli", "run", *flags, output=log))
    try:
        await answers(session, f"http://127.0.0.1:{scene.api}/readyz")
    except TimeoutError:
        raise RuntimeError(f"dsobs is not ready:\n{log.read_text()[-2000:]}") from None


def native_rules() -> str:
    """As a rule file."""
    rules = [
        {"alert": name, "expr": expr, "for": wait, "labels": {"severity": severity}}
        for name, (expr, wait, severity) in NATIVE_RULES.items()
    ]
    return yaml.safe_dump({"groups": [{"name": "native", "rules": rules}]})


def targets(scenes: list[Scene], port: str, only_gpu: bool = False) -> list[dict[str, Any]]:
    """`static_configs`, one a scene."""
    return [
        {"targets": [f"127.0.0.1:{getattr(scene, port)}"], "labels": {"instance": scene.name}}
        for scene in scenes
        if scene.fault.gpu or not only_gpu
    ]


async def start_prometheus(
    stack: contextlib.AsyncExitStack, session: aiohttp.ClientSession, chain: str, scenes: list[Scene], receiver: str,
    folder: Path,
) -> None:  # fmt: skip
    """One Prometheus with its Alertmanager."""
    folder = folder / chain
    folder.mkdir()
    ports = free_port(), free_port()
    routes = yaml.safe_load((ALERTS / "alertmanager.yaml").read_text())
    hook = [{"url": f"{receiver}/alertmanager/{chain}"}]
    routes["receivers"] = [
        {"name": one["name"], **({"webhook_configs": hook} if one["name"] == "pagerduty" else {})}
        for one in routes["receivers"]
    ]
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(routes))
    (folder / "native.rules.yaml").write_text(native_rules())
    interval = SCRAPES[chain]
    config = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": [str(folder / "native.rules.yaml"), f"{ALERTS}/*.rules.yaml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{ports[1]}"]}]}]},
        "scrape_configs": [
            {"job_name": "engine", "static_configs": targets(scenes, "port")},
            {"job_name": "gpu", "static_configs": targets(scenes, "gpu_port", True)},
            {"job_name": "dsobs", "static_configs": targets(scenes, "api")},
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for name, command in (
        (
            "alertmanager",
            (
                f"--config.file={folder}/alertmanager.yml",
                f"--storage.path={folder}/alerts",
                "--cluster.listen-address=",
            ),
        ),
        ("server", (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data")),
    ):
        port = ports[name == "alertmanager"]
        binary = await asyncio.to_thread(tool, name)
        words = (str(binary), *command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn")
        await stack.enter_async_context(child(*words, output=folder / f"{name}.log"))
        await answers(session, f"http://127.0.0.1:{port}/-/ready")


async def play(scene: Scene, at: float) -> None:
    """Waits for its moment, and begins the fault; three restarts come before the fourth."""
    earlier = 3 if scene.fault.alert == "ContainerRestartsHigh" else 0
    for count in range(earlier, -1, -1):
        await asyncio.sleep(max(0.0, at - count * RESTART_SECONDS - time.time()))
        if count and scene.server is not None:
            scene.server.restart()
    scene.begin()
    print(f"{scene.fault.name}: begun", file=sys.stderr, flush=True)


def row(scene: Scene, pages: Pages) -> dict[str, Any]:
    """Seconds by chain."""
    fault = scene.fault
    found: dict[str, Any] = {"fault": fault.name, "alert": fault.alert, "native_alert": fault.native}
    found["dsobs"] = pages.after("dsobs", scene, fault.alert)
    for chain in SCRAPES:
        found[f"prometheus_on_dsobs_{chain}"] = pages.after(chain, scene, fault.alert)
        found[f"prometheus_alone_{chain}"] = pages.after(chain, scene, fault.native) if fault.native else None
    return found


def complete(found: dict[str, Any]) -> bool:
    """Whether every page that there can be has come."""
    return all(value is not None or (not found["native_alert"] and "alone" in key) for key, value in found.items())


async def measure(faults: list[Fault]) -> list[dict[str, Any]]:
    """Rows of the table."""
    scenes = [Scene(fault, number) for number, fault in enumerate(faults)]
    pages = Pages()
    app = web.Application()
    app.router.add_post("/dsobs", pages.from_dsobs)
    app.router.add_post("/alertmanager/{chain}", pages.from_alertmanager)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsobs-detection-")))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        receiver_port = free_port()
        await serve(stack, app, receiver_port)
        receiver = f"http://127.0.0.1:{receiver_port}"
        for scene in scenes:
            await start_server(stack, session, scene)
            await start_dsobs(stack, session, scene, receiver, folder)
            print(f"{scene.name}: {scene.fault.name}, dsobs runs", file=sys.stderr, flush=True)
        for chain in SCRAPES:
            await start_prometheus(stack, session, chain, scenes, receiver, folder)
        first = time.time() + HISTORY_SECONDS
        print(f"all run; the first fault comes in {HISTORY_SECONDS:.0f} s", file=sys.stderr, flush=True)
        times = [first + scene.number * STAGGER_SECONDS for scene in scenes]
        await asyncio.gather(*(play(scene, at) for scene, at in zip(scenes, times, strict=True)))
        deadline = time.time() + PATIENCE_SECONDS
        missing = set(scenes)
        while missing and time.time() < deadline:
            await asyncio.sleep(1.0)
            for scene in [one for one in missing if complete(row(one, pages))]:
                missing.remove(scene)
                print(json.dumps(row(scene, pages), ensure_ascii=False), file=sys.stderr, flush=True)
        return [row(scene, pages) for scene in scenes]


async def until_told_to_end(work: Coroutine[Any, Any, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """SIGTERM ends all that was started."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.detection")
    parser.add_argument("--only", nargs="*", default=[], metavar="ALERT", help="faults of these alerts only")
    only = parser.parse_args().only
    faults = [fault for fault in FAULTS if not only or fault.alert in only]
    print(json.dumps({"rows": asyncio.run(until_told_to_end(measure(faults)))}, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
