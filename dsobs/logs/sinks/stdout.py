"""JSON lines on stdout, in the form of the file sink, for what reads them from a pipe or a container's log.

A batch is acknowledged when the pipe has taken all of it; what its reader does with it is the reader's.
"""

import asyncio
import os
import select
import stat
import sys
import threading
from collections.abc import Sequence

from dsobs.logs.sinks import Answer, SinkSettings
from dsobs.logs.sinks.file import sink_lines

CLOSED = "stdout_closed"
"""As `Answer.type`: nobody reads any more, and nobody will."""
_WAIT_MS = 200


class StdoutSink:
    """The process's stdout, as it is when the sink is made."""

    def __init__(self, settings: SinkSettings) -> None:
        del settings
        self._fd = os.dup(sys.stdout.fileno())
        # What poll says can be written to a pipe is one page; a longer write may wait for a reader that never comes.
        self._most = select.PIPE_BUF if stat.S_ISFIFO(os.fstat(self._fd).st_mode) else 64 * 1024
        self._writing = threading.Lock()
        self._closing = False

    async def send(self, index: str, body: Sequence[bytes], count: int) -> Answer:
        """Writes the records, and waits while the reader does not read."""
        del count
        try:
            whole = await asyncio.to_thread(self._write, b"".join(sink_lines(index, body)))
        except BrokenPipeError:
            return Answer(404, type=CLOSED, detail="stdout is closed by its reader")
        except OSError as error:
            return Answer(None, detail=f"stdout: {error.strerror or error}")
        return Answer(200) if whole else Answer(None, detail="stdout is not read")

    def _write(self, data: bytes) -> bool:
        """Whether all of it was written before `close`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        view = memoryview(data)
        with self._writing:
            while view and not self._closing:
                if poll.poll(_WAIT_MS):
                    try:
                        view = view[os.write(self._fd, view[: self._most]) :]
                    except BlockingIOError:
                        # Somebody made it non-blocking, and another writer was faster.
                        continue
        return not view

    async def close(self) -> None:
        """Gives it back; legal twice. A record may be half written, where nobody reads: it is sent whole next time."""
        self._closing = True
        await asyncio.to_thread(self._give_back)

    def _give_back(self) -> None:
        with self._writing:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
