"""Where the page is, with its files, its charts and its events."""

import asyncio
import gzip
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from dsobs.api.exposition import quality
from dsobs.api.page.live import MAX_VIEWERS, Live, Looks


def add_page(app: FastAPI, source: Looks) -> Live:
    """Adds `/` and what it needs; what makes its looks, to be closed when the server ends."""
    live = Live(source)

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page(request: Request) -> Response:
        return await _answer(request, await live.page(), "text/html; charset=utf-8", {"Cache-Control": "no-store"})

    @app.api_route("/status/charts", methods=["GET", "HEAD"])
    async def charts(request: Request) -> Response:
        return await _answer(request, await live.charts(), "application/json", {"Cache-Control": "no-store"})

    @app.api_route("/static/{digest}/{name}", methods=["GET", "HEAD"])
    async def file(request: Request) -> Response:
        from dsobs.api.page.writing import STATIC, static

        name = request.path_params["name"]
        if name not in STATIC:
            raise HTTPException(404, "there is no such file")
        body = await asyncio.to_thread(static, name)
        # Its address changes with its bytes.
        keep = {"Cache-Control": "public, max-age=31536000, immutable"}
        return await _answer(request, body, f"{STATIC[name]}; charset=utf-8", keep)

    @app.get("/status/events")
    async def events(request: Request) -> Response:
        from dsobs.api.page.writing import SECURITY

        if live.is_full:
            text = f"{MAX_VIEWERS} have the page open; try again later"
            raise HTTPException(503, text, {"Retry-After": "30"})
        since = request.query_params.get("since", "")
        scope = request.scope

        def sent() -> None:
            scope["dsobs.progress"] = scope.get("dsobs.progress", 0) + 1

        stream = live.events(
            request.query_params.get("run", ""),
            int(since) if since.isascii() and since.isdigit() and len(since) < 16 else 0,
            sent,
        )
        headers = {**SECURITY, "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    return live


async def _answer(request: Request, body: bytes, media_type: str, headers: Mapping[str, str]) -> Response:
    from dsobs.api.page.writing import SECURITY

    told = {**SECURITY, **headers, "Vary": "Accept-Encoding"}
    if quality(request.headers.get("accept-encoding", ""), "gzip") > 0 and len(body) > 1000:
        body = await asyncio.to_thread(gzip.compress, body, compresslevel=5)
        told["Content-Encoding"] = "gzip"
    return Response(body, headers=told, media_type=media_type)
