"""One HTTP connection of dsobs's server: uvicorn's, cut off when nothing comes of it, or others need its place."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

LOOK_SECONDS = 30.0
MAX_CONNECTIONS = 256
"""Well below the 1,024 descriptors that a process commonly has."""


class Connection(H11Protocol):
    """Ends a client that sends half a request or does not read its answer, so that it holds no place for ever.

    uvicorn's own limit holds between requests only. Bytes of an unfinished request are no progress: a request begun, an
    answer ended or read is, and so is what a stream of events tells of itself in its scope's `dsobs.progress`.

    A new connection is always taken: where there are too many, the one that has been idle longest gives way, so that
    many dashboards that stay connected lock nobody out.
    """

    look_seconds = LOOK_SECONDS
    max_connections = MAX_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to look."""
        super().connection_made(transport)
        self._since = self.loop.time()
        others = [each for each in self.connections if isinstance(each, Connection) and each is not self]
        if len(others) >= self.max_connections:
            min(others, key=lambda each: each.urgency).transport.abort()
        self._seen: tuple[RequestResponseCycle | None, bool, int, object] = (None, False, 0, None)
        self._look_again = self.loop.call_later(self.look_seconds, self._look)

    @property
    def urgency(self) -> tuple[bool, float]:
        """Least for the one that gives way first: idle, and longest so."""
        cycle: RequestResponseCycle | None = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        return is_answering or self.transport.get_write_buffer_size() > 0, self._since

    def on_response_complete(self) -> None:
        """Begins to be idle."""
        self._since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends looking."""
        self._look_again.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        sent = cycle.scope.get("dsobs.progress") if cycle is not None else None
        seen = (cycle, cycle is not None and cycle.response_complete, self.transport.get_write_buffer_size(), sent)
        if seen == self._seen:
            self.transport.abort()
            return
        self._seen = seen
        self._look_again = self.loop.call_later(self.look_seconds, self._look)
