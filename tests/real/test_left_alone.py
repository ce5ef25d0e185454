"""Real vLLM that is busy, asleep or out of reach for a while: nothing critical, no restart, at the default thresholds.

The tests share one server under `dsobs supervise`; each has a dsobs of its own.
LONG_TESTS=1 keeps scrapes alone from being answered for a minute too.
"""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.acceptance.scene import Scene, scene
from tests.real.conftest import SharedVllm
from tests.real.gate import Gate

pytestmark = pytest.mark.real("vllm")
SILENT_SECONDS = 60.0
PATIENCE = 120.0
LONG = os.environ.get("LONG_TESTS") == "1"
GATE_SECONDS = SILENT_SECONDS if LONG else 25.0


@pytest.fixture
async def here(tmp_path: Path, vllm: SharedVllm) -> AsyncIterator[Scene]:
    """dsobs is not started yet."""
    async with beside(tmp_path, vllm) as made:
        yield made


@contextlib.asynccontextmanager
async def beside(folder: Path, vllm: SharedVllm) -> AsyncIterator[Scene]:
    """A scene with the shared server, which answers."""
    async with scene(folder) as made:
        assert vllm.process.control is not None
        made.beside(vllm.process.port, vllm.process.control, vllm.process.pid)
        await made.until_answers("/health", PATIENCE)
        yield made


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP for as long as the context lasts."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def post(here: Scene, path: str) -> None:
    async with here.session.post(f"{here.url}{path}") as answer:
        assert answer.status == 200, await answer.text()


async def silent_for(here: Scene, seconds: float) -> None:
    """Until nothing but time-outs came to dsobs for so long."""

    async def silent() -> bool:
        view = (await here.status())["view"]
        since = view["unresponsive_since"]
        return since is not None and view["at"] - since >= seconds

    await here.until(silent, seconds + PATIENCE, f"silent for {seconds:.0f} s")


async def healthy(here: Scene, seconds: float = PATIENCE) -> None:
    async def works() -> bool:
        view = (await here.status())["view"]
        return view["up"] and view["ready"] and view["unresponsive_since"] is None

    await here.until(works, seconds, "up and ready")


async def test_a_burst_of_500_clients_and_a_client_that_never_reads_are_left_alone(here: Scene) -> None:
    await here.start_dsobs()
    _, writer = await asyncio.open_connection("127.0.0.1", here.port)
    body = b'{"model": "deepseek-r1-7b", "prompt": "hello", "max_tokens": 512, "stream": true}'
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    writer.write(head % len(body) + body)
    burst = await here.start_load(500, "--max-tokens", "4", "8")
    await here.turns(20, 180.0)
    burst.send_signal(signal.SIGTERM)
    await burst.wait()
    writer.close()
    await here.turns(5, 120.0)
    here.left_alone()


async def outstanding(here: Scene) -> float:
    """Requests that the engine says it holds, running or waiting."""
    async with here.session.get(f"{here.url}/metrics") as answer:
        found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (\S+)$", await answer.text(), re.MULTILINE)
    return sum(map(float, found))


async def test_sleep_with_requests_outstanding_is_left_alone_and_they_are_answered_after_it(here: Scene) -> None:
    # Level 0 is what a CPU has: it takes requests and does not work on them; `keep` freezes those in the middle.
    # Long answers: the last step before the sleep has some of them in it, however late the clients come.
    load = await here.start_load(4, "--max-tokens", "200", "300", "--timeout", "300")
    await here.start_dsobs()
    await here.until_working()

    async def asleep() -> bool:
        return bool((await here.status())["view"]["asleep"])

    # The page stands still with the scheduler: what came after its last step is not shown.
    for _ in range(20):
        await post(here, "/sleep?level=0&mode=keep")
        if await outstanding(here) >= 1:
            break
        # Between two rounds of requests.
        await post(here, "/wake_up?tags=scheduling")
        await here.until_working()
    try:
        assert await outstanding(here) >= 1
        await here.until(asleep, PATIENCE, "asleep")
        # What it had sent before it knew has been told of by then.
        await here.turns(3)
        before = here.happened("probe-sent")
        # Longer than any threshold of a stall that tokens went before, and than an idle engine is left unasked.
        await here.turns(40)
        assert await asleep()
        assert here.happened("probe-sent") == before
    finally:
        await post(here, "/wake_up?tags=scheduling")
    await here.until_working()
    await here.turns(5)
    load.send_signal(signal.SIGTERM)
    await load.wait()
    assert '"failed": 0' in (here.folder / "load.log").read_text(encoding="utf-8")
    here.left_alone()


async def test_an_api_server_that_stands_still_for_a_minute_under_load_is_left_alone(here: Scene) -> None:
    await here.start_load(4, "--timeout", "120")
    await here.start_dsobs()
    await here.until_working()
    with stopped(here.api_server()):
        await silent_for(here, SILENT_SECONDS)
    await healthy(here)
    await here.until_working()
    await here.turns(10)
    here.left_alone()


async def test_scrapes_that_time_out_while_all_else_is_answered_are_left_alone(here: Scene) -> None:
    gate = Gate(here.url, here.session)
    address = await here.stack.enter_async_context(gate.serve())
    await here.start_load()
    await here.start_dsobs(target__url=address)
    await here.until_working()

    async def unanswered() -> bool:
        view = (await here.status())["view"]
        return not view["up"]

    begun = time.monotonic()
    gate.held.set()
    await here.until(unanswered, PATIENCE, "scrapes fail")

    def long_enough() -> bool:
        return time.monotonic() - begun >= GATE_SECONDS and gate.taken >= GATE_SECONDS // 6

    await here.until(long_enough, GATE_SECONDS + PATIENCE, "so long")

    async def health_alone() -> bool:
        view = (await here.status())["view"]
        return not view["up"] and view["unresponsive_since"] is None

    # /health is answered all along: the server is not unresponsive.
    await here.until(health_alone, 20, "scrapes alone fail")
    gate.held.clear()
    gate.opened.set()
    await healthy(here)
    await here.until_working()
    await here.turns(10)
    here.left_alone()


async def test_a_hang_that_begins_while_idle_is_paged_within_90_s_and_not_restarted_where_it_ends_by_itself(
    here: Scene,
) -> None:
    await here.start_dsobs()
    # Just after an answered probe: the longest way.
    await here.until(lambda: here.happened("probe-answered"), PATIENCE, "an idle probe is answered")
    (core,) = here.cores()
    with stopped(core):
        at = time.time()
        await here.until(lambda: here.paged("EngineHung"), 180, "page")
    page = here.paged("EngineHung")
    assert page is not None
    print(f"stopped while idle: page accepted after {page.at - at:.1f} s")
    assert page.at - at <= 90.0
    await here.until(lambda: here.paged("EngineHung", "resolve"), PATIENCE, "resolve")
    assert here.critical() == [page.body["summary"]]
    assert here.acted() == []
