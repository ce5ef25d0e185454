"""`state.db` of one dsobs."""

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dsobs import silences
from dsobs.notifiers import outbox
from dsobs.remediation import ledger
from dsobs.rules import persistence
from dsobs.sidecar import telling
from dsobs.state import StateDb, StateError, copied

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    *silences.SCHEMA,
    *ledger.SCHEMA,
    *outbox.SCHEMA,
    *persistence.SCHEMA,
    *telling.SCHEMA,
)
STATE_FILE = "state.db"


class Keeping:
    """The open file, or why there is none: then alerts and pages go on from memory, and nothing is repaired.

    What the last run left is known all the same where the file can be read.
    """

    def __init__(self, folder: Path) -> None:
        self.db: StateDb | None = None
        self.error = ""
        """Why nothing is kept; empty where it is."""
        self._aside: Path | None = None
        self._file = folder / STATE_FILE
        try:
            self.db = StateDb(self._file, SCHEMA)
        except (StateError, OSError) as error:
            self.error = str(error)
            log.error(
                "no state on disk: alerts and pages go on from memory, nothing is repaired until it is mended and "
                "dsobs is restarted: %s",
                error,
            )
            return
        self._aside = self.db.set_aside or next(iter(sorted(folder.glob(STATE_FILE + ".corrupt-*"))), None)
        if self._aside is not None:
            log.error("unreadable state was set aside as %s; nothing is repaired while that file is there", self._aside)

    def set_aside(self) -> Path | None:
        """The unreadable file of before, while the operator has not removed it."""
        if self._aside is not None:
            try:
                self._aside.stat()
            except FileNotFoundError:
                self._aside = None
                log.info("the set-aside state is gone: the operator agrees to go on")
            except OSError:
                pass  # One that can't be looked for may be there.
        return self._aside

    def recall(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` reads of the last run; StateError where it can't be read."""
        if self.db is not None:
            return self.db.transact(work)
        with copied(self._file, SCHEMA) as connection:
            return work(connection)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in one transaction; StateError if it did not commit."""
        if self.db is None:
            raise StateError(self.error)
        return await self.db.transact_async(work)

    def close(self) -> None:
        """Closes the file; legal twice."""
        if self.db is not None:
            self.db.close()
