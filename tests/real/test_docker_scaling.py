"""Further replicas by a real Docker daemon. It hands out cards by NVIDIA's hook, which here does nothing: what a
container is given is what the daemon says, and which cards there are is told."""

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from dsobs.config.models import RuntimeSettings
from dsobs.model.observation import Gpu
from dsobs.model.runtime import RuntimeHeld, RuntimeRefused
from dsobs.model.scaling import Places, Replicas
from dsobs.runtimes.docker import DockerRuntime
from dsobs.runtimes.docker_replicas import MADE_BY, REPLICA_OF
from tests.contracts.runtime_contract import until
from tests.docs.test_docs import blocks
from tests.real.docker import IMAGE, Dockerd

pytestmark = pytest.mark.real("faults")
GUIDE = Path(__file__).parents[2] / "docs/how-to/scale-out.md"
GIB = 1 << 30
WAIT = 'trap "exit 0" TERM; sleep 1000 & wait'
LISTEN = "import socket, time; s = socket.create_server(('127.0.0.1', 8001)); time.sleep(1000)"


def cards(*used: int) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(index, f"GPU-{index}", "H200", 140 * GIB, each * GIB, processes=()) for index, each in enumerate(used)
    )


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It fails while there is a file `broken` beside it."""
    folder = tmp_path_factory.mktemp("programs")
    hook = folder / "nvidia-container-runtime-hook"
    hook.write_text(f"#!/bin/sh\n! test -e {folder}/broken\n")
    hook.chmod(0o755)
    return hook


@pytest.fixture(scope="module")
def daemon(hook: Path) -> Iterator[Dockerd]:
    with Dockerd(private_network=True, programs=hook.parent) as daemon:
        for name in ("serving", "metrics"):
            daemon.command("network", "create", name)
        yield daemon


class World:
    def __init__(self, daemon: Dockerd, hook: Path, target: str) -> None:
        self.daemon = daemon
        self.hook = hook
        settings = RuntimeSettings(name="docker", container="vllm", docker_host=daemon.host, timeout=60.0)
        self.runtime = DockerRuntime(settings, target=target)
        assert isinstance(self.runtime, Places)
        self.runtime.cards = lambda: self.cards
        self.cards = cards(130, 0, 0)

    def run(self, name: str, *options: str, command: tuple[str, ...] = ("sh", "-c", WAIT)) -> None:
        fixed = ("run", "--detach", "--volume", "/usr:/usr:ro", "--name", name)
        self.daemon.command(*fixed, *options, IMAGE, *command)

    def engine(self, *options: str) -> None:
        self.run(
            "vllm",
            *("--network", "serving", "--network-alias", "chat", "--publish", "127.0.0.1:8000:8000"),
            *("--gpus", '"device=0"', "--shm-size", "128m", "--env", "HF_TOKEN=hf_abcdefgh", "--env", "MODE=fast"),
            *("--label", "team=chat", "--restart", "always"),
            *options,
        )
        self.daemon.command("network", "connect", "--alias", "vllm", "metrics", "vllm")

    def compose(self, plugin: Path, file: Path, *words: str) -> str:
        """What `docker compose` printed; AssertionError where it fails."""
        done = subprocess.run(
            ["docker", "compose", "--file", str(file), *words],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "DOCKER_CONFIG": str(plugin), "DOCKER_HOST": self.daemon.host},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def running(self) -> list[str]:
        return sorted(self.daemon.command("ps", "--format", "{{.Names}}").stdout.split())

    def address(self, name: str) -> str:
        """In the only network that it is in."""
        (network,) = self.inspect(name)["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def addresses(self, name: str, *, of: str) -> list[str]:
        """Those of `name` as the container `of` finds them."""
        code = f"import socket; print(*socket.gethostbyname_ex({name!r})[2])"
        return self.daemon.command("exec", of, "/usr/bin/python3", "-c", code).stdout.split()

    def wait_for_listener(self, port: int) -> None:
        """Until somebody listens on it on the daemon's host."""
        assert self.daemon.process is not None
        table = Path(f"/proc/{self.daemon.process.pid}/net/tcp")
        deadline = time.monotonic() + 60.0
        while not re.search(rf":{port:04X} \S+ 0A ", table.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self.daemon.command("inspect", name).stdout)
        assert isinstance(found, dict)
        return found

    async def there(self) -> Replicas:
        found = await self.runtime.replicas()
        assert isinstance(found, Replicas), found
        return found


@pytest.fixture
async def world(daemon: Dockerd, hook: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world = World(daemon, hook, getattr(request, "param", "http://vllm:8000"))
    yield world
    await world.runtime.close()
    if names := daemon.command("ps", "--all", "--quiet").stdout.split():
        await asyncio.to_thread(daemon.command, "rm", "--force", *names)


async def test_replica_is_the_engine_once_more_with_a_name_a_port_and_a_card_of_its_own(world: World) -> None:
    world.engine()
    # A port that no container publishes is found to be in use by trying it; card 1 is another container's.
    world.run("listener", "--network", "host", command=("/usr/bin/python3", "-c", LISTEN))
    await asyncio.to_thread(world.wait_for_listener, 8001)
    world.run("other", "--network", "none", "--gpus", '"device=1"')
    before = await world.there()
    assert (before.workload, before.wanted, before.ready, before.servers) == ("container vllm", 1, 1, ())
    assert await world.runtime.no_room() is None
    said = await world.runtime.scale(before, 2)
    assert said == "vllm-replica-2 was started (port 8002, card GPU-2)"
    engine, replica = world.inspect("vllm"), world.inspect("vllm-replica-2")
    assert replica["State"]["Running"]
    for key in ("Env", "Cmd", "Entrypoint", "User", "WorkingDir"):
        assert [x for x in replica["Config"][key] or () if "NVIDIA" not in x] == (engine["Config"][key] or [])
    assert replica["Image"] == engine["Image"]
    assert replica["Config"]["Labels"] == {"team": "chat", REPLICA_OF: "vllm", MADE_BY: "dsobs"}
    for key in ("Binds", "ShmSize", "RestartPolicy", "NetworkMode"):
        assert replica["HostConfig"][key] == engine["HostConfig"][key]
    assert replica["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] == ["GPU-2"]
    assert replica["HostConfig"]["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8002"}]}
    assert set(replica["NetworkSettings"]["Networks"]) == {"serving", "metrics"}
    for network in replica["NetworkSettings"]["Networks"].values():
        assert not {"chat", "vllm"} & set(network["Aliases"] or ())
    after = await world.there()
    assert (after.wanted, after.ready, after.pods) == (2, 2, 2)
    assert after.servers == ("http://vllm-replica-2:8000",)
    # The engine itself is what it was.
    assert world.inspect("vllm")["State"]["StartedAt"] == engine["State"]["StartedAt"]


async def test_without_a_free_card_there_is_the_command_that_makes_one_and_no_secret_in_it(world: World) -> None:
    world.engine()
    world.cards = cards(130, 20, 0)
    world.run("other", "--network", "none", "--gpus", '"device=2"')
    room = await world.runtime.no_room()
    assert room is not None
    assert room.reason == "0 of 3 cards are free, and a replica takes 1"
    assert "hf_abcdefgh" not in room.command
    with pytest.raises(RuntimeRefused, match="0 of 3 cards are free"):
        await world.runtime.scale(await world.there(), 2)
    assert (await world.there()).pods == 1
    # What it says works as it stands, where a card and a port are chosen.
    filled = room.command.replace("CARDS", "1").replace("PORT", "8010")
    environ = {**os.environ, "DOCKER_HOST": world.daemon.host, "HF_TOKEN": "mine"}
    process = await asyncio.create_subprocess_exec("sh", "-c", filled, env=environ)
    assert await process.wait() == 0
    made = world.inspect("vllm-replica-2")
    engine = world.inspect("vllm")
    assert {"HF_TOKEN=mine", "MODE=fast"} <= set(made["Config"]["Env"])
    for key in ("Binds", "ShmSize", "NetworkMode"):
        assert made["HostConfig"][key] == engine["HostConfig"][key]
    assert made["Config"]["Cmd"] == engine["Config"]["Cmd"]
    assert made["Config"]["Labels"]["team"] == "chat"
    assert set(made["NetworkSettings"]["Networks"]) == {"serving", "metrics"}
    found = await world.there()
    assert (found.wanted, found.ready) == (2, 2)
    # Made by a person, it counts and is not taken away.
    with pytest.raises(RuntimeHeld, match="dsobs made none of the replicas"):
        await world.runtime.scale(found, 1)


@pytest.mark.parametrize("world", ["http://127.0.0.1:8000"], indirect=True)
async def test_command_for_an_engine_on_the_hosts_network_makes_one_that_publishes_its_port(world: World) -> None:
    world.run("vllm", "--network", "host", "--gpus", '"device=0"')
    room = await world.runtime.no_room()
    assert room is not None
    assert room.reason == "it shares its network (host), where its port is taken"
    environ = {**os.environ, "DOCKER_HOST": world.daemon.host}
    filled = room.command.replace("CARDS", "1").replace("PORT", "127.0.0.1:8010")
    process = await asyncio.create_subprocess_exec("sh", "-c", filled, env=environ)
    assert await process.wait() == 0
    found = await world.there()
    assert (found.wanted, found.servers) == (2, ("http://127.0.0.1:8010",))


async def test_scale_in_takes_away_the_last_that_dsobs_made_and_nothing_else(world: World) -> None:
    world.engine()
    await world.runtime.scale(await world.there(), 2)
    with pytest.raises(RuntimeHeld, match="there are 2 replicas meanwhile"):
        await world.runtime.scale(Replicas("container vllm", 1, 1, pods=1), 2)
    await world.runtime.scale(await world.there(), 3)
    said = await world.runtime.scale(await world.there(), 2)
    assert said == "vllm-replica-3 was stopped and removed"
    names = world.daemon.command("ps", "--all", "--format", "{{.Names}}").stdout.split()
    assert sorted(names) == ["vllm", "vllm-replica-2"]
    # The guide's way to have all of them anew.
    (line,) = [block.text for block in blocks() if block.page == GUIDE and "xargs" in block.text]
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", line, env={**os.environ, "DOCKER_HOST": world.daemon.host}, stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    assert world.running() == ["vllm"]


PROJECT = """
name: chat
services:
  vllm:
    image: host:latest
    container_name: vllm
    command: [sh, -c, 'trap "exit 0" TERM; echo ready; sleep 1000 & wait']
    environment: {VERSION: "1"}
    restart: always
    stop_grace_period: 2s
    ports: ["127.0.0.1:8000:8000"]
    volumes: ["/usr:/usr:ro"]
    deploy:
      resources:
        reservations:
          devices: [{driver: nvidia, device_ids: ["0"], capabilities: [gpu]}]
"""


@pytest.mark.real("cluster")
async def test_replica_of_a_compose_service_is_listed_stopped_started_and_removed_by_compose(
    world: World, plugin: Path, tmp_path: Path
) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(PROJECT)
    world.compose(plugin, file, "up", "--detach")
    said = await world.runtime.scale(await world.there(), 2)
    assert said == "vllm-replica-2 was started (port 8001, card GPU-1)"
    both = ["vllm", "vllm-replica-2"]
    assert sorted(world.compose(plugin, file, "ps", "--format", "{{.Name}}").split()) == both
    await until(
        lambda: asyncio.to_thread(world.compose, plugin, file, "logs", "--no-log-prefix"),
        lambda text: text.split() == ["ready", "ready"],
    )
    # Of its network it has its own name, and the service's is the engine's alone.
    assert world.addresses("vllm", of="vllm") == [world.address("vllm")]
    assert world.addresses("vllm-replica-2", of="vllm") == [world.address("vllm-replica-2")]
    world.compose(plugin, file, "stop")
    assert world.running() == []
    world.compose(plugin, file, "start")
    assert world.running() == both
    # The file asks for one: the engine stays as it is, and the replica goes.
    began = world.inspect("vllm")["State"]["StartedAt"]
    world.compose(plugin, file, "up", "--detach")
    assert world.running() == ["vllm"]
    assert world.inspect("vllm")["State"]["StartedAt"] == began
    # Another definition: one container of that, under the engine's name, and the next replica is of it.
    await world.runtime.scale(await world.there(), 2)
    file.write_text(PROJECT.replace('"1"', '"2"'))
    world.compose(plugin, file, "up", "--detach")
    assert world.running() == ["vllm"]
    await world.runtime.scale(await world.there(), 2)
    assert world.running() == both
    for name in both:
        assert "VERSION=2" in world.inspect(name)["Config"]["Env"]
    world.compose(plugin, file, "down")
    assert world.daemon.command("ps", "--all", "--quiet").stdout == ""
    assert "chat_default" not in world.daemon.command("network", "ls").stdout


async def test_replica_that_can_not_start_leaves_nothing_behind(world: World) -> None:
    world.engine()
    broken = world.hook.with_name("broken")
    broken.touch()
    try:
        with pytest.raises(RuntimeRefused, match="hook"):
            await world.runtime.scale(await world.there(), 2)
    finally:
        broken.unlink()
    assert world.daemon.command("ps", "--all", "--format", "{{.Names}}").stdout.split() == ["vllm"]
    assert (await world.there()).pods == 1
