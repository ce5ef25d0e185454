"""The Docker runtime against a real daemon: the contract, and what is Docker's own."""

import asyncio
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from dsobs.config.models import RuntimeSettings
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import Runtime, RuntimeRefused
from dsobs.runtimes.docker import DockerRuntime
from dsobs.runtimes.docker_daemon import negotiated
from dsobs.supervisor import processes
from tests.contracts.runtime_contract import ENGINE, STUBBORN, RuntimeContract, until
from tests.real.docker import Dockerd


class DockerScene:
    def __init__(self, daemon: Dockerd) -> None:
        self.daemon = daemon
        self.name = f"engine-{uuid.uuid4().hex[:8]}"
        self.settings = RuntimeSettings(
            name="docker", container=self.name, docker_host=daemon.host, timeout=30.0, stop_grace=1.0
        )
        self.docker = DockerRuntime(self.settings)
        self.runtime: Runtime = self.docker
        self._known: dict[int, int] = {}

    async def start(self, *, stubborn: bool = False, options: tuple[str, ...] = ()) -> None:
        script = STUBBORN if stubborn else ENGINE
        await asyncio.to_thread(self.daemon.run, self.name, "/bin/sh", "-c", script, options=options)

    def main_pid(self) -> int:
        return int(self.daemon.command("inspect", "--format", "{{.State.Pid}}", self.name).stdout)

    def crash(self) -> None:
        self.living()
        os.kill(self.main_pid(), signal.SIGKILL)

    def freeze(self) -> None:
        for pid in self.living():
            os.kill(pid, signal.SIGSTOP)

    async def stop_by_a_person(self) -> None:
        self.living()
        await self.command("stop", "--time", "5", self.name)

    async def command(self, *words: str) -> None:
        await asyncio.to_thread(self.daemon.command, *words)

    def living(self) -> set[int]:
        table = processes.process_table()
        if main := self.main_pid():
            self._known |= {e.pid: e.start_ticks for e in (table[main], *processes.descendants(table, main))}
        return {pid for pid, ticks in self._known.items() if pid in table and table[pid].start_ticks == ticks}

    async def silence(self) -> None:
        self.living()
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGSTOP)
        self.runtime = DockerRuntime(self.settings.model_copy(update={"timeout": 3.0}))

    async def away(self) -> Runtime:
        nowhere = self.settings.model_copy(update={"docker_host": f"unix://{self.daemon.folder}/nobody.sock"})
        return DockerRuntime(nowhere)

    async def view(self) -> RuntimeView:
        view = await self.runtime.view()
        assert isinstance(view, RuntimeView), view
        return view

    async def close(self) -> None:
        await self.runtime.close()
        await self.docker.close()
        assert self.daemon.process is not None
        self.daemon.process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(self.daemon.remove, self.name)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Dockerd]:
    with Dockerd() as daemon:
        yield daemon


@pytest.fixture
async def scene(daemon: Dockerd) -> AsyncIterator[DockerScene]:
    scene = DockerScene(daemon)
    yield scene
    await scene.close()


@pytest.mark.real("seconds")
class TestDockerRuntime(RuntimeContract):
    """With the fixture above."""


@pytest.mark.real("seconds")
class TestDockersOwn:
    async def test_docker_restart_by_a_person_is_planned(self, scene: DockerScene) -> None:
        await scene.start()
        before = await scene.view()
        await scene.command("restart", "--time", "5", scene.name)
        after = await scene.view()
        assert after.running
        assert after.started_at != before.started_at
        assert after.planned_stop is not None
        assert len(after.started_history) == 2

    async def test_docker_kill_with_sigterm_is_planned(self, scene: DockerScene) -> None:
        await scene.start()
        await until(lambda: scene.runtime.log_tail(5), lambda lines: lines == ["ready"])
        await scene.command("kill", "--signal", "TERM", scene.name)
        after = await until(scene.view, lambda view: not view.running)
        assert after.planned_stop == "docker kill event, signal 15"

    async def test_signal_that_ends_nothing_is_no_stop(self, scene: DockerScene) -> None:
        await scene.start()
        await scene.command("kill", "--signal", "WINCH", scene.name)
        scene.crash()
        after = await until(scene.view, lambda view: not view.running)
        assert after.planned_stop is None

    async def test_crash_after_a_planned_restart_is_not_planned(self, scene: DockerScene) -> None:
        await scene.start()
        await scene.command("restart", "--time", "5", scene.name)
        assert (await scene.view()).planned_stop is not None
        scene.crash()
        after = await until(scene.view, lambda view: not view.running)
        assert after.planned_stop is None

    async def test_engine_brought_back_by_its_policy_is_counted_and_not_planned(self, scene: DockerScene) -> None:
        await scene.start(options=("--restart", "always"))
        before = await scene.view()
        scene.crash()
        after = await until(scene.view, lambda view: view.running is True and view.started_at != before.started_at)
        assert (after.restart_count, after.planned_stop) == (1, None)

    async def test_stop_seen_only_by_a_later_dsobs_is_planned_too(self, scene: DockerScene) -> None:
        await scene.start()
        await scene.stop_by_a_person()
        assert (await scene.view()).planned_stop is not None

    async def test_container_made_anew_under_the_same_name_is_followed(self, scene: DockerScene) -> None:
        await scene.start()
        before = await scene.view()
        await scene.command("stop", "--time", "5", scene.name)
        await scene.command("rm", scene.name)
        assert isinstance(await scene.runtime.view(), Unknown)
        await scene.start()
        after = await scene.view()
        assert after.running
        assert after.started_at != before.started_at
        assert after.planned_stop is not None

    async def test_events_of_a_container_with_a_longer_name_are_not_taken(self, scene: DockerScene) -> None:
        await scene.start()
        other = DockerScene(scene.daemon)
        other.name = f"{scene.name}-2"
        await other.start()
        await other.stop_by_a_person()
        scene.crash()
        after = await until(scene.view, lambda view: not view.running)
        assert after.planned_stop is None
        assert len(after.started_history) == 1
        await asyncio.to_thread(other.daemon.remove, other.name)
        await other.runtime.close()

    async def test_paused_container_is_a_planned_standstill(self, scene: DockerScene) -> None:
        await scene.start()
        await scene.command("pause", scene.name)
        assert (await scene.view()).planned_stop == "docker pause"
        await scene.command("unpause", scene.name)
        assert (await scene.view()).planned_stop is None

    async def test_restart_of_a_stopped_container_starts_it(self, scene: DockerScene) -> None:
        await scene.start()
        await scene.stop_by_a_person()
        await scene.runtime.restart(grace_seconds=1.0, expect_started_at=None)
        assert (await scene.view()).running

    async def test_restart_of_no_container_is_refused(self, scene: DockerScene) -> None:
        with pytest.raises(RuntimeRefused, match="No such container"):
            await scene.runtime.restart(grace_seconds=1.0, expect_started_at=None)

    async def test_restart_that_stops_and_cannot_start_again_is_no_refusal(
        self, scene: DockerScene, tmp_path: Path
    ) -> None:
        folder = tmp_path / "bound"
        folder.mkdir()
        await scene.start(options=("--mount", f"type=bind,source={folder},target=/tmp"))
        folder.rmdir()
        with pytest.raises(ConnectionError, match="the container is stopped"):
            await scene.runtime.restart(grace_seconds=1.0, expect_started_at=None)

    async def test_log_of_a_container_with_a_terminal_is_read(self, scene: DockerScene) -> None:
        await scene.start(options=("--tty",))
        await until(lambda: scene.runtime.log_tail(5), lambda lines: lines == ["ready"])

    async def test_container_killed_for_memory_says_so(self, scene: DockerScene) -> None:
        script = "import time; hold = bytearray(256 << 20); hold[::4096] = bytes(len(hold[::4096])); time.sleep(60)"
        options = ("--memory", "24m", "--memory-swap", "24m")
        await asyncio.to_thread(scene.daemon.run, scene.name, "/usr/bin/python3", "-c", script, options=options)
        after = await until(scene.view, lambda view: not view.running)
        assert (after.oom_killed, after.exit_code, after.planned_stop) == (True, 137, None)

    async def test_view_costs_little(self, scene: DockerScene) -> None:
        await scene.start()
        await scene.view()
        loop = asyncio.get_running_loop()
        took: list[float] = []
        # The best of up to ten rounds: what else the machine does only adds.
        while len(took) < 10 and min(took, default=1.0) >= 0.1:
            begun = loop.time()
            for _ in range(10):
                await scene.view()
            took.append((loop.time() - begun) / 10)
        assert min(took) < 0.1

    async def test_cpu_time_comes_from_the_daemon_where_proc_does_not_show_the_container(
        self, scene: DockerScene, tmp_path: Path
    ) -> None:
        await asyncio.to_thread(scene.daemon.run, scene.name, "/bin/sh", "-c", "while :; do :; done")
        elsewhere = DockerRuntime(scene.settings, proc=tmp_path)
        view = await until(elsewhere.view, lambda seen: isinstance(seen, RuntimeView) and bool(seen.cpu_seconds))
        await elsewhere.close()
        assert isinstance(view, RuntimeView)
        assert view.pids == ()

    async def test_oldest_and_newest_daemon_version_are_spoken_with(self, scene: DockerScene) -> None:
        versions = json.loads(scene.daemon.command("version", "--format", "{{json .Server}}").stdout)
        spoken = negotiated(versions["ApiVersion"], versions["MinAPIVersion"])
        assert spoken == "1.41"
