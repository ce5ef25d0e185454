"""Scale-out on Docker as its guide has it, from load to page: dsobs is a process beside a real daemon, engines are the
simulator in containers. Which cards there are is told by dsobs-nvml from a recording, and NVIDIA's hook does nothing.
"""

import asyncio
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from dsobs.demo import child
from tests.acceptance.scene import Scene, scene
from tests.docs.test_docs import blocks
from tests.pagerduty_stand_in import PagerDutyStandIn
from tests.real.docker import IMAGE, Dockerd

pytestmark = pytest.mark.real("seconds")
ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs/how-to/scale-out.md"
GIB = 1 << 30
EXPORTER = "127.0.0.1:9941"
LOAD_SECONDS, COOLDOWN, SUSTAINED = 3.0, 2.0, 2.0
PRODUCTS = ("H200", "H200", "H200", "H200", "L4", "A10", "H100", "H100")
"""By index; what each test's engine has is of a product of its own."""

IDLE = {"mem_total": 80 * GIB, "mem_used": 0, "procs": []}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockerd]:
    """All of this module is in its network."""
    programs = tmp_path_factory.mktemp("programs")
    hook = programs / "nvidia-container-runtime-hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    with Dockerd(private_network=True, programs=programs) as daemon, daemon.inside():
        yield daemon


def guide(language: str, mark: str) -> str:
    """The guide's block that has these words."""
    (text,) = [
        block.text for block in blocks() if block.page == GUIDE and block.language == language and mark in block.text
    ]
    return text


def merged(into: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return into | {
        key: merged(into[key], value) if isinstance(into.get(key), dict) else value for key, value in more.items()
    }


class Place:
    """A machine with cards, engines and dsobs."""

    def __init__(self, here: Scene, daemon: Dockerd) -> None:
        self.here = here
        self.daemon = daemon
        self.file = here.folder / "dsobs.yaml"
        self.settings: dict[str, Any] = {}

    async def cards(self) -> None:
        """dsobs-nvml, which reads a recording."""
        cards = [
            {"index": index, "uuid": f"GPU-{index}", "more": [["dsobs_gpu_info", {"name": name}, 1.0]], **IDLE}
            for index, name in enumerate(PRODUCTS)
        ]
        file = self.here.folder / "cards.jsonl"
        file.write_text(json.dumps(cards) + "\n")
        words = (sys.executable, "-m", "dsobs_nvml", "--recording", str(file), "--listen", EXPORTER)
        await self.here.stack.enter_async_context(child(*words, output=self.here.folder / "nvml.log"))
        await self.until_answers(f"http://{EXPORTER}/readyz")

    async def engine(self, name: str, port: int, card: int, *flags: str) -> None:
        """The guide's `docker run`, of the simulator in place of vLLM."""
        (line,) = [line for line in guide("sh", "docker run -d").splitlines() if line.startswith("docker run")]
        line = line.replace("--name vllm", f"--name {name}").replace("device=0", f"device={card}")
        words = shlex.split(line.replace("127.0.0.1:8000", f"127.0.0.1:{port}"))
        words = words[1 : words.index("vllm/vllm-openai")]
        places = {"/usr", sys.prefix, sys.base_prefix, str(ROOT)}
        words += [word for at in sorted(places) for word in ("-v", f"{at}:{at}:ro")]
        words += ["--stop-timeout", "60", "-w", str(ROOT), IMAGE, sys.executable, "-B", "-m", "dsobs.simulator"]
        words += ["--host", "0.0.0.0", "--port", "8000", "--max-num-seqs", "2", "--shutdown-timeout", "50", *flags]
        await self.docker(*words)

    async def dsobs(self, name: str, port: int, **more: Any) -> None:
        """Configured as the guide has it, but for names and what would be long in a test."""
        given = {
            "target": {"url": f"http://127.0.0.1:{port}", "name": name},
            "runtime": {"container": name, "docker_host": self.daemon.host, "timeout": "10s"},
            "gpu": {"source": f"http://{EXPORTER}", "devices": ["all"]},
            "state": {"directory": str(self.here.folder / "state")},
            # What came late counts for a minute, which would be long here.
            "rules": {"objectives": {"ttft_threshold": "40s"}},
            "scaling": {"queue_per_replica": 2, "sustained_for": SUSTAINED, "cooldown": COOLDOWN},
        }
        self.settings = merged(merged(yaml.safe_load(guide("yaml", "container: vllm")), given), more)
        self.file.write_text(yaml.safe_dump(self.settings))
        await self.here.start_dsobs(config=self.file)

    def set(self, **more: Any) -> None:
        """Other settings, which dsobs takes while it runs."""
        self.settings = merged(self.settings, more)
        self.file.write_text(yaml.safe_dump(self.settings))
        assert self.here.dsobs is not None
        self.here.dsobs.send_signal(signal.SIGHUP)

    async def docker(self, *words: str) -> str:
        return (await asyncio.to_thread(self.daemon.command, *words)).stdout

    async def names(self) -> list[str]:
        return sorted((await self.docker("ps", "--all", "--format", "{{.Names}}")).split())

    async def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(await self.docker("inspect", name))
        assert isinstance(found, dict)
        return found

    async def until_answers(self, url: str) -> None:
        await self.here.until(lambda: self.here._answers(url), 60.0, url)

    async def answers(self, port: int, tokens: int = 8) -> str:
        """How a request ends: `whole`, `refused` before it began, or `cut`."""
        body = {"model": "deepseek-r1-7b", "prompt": "why", "max_tokens": tokens, "stream": True}
        begun, text = False, b""
        try:
            async with self.here.session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as answer:
                begun = answer.status == 200
                text = await answer.read()
        except (aiohttp.ClientError, ConnectionError):
            return "cut" if begun else "refused"
        return "whole" if text.endswith(b"data: [DONE]\n\n") else "cut" if begun else "refused"

    async def metric(self, name: str) -> float | None:
        async with self.here.session.get(f"http://127.0.0.1:{self.here.api}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{")), None)

    async def steps(self, state: str, least: int = 0) -> list[dict[str, Any]]:
        """Lines of the ledger about replicas in this state, oldest first, once there are so many."""
        found: list[dict[str, Any]] = []

        async def enough() -> bool:
            lines = [entry for incident in await self.here.incidents() for entry in incident["entries"]]
            found[:] = sorted(
                (e for e in lines if (e["kind"], e["state"]) == ("scale", state)), key=lambda e: float(e["at"])
            )
            return len(found) >= least

        await self.here.until(enough, 120, f"{least} times {state}")
        return found

    async def incidents(self, *words: str) -> str:
        """What the guide's `dsobs incidents` prints."""
        command = (*shlex.split(guide("sh", "dsobs incidents"))[1:], *words)
        told = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dsobs.cli", *command), cwd=self.here.folder, stdout=asyncio.subprocess.PIPE
        )
        text = (await told.communicate())[0].decode()
        assert told.returncode == 0, text
        return text

    def said(self, text: str) -> bool:
        return any(text in message for _, _, message in self.here.events)


@asynccontextmanager
async def place(folder: Path, daemon: Dockerd) -> AsyncIterator[Place]:
    async with scene(folder) as here:
        made = Place(here, daemon)
        try:
            yield made
        finally:
            if names := await made.names():
                await made.docker("rm", "--force", *names)


async def test_load_adds_replicas_one_by_one_up_to_the_maximum_and_its_end_takes_them_away_but_for_the_engine(
    tmp_path: Path, daemon: Dockerd, capsys: pytest.CaptureFixture[str]
) -> None:
    async with place(tmp_path, daemon) as machine:
        here = machine.here
        here.port = 8000
        await machine.cards()
        await machine.engine("vllm", 8000, 0, "--load-seconds", str(LOAD_SECONDS))
        await machine.dsobs("vllm", 8000)
        await here.until_answers("/health", 60)
        engine = await machine.inspect("vllm")
        began = time.time()
        load = await here.start_load(10, "--max-tokens", "8", "16")
        await here.until(lambda: machine.said("scaling.max_replicas is 3"), 120, "the maximum")
        assert await machine.names() == ["vllm", "vllm-replica-2", "vllm-replica-3"]
        done, reserved = await machine.steps("done", 2), await machine.steps("reserved", 2)
        assert [step["detail"]["how"] for step in done] == [
            "vllm-replica-2 was started (port 8001, card GPU-1)",
            "vllm-replica-3 was started (port 8002, card GPU-2)",
        ]
        # Wanted for as long as it must be; and one that loads, and the cooldown, hold the next.
        assert reserved[0]["at"] - began >= SUSTAINED
        assert reserved[1]["at"] - done[0]["at"] >= COOLDOWN
        made = datetime.fromisoformat((await machine.inspect("vllm-replica-2"))["Created"][:26] + "+00:00")
        assert reserved[1]["at"] - made.timestamp() >= LOAD_SECONDS
        for port, name in ((8001, "vllm-replica-2"), (8002, "vllm-replica-3")):
            await machine.until_answers(f"http://127.0.0.1:{port}/health")
            assert await machine.answers(port) == "whole"
            replica = await machine.inspect(name)
            for key in ("Env", "Cmd", "StopTimeout", "WorkingDir"):
                assert replica["Config"][key] == engine["Config"][key]
            assert replica["HostConfig"]["Binds"] == engine["HostConfig"]["Binds"]
        listed = await machine.incidents()
        assert listed.count("closed  scale done: scale container vllm from") == 2, listed
        # No load; somebody still asks the newest replica, and no request of his is cut.
        load.terminate()
        machine.set(scaling={"scale_in": True, "scale_in_after": "2s"})
        asked: list[str] = []
        async with asyncio.timeout(120):
            while not asked or asked[-1] != "refused":
                asked.append(await machine.answers(8002, tokens=30))
        assert set(asked[:-1]) == {"whole"}
        first, second = (await machine.steps("done", 4))[2:]
        assert [step["detail"]["how"] for step in (first, second)] == [
            "vllm-replica-3 was stopped and removed",
            "vllm-replica-2 was stopped and removed",
        ]
        assert second["at"] - first["at"] >= COOLDOWN
        assert await machine.names() == ["vllm"]
        assert (await machine.inspect("vllm"))["State"]["StartedAt"] == engine["State"]["StartedAt"]
        assert here.acted() == []
        with capsys.disabled():
            print(f"\nscale-out on Docker: load to first replica {done[0]['at'] - began:.1f} s")


async def test_no_free_card_is_a_page_with_the_command_which_makes_a_replica_that_counts(
    tmp_path: Path, daemon: Dockerd
) -> None:
    async with PagerDutyStandIn() as pagerduty, place(tmp_path, daemon) as machine:
        here = machine.here
        here.port = 8100
        await machine.cards()
        await machine.engine("chat", 8100, PRODUCTS.index("L4"))
        await here.until_answers("/health", 60)
        await here.start_load(8, "--max-tokens", "8", "16")
        key = tmp_path / "pagerduty.key"
        key.write_text("k" * 32)
        paging = {"pagerduty": {"routing_key": f"file:{key}", "url": pagerduty.url, "severities": ["critical"]}}
        await machine.dsobs("chat", 8100, scaling={"max_replicas": 2}, notifiers=paging)
        wanted: list[dict[str, Any]] = []

        def told() -> bool:
            # Before the cards were read it is another reason.
            why = "there is no room here: 0 of 8 cards are free, and a replica takes 1"
            wanted[:] = [event for event in pagerduty.events if why in str(event.get("payload"))]
            return bool(wanted)

        await pagerduty.wait_for(told, 60)
        event = wanted[0]
        assert "one more replica is wanted" in event["payload"]["summary"]
        command = event["payload"]["custom_details"]["run"]
        assert command.startswith("docker run --detach --name chat-replica-2 ")
        assert command in {step["detail"]["run"] for step in await machine.steps("refused", 1)}
        incident = next(each["id"] for each in await here.incidents() if each["entries"][0]["kind"] == "scale")
        assert f"run  {command}\n" in await machine.incidents(incident)
        assert await machine.names() == ["chat"]
        # A person takes a card of another kind.
        filled = command.replace("CARDS", str(PRODUCTS.index("A10"))).replace("PORT", "8111")
        environ = {**os.environ, "DOCKER_HOST": daemon.host}
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", filled, env=environ, stdout=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0
        await machine.until_answers("http://127.0.0.1:8111/health")
        assert await machine.answers(8111) == "whole"
        await pagerduty.wait_for(lambda: event["dedup_key"] not in pagerduty.open_incidents(), 60)
        assert await machine.metric("dsobs_scaling_replicas") == 2.0
        assert await machine.steps("reserved") == []


async def test_in_observe_mode_and_under_the_kill_switch_it_is_only_said_what_would_be_done(
    tmp_path: Path, daemon: Dockerd
) -> None:
    killed = tmp_path / "kill"
    killed.touch()
    (tmp_path / "other").mkdir()
    async with place(tmp_path, daemon) as observing, place(tmp_path / "other", daemon) as stopped:
        observing.here.port = 8200
        await observing.cards()
        await observing.engine("code", 8200, PRODUCTS.index("H100"))
        await observing.here.until_answers("/health", 60)
        await observing.here.start_load(8, "--max-tokens", "8", "16")
        await observing.dsobs("code", 8200, remediation={"mode": "observe"})
        await stopped.dsobs("code", 8200, remediation={"kill_switch_file": str(killed)})
        would = "would scale container code from 1 to 2 (observe): 1 replica wants"
        await observing.here.until(lambda: observing.said(would), 60, would)
        refused = f"scale refused: scale container code from 1 to 2: kill switch: file {killed}"
        await stopped.here.until(lambda: stopped.said(refused), 60, refused)
        assert await observing.names() == ["code"]
        assert await observing.steps("reserved") == await stopped.steps("reserved") == []
