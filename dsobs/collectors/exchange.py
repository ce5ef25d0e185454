"""One HTTP request to the engine with a hard deadline, a size limit, and exact word on how far it got.

aiohttp does not tell whether a peer that timed out had accepted the connection or sent a first byte, and that is what
tells a standing server from one that is away. So its connector and protocol are watched here: `open_session` makes
sessions that are, and `exchange` takes no other.
"""

import asyncio
import errno
import functools
import ssl
import zlib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from dsobs.config.models import Target
from dsobs.model.observation import Failure

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# uvicorn closes a connection that was idle for 5 s: let go of it first.
_KEEPALIVE_SECONDS = 4.0
_READ_BUFFER = 256 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """How one request ended; exactly one of `failure` and a whole `body` is there.

    A status other than 200 is no failure here: each caller has its own view of it.
    """

    duration_seconds: float
    status: int | None = None
    content_type: str = ""
    body: bytes = b""
    failure: Failure | None = None
    """REFUSED, CLOSED, TIMEOUT, UNREACHABLE, REDIRECT, TOO_LARGE, or UNPARSABLE for what is not HTTP."""
    detail: str = ""
    connected: bool = False
    """The TCP connection was accepted, now or for an earlier request that it was kept from."""
    answered: bool = False
    """At least one byte came back for this request."""


class _Watch:
    """How far the request of one task got."""

    __slots__ = ("handler", "received_before")

    def __init__(self) -> None:
        self.handler: _CountingHandler | None = None
        self.received_before = 0

    @property
    def connected(self) -> bool:
        return self.handler is not None

    @property
    def reused(self) -> bool:
        return self.received_before > 0

    @property
    def answered(self) -> bool:
        return self.handler is not None and self.handler.received > self.received_before


_watch: ContextVar[_Watch | None] = ContextVar("_watch", default=None)


class _CountingHandler(ResponseHandler):
    """Counts the bytes that came in: an answer dribbling in before its headers are whole is an answer."""

    received = 0

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        super().data_received(data)


class _WatchedConnector(aiohttp.TCPConnector):
    """Tells the watch of the running task which connection its request got."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        super().__init__(keepalive_timeout=_KEEPALIVE_SECONDS, ssl=context if context is not None else True)
        # There is no public way to count what comes in; a test holds that this one works.
        self._factory = cast("functools.partial[ResponseHandler]", functools.partial(_CountingHandler, self._loop))

    async def connect(
        self, req: "ClientRequest", traces: "list[Trace]", timeout: aiohttp.ClientTimeout
    ) -> "Connection":
        connection = await super().connect(req, traces, timeout)
        watch, handler = _watch.get(), connection.protocol
        # A connection from the pool is set up for its next answer by now, and its count stands still.
        if watch is not None and isinstance(handler, _CountingHandler):
            watch.handler, watch.received_before = handler, handler.received
        return connection


def open_session(target: Target) -> aiohttp.ClientSession:
    """A session for `exchange`, to be closed by the caller; OSError or ssl.SSLError if `target.ca_file` can't be read.

    No cookies, no proxy from the environment, no decompression (that is limited in `exchange`), no time-outs of its
    own. Needs a running loop.
    """
    context = ssl.create_default_context(cafile=str(target.ca_file)) if target.ca_file is not None else None
    return aiohttp.ClientSession(
        connector=_WatchedConnector(context),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        read_bufsize=_READ_BUFFER,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
    )


async def exchange(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    deadline: float,
    max_bytes: int,
    json: bytes | None = None,
) -> Answer:
    """One request, over by `deadline` (of the loop's clock) whatever the peer does. Raises CancelledError only.

    At most `max_bytes` of body are held, before and after decompression. Redirects are told, not followed. A request on
    a kept connection that the server had just closed is sent once more on another.
    """
    if not isinstance(session.connector, _WatchedConnector):
        raise TypeError("exchange needs a session made by open_session")
    loop = asyncio.get_running_loop()
    started = loop.time()
    sent = {"Accept-Encoding": "identity", "User-Agent": "dsobs", **headers}
    if json is not None:
        sent["Content-Type"] = "application/json"
    watch = _Watch()
    once = functools.partial(
        _once, session, method, url, headers=sent, data=json, max_bytes=max_bytes, watch=watch, started=started
    )
    # The context is this task's; what it was is put back, since callers may nest.
    token = _watch.set(watch)
    try:
        async with asyncio.timeout_at(deadline):
            try:
                return await once()
            except (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError):
                if not watch.reused or watch.answered:
                    raise
                return await once()
    except (TimeoutError, aiohttp.ClientError, OSError, ValueError, zlib.error) as error:
        failure, detail = _failure(error, watch)
        return Answer(
            duration_seconds=loop.time() - started,
            failure=failure,
            detail=detail,
            connected=watch.connected,
            answered=watch.answered,
        )
    finally:
        _watch.reset(token)


async def _once(
    session: aiohttp.ClientSession,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str],
    data: bytes | None,
    max_bytes: int,
    watch: _Watch,
    started: float,
) -> Answer:
    failure: Failure | None = None
    detail, body = "", b""
    response = await session.request(method, url, headers=headers, data=data, allow_redirects=False)
    try:
        if response.status in _REDIRECTS:
            failure, detail = Failure.REDIRECT, f"{response.status} to {_host_of(response)}, not followed"
        elif response.content_length is not None and response.content_length > max_bytes:
            failure, detail = Failure.TOO_LARGE, f"{response.content_length} bytes announced, the limit is {max_bytes}"
        else:
            body = await _body(response, max_bytes)
    except _TooLarge as error:
        failure, detail = Failure.TOO_LARGE, str(error)
    except zlib.error:
        failure, detail = Failure.UNPARSABLE, "the compressed body is damaged"
    except _UnknownEncoding as error:
        failure, detail = Failure.UNPARSABLE, str(error)
    finally:
        # Read to its end, the connection has gone back to the pool by now and this does nothing.
        response.close()
    return Answer(
        duration_seconds=asyncio.get_running_loop().time() - started,
        status=response.status,
        content_type=response.headers.get("Content-Type", ""),
        body=body,
        failure=failure,
        detail=detail,
        connected=watch.connected,
        answered=True,
    )


class _TooLarge(Exception):
    pass


class _UnknownEncoding(Exception):
    pass


async def _body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        raise _UnknownEncoding("a content encoding that was not asked for")
    inflate = zlib.decompressobj(wbits=31) if encoding.endswith("gzip") else None
    content = response.content
    first = await content.readany()
    if content.at_eof() and inflate is None:
        if len(first) > max_bytes:
            raise _TooLarge(f"more than {max_bytes} bytes")
        return first
    body = bytearray()
    chunk = first
    while chunk:
        if inflate is not None:
            # One byte more than allowed is enough to know; the rest of a bomb is never unpacked.
            chunk = inflate.decompress(chunk, max_bytes - len(body) + 1)
        body += chunk
        if len(body) > max_bytes:
            raise _TooLarge(f"more than {max_bytes} bytes")
        chunk = await content.readany()
    if inflate is not None and not inflate.eof:
        raise zlib.error("incomplete")
    return bytes(body)


def _host_of(response: aiohttp.ClientResponse) -> str:
    location = response.headers.get("Location", "")
    try:
        host = URL(location).host
    except ValueError:
        return "an address that can't be read"
    return f"host {host[:100]}" if host else "another path of this host"


def _is_closing(error: Exception) -> bool:
    """The peer closed or reset the connection; which of them a client sees depends on who was quicker."""
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError | BrokenPipeError):
        return True
    return isinstance(error, OSError) and error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED)


def _failure(error: Exception, watch: _Watch) -> tuple[Failure, str]:
    if isinstance(error, TimeoutError):
        if not watch.connected:
            return Failure.TIMEOUT, "the connection was not accepted by the deadline"
        if not watch.answered:
            return Failure.TIMEOUT, "accepted, and not one byte answered by the deadline"
        return Failure.TIMEOUT, "the answer was not whole by the deadline"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Failure.UNREACHABLE, "the host's name can't be resolved"
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return Failure.UNREACHABLE, f"TLS: {type(error).__name__}"
    if watch.connected and not watch.answered and _is_closing(error):
        return Failure.CLOSED, "closed before it answered"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return Failure.UNREACHABLE, "closed in the middle of the answer"
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failure.UNREACHABLE, "closed in the middle of the body"
    if isinstance(error, aiohttp.ClientResponseError):
        return Failure.UNPARSABLE, "the answer is not HTTP"
    if isinstance(error, OSError):
        if error.errno == errno.ECONNREFUSED:
            return Failure.REFUSED, "connection refused"
        word = errno.errorcode.get(error.errno or 0, "")
        return Failure.UNREACHABLE, f"{word or type(error).__name__}"
    return Failure.UNREACHABLE, type(error).__name__
