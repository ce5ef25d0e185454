"""A reverse proxy that serves a server below a path, as an ingress or `kubectl proxy` does: the path is taken off."""

import contextlib
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

PREFIX = "/api/v1/namespaces/llm/services/dsobs:9940/proxy/"
"""As of a Service in the API server's proxy."""
_HOPS = {"connection", "transfer-encoding", "content-length", "content-encoding", "date", "server"}
_BUFFER = 64 * 1024


@contextlib.asynccontextmanager
async def prefix_proxy(url: str) -> AsyncIterator[str]:
    """Its address, which ends in PREFIX, for the server at `url`.

    As nginx does it holds an answer back until it is whole or some 64 kB, unless that says `X-Accel-Buffering: no`; and
    it knows no address that does not begin with PREFIX.
    """
    async with aiohttp.ClientSession() as session:

        async def pass_on(request: web.Request) -> web.StreamResponse:
            asked = f"{url}/{request.match_info['rest']}?{request.query_string}".removesuffix("?")
            async with session.get(asked) as answer:
                headers = {name: value for name, value in answer.headers.items() if name.lower() not in _HOPS}
                response = web.StreamResponse(status=answer.status, headers=headers)
                await response.prepare(request)
                at_once = answer.headers.get("X-Accel-Buffering") == "no"
                held = b""
                async for part in answer.content.iter_any():
                    held += part
                    if at_once or len(held) >= _BUFFER:
                        await response.write(held)
                        held = b""
                await response.write(held)
                return response

        app = web.Application()
        app.router.add_get(f"{PREFIX}{{rest:.*}}", pass_on)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}{PREFIX}"
        finally:
            await runner.cleanup()
