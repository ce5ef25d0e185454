import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dsobs.config.models import RuntimeSettings, Target
from dsobs.model.runtime import Runtime
from dsobs.runtimes import process
from tests.contracts.runtime_contract import ENGINE, STUBBORN, RuntimeContract, Scene
from tests.runtimes.supervised import Supervised


class ProcessScene:
    def __init__(self, folder: Path) -> None:
        self.supervised = Supervised(folder)
        self.settings = RuntimeSettings(supervisor_socket=self.supervised.socket, timeout=30.0)
        self.runtime: Runtime = process.ProcessRuntime(self.settings, Target(url="http://127.0.0.1:9"))

    async def start(self, *, stubborn: bool = False) -> None:
        self.supervised.script(STUBBORN if stubborn else ENGINE)

    def crash(self) -> None:
        os.kill(self.supervised.status()["pid"], signal.SIGKILL)

    def freeze(self) -> None:
        for pid in self.supervised.living():
            os.kill(pid, signal.SIGSTOP)

    async def stop_by_a_person(self) -> None:
        self.supervised.signal(signal.SIGTERM)
        await self.supervised.ends()

    def living(self) -> set[int]:
        return self.supervised.living()

    async def silence(self) -> None:
        self.supervised.living()
        self.supervised.signal(signal.SIGSTOP)
        impatient = self.settings.model_copy(update={"timeout": 1.0})
        self.runtime = process.ProcessRuntime(impatient, Target(url="http://127.0.0.1:9"))

    async def away(self) -> Runtime:
        return process.ProcessRuntime(self.settings, Target(url="http://127.0.0.1:9"))


class TestProcessRuntime(RuntimeContract):
    @pytest.fixture
    async def scene(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
        monkeypatch.setattr(process, "CLEARING_SECONDS", 0.5)
        scene = ProcessScene(tmp_path)
        yield scene
        await scene.runtime.close()
        scene.supervised.end()
