"""Records that the sink will never take as they are: kept beside the checkpoints, never dropped.

One JSON object a line: `@timestamp` (when it was put here), `index`, `status`, `type`, `reason`, and the two lines that
were sent, `action` and `document`, so that it can be sent again.
"""

import os
from pathlib import Path

import orjson

from dsobs.logs.formats.raw import iso_time
from dsobs.logs.sinks import Refusal
from dsobs.logs.sinks.file import cut_torn_line

MAX_BYTES = 256 * 1024 * 1024
"""Beyond it shipping holds until somebody makes room."""


class DeadLettersFullError(Exception):
    """There is no room for more; the message says what to do."""


class DeadLetters:
    """The file `dead-letters.ndjson` of a directory."""

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = directory / "dead-letters.ndjson"
        self._max_bytes = max_bytes

    def add(self, index: str, letters: list[tuple[bytes, Refusal]], now: float) -> None:
        """Keeps records (their two lines) with why; on disk when it returns. OSError; DeadLettersFullError."""
        lines = b"".join(_letter(index, record, refusal, now) for record, refusal in letters)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            cut_torn_line(fd)
            size = os.fstat(fd).st_size
            if size + len(lines) > self._max_bytes:
                raise DeadLettersFullError(
                    f"{self.path} is full ({size} bytes); send its records again, or move it away"
                )
            try:
                written = 0
                while written < len(lines):
                    written += os.write(fd, lines[written:])
                os.fsync(fd)
            except OSError:
                # No half line may stand in front of the next.
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)


def _letter(index: str, record: bytes, refusal: Refusal, now: float) -> bytes:
    action, document, _ = record.split(b"\n")
    return orjson.dumps(
        {
            "@timestamp": iso_time(now),
            "index": index,
            "status": refusal.status,
            "type": refusal.type,
            "reason": refusal.reason,
            "action": orjson.Fragment(action),
            "document": orjson.Fragment(document),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )
