"""A proxy before a server that can hold back the answers for /metrics alone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web


@dataclass
class Gate:
    """While `held`, it takes requests for /metrics and answers nothing."""

    url: str
    session: aiohttp.ClientSession
    held: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    taken: int = 0

    async def take(self, request: web.Request) -> web.Response:
        if request.path == "/metrics" and self.held.is_set():
            self.taken += 1
            await self.opened.wait()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")}
        body = await request.read()
        async with self.session.request(request.method, self.url + request.path, data=body, headers=headers) as answer:
            kind = answer.headers.get("Content-Type", "text/plain")
            return web.Response(body=await answer.read(), status=answer.status, headers={"Content-Type": kind})

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Its own address, while the context lasts."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.take)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            self.opened.set()
            await runner.cleanup()
