"""A card that breaks under the engine, as a node's exporter tells it, and the person who says that it is well again."""

import asyncio
import json
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.acceptance.scene import Scene, scene

CARD = "GPU-00000000-0000-0000-0000-00000000000a"


class Exporter:
    """A page with one card and its count of XID 79."""

    def __init__(self) -> None:
        self.count = 0
        self.read = 0

    async def page(self, request: web.Request) -> web.Response:
        self.read += 1
        card = f'gpu="0",uuid="{CARD}"'
        lines = [
            "dsobs_nvml_up 1",
            f"dsobs_gpu_up{{{card}}} 1",
            f"dsobs_gpu_memory_total_bytes{{{card}}} 8e10",
            f"dsobs_gpu_memory_used_bytes{{{card}}} 7e10",
            f'dsobs_gpu_xid_errors_total{{{card},xid="79",reason="GPU has fallen off the bus"}} {self.count}',
        ]
        return web.Response(text="\n".join([*lines, ""]))

    async def start(self, here: Scene) -> str:
        app = web.Application()
        app.router.add_get("/metrics", self.page)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        here.stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"


async def dsobs_gpu(here: Scene, *words: str, token: str) -> tuple[int | None, str]:
    flags = ("--listen", f"127.0.0.1:{here.api}", "--set", f"api.control_token={token}")
    command = (sys.executable, "-m", "dsobs.cli", "gpu", *words, *flags)
    ran = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await ran.communicate()
    return ran.returncode, out.decode()


@pytest.mark.real("seconds")
async def test_a_broken_card_holds_the_restart_until_somebody_says_that_it_is_well(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        (tmp_path / "token").write_text("s3cret\n")
        token = f"file:{tmp_path / 'token'}"
        exporter = Exporter()
        settings: dict[str, Any] = {
            "remediation__confirm_hang": "3s",
            "runtime__stop_grace": "2s",
            "api__control_token": token,
            "gpu__source": await exporter.start(here),
            "gpu__devices": CARD,
        }
        await here.start_engine()
        await here.start_load()
        await here.start_dsobs(**settings)
        await here.until_working()
        await here.until(lambda: exporter.read >= 2, 60, "the card was read")

        exporter.count = 1

        async def blamed() -> bool:
            return [fault["xid"] for fault in (await here.status())["view"]["gpu_faults"]] == [79]

        def on_disk() -> bool:
            with closing(sqlite3.connect(f"file:{tmp_path / 'state' / 'state.db'}?mode=ro", uri=True)) as connection:
                (memory,) = connection.execute("SELECT value FROM facts WHERE name = 'memory'").fetchone() or ("{}",)
            return [fault[2] for fault in json.loads(memory).get("cards", {}).get("faults", [])] == [79]

        await here.until(blamed, 60, "the XID is seen")
        # Not only when all is saved, each 5 s: dsobs may be gone by then.
        await here.until(on_disk, 3, "the fault is on disk")
        assert here.dsobs is not None
        here.dsobs.kill()
        await here.dsobs.wait()
        await here.start_dsobs(**settings)
        await here.until_working()
        await here.stop_at_work()
        refused = "restart refused: gpu_well: GPU 0"
        await here.until(lambda: any(refused in text for text in here.critical()), 180, "the refusal is paged")
        assert here.acted() == []

        code, out = await dsobs_gpu(here, "faults", token=token)
        assert (code, out.split()[5:10]) == (0, [CARD, "0", "79", "GPU", "has"])
        assert await dsobs_gpu(here, "clear", CARD, token=token) == (0, f"{CARD}: 1 cleared\n")
        await here.until(lambda: here.happened("restart-done"), 180, "the restart")
        assert (await dsobs_gpu(here, "clear", CARD, token=token))[0] == 1
