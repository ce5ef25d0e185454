"""What the sink has acknowledged, by file generation: in memory as it comes, on disk one transaction a tick.

A position moves only over what is acknowledged without a gap, so that after any crash reading begins at or before the
first record that the sink may not have.
"""

import sqlite3
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dsobs.logs.identity import Fingerprint
from dsobs.state import StateDb, read_only

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS files (
        id INTEGER PRIMARY KEY,
        path BLOB NOT NULL,
        device INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        head_length INTEGER NOT NULL,
        head BLOB NOT NULL,
        acknowledged INTEGER NOT NULL,
        mark BLOB NOT NULL,
        size INTEGER NOT NULL,
        modified INTEGER NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS readings (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL,
        head_bytes INTEGER NOT NULL,
        decided TEXT NOT NULL
    )""",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
)


class Progress:
    """How far one file generation was read, and how far acknowledged."""

    def __init__(self, acknowledged: int = 0) -> None:
        self.acknowledged = acknowledged
        """Offset: everything before it is done with."""
        self._first = 0
        self._ends: deque[int] = deque()
        self._done: set[int] = set()

    @property
    def outstanding(self) -> bool:
        """Something was begun and is not done."""
        return bool(self._ends)

    def begin(self, end: int) -> int:
        """A ticket for what ends at offset `end`, begun in the order of the file."""
        self._ends.append(end)
        return self._first + len(self._ends) - 1

    def done(self, ticket: int) -> None:
        """The sink is done with what `ticket` stands for: taken, there already, or put to the dead letters."""
        self._done.add(ticket)
        while self._ends and self._first in self._done:
            self._done.remove(self._first)
            self.acknowledged = max(self.acknowledged, self._ends.popleft())
            self._first += 1


@dataclass(slots=True)
class Checkpoint:
    """What is kept of one file generation."""

    id: int
    path: Path
    """Where the file was last seen."""
    device: int
    inode: int
    """A hint only: both may be another file's by now."""
    fingerprint: Fingerprint
    acknowledged: int
    mark: bytes
    """`identity.mark` of the bytes before `acknowledged`."""
    size: int
    modified: int
    """As last seen, nanoseconds."""
    key: str = ""
    """`identity.identity_key` that its record ids begin with; empty: not known."""
    head_bytes: int = 0
    """How much of its beginning the format was given to find out what it is; 0: not known."""
    decided: str = ""
    """`Parser.decided`."""


def _read(connection: sqlite3.Connection) -> list[Checkpoint]:
    rows = connection.execute(
        "SELECT id, path, device, inode, head_length, head, acknowledged, mark, size, modified,"
        " coalesce(key, ''), coalesce(head_bytes, 0), coalesce(decided, '') FROM files LEFT JOIN readings USING (id)"
    )
    return [
        Checkpoint(id_, Path(path.decode("utf-8", "surrogateescape")), device, inode, Fingerprint(length, head), *rest)
        for id_, path, device, inode, length, head, *rest in rows
    ]


def read_checkpoints(path: Path) -> list[Checkpoint]:
    """What is kept, beside a running shipper or after it; StateError where there is nothing to read."""
    with read_only(path) as connection:
        return _read(connection)


class Checkpoints:
    """The table of `logs.db`. StateError where it can't be read or written."""

    def __init__(self, path: Path) -> None:
        """A file that is no database is set aside: everything is sent again, under the same ids."""
        self.db = StateDb(path, SCHEMA)
        self._next = 1 + self.db.transact(lambda c: int(c.execute("SELECT max(id) FROM files").fetchone()[0] or 0))

    def load(self) -> list[Checkpoint]:
        """All that is kept."""
        return self.db.transact(_read)

    def new_id(self) -> int:
        """For a generation that is not kept yet."""
        self._next += 1
        return self._next - 1

    def first_run(self) -> bool:
        """Whether nothing was ever kept here; from now on something was."""

        def mark(connection: sqlite3.Connection) -> bool:
            added = connection.execute("INSERT OR IGNORE INTO facts VALUES ('begun', '1')").rowcount
            return added > 0

        return self.db.transact(mark)

    async def save(self, changed: Iterable[Checkpoint], gone: Iterable[int]) -> None:
        """Keeps those, and forgets the generations with these ids, in one transaction."""
        changed = list(changed)
        rows = [
            (
                one.id,
                str(one.path).encode("utf-8", "surrogateescape"),
                one.device,
                one.inode,
                one.fingerprint.length,
                one.fingerprint.digest,
                one.acknowledged,
                one.mark,
                one.size,
                one.modified,
            )
            for one in changed
        ]
        readings = [(one.id, one.key, one.head_bytes, one.decided) for one in changed if one.key]
        ids = [(one,) for one in gone]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            connection.executemany("INSERT OR REPLACE INTO readings VALUES (?, ?, ?, ?)", readings)
            connection.executemany("DELETE FROM files WHERE id = ?", ids)
            connection.executemany("DELETE FROM readings WHERE id = ?", ids)

        await self.db.transact_async(write)

    def close(self) -> None:
        """Legal twice."""
        self.db.close()
