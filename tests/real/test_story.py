"""The main job against real vLLM: it is seen, paged and repaired, and a server that is only busy is left alone."""

import asyncio
import os
import signal
import time
from pathlib import Path

import aiohttp
import pytest

from tests.acceptance.scene import Scene, scene

pytestmark = pytest.mark.real
SCRIPT = str(Path(__file__).with_name("vllm-cpu.sh"))
START_SECONDS = 400.0


async def start_vllm(here: Scene, *flags: str) -> None:
    await here.start_engine("bash", SCRIPT, "serve", "{port}", *flags, ready=START_SECONDS)


async def ask(here: Scene, words: int, tokens: int, timeout: float) -> int:
    body = {"model": "deepseek-r1-7b", "prompt": "hello " * words, "max_tokens": tokens}
    limit = aiohttp.ClientTimeout(total=timeout)
    async with here.session.post(f"{here.url}/v1/completions", json=body, timeout=limit) as answer:
        await answer.read()
        return answer.status


async def test_real_vllm_hang_is_paged_within_10_s_restarted_and_verified_then_a_crash_is_paged_within_5_s(
    tmp_path: Path,
) -> None:
    async with scene(tmp_path) as here:
        await start_vllm(here)
        await here.start_load()
        await here.start_dsobs()
        await here.until_working(60)
        old = here.cores()
        stopped = here.stop_core()
        await here.until(lambda: here.paged("EngineHung"), 20, "page")
        page = here.paged("EngineHung")
        assert page is not None
        assert page.at - stopped <= 10.0
        async with here.session.get(f"{here.url}/health") as answer:
            assert answer.status == 200
        await here.until(lambda: any(a == "verified" for _, a, _ in here.events), START_SECONDS, "verified")
        await here.until(lambda: here.paged("EngineHung", "resolve"), 30, "resolve")
        assert not set(old) & set(here.cores())
        assert here.critical() == [page.body["summary"]]
        # A crash now: the supervisor brings the engine back, dsobs only tells.
        restarts = len(here.acted())
        await here.until_working(60)
        killed = time.time()
        os.kill(here.cores()[0], signal.SIGKILL)
        await here.until(lambda: here.paged("EngineDown"), 15, "page of the crash")
        crash = here.paged("EngineDown")
        assert crash is not None
        assert crash.at - killed <= 5.0
        await here.until(lambda: here.paged("EngineDown", "resolve"), START_SECONDS, "back")
        assert len(here.acted()) == restarts


async def test_real_vllm_that_is_only_busy_is_left_alone(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        flags = ("--max-model-len", "16384", "--max-num-batched-tokens", "512", "--no-enable-prefix-caching")
        await start_vllm(here, *flags)
        await here.start_dsobs()
        # First requests after the start.
        assert await ask(here, 5, 4, 60) == 200
        # One prefill of 9,000 tokens in chunks of 512, alone on the server.
        begun = time.monotonic()
        assert await ask(here, 1_500, 1, 280) == 200
        print(f"prefill took {time.monotonic() - begun:.0f} s")
        # A client that never reads, beside a burst of 500.
        port = int(here.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        body = b'{"model": "deepseek-r1-7b", "prompt": "hello", "max_tokens": 512, "stream": true}'
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        writer.write(head % len(body) + body)
        burst = await here.start_load(500, "--max-tokens", "4", "8")
        await here.turns(20, 180.0)
        burst.send_signal(signal.SIGTERM)
        await burst.wait()
        writer.close()
        await here.turns(5, 120.0)
        assert here.critical() == []
        assert here.acted() == []
