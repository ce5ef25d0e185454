"""A site whose link is often away: files → the file sink within its disk budget → Elasticsearch, in order.

Both ways run side by side, so that nothing waits for the link but the file on disk.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dsobs.config.logs import Logs
from dsobs.logs.forward import Forwarder
from dsobs.logs.pace import Pace
from dsobs.logs.ship import Shipper
from dsobs.logs.sinks import SinkSettings, records_path
from dsobs.logs.status import Status


def open_shipper(
    settings: Logs,
    directory: Path,
    *,
    service: str = "",
    pace: Pace | None = None,
    on_tick: Callable[[Status], None] = lambda _: None,
) -> "Shipper | EdgeShipper":
    """What the settings ask for: straight to the sink, or by way of the file."""
    if settings.edge.enabled and settings.elasticsearch is not None:
        return EdgeShipper(settings, directory, service=service, pace=pace, on_tick=on_tick)
    return Shipper(settings, directory, service=service, pace=pace, on_tick=on_tick)


class EdgeShipper:
    """A shipper to the file, and what forwards from there."""

    def __init__(
        self,
        settings: Logs,
        directory: Path,
        *,
        service: str = "",
        pace: Pace | None = None,
        on_tick: Callable[[Status], None] = lambda _: None,
    ) -> None:
        """`directory` is the shipper's; the forwarder keeps its own in `forward` below it."""
        self._on_tick = on_tick
        self._forwarded = Status()
        path = records_path(settings, directory)
        site = settings.model_copy(update={"elasticsearch": None})
        self._shipper = Shipper(site, directory, service=service, pace=pace, on_tick=self._tell)
        self._forwarder = Forwarder(
            SinkSettings(settings, directory / "forward"),
            path,
            most_bytes_per_second=settings.edge.max_bytes_per_second,
            pace=pace,
            on_tick=self._note,
        )

    def stop(self, *, drain: bool = True) -> None:
        """As a shipper's."""
        self._shipper.stop(drain=drain)
        self._forwarder.stop(drain=drain)

    async def run(self) -> None:
        """Until `stop`; if one of them fails, the other is stopped, and the first error is raised."""
        tasks = [asyncio.create_task(one.run()) for one in (self._shipper, self._forwarder)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.stop()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _note(self, status: Status) -> None:
        self._forwarded = status

    def _tell(self, status: Status) -> None:
        """What goes wrong on the way to the file is told first: it stops everything."""
        self._on_tick(replace(status, trouble=status.trouble or self._forwarded.trouble))
