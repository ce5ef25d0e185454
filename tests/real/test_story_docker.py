"""The main job with the engine in a container of a real Docker daemon; the engine itself is the simulator."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsobs.demo import engine_cores
from tests.acceptance.scene import Scene, scene
from tests.real.docker import Dockerd

pytestmark = pytest.mark.real("seconds")
NAME = "engine"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Dockerd]:
    with Dockerd() as running:
        yield running


def start(daemon: Dockerd, port: int, *options: str, engine: tuple[str, ...] = ()) -> None:
    """The simulator with the flags `engine` as the main process, with this Python and checkout, read-only."""
    places = {sys.prefix, sys.base_prefix, str(ROOT)}
    mounts = [
        word for place in sorted(places) if not place.startswith("/usr") for word in ("-v", f"{place}:{place}:ro")
    ]
    command = (sys.executable, "-B", "-m", "dsobs.simulator", "--port", str(port), "--load-seconds", "2", *engine)
    daemon.run(NAME, *command, options=(*mounts, "-w", str(ROOT), *options))


def cores(daemon: Dockerd) -> list[int]:
    """Engine cores, as the host numbers them."""
    main = int(daemon.command("inspect", "--format", "{{.State.Pid}}", NAME).stdout)
    return engine_cores(main)


async def beside(here: Scene, daemon: Dockerd, *options: str) -> None:
    """The container, clients and dsobs."""
    await asyncio.to_thread(start, daemon, here.port, *options)
    here.stack.push_async_callback(asyncio.to_thread, daemon.remove, NAME)
    await here.until_answers("/health", 180)
    await here.start_load()
    await here.start_dsobs(
        runtime__name="docker",
        runtime__container=NAME,
        runtime__docker_host=daemon.host,
        runtime__stop_grace="2s",
        remediation__confirm_hang="3s",
    )
    await here.until_working()


async def test_hung_engine_in_a_container_is_restarted_by_docker_once(tmp_path: Path, daemon: Dockerd) -> None:
    async with scene(tmp_path) as here:
        await beside(here, daemon)
        here.engine_pid = int(daemon.command("inspect", "--format", "{{.State.Pid}}", NAME).stdout)
        old = cores(daemon)
        await here.stop_at_work()
        await here.until(lambda: here.paged("EngineHung"), 90, "page")
        await here.until(lambda: any(a == "verified" for _, a, _ in here.events), 180, "verified")
        await here.until(lambda: here.paged("EngineHung", "resolve"), 120, "resolve")
        assert not set(old) & set(cores(daemon))
        assert len(here.critical()) == 1
        status = await here.status()
        assert status["guards"]["restarts_24h"] == 1
        assert status["view"]["runtime"]["planned_stop"] is None or "dsobs" in status["view"]["runtime"]["planned_stop"]


async def test_crashed_engine_in_a_container_is_paged_within_5_s_and_brought_back(
    tmp_path: Path, daemon: Dockerd
) -> None:
    async with scene(tmp_path) as here:
        await beside(here, daemon)
        killed = time.time()
        os.kill(cores(daemon)[0], signal.SIGKILL)
        await here.until(lambda: here.paged("EngineDown"), 60, "page")
        page = here.paged("EngineDown")
        assert page is not None
        assert page.at - killed <= 5.0
        await here.until(lambda: any(a == "verified" for _, a, _ in here.events), 180, "verified")
        await here.until(lambda: here.paged("EngineDown", "resolve"), 120, "resolve")


@pytest.mark.parametrize("words", [("restart", "--time", "2"), ("kill", "-s", "TERM"), ("stop", "--time", "2")])
async def test_what_a_person_does_with_docker_is_information_only(
    tmp_path: Path, daemon: Dockerd, words: tuple[str, ...]
) -> None:
    async with scene(tmp_path) as here:
        await beside(here, daemon)
        await asyncio.to_thread(daemon.command, *words, NAME)
        await here.turns(8)
        assert here.critical() == []
        assert here.acted() == []


async def test_container_replaced_by_one_with_another_model_is_information_only(
    tmp_path: Path, daemon: Dockerd
) -> None:
    async with scene(tmp_path) as here:
        await beside(here, daemon)
        await asyncio.to_thread(daemon.command, "stop", "--time", "2", NAME)
        await asyncio.to_thread(daemon.command, "rm", NAME)
        await asyncio.to_thread(start, daemon, here.port, engine=("--model-name", "another", "--block-size", "32"))

        async def another() -> bool:
            engines = (await here.status())["view"]["engines"]
            return bool(engines) and engines[0]["key"][0] == "another" and bool(engines[0]["moved_tokens"])

        await here.start_load()
        await here.until(another, 180, "tokens of the other model")
        await here.turns(8)
        assert (await here.status())["view"]["planned_stop"] is None
        assert here.critical() == []
        assert here.acted() == []
