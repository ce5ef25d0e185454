"""Bounds on what a client may send, around the whole application."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from dsobs.api.answers import error_answer

MAX_REQUESTS = 64
ALWAYS_ANSWERED = frozenset({"/livez", "/readyz"})
MAX_BODY = 64 * 1024
BODY_SECONDS = 10.0

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_CLOSE = {"Connection": "close"}


class _GoneError(Exception):
    """The client went away."""


class RequestLimit:
    """ASGI: at most `most` requests are under way; another is answered with 503, but for a health check, which never
    waits for anything."""

    def __init__(self, app: Application, most: int = MAX_REQUESTS) -> None:
        self._app = app
        self._most = most
        self._under_way = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["path"] in ALWAYS_ANSWERED:
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._most:
            text = f"{self._most} requests are under way; try again in a second"
            await error_answer(503, "unavailable", text, {**_CLOSE, "Retry-After": "1"})(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._under_way -= 1


class BodyLimit:
    """ASGI: reads a request's body before the application sees the request.

    More than `max_body` bytes are answered with 413, one that takes longer than `seconds` with 408.
    """

    def __init__(self, app: Application, max_body: int = MAX_BODY, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._max_body = max_body
        self._seconds = seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._body(dict(scope["headers"]).get(b"content-length", b"0"), receive)
        except _GoneError:
            return
        except TimeoutError:
            text = f"the body was not sent within {self._seconds:g} s"
            await error_answer(408, "timeout", text, _CLOSE)(scope, receive, send)
            return
        if body is None:
            text = f"the body is larger than {self._max_body} bytes"
            await error_answer(413, "bad_data", text, _CLOSE)(scope, receive, send)
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _body(self, length: bytes, receive: Receive) -> bytes | None:
        if length.isdigit() and int(length) > self._max_body:
            return None
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _GoneError
            body += message.get("body", b"")
            if len(body) > self._max_body:
                return None
            if not message.get("more_body", False):
                return bytes(body)
