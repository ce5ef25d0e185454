"""What restarts an engine: Docker, a supervised process, … Found by the entry point group `dsobs.runtimes`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dsobs.model.observation import RuntimeView, Unknown


class RuntimeRefused(Exception):
    """The runtime could not or would not do it; the message says why and what to do. The outcome is known: not done."""


class RuntimeHeld(RuntimeRefused):
    """It must not be done now: somebody else is at work on the engine. Not done, and no failure of the runtime's."""


class RestartWithoutEffect(Exception):
    """It was asked for, and in its time nothing came of it; the request was withdrawn. It counts as an attempt."""


@dataclass(frozen=True, slots=True)
class RestartResult:
    """The runtime accepted and carried out a restart."""

    started_at: float | None
    """Start of the new instance, where it is known; None: the old one has ended, and the new one is on its way."""
    detail: str = ""


class Runtime(Protocol):
    """One engine's process or container."""

    name: str
    """process, docker or kubernetes."""
    can_restart: bool
    """False where only looking is possible (a process that nobody supervises)."""

    async def view(self) -> RuntimeView | Unknown:
        """What is known now; `Unknown` with the reason where the runtime can't be asked. Never raises; bounded."""
        ...

    async def restart(
        self, *, grace_seconds: float, expect_started_at: float | None, incident: str = ""
    ) -> RestartResult:
        """Stops the engine with all its processes (SIGTERM, then SIGKILL after `grace_seconds`) and starts it again.

        `incident` names the reason, for whoever looks. Refuses when the present instance did not start at
        `expect_started_at` (somebody was faster). Raises `RuntimeRefused` when surely nothing was done (`RuntimeHeld`
        where that is for somebody else's sake); `RestartWithoutEffect` when it was asked for in vain; `TimeoutError` or
        `OSError` when the outcome is unknown.
        """
        ...

    async def log_tail(self, lines: int) -> list[str] | Unknown:
        """The last lines of the engine's output."""
        ...

    async def close(self) -> None:
        """Gives back what it holds; legal twice."""
        ...


@runtime_checkable
class Replaces(Protocol):
    """A runtime that can put another in the place of the engine and of all that is left of it."""

    def cannot_replace(self) -> str | None:
        """Why it can't now, and what to do; None if it can."""
        ...

    async def replace(self, *, incident: str = "") -> RestartResult:
        """As `Runtime.restart`, for what a restart does not help."""
        ...


@runtime_checkable
class Drains(Protocol):
    """A runtime that can keep new requests away from the engine while it finishes those that it has."""

    async def drain(self, *, seconds: float, incident: str = "") -> str:
        """Keeps them away, and says how. That ends by itself after `seconds` at most, at a restart, and by `undrain`.
        `RuntimeRefused` (`RuntimeHeld`) where nothing was done."""
        ...

    async def undrain(self) -> None:
        """Lets them come again. Never raises; legal without a drain."""
        ...


@runtime_checkable
class Announces(Protocol):
    """A runtime in whose own log of events people look."""

    async def announce(self, reason: str, message: str) -> None:
        """One event, where there is the right to write it. Never raises; bounded."""
        ...


@runtime_checkable
class SeesByThePage(Protocol):
    """A runtime that can't always see the engine itself, and is told what the engine's own page says."""

    page_started_at: Callable[[], float | None]
    """Start of the process that served the last page, Unix seconds; None: not known."""
