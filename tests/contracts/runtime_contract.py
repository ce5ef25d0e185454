"""What every runtime keeps: the fake one, a supervised process, a Docker container."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import pytest

from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import Runtime, RuntimeRefused

T = TypeVar("T")
DEADLINE = 30.0

ENGINE = 'trap "exit 0" TERM; sleep 1000 & echo ready; while :; do wait $!; done'
"""A main process with a child, that ends on SIGTERM and leaves its child behind."""
STUBBORN = 'trap "" TERM; sleep 1000 & echo ready; while :; do wait $!; done'
"""One that ignores SIGTERM, its child too."""


class Scene(Protocol):
    """An engine under a runtime, and what is done to it from outside."""

    runtime: Runtime

    async def start(self, *, stubborn: bool = False) -> None:
        """Starts the engine (main process and a child)."""
        ...

    def crash(self) -> None:
        """SIGKILL to the engine's main process, behind the runtime's back."""
        ...

    def freeze(self) -> None:
        """SIGSTOP to all of the engine's processes."""
        ...

    async def stop_by_a_person(self) -> None:
        """The engine is stopped in the way that this runtime can witness."""
        ...

    def living(self) -> set[int]:
        """Pids of the engine's processes that live, orphans too."""
        ...

    async def silence(self) -> None:
        """The runtime's API accepts and does not answer."""
        ...

    async def away(self) -> Runtime:
        """A runtime whose API is not there."""
        ...


async def until(look: Callable[[], Awaitable[T]], fits: Callable[[T], bool], deadline: float = DEADLINE) -> T:
    """Looks until it fits; AssertionError with what was seen last."""
    end = time.monotonic() + deadline
    while not fits(seen := await look()):
        assert time.monotonic() < end, f"not within {deadline} s; last seen: {seen}"
        await asyncio.sleep(0.02)
    return seen


def _view(seen: RuntimeView | Unknown) -> RuntimeView:
    assert isinstance(seen, RuntimeView), seen
    return seen


class RuntimeContract:
    """Derive, and give the fixture `scene`."""

    async def running(self, scene: Scene, *, stubborn: bool = False) -> RuntimeView:
        """Starts the engine and waits until it said that it is ready."""
        await scene.start(stubborn=stubborn)
        await self.ready(scene)
        return _view(await scene.runtime.view())

    async def ready(self, scene: Scene, times: int = 1) -> None:
        def said(lines: list[str] | Unknown) -> bool:
            return not isinstance(lines, Unknown) and lines.count("ready") >= times

        await until(lambda: scene.runtime.log_tail(50), said)

    async def test_view_tells_of_a_running_engine(self, scene: Scene) -> None:
        before = time.time()
        view = await self.running(scene)
        assert (view.runtime, view.running) == (scene.runtime.name, True)
        assert view.name
        assert view.started_at is not None
        assert before - 1 <= view.started_at <= time.time() + 1
        assert view.cpu_seconds is not None
        assert set(view.pids) == scene.living()
        assert len(view.pids) == 2
        assert (view.planned_stop, view.exit_code, view.ended_at) == (None, None, None)
        assert view.started_history == (view.started_at,)
        assert scene.runtime.can_restart

    async def test_cpu_time_never_goes_back(self, scene: Scene) -> None:
        await self.running(scene)
        seen = [_view(await scene.runtime.view()).cpu_seconds or 0.0 for _ in range(5)]
        assert seen == sorted(seen)

    async def test_restart_gives_a_new_instance_and_leaves_nothing_of_the_old_one(self, scene: Scene) -> None:
        before = await self.running(scene)
        old = scene.living()
        result = await scene.runtime.restart(grace_seconds=5.0, expect_started_at=before.started_at)
        after = _view(await scene.runtime.view())
        assert after.running
        assert after.started_at == result.started_at
        assert before.started_at is not None
        assert after.started_at is not None
        assert after.started_at > before.started_at
        assert not old & scene.living()
        assert after.started_history == pytest.approx((before.started_at, after.started_at), abs=1.0)
        await self.ready(scene, 2)

    async def test_own_restart_is_no_planned_stop_of_a_person(self, scene: Scene) -> None:
        await self.running(scene)
        await scene.runtime.restart(grace_seconds=5.0, expect_started_at=None)
        assert _view(await scene.runtime.view()).planned_stop is None

    async def test_restart_of_an_instance_that_is_gone_is_refused_and_changes_nothing(self, scene: Scene) -> None:
        view = await self.running(scene)
        assert view.started_at is not None
        with pytest.raises(RuntimeRefused, match="did not start at"):
            await scene.runtime.restart(grace_seconds=0.0, expect_started_at=view.started_at - 100)
        assert _view(await scene.runtime.view()).started_at == view.started_at
        assert scene.living() == set(view.pids)

    async def test_engine_that_ignores_sigterm_is_killed_after_the_grace(self, scene: Scene) -> None:
        view = await self.running(scene, stubborn=True)
        begun = time.time()
        result = await scene.runtime.restart(grace_seconds=1.0, expect_started_at=view.started_at)
        assert result.started_at is not None
        # Less than any daemon's own grace of 10 s.
        assert begun + 0.9 <= result.started_at <= begun + 9.5
        assert not set(view.pids) & scene.living()

    async def test_frozen_engine_is_restarted(self, scene: Scene) -> None:
        view = await self.running(scene)
        scene.freeze()
        await scene.runtime.restart(grace_seconds=1.0, expect_started_at=view.started_at)
        assert _view(await scene.runtime.view()).running
        assert not set(view.pids) & scene.living()

    async def test_crash_is_not_planned_and_leaves_no_orphan(self, scene: Scene) -> None:
        view = await self.running(scene)
        scene.crash()
        after = _view(
            await until(
                scene.runtime.view,
                lambda seen: (
                    isinstance(seen, RuntimeView)
                    and (not seen.running or seen.started_at != view.started_at)
                    and not set(view.pids) & scene.living()
                ),
            )
        )
        assert after.planned_stop is None
        assert after.ended_at is not None
        if not after.running:
            assert after.exit_code == 137

    async def test_stop_by_a_person_is_witnessed(self, scene: Scene) -> None:
        view = await self.running(scene)
        await scene.stop_by_a_person()
        after = _view(await until(scene.runtime.view, lambda seen: isinstance(seen, RuntimeView) and not seen.running))
        assert after.planned_stop is not None
        assert after.started_at == view.started_at
        assert after.ended_at is not None
        assert not scene.living()

    async def test_log_tail_gives_the_last_lines(self, scene: Scene) -> None:
        await self.running(scene)
        assert (await scene.runtime.log_tail(1)) == ["ready"]
        assert (await scene.runtime.log_tail(0)) == []

    async def test_api_that_is_away_is_unknown_and_a_restart_is_surely_not_done(self, scene: Scene) -> None:
        runtime = await scene.away()
        try:
            assert isinstance(await runtime.view(), Unknown)
            assert isinstance(await runtime.log_tail(5), Unknown)
            with pytest.raises(RuntimeRefused):
                await runtime.restart(grace_seconds=0.0, expect_started_at=None)
        finally:
            await runtime.close()

    async def test_silent_api_is_unknown_within_the_timeout_and_never_a_success(self, scene: Scene) -> None:
        await self.running(scene)
        await scene.silence()
        # Each by itself: no time-out is longer than three seconds.
        async with asyncio.timeout(10.0):
            assert isinstance(await scene.runtime.view(), Unknown)
        async with asyncio.timeout(10.0):
            assert isinstance(await scene.runtime.log_tail(5), Unknown)
        with pytest.raises((RuntimeRefused, TimeoutError)):
            await scene.runtime.restart(grace_seconds=0.0, expect_started_at=None)

    async def test_close_is_legal_twice(self, scene: Scene) -> None:
        await self.running(scene)
        await scene.runtime.close()
        await scene.runtime.close()
