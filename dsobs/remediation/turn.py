"""Whose turn it is to act on a workload that several sidecars watch."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from dsobs.config.models import Coordination
from dsobs.config.models import Remediation as Settings

OWN_DELAY_SECONDS = 2.0
FLEET_DELAY_SECONDS = 60.0
"""Where other sidecars of the workload may see the same fault at the same time."""


class Turn(Protocol):
    """One way of having it."""

    def refusal(self) -> str | None:
        """Why this process may not act, and what to do about it; None: it may try. Asked by a guard in each turn of
        the loop, so it waits for nothing."""
        ...

    def taken(self, incident: str) -> AbstractAsyncContextManager[None]:
        """Waits for the turn and has it while the context lasts; `RuntimeHeld` if it can't be had. One that is lost
        meanwhile cancels what is done in it."""
        ...


class Alone:
    """Nobody to ask: the engine is owned by one host, or somebody has asserted how many sidecars there are."""

    def __init__(
        self, settings: Settings, *, owned: bool = True, fleet: bool = False, randomness: random.Random | None = None
    ) -> None:
        """`owned`: no other sidecar can act on this engine; `fleet`: other sidecars of its workload act on theirs."""
        self._settings = settings
        self._owned = owned
        self._fleet = fleet
        self._random = randomness or random.Random()

    def refusal(self) -> str | None:
        """Several that do not talk act only where somebody has said so."""
        if self._owned or self._settings.coordination is not Coordination.LEASE:
            return None
        return "no coordination with other sidecars: set remediation.coordination"

    @contextlib.asynccontextmanager
    async def taken(self, incident: str) -> AsyncIterator[None]:  # noqa: ARG002 - of the protocol
        """Who does not talk waits a random time first, so that not all act at once."""
        if self._settings.coordination is not Coordination.LEASE:
            most = self._settings.random_delay
            if most is None:
                most = FLEET_DELAY_SECONDS if self._fleet else OWN_DELAY_SECONDS
            await asyncio.sleep(self._random.uniform(0.0, most))
        yield
