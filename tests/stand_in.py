"""What every server that stands in for another has: a port on loopback, and outages."""

import ssl
from abc import ABC, abstractmethod
from typing import Self

from aiohttp import web


class StandIn(ABC):
    """A server on loopback: `async with`, or `up` and `down`."""

    def __init__(self) -> None:
        self.port = 0
        """Kept from one `up` to the next; 0 takes a free one."""
        self.tls: ssl.SSLContext | None = None
        """Of the next `up`."""
        self._runner: web.AppRunner | None = None

    @abstractmethod
    def application(self) -> web.Application:
        """What it serves."""

    @property
    def url(self) -> str:
        """Base address."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    async def up(self) -> None:
        """Listens, on the port it had before."""
        self._runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self.tls).start()
        self.port = self._runner.addresses[0][1]

    async def down(self) -> None:
        """Refuses connections from now on; legal twice."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
