"""How shipping stands: for those who run it, and in a file for those who ask from outside."""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import orjson

STATUS_FILE = "status.json"


@dataclass(slots=True)
class Status:
    """How shipping stands."""

    total_bytes: int = 0
    """Size of the files that are open."""
    acknowledged_bytes: int = 0
    """Of these, what the sink is done with."""
    behind_seconds: float = 0.0
    """Age of the oldest line that is not acknowledged."""
    files: int = 0
    in_flight: int = 0
    """Batches that are not decided."""
    trouble: tuple[str, str] | None = None
    """(reason, text) of what keeps records from being sent."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Path → why it can't be read."""
    ever_sent: bool = False
    """The sink has taken something since the start."""


class StatusFile:
    """`STATUS_FILE` of a state directory, which is there; without a promise that it survives a power loss."""

    def __init__(self, directory: Path) -> None:
        """OSError."""
        self._fd = os.open(directory / STATUS_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, status: Status) -> None:
        """What `dsobs logs status` shows; on a full disk it stays as it was."""
        text = orjson.dumps(
            {
                "at": time.time(),
                "trouble": status.trouble,
                "unreadable": status.unreadable,
                "behind_seconds": status.behind_seconds,
                "in_flight": status.in_flight,
            }
        )
        # In place: putting a new file in its place each second costs more than all else while nothing is shipped.
        with contextlib.suppress(OSError):
            os.pwrite(self._fd, text, 0)
            os.ftruncate(self._fd, len(text))

    def close(self) -> None:
        """Once."""
        os.close(self._fd)
