"""`dsobs` on a disk that hangs in its commits while a file is there: `run_on_a_bad_disk FILE run …`."""

import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dsobs.cli import main
from dsobs.recorder.flight import FlightRecorder
from dsobs.state import StateDb

T = TypeVar("T")


def install(hanging: Path) -> None:
    """All writes of the state file and of the flight recorder wait while `hanging` is there."""
    transaction, write = StateDb._transaction, FlightRecorder._write

    def wait() -> None:
        while hanging.exists():
            time.sleep(0.02)

    def slow_transaction(self: StateDb, work: Callable[[sqlite3.Connection], T]) -> T:
        result = transaction(self, work)
        wait()
        return result

    def slow_write(self: FlightRecorder, at: float, line: bytes) -> None:
        wait()
        write(self, at, line)

    StateDb._transaction = slow_transaction  # type: ignore[method-assign]
    FlightRecorder._write = slow_write  # type: ignore[method-assign]


if __name__ == "__main__":
    install(Path(sys.argv.pop(1)))
    sys.exit(main())
