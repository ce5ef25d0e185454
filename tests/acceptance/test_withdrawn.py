"""A person says stop in the moment between the decision to restart and the restart."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.acceptance.scene import Scene, scene

HEADERS = {"Authorization": "Bearer a-token"}


def write(here: Scene, mode: str = "enforce") -> None:
    (here.folder / "dsobs.yaml").write_text(
        f"target: {{url: '{here.url}', name: test}}\n"
        f"notifiers: {{webhook: {{url: '{here.receiver}'}}}}\n"
        f"remediation: {{mode: {mode}, kill_switch_file: kill, coordination: single, random_delay: 9s,\n"
        f"              confirm_hang: 1s}}\n"
        f"state: {{directory: state}}\n"
        f"runtime: {{supervisor_socket: supervise.sock}}\n"
        f"api: {{control_token: 'file:token'}}\n"
        f"reload: {{interval: 0.2s}}\n"
    )


async def by_file(here: Scene) -> None:
    (here.folder / "kill").touch()


async def by_api(here: Scene) -> None:
    url = f"http://127.0.0.1:{here.api}/api/v1/kill-switch?on=true"
    async with here.session.put(url, headers=HEADERS) as answer:
        assert answer.status == 200, await answer.text()


async def by_silence(here: Scene) -> None:
    body = {"matchers": ["alertname=EngineHung"], "duration": "10m", "createdBy": "a person", "comment": "looking"}
    url = f"http://127.0.0.1:{here.api}/api/v1/silences"
    async with here.session.post(url, json=body, headers=HEADERS) as answer:
        assert answer.status in (200, 201), await answer.text()


async def by_mode(here: Scene) -> None:
    write(here, mode="observe")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as here:
        (tmp_path / "token").write_text("a-token")
        write(here)
        await here.start_engine()
        await here.start_load()
        await here.start_dsobs(config=tmp_path / "dsobs.yaml", program=("tests.acceptance.run_with_full_delay",))
        await here.until_working()
        yield here


@pytest.mark.parametrize("stop", [by_file, by_api, by_silence, by_mode])
async def test_a_restart_that_waits_for_its_random_delay_is_withdrawn(
    here: Scene, stop: Callable[[Scene], Awaitable[None]]
) -> None:
    async def restart_lines() -> list[str]:
        return [e["state"] for i in await here.incidents() for e in i["entries"] if e["kind"] == "restart"]

    async def reserved() -> bool:
        return await restart_lines() == ["reserved"]

    async def ended() -> bool:
        return (await restart_lines())[:2] != ["reserved"]

    await here.stop_at_work()
    await here.until(reserved, 120.0, "reserved")
    await stop(here)
    await here.until(ended, 60.0, "ended")
    assert (await restart_lines())[:2] == ["reserved", "failed"]
    assert here.happened("restart-begun") == 0
