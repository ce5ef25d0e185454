"""The how-to of the first alert, step by step as a reader does it; its metrics page against the reference."""

import asyncio
import json
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from dsobs.demo import child
from dsobs.simulator.process import free_port
from tests.acceptance.scene import Scene, scene
from tests.docs.test_docs import Block, blocks

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
PROGRAMS = {"python3": (sys.executable,), "dsobs": (sys.executable, "-m", "dsobs.cli")}


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Scene]:
    async with scene(tmp_path) as stage:
        stage.api = free_port()
        yield stage


def told(stage: Scene, block: Block) -> list[list[str]]:
    """The block's commands, on ports that are free here."""
    text = block.text.replace("\\\n", " ").replace("127.0.0.1:9000", stage.receiver.split("/")[2])
    text = text.replace("8000", str(stage.port)).replace("9940", str(stage.api))
    lines = [shlex.split(line) for line in text.splitlines()]
    return [[*PROGRAMS.get(program, (program,)), *words] for program, *words in lines]


async def alerts(stage: Scene) -> dict[str, str]:
    async with stage.session.get(f"http://127.0.0.1:{stage.api}/api/v1/alerts") as answer:
        return {one["labels"]["alertname"]: one["state"] for one in (await answer.json())["data"]["alerts"]}


async def names_on_page(stage: Scene) -> set[str]:
    async with stage.session.get(f"http://127.0.0.1:{stage.api}/metrics") as answer:
        text = await answer.text()
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    found = set()
    for name in re.findall(r"^([a-zA-Z_:][\w:]*)", text, re.MULTILINE):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        found.add(base if kinds.get(base) == "histogram" else name)
    return found


@pytest.mark.real("seconds")
async def test_five_steps_lead_to_an_alert_that_is_told_and_ends(stage: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    page = [block for block in blocks() if block.page.name == "first-alert.md"]
    (rule,) = (block for block in page if block.language == "yaml")
    servers, check, run, look, run_and_page = (told(stage, block) for block in page if block.language == "sh")
    assert yaml.safe_load(rule.text)["groups"][0]["rules"][0]["alert"] == "Busy"
    monkeypatch.chdir(stage.folder)
    (stage.folder / "mine.rules.yaml").write_text(rule.text)
    log = stage.folder / "dsobs.log"
    listen = ("--listen", f"127.0.0.1:{stage.api}", "--set", "runtime.name=none")

    await stage.stack.enter_async_context(child(*servers[0], "--exit-with-parent", output=stage.folder / "engine.log"))
    await stage.until_answers("/health", 120.0)
    async with child(*check[0], output=asyncio.subprocess.DEVNULL) as checked:
        assert await checked.wait() == 0
    async with child(*run[0], *listen, output=log) as first:
        async with child(*servers[1], output=stage.folder / "load.log"):
            await stage.until(lambda: stage._answers(f"http://127.0.0.1:{stage.api}/readyz"), 120.0, "dsobs is ready")

            async def fires() -> bool:
                return await alerts(stage) == {"Busy": "firing", "Watchdog": "firing"}

            await stage.until(fires, 120.0, "Busy fires")
            for command in look:
                async with child(*command, output=stage.folder / "answer", errors=asyncio.subprocess.DEVNULL) as curl:
                    assert await curl.wait() == 0
                assert "Busy" in json.dumps(json.loads((stage.folder / "answer").read_text()))
            known = set(re.findall(r"^\| `(\w+)`", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE))
            assert await names_on_page(stage) - known == set()

        async def over() -> bool:
            return await alerts(stage) == {"Watchdog": "firing"}

        await stage.until(over, 120.0, "Busy is over")
        first.send_signal(signal.SIGINT)
        await asyncio.wait_for(first.wait(), 90.0)

    await stage.stack.enter_async_context(child(*run_and_page[0], *listen, output=log))
    async with child(*servers[1], output=stage.folder / "load.log"):
        await stage.until(lambda: stage.paged("Busy"), 120.0, "Busy is told")
    await stage.until(lambda: stage.paged("Busy", "resolve"), 120.0, "its end is told")
