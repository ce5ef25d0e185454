"""The real Alertmanager: what dsobs relies on in it, the shipped routes, and the way from a hang to a silence."""

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from dsobs.config.models import Alertmanager
from dsobs.notifiers.alertmanager import AlertmanagerNotifier
from dsobs.notifiers.inhibition import inhibitor, load_inhibition
from dsobs.simulator.process import free_port
from tests.acceptance.scene import scene
from tests.contracts.alertmanager_contract import AlertmanagerContract, standing, until

pytestmark = pytest.mark.real("servers")

ROOT = Path(__file__).parents[2]
TOOLS = Path(__file__).parent / "prometheus.sh"


def tool(name: str) -> str:
    """The path of a built binary."""
    built = subprocess.run(["bash", TOOLS, name], check=True, stdout=subprocess.PIPE, text=True)
    return built.stdout.strip()


@contextlib.contextmanager
def alertmanager(folder: Path, config: str, port: int | None = None) -> Iterator[str]:
    """A server of its own with this configuration, until the context ends; gives its address."""
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alertmanager.yml").write_text(config)
    with (folder / "alertmanager.log").open("ab") as log:
        process = subprocess.Popen(
            [
                tool("alertmanager"),
                f"--config.file={folder / 'alertmanager.yml'}",
                f"--storage.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "GOMAXPROCS": "2"},
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)


async def until_ready(url: str, session: aiohttp.ClientSession) -> None:
    """Until it answers."""

    async def ready() -> bool:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"{url}/-/ready") as answer:
                return answer.status == 200
        return False

    await until(ready, 90.0)


QUIET = "route: {receiver: none}\nreceivers: [{name: none}]\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with alertmanager(tmp_path_factory.mktemp("alertmanager"), QUIET) as url:
        yield url


class TestRealAlertmanager(AlertmanagerContract):
    @pytest.fixture
    async def url(self, server: str, session: aiohttp.ClientSession) -> str:
        await until_ready(server, session)
        return server


NAMES = (
    "EngineDown", "EngineHung", "EngineUnresponsive", "EngineStartSlow", "EngineTargetAbsent", "LatencyP99High",
    "TimeToFirstTokenBudgetFast", "TimeToFirstTokenBudgetSlow", "TimeToFirstTokenBudgetLong", "AvailabilityBudgetFast",
    "AvailabilityBudgetSlow", "AvailabilityBudgetLong", "ErrorRateHigh", "QueueGrowing", "SchedulerStuck",
    "PreemptionThrash", "KVCacheSaturated", "GPUFellOffBus", "GPUResetNeeded", "GPUApplicationFault", "GPUMemoryHigh",
    "ContainerRestartsHigh", "EngineSignalsLost", "Watchdog",
)  # fmt: skip


async def test_inhibition_is_that_of_alertmanager_for_every_pair_of_alerts(tmp_path: Path) -> None:
    rules = load_inhibition([ROOT / "alerts" / "alertmanager.yaml"])
    inhibit = yaml.safe_load((ROOT / "alerts" / "alertmanager.yaml").read_text())["inhibit_rules"]
    config = QUIET + yaml.safe_dump({"inhibit_rules": inhibit})
    pairs = {
        f"{source}/{target}": [{"alertname": name, "instance": f"{source}/{target}"} for name in (source, target)]
        for source, target in itertools.permutations(NAMES, 2)
    }
    # The same once more, with another model on the target's side.
    pairs |= {
        f"{key}/model": [
            {**source, "instance": f"{key}/model"},
            {**target, "instance": f"{key}/model", "model_name": "r1"},
        ]
        for key, (source, target) in pairs.items()
    }
    expected = {key: inhibitor(rules, target, [source, target]) is not None for key, (source, target) in pairs.items()}
    alerts = [standing(labels=labels) for pair in pairs.values() for labels in pair]
    async with aiohttp.ClientSession() as session:
        with alertmanager(tmp_path, config) as url:
            await until_ready(url, session)
            notifier = AlertmanagerNotifier(url, Alertmanager(urls=(url,)), session)
            for start in range(0, len(alerts), 256):
                assert (await notifier.send_standing(alerts[start : start + 256])).status == 200

            async def same() -> bool:
                async with session.get(f"{url}/api/v2/alerts") as answer:
                    listed = await answer.json()
                held = {
                    (one["labels"]["instance"], one["labels"]["alertname"]): bool(one["status"]["inhibitedBy"])
                    for one in listed
                }
                return {key: held.get((key, pair[1]["alertname"])) for key, pair in pairs.items()} == expected

            await until(same, 120.0)
    assert sum(expected.values()) > 50


@pytest.fixture
async def pages() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook receiver of an Alertmanager: its address, and what came."""
    found: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        found.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/", found
    await runner.cleanup()


def names(pages: list[dict[str, Any]], status: str = "firing") -> list[str]:
    """Of the alerts that were told of."""
    return [alert["labels"]["alertname"] for page in pages for alert in page["alerts"] if alert["status"] == status]


@pytest.mark.real("seconds")
async def test_hang_is_paged_through_two_alertmanagers_one_away_and_a_silence_holds_in_both(
    tmp_path: Path, pages: tuple[str, list[dict[str, Any]]]
) -> None:
    receiver, told = pages
    config = (
        "route: {receiver: hook, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}\n"
        f"receivers: [{{name: hook, webhook_configs: [{{url: '{receiver}'}}]}}]\n"
    )
    away = free_port()
    async with scene(tmp_path) as stage:
        with alertmanager(tmp_path / "first", config) as first:
            await until_ready(first, stage.session)
            await stage.start_engine()
            await stage.start_load(4)
            token = tmp_path / "token"
            token.write_text("a-token")
            await stage.start_dsobs(
                enforce=False,
                notifiers__webhook__url="",
                notifiers__alertmanager__urls=f"{first},http://127.0.0.1:{away}",
                notifiers__alertmanager__resend_delay="2s",
                api__control_token=f"file:{token}",
                target__name="gpu-1",
            )
            await stage.until_working()

            # One Alertmanager is away: the other is told at once.
            stopped = await stage.stop_at_work()
            await stage.until(lambda: "EngineHung" in names(told), 40.0, "EngineHung is paged")
            assert time.time() - stopped < 40

            # A silence is mirrored; the second one gets it, and the alert, when it comes.
            api = f"http://127.0.0.1:{stage.api}/api/v1/silences"
            body = {"matchers": ["alertname=EngineHung"], "duration": "10m", "comment": "seen", "createdBy": "me"}
            async with stage.session.post(api, json=body, headers={"Authorization": "Bearer a-token"}) as made:
                assert made.status == 201
                id_ = (await made.json())["data"]["id"]
            with alertmanager(tmp_path / "second", config, away) as second:
                await until_ready(second, stage.session)

                async def silenced(url: str) -> bool:
                    async with stage.session.get(f"{url}/api/v2/alerts") as answer:
                        found = [a for a in await answer.json() if a["labels"]["alertname"] == "EngineHung"]
                    return len(found) == 1 and found[0]["status"]["state"] == "suppressed"

                for url in (first, second):
                    await stage.until(lambda url=url: silenced(url), 90.0, f"silenced at {url}")  # type: ignore[misc]
                assert names(told).count("EngineHung") == 1

                # Ended here, ended there: the second one tells now.
                async with stage.session.delete(f"{api}/{id_}", headers={"Authorization": "Bearer a-token"}) as ended:
                    assert ended.status == 200
                await stage.until(lambda: names(told).count("EngineHung") >= 2, 90.0, "told after the silence")
