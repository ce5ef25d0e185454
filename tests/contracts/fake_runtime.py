"""A runtime in memory, for tests of what uses one. It passes the contract of the real ones."""

import itertools
import time
from collections.abc import Callable
from dataclasses import replace

from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RestartResult, RuntimeRefused


class FakeRuntime:
    """One engine of two processes that exist in name only. `clock` gives the time, `wait` lets it go on."""

    name = "fake"
    can_restart = True

    def __init__(self, clock: Callable[[], float] = time.time, wait: Callable[[float], None] = time.sleep) -> None:
        self._clock = clock
        self._wait = wait
        self._pids = itertools.count(100)
        self._lines: list[str] = []
        self.state = RuntimeView(runtime="fake", name="engine", running=False)
        self.stubborn = False
        self.frozen = False
        self.away = False
        self.silent = False
        self.restarts: list[float] = []
        """When it was restarted."""

    def start(self) -> None:
        """A new instance."""
        now = self._clock()
        self._lines.append("ready")
        self.frozen = False
        self.state = replace(
            self.state,
            running=True,
            started_at=now,
            cpu_seconds=0.0,
            exit_code=None,
            pids=(next(self._pids), next(self._pids)),
            started_history=(*self.state.started_history, now),
        )

    def end(self, exit_code: int, planned_stop: str | None = None) -> None:
        """The instance ends, with all its processes."""
        self.state = replace(
            self.state,
            running=False,
            exit_code=exit_code,
            ended_at=self._clock(),
            planned_stop=planned_stop,
            pids=(),
        )

    async def view(self) -> RuntimeView | Unknown:
        """As set."""
        return Unknown("the fake is away") if self.away or self.silent else self.state

    async def restart(
        self, *, grace_seconds: float, expect_started_at: float | None, incident: str = ""
    ) -> RestartResult:
        """At once, or after the grace where SIGTERM is ignored."""
        if self.away:
            raise RuntimeRefused("the fake is away")
        if self.silent:
            raise TimeoutError("the fake is silent")
        if expect_started_at is not None and expect_started_at != self.state.started_at:
            raise RuntimeRefused(f"the engine did not start at {expect_started_at} but at {self.state.started_at}")
        if self.stubborn or self.frozen:
            self._wait(grace_seconds)
        self.end(137 if self.stubborn or self.frozen else 0)
        self.start()
        self.restarts.append(self._clock())
        return RestartResult(started_at=self.state.started_at, detail="restarted by the fake")

    async def log_tail(self, lines: int) -> list[str] | Unknown:
        """What the instances said."""
        if self.away or self.silent:
            return Unknown("the fake is away")
        return self._lines[-lines:] if lines > 0 else []

    async def close(self) -> None:
        """Holds nothing."""
