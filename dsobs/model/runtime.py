"""What restarts an engine: Docker, a supervised process, … Found by the entry point group `dsobs.runtimes`."""

from dataclasses import dataclass
from typing import Protocol

from dsobs.model.observation import RuntimeView, Unknown


class RuntimeRefused(Exception):
    """The runtime could not or would not do it; the message says why and what to do. The outcome is known: not done."""


@dataclass(frozen=True, slots=True)
class RestartResult:
    """The runtime accepted and carried out a restart."""

    started_at: float | None
    """Start of the new instance, where it is known."""
    detail: str = ""


class Runtime(Protocol):
    """One engine's process or container."""

    name: str
    """process or docker."""
    can_restart: bool
    """False where only looking is possible (a process that nobody supervises)."""

    async def view(self) -> RuntimeView | Unknown:
        """What is known now; `Unknown` with the reason where the runtime can't be asked. Never raises; bounded."""
        ...

    async def restart(self, *, grace_seconds: float, expect_started_at: float | None) -> RestartResult:
        """Stops the engine with all its processes (SIGTERM, then SIGKILL after `grace_seconds`) and starts it again.

        Refuses when the present instance did not start at `expect_started_at` (somebody was faster). Raises
        `RuntimeRefused` when surely nothing was done; `TimeoutError` or `OSError` when the outcome is unknown.
        """
        ...

    async def log_tail(self, lines: int) -> list[str] | Unknown:
        """The last lines of the engine's output."""
        ...

    async def close(self) -> None:
        """Gives back what it holds; legal twice."""
        ...
