"""Real vLLM that is busy, asleep or out of reach for a while: nothing critical, no restart, at the default thresholds.

The tests share one server under `dsobs supervise`, which the last one replaces; each has a dsobs of its own.
LONG_TESTS=1 keeps scrapes alone from being answered for a minute too, and has the probe refused three times.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.scene import Scene, scene
from tests.real.gate import Gate
from tests.real.vllm import SCRIPT, VllmProcess

pytestmark = pytest.mark.real("vllm")
SILENT_SECONDS = 60.0
START_SECONDS = 400.0
NEW = "deepseek-r1-14b"
LONG = os.environ.get("LONG_TESTS") == "1"
REFUSED_PROBES = 3 if LONG else 1
GATE_SECONDS = SILENT_SECONDS if LONG else 25.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmProcess]:
    control = tmp_path_factory.mktemp("vllm") / "supervise.sock"
    with VllmProcess(control=control, environment={"VLLM_SERVER_DEV_MODE": "1"}) as running:
        yield running


@pytest.fixture
async def here(tmp_path: Path, server: VllmProcess) -> AsyncIterator[Scene]:
    """dsobs is not started yet."""
    async with scene(tmp_path) as made:
        assert server.control is not None
        made.beside(server.port, server.control, server.pid)
        await made.until_answers("/health", 60)
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

    await here.until(silent, seconds + 30.0, f"silent for {seconds:.0f} s")


async def healthy(here: Scene, seconds: float = 60.0) -> None:
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
    await post(here, "/sleep?level=0&mode=keep")
    try:

        async def asleep() -> bool:
            return bool((await here.status())["view"]["asleep"])

        await here.until(asleep, 10, "asleep")
        # The page stands still with the scheduler: what came after its last step is not shown.
        assert await outstanding(here) >= 1
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
    await here.until(unanswered, 20, "scrapes fail")
    await here.until(lambda: time.monotonic() - begun >= GATE_SECONDS, GATE_SECONDS + 10, "so long")
    assert await unanswered()
    # /health is answered all along: the server is not unresponsive.
    assert (await here.status())["view"]["unresponsive_since"] is None
    gate.held.clear()
    gate.opened.set()
    await healthy(here)
    await here.until_working()
    await here.turns(10)
    assert gate.taken >= GATE_SECONDS // 6
    here.left_alone()


async def test_a_hang_that_begins_while_idle_is_paged_within_90_s_and_not_restarted_where_it_ends_by_itself(
    here: Scene,
) -> None:
    await here.start_dsobs()
    # Just after an answered probe: the longest way.
    await here.until(lambda: here.happened("probe-answered"), 60, "an idle probe is answered")
    (core,) = here.cores()
    with stopped(core):
        at = time.time()
        await here.until(lambda: here.paged("EngineHung"), 120, "page")
    page = here.paged("EngineHung")
    assert page is not None
    print(f"stopped while idle: page accepted after {page.at - at:.1f} s")
    assert page.at - at <= 90.0
    await here.until(lambda: here.paged("EngineHung", "resolve"), 60, "resolve")
    assert here.critical() == [page.body["summary"]]
    assert here.acted() == []


def learned(state: Path) -> dict[str, Any]:
    """Fingerprint of model and flags → (counts of gaps, seconds of work), as dsobs keeps it."""
    with contextlib.closing(sqlite3.connect(state / "state.db")) as db:
        (row,) = db.execute("SELECT value FROM facts WHERE name = 'memory'").fetchall()
    found: dict[str, Any] = json.loads(row[0])["gaps"]
    return found


async def worked(here: Scene, seconds: float, models: int) -> dict[str, float]:
    """Waits until so many models have learned for so long; seconds of work by fingerprint."""
    found: dict[str, float] = {}

    async def enough() -> bool:
        gaps = await asyncio.to_thread(learned, here.folder / "state")
        found.update({mark: work for mark, (_, work) in gaps.items()})
        return len(found) == models and all(work >= seconds for work in found.values())

    await here.until(enough, 60, f"{models} models learned for {seconds:.0f} s")
    return found


async def test_upgrade_to_another_model_behind_a_key_that_dsobs_has_not_is_information_only(
    here: Scene, server: VllmProcess
) -> None:
    load = await here.start_load()
    await here.start_dsobs()
    await here.until_working()
    old = await worked(here, 10.0, 1)
    # The planned stop.
    await asyncio.to_thread(server.stop)
    load.send_signal(signal.SIGTERM)
    await load.wait()
    await here.turns(8)
    assert "SIGTERM" in (await here.status())["view"]["planned_stop"]
    here.left_alone()
    # The other model, with other flags.
    flags = ("--served-model-name", NEW, "--block-size", "32", "--max-model-len", "2048", "--api-key", "k3y")
    await here.start_engine("bash", str(SCRIPT), "serve", "{port}", *flags, ready=START_SECONDS)
    before = here.happened("probe-inconclusive")
    # Idle: dsobs asks, and is told 401.
    await here.until(lambda: here.happened("probe-inconclusive") >= before + REFUSED_PROBES, 120, "401 on the probe")
    assert any("status 401" in message for _, action, message in here.events if action == "probe-inconclusive")
    # Answers that outlast a second: where all that is outstanding came since the last scrape, it may be a prefill.
    await here.start_load(4, "--api-key", "k3y", "--max-tokens", "500", "800")
    await here.until_working(60)
    both = await worked(here, 5.0, 2)
    (new,) = set(both) - set(old)
    assert both[new] < 60.0

    async def least() -> bool:
        return bool((await here.status())["view"]["engines"][0]["threshold_seconds"] == 5.0)

    # A prefill's patience for a moment is as it should be.
    await here.until(least, 30, "the threshold before anything was learned")
    view = (await here.status())["view"]
    assert [engine["key"][0] for engine in view["engines"]] == [NEW]
    assert (view["planned_stop"], view["down_since"]) == (None, None)
    assert {page.severity for page in here.pages} <= {"info", "warning"}
    here.left_alone()
