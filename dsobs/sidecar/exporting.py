"""OTLP export as the settings have it, over reloads."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import aiohttp

from dsobs.config.otlp import Otlp
from dsobs.model.clock import Clock
from dsobs.model.samples import Sample
from dsobs.remediation.ledger import Entry, Ledger

if TYPE_CHECKING:
    from dsobs.otlp.exporter import Exporter

log = logging.getLogger(__name__)

STOP_SECONDS = 3.0


class Exporting:
    """The exporter, where one is configured."""

    def __init__(
        self,
        server: str,
        clock: Clock,
        session: aiohttp.ClientSession,
        *,
        samples: Callable[[], Iterable[Sample]],
        engine: Callable[[], str],
    ) -> None:
        self._server, self._clock, self._session = server, clock, session
        self._samples, self._engine = samples, engine
        self._settings: Otlp | None = None
        self._exporter: Exporter | None = None
        self._ending: set[asyncio.Task[None]] = set()

    def use(self, settings: Otlp | None) -> None:
        """Exports so from now on; what the exporter before still holds is sent, for a moment."""
        if settings == self._settings:
            return
        self._settings = settings
        if self._exporter is not None:
            task = asyncio.get_running_loop().create_task(self._exporter.stop(STOP_SECONDS))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            self._exporter = None
        if settings is not None:
            # 13 MiB that only those have who want them.
            from dsobs.otlp.exporter import Exporter

            self._exporter = Exporter(
                settings,
                self._session,
                self._clock,
                server=self._server,
                host=socket.gethostname(),
                samples=self._samples,
                engine=self._engine,
            )
            self._exporter.start()

    def line(self, entry: Entry, ledger: Ledger) -> None:
        """A line of the ledger, committed; `ledger` has those before it."""
        if self._exporter is not None:
            before = [one for one in ledger.entries if one.incident == entry.incident and one.id < entry.id]
            self._exporter.line(entry, before)

    async def stop(self, deadline: float) -> None:
        """Sends what waits, for `deadline` seconds, and ends."""
        if self._exporter is not None:
            await self._exporter.stop(deadline)
        await asyncio.gather(*self._ending, return_exceptions=True)
