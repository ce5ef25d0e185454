"""`dsobs run` with a settings file that changes: as a process, over its socket, by signals."""

import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.acceptance.scene import Scene, scene

RULES = """\
groups:
  - name: own
    interval: 1s
    rules:
      - {{alert: Stays, expr: dsobs_engine_up == 1, labels: {{severity: warning}}}}
      - {{alert: {name}, expr: dsobs_engine_up == 1, labels: {{severity: warning}}}}
  - name: self
    interval: 1s
    rules:
      - alert: SettingsNotRead
        expr: dsobs_config_last_reload_successful == 0
        labels: {{severity: warning}}
"""
OFTEN, NEVER = "0.2s", "1h"


@pytest.fixture
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    """The parameter, if there is one: how often dsobs looks at its file."""
    async with scene(tmp_path) as stage:
        (tmp_path / "own.yaml").write_text(RULES.format(name="First"))
        (tmp_path / "token").write_text("a-token")
        write(stage, mode="observe", every=getattr(request, "param", OFTEN))
        await stage.start_engine()
        await stage.start_dsobs(config=tmp_path / "dsobs.yaml")
        await stage.until(lambda: stage.paged("First") and stage.paged("Stays"), 90.0, "own rules page")
        yield stage


def write(stage: Scene, *, mode: str, url: str = "", more: str = "", notifies: bool = True, every: str = OFTEN) -> None:
    (stage.folder / "dsobs.yaml").write_text(
        f"target: {{url: '{url or stage.url}', name: test}}\n"
        f"rules: {{files: [own.yaml]}}\n"
        + (f"notifiers: {{webhook: {{url: '{stage.receiver}'}}}}\n" if notifies else "")
        + f"remediation: {{mode: {mode}, kill_switch_file: kill}}\n"
        f"state: {{directory: state}}\n"
        f"runtime: {{supervisor_socket: supervise.sock}}\n"
        f"api: {{control_token: 'file:token'}}\n"
        f"reload: {{interval: {every}}}\n{more}"
    )


async def reload(stage: Scene) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": "Bearer a-token"}
    async with stage.session.post(f"http://127.0.0.1:{stage.api}/-/reload", headers=headers) as answer:
        return answer.status, await answer.json()


async def own_metric(stage: Scene, name: str) -> float:
    async with stage.session.get(f"http://127.0.0.1:{stage.api}/metrics") as answer:
        found = re.search(rf"^{name} (\S+)$", await answer.text(), re.MULTILINE)
    assert found, name
    return float(found[1])


async def mode(stage: Scene) -> str:
    return str((await stage.status())["guards"]["mode"])


async def test_a_changed_file_is_read_by_itself_and_states_of_rules_that_stay_survive(stage: Scene) -> None:
    since = await own_metric(stage, "dsobs_config_last_reload_success_timestamp_seconds")
    (stage.folder / "own.yaml").write_text(RULES.format(name="Second"))
    await stage.until(lambda: stage.paged("Second"), 90.0, "the new rule pages")
    await stage.until(lambda: stage.paged("First", "resolve"), 90.0, "the rule that is gone is resolved")
    assert [page.event for page in stage.pages if page.name == "Stays"] == ["trigger"]
    assert await own_metric(stage, "dsobs_config_last_reload_success_timestamp_seconds") > since
    assert await own_metric(stage, "dsobs_config_last_reload_successful") == 1


async def test_a_bad_file_keeps_what_runs_and_raises_its_own_alert_until_it_is_mended(stage: Scene) -> None:
    write(stage, mode="enforce", more="hang: {probe: perhaps}\n")
    await stage.until(lambda: stage.paged("SettingsNotRead"), 90.0, "its own alert")
    assert await mode(stage) == "observe"
    assert await own_metric(stage, "dsobs_config_last_reload_successful") == 0
    assert "dsobs.yaml:9: hang.probe" in (await stage.status())["reload_error"]
    status, told = await reload(stage)
    assert status == 400
    assert "dsobs.yaml:9: hang.probe" in told["error"]
    write(stage, mode="enforce")
    await stage.until(lambda: stage.paged("SettingsNotRead", "resolve"), 90.0, "its end")
    assert await mode(stage) == "enforce"


@pytest.mark.parametrize("stage", [NEVER], indirect=True)
async def test_sighup_and_request_read_it_again_and_name_what_needs_a_restart(stage: Scene) -> None:
    assert stage.dsobs is not None
    write(stage, mode="enforce", every=NEVER)
    os.kill(stage.dsobs.pid, signal.SIGHUP)

    async def enforces() -> bool:
        return await mode(stage) == "enforce"

    await stage.until(enforces, 90.0, "enforce after SIGHUP")
    write(stage, mode="observe", url="http://127.0.0.1:1", every=NEVER)
    status, told = await reload(stage)
    assert (status, told["data"]) == (200, {"changed": ["remediation.mode"], "need_restart": ["target.url"]})
    assert await mode(stage) == "observe"
    assert (await stage.status())["view"]["up"]


async def test_a_first_receiver_is_told_of_what_fires_already_and_of_its_end(tmp_path: Path) -> None:
    async with scene(tmp_path) as stage:
        (tmp_path / "own.yaml").write_text(RULES.format(name="First"))
        (tmp_path / "token").write_text("a-token")
        write(stage, mode="observe", notifies=False)
        await stage.start_engine()
        await stage.start_dsobs(config=tmp_path / "dsobs.yaml")

        async def fire() -> bool:
            async with stage.session.get(f"http://127.0.0.1:{stage.api}/api/v1/alerts") as answer:
                told = (await answer.json())["data"]["alerts"]
            firing = {one["labels"]["alertname"] for one in told if one["state"] == "firing"}
            return firing >= {"First", "Stays"}

        await stage.until(fire, 90.0, "own rules fire, and nobody is told")
        assert stage.pages == []
        write(stage, mode="observe")
        await stage.until(lambda: stage.paged("First") and stage.paged("Stays"), 90.0, "the new receiver is told")
        (tmp_path / "own.yaml").write_text(RULES.format(name="Second"))
        await stage.until(lambda: stage.paged("First", "resolve"), 90.0, "and of the end")
        assert [page.event for page in stage.pages if page.name == "Stays"] == ["trigger"]


async def test_other_sources_of_gpus_and_host_are_read_after_a_reload(stage: Scene) -> None:
    async def exporter(_: web.Request) -> web.Response:
        return web.Response(text='dsobs_nvml_up 1\ndsobs_gpu_up{gpu="0",uuid="GPU-1"} 1\n')

    app = web.Application()
    app.router.add_get("/metrics", exporter)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    stage.stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    source = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def shows(*series: str) -> bool:
        async with stage.session.get(f"http://127.0.0.1:{stage.api}/metrics") as answer:
            text = await answer.text()
        return all(one in text for one in series)

    card, disk = 'dsobs_gpu_up{gpu="0",uuid="GPU-1"} 1', 'dsobs_host_filesystem_size_bytes{mountpoint="/"}'
    assert not await shows(card)
    assert not await shows(disk)
    write(stage, mode="observe", more=f"gpu: {{source: '{source}', devices: [all]}}\nhost: {{mountpoints: [/]}}\n")
    status, told = await reload(stage)
    assert (status, told["data"]["need_restart"]) == (200, [])
    await stage.until(lambda: shows(card, disk), 90.0, "the new sources are shown")
    write(stage, mode="observe", more="gpu: {enabled: false}\nhost: {enabled: false}\n")
    assert (await reload(stage))[0] == 200

    async def gone() -> bool:
        return not (await shows(card) or await shows(disk))

    await stage.until(gone, 90.0, "what is switched off is unknown")
