"""One HTTP connection of dsobs's server: uvicorn's, cut off when nothing comes of it."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

LOOK_SECONDS = 30.0


class Connection(H11Protocol):
    """Ends a client that sends half a request or does not read its answer, so that it holds no place for ever.

    uvicorn's own limit holds between requests only. Bytes of an unfinished request are no progress: a request begun, an
    answer ended or read is.
    """

    look_seconds = LOOK_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to look."""
        super().connection_made(transport)
        self._seen: tuple[RequestResponseCycle | None, bool, int] = (None, False, 0)
        self._look_again = self.loop.call_later(self.look_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends looking."""
        self._look_again.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        seen = (cycle, cycle is not None and cycle.response_complete, self.transport.get_write_buffer_size())
        if seen == self._seen:
            self.transport.abort()
            return
        self._seen = seen
        self._look_again = self.loop.call_later(self.look_seconds, self._look)
