"""The shipped Alertmanager files: each alert goes where its table says, and what PagerDuty and a chat are sent."""

import functools
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from dsobs.config.models import Alertmanager
from dsobs.model.notifier import Standing
from dsobs.notifiers.alertmanager import AlertmanagerNotifier
from tests.contracts.alertmanager_contract import standing, until
from tests.pagerduty_stand_in import PagerDutyStandIn
from tests.real.test_alertmanager import alertmanager, tool, until_ready

pytestmark = pytest.mark.real("servers")

ALERTS = Path(__file__).parents[2] / "alerts"
TABLE = Path(__file__).parents[2] / "docs" / "reference" / "rules.md"
RECEIVERS = {
    "page at once": "pagerduty",
    "page": "pagerduty",
    "look in the morning": "nobody",
    "dead man's switch": "dead-mans-switch",
}
"""The table's route → receiver of alertmanager.yaml."""


def table() -> dict[str, tuple[str, str]]:
    """Alert → (severity, route), as the table of rules has them."""
    found = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.match(r"\[(\w+)\]\(\.\./runbooks/", cells[0])
        if name:
            found[name[1]] = (cells[2], cells[-1])
    return found


@functools.cache
def amtool() -> str:
    return tool("amtool")


def receivers(file: str, *labels: str) -> set[str]:
    """Where an alert with these labels goes, by amtool."""
    routed = subprocess.run(
        [amtool(), "config", "routes", "test", f"--config.file={ALERTS / file}", *labels],
        check=True,
        capture_output=True,
        text=True,
    )
    return set(routed.stdout.strip().split(","))


def test_each_shipped_alert_goes_where_its_table_says() -> None:
    expected = table()
    in_files = {
        rule["alert"]
        for file in ALERTS.glob("*.rules.yaml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert set(expected) == in_files
    for name, (severity, route) in expected.items():
        found = receivers("alertmanager.yaml", f"alertname={name}", f"severity={severity}", "instance=gpu-1")
        assert found == {RECEIVERS[route]}, name


@pytest.mark.parametrize(
    ("severity", "expected"), [("critical", {"slack"}), ("warning", {"slack"}), ("info", {"tickets"})]
)
def test_chat_and_tickets_get_the_severities_that_their_file_says(severity: str, expected: set[str]) -> None:
    assert receivers("alertmanager-chat.yaml", "alertname=A", f"severity={severity}") == expected


@pytest.mark.parametrize("file", ["alertmanager.yaml", "alertmanager-chat.yaml"])
def test_shipped_file_is_one_that_alertmanager_takes(file: str) -> None:
    checked = subprocess.run([amtool(), "check-config", ALERTS / file], check=False, capture_output=True)
    assert checked.returncode == 0, checked.stderr


def shipped(file: str, folder: Path, **files: str) -> str:
    """The file as it ships, but for its times, and with its secrets in `folder` as `files` has them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    text = (ALERTS / file).read_text().replace("/etc/alertmanager/", f"{folder}/")
    return re.sub(r"group_(wait|interval): (10s|1m)", r"group_\1: 1s", text)


def alert(name: str, instance: str, severity: str, **annotations: str) -> Standing:
    return standing(
        labels={"alertname": name, "instance": instance, "severity": severity, "component": "engine"},
        annotations={"summary": f"{name}: 7 of 8 failed", "threshold": "3 in a row", **annotations},
        severity=severity,
        # As dsobs tells it, at once: Alertmanager makes one that is older than `group_wait` wait for nothing.
        started_at=time.time(),
    )


LINKS = {
    "runbook_url": "https://git.example.com/EngineDown.md",
    "dashboard_url": "https://grafana.example.com/d/dsobs-server",
    "logs_url": "https://kibana.example.com/app/discover",
}


async def test_one_fault_is_one_page_of_the_published_schema_and_ends(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    async with PagerDutyStandIn() as pagerduty, aiohttp.ClientSession() as session:
        config = shipped("alertmanager.yaml", secrets, **{"pagerduty.key": "0123456789abcdef" * 2})
        config = f"global: {{pagerduty_url: '{pagerduty.url}'}}\n{config}"
        with alertmanager(tmp_path / "server", config) as url:
            await until_ready(url, session)
            notifier = AlertmanagerNotifier(url, Alertmanager(urls=(url,)), session)
            down = alert("EngineDown", "gpu-1", "critical", next_step="nothing: it is observed", **LINKS)
            # What the dead engine explains, and a fault of another server without addresses.
            explained = [alert(name, "gpu-1", "critical") for name in ("EngineUnresponsive", "AvailabilityBudgetFast")]
            explained.append(alert("LatencyP99High", "gpu-1", "warning"))
            other = alert("LatencyP99High", "gpu-2", "warning")
            morning = alert("GPUECCCorrectedMany", "gpu-1", "info")
            assert (await notifier.send_standing([down, *explained, other, morning])).status == 200
            await pagerduty.wait_for(lambda: len(pagerduty.incidents) >= 2, 120.0)

            # Again and again, as it is told: no further incident, and nothing that is refused.
            assert (await notifier.send_standing([down, *explained, other, morning])).status == 200
            ended = [replace(one, ended_at=time.time()) for one in (down, *explained, other, morning)]
            assert (await notifier.send_standing(ended)).status == 200
            await pagerduty.wait_for(lambda: not pagerduty.open_incidents(), 120.0)
    assert pagerduty.refused == []
    assert len(pagerduty.incidents) == 2
    pages = {e["payload"]["source"]: e for e in pagerduty.events if e["event_action"] == "trigger"}
    critical, warning = pages["gpu-1"], pages["gpu-2"]
    assert (critical["payload"]["severity"], warning["payload"]["severity"]) == ("critical", "warning")
    assert critical["payload"]["class"] == "EngineDown"
    assert critical["payload"]["summary"].startswith("EngineDown on gpu-1: EngineDown: 7 of 8 failed")
    assert critical["links"] == [
        {"href": LINKS["runbook_url"], "text": "Runbook"},
        {"href": LINKS["dashboard_url"], "text": "Dashboard"},
        {"href": LINKS["logs_url"], "text": "Logs"},
    ]
    assert warning.get("links", []) == []
    details = critical["payload"]["custom_details"]
    assert details["next"] == "nothing – it is observed"
    assert details["threshold"] == "3 in a row"
    assert details["evidence"] == "EngineDown – 7 of 8 failed. "
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", details["since"])


async def test_chat_is_told_what_where_since_and_what_dsobs_does(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        found.append(await request.json())
        return web.Response(text="ok")

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        hook = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        secrets = {"slack.url": hook, "tickets.url": hook}
        config = shipped("alertmanager-chat.yaml", tmp_path / "secrets", **secrets)
        async with aiohttp.ClientSession() as session:
            with alertmanager(tmp_path / "server", config) as url:
                await until_ready(url, session)
                notifier = AlertmanagerNotifier(url, Alertmanager(urls=(url,)), session)
                down = alert("EngineDown", "gpu-1", "critical", next_step="restarts the engine", **LINKS)
                assert (await notifier.send_standing([down, alert("B", "gpu-1", "info")])).status == 200
                await until(lambda: len(found) >= 2, 120.0)
    finally:
        await runner.cleanup()
    (chat,) = [body["attachments"][0] for body in found if "attachments" in body]
    (ticket,) = [body for body in found if "alerts" in body]
    assert chat["title"] == "[critical] EngineDown on gpu-1"
    assert chat["title_link"] == LINKS["dashboard_url"]
    for part in ("7 of 8 failed", "threshold 3 in a row", "dsobs: restarts the engine.", *list(LINKS.values())[::2]):
        assert part in chat["text"]
    assert [one["labels"]["alertname"] for one in ticket["alerts"]] == ["B"]
