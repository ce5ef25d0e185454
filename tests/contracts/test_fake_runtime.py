import time

import pytest

from dsobs.model.runtime import Runtime
from tests.contracts.fake_runtime import FakeRuntime
from tests.contracts.runtime_contract import RuntimeContract, Scene


class FakeScene:
    def __init__(self) -> None:
        self._waited = 0.0
        self.fake = FakeRuntime(self._clock, self._wait)
        self.runtime: Runtime = self.fake

    def _clock(self) -> float:
        return time.time() + self._waited

    def _wait(self, seconds: float) -> None:
        self._waited += seconds

    async def start(self, *, stubborn: bool = False) -> None:
        self.fake.stubborn = stubborn
        self.fake.start()

    def crash(self) -> None:
        self.fake.end(137)

    def freeze(self) -> None:
        self.fake.frozen = True

    async def stop_by_a_person(self) -> None:
        self.fake.end(0, "somebody")

    def living(self) -> set[int]:
        return set(self.fake.state.pids)

    async def silence(self) -> None:
        self.fake.silent = True

    async def away(self) -> Runtime:
        runtime = FakeRuntime()
        runtime.away = True
        return runtime


class TestFakeRuntime(RuntimeContract):
    @pytest.fixture
    def scene(self) -> Scene:
        return FakeScene()
