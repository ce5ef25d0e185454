"""A server over a real loopback socket that does exactly what a test says, byte by byte."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

from dsobs.collectors.exchange import open_session
from dsobs.config.models import Target

Behaviour = Callable[[str, dict[str, str], bytes, asyncio.StreamWriter], Awaitable[None]]
"""(request line, headers, body, writer) of one request; what it writes is the answer."""


class Served:
    """One server: its address, and what it was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self.most_at_once = 0
        self.written = 0


Serve = Callable[[Behaviour], Awaitable[Served]]


def http(
    body: bytes | str, status: str = "200 OK", headers: str = "", content_type: str = "text/plain; version=0.0.4"
) -> bytes:
    """A whole HTTP/1.1 answer."""
    data = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


def saying(answer: bytes) -> Behaviour:
    """Always the same answer."""

    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    return behave


async def _read_request(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes] | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    line, *rest = head.rstrip().split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (item.partition(":") for item in rest)}
    return line, headers, await reader.readexactly(int(headers.get("content-length", "0")))


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts servers on ports that the system chose; all end with the test."""
    servers: list[asyncio.Server] = []
    tasks: set[asyncio.Task[None]] = set()

    async def start(behave: Behaviour) -> Served:
        served = Served()
        now = 0

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal now
            served.connections += 1
            now += 1
            served.most_at_once = max(served.most_at_once, now)
            try:
                while (request := await _read_request(reader)) is not None:
                    served.requests.append(request)
                    await behave(*request, writer)
                    if writer.is_closing():
                        break
                    await writer.drain()
            except ConnectionError:
                pass
            finally:
                now -= 1
                writer.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.ensure_future(handle(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        servers.append(server)
        served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return served

    yield start
    for server in servers:
        server.close()
    for task in list(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A watched session."""
    async with open_session(Target()) as session:
        yield session
