"""Runs the application inside dsobs's own event loop."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

from dsobs.api.application import Source, create
from dsobs.config import Secret


class ListenError(OSError):
    """The address can't be listened on; the message names it and says what to do."""


def bind(listen: str) -> socket.socket:
    """A listening socket for `host:port` (empty host: all addresses, port 0: any); ListenError if it can't be had."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, int(port)))
        made.listen(64)
    except OSError as error:
        made.close()
        raise ListenError(f"can't listen on {listen}: {error.strerror or error}; set api.listen") from error
    made.setblocking(False)
    return made


@contextlib.asynccontextmanager
async def serve(source: Source, listen: str, control_token: Secret | None) -> AsyncIterator[tuple[str, int]]:
    """Serves while the context is open; gives the address that was bound."""
    import uvicorn

    from dsobs.api.connection import Connection

    class Server(uvicorn.Server):
        def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
            # The process's signals belong to dsobs.
            return contextlib.nullcontext()

        async def main_loop(self) -> None:
            # uvicorn's own wakes the process ten times a second, for a header that changes once.
            while not await self.on_tick(0):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(leaving.wait(), 1.0)

    leaving = asyncio.Event()
    listener = bind(listen)
    host, port = listener.getsockname()[:2]
    app = create(source, control_token)
    config = uvicorn.Config(
        app,
        http=Connection,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield str(host), int(port)
    finally:
        app.state.live.close()
        server.should_exit = True
        leaving.set()
        await task
        listener.close()
        # Those that still do not read their answer.
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
