"""`rules.evaluation: prometheus`, as a process: no alert pages from here, Watchdog and the heartbeat go on."""

from pathlib import Path

from aiohttp import web

from tests.acceptance.scene import scene
from tests.alertmanager_stand_in import AlertmanagerStandIn

RULES = """\
groups:
  - name: own
    interval: 1s
    rules:
      - {alert: Watchdog, expr: vector(1), labels: {severity: none}}
      - {alert: Up, expr: dsobs_engine_up == 1, labels: {severity: critical}}
"""


async def test_only_watchdog_reaches_alertmanager_and_nobody_is_paged_while_rules_are_evaluated_all_the_same(
    tmp_path: Path,
) -> None:
    beats: list[str] = []

    async def beat(request: web.Request) -> web.Response:
        beats.append((await request.json())["alertname"])
        return web.Response()

    (tmp_path / "own.yaml").write_text(RULES)
    async with scene(tmp_path) as stage, AlertmanagerStandIn() as alertmanager:
        app = web.Application()
        app.router.add_post("/", beat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        stage.stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        await stage.start_engine()
        await stage.start_dsobs(
            rules__evaluation="prometheus",
            rules__shipped="false",
            rules__files=str(tmp_path / "own.yaml"),
            notifiers__alertmanager__urls=alertmanager.url,
            notifiers__alertmanager__resend_delay="1s",
            heartbeat__url=f"http://127.0.0.1:{runner.addresses[0][1]}/",
            heartbeat__interval="1s",
        )
        await stage.until(lambda: len(alertmanager.posts) >= 3 and len(beats) >= 2, 20.0, "Watchdog and heartbeats")
        async with stage.session.get(f"http://127.0.0.1:{stage.api}/api/v1/alerts") as answer:
            firing = {alert["labels"]["alertname"] for alert in (await answer.json())["data"]["alerts"]}
        assert firing == {"Watchdog", "Up"}
        sent = {alert["labels"]["alertname"] for post in alertmanager.posts for alert in post}
        assert (sent, set(beats), stage.pages) == ({"Watchdog"}, {"Watchdog"}, [])
        assert alertmanager.posts[0][0]["labels"]["instance"] == "test"
        said = [message for _, _, message in stage.events]
        assert any(message.startswith("pages are evaluated by Prometheus") for message in said)
