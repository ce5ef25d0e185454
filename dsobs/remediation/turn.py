"""The turn of a sidecar that asks nobody; see `dsobs.model.turn`."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

from dsobs.config.models import Coordination
from dsobs.config.models import Remediation as Settings
from dsobs.model.turn import Fleet

OWN_DELAY_SECONDS = 2.0
FLEET_DELAY_SECONDS = 60.0
"""Where other sidecars of the workload may see the same fault at the same time."""


class Alone:
    """Nobody to ask: the engine is owned by one host, or somebody has asserted how many sidecars there are."""

    def __init__(
        self,
        settings: Settings,
        *,
        owned: bool = True,
        fleet: bool = False,
        why: str = "",
        randomness: random.Random | None = None,
    ) -> None:
        """`owned`: no other sidecar can act on this engine; `fleet`: other sidecars of its workload act on theirs, and
        `why` they can't be asked."""
        self._settings = settings
        self._owned = owned
        self._fleet = fleet
        self._why = why
        self._random = randomness or random.Random()

    def refusal(self) -> str | None:
        """Several that do not talk act only where somebody has said so."""
        if self._owned or self._settings.coordination is not Coordination.LEASE:
            return None
        why = f" ({self._why})" if self._why else ""
        return f"no coordination with other sidecars{why}: set remediation.coordination"

    def fleet(self) -> Fleet:
        """Nothing is known of others."""
        return Fleet()

    def wanted(self) -> None:
        """There is nothing to look at."""

    @contextlib.asynccontextmanager
    async def taken(self, incident: str, what: str = "restart") -> AsyncIterator[None]:  # noqa: ARG002 - of the protocol
        """Who does not talk waits a random time first, so that not all act at once."""
        if self._settings.coordination is not Coordination.LEASE:
            most = self._settings.random_delay
            if most is None:
                most = FLEET_DELAY_SECONDS if self._fleet else OWN_DELAY_SECONDS
            await asyncio.sleep(self._random.uniform(0.0, most))
        yield
