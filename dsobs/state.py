"""State on disk: SQLite in WAL mode with `synchronous=FULL`, one writer, never on the event loop.

What is committed survives SIGKILL and power loss; a file that can't be read is set aside, never repaired by guess.
Each part of dsobs that keeps state owns its tables and brings them as `Schema`.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

RESERVE_BYTES = 256 * 1024
"""Kept allocated beside the file, and given up when the disk is full, so that the last rows can be committed."""


class StateError(Exception):
    """The state file could not be read or written: disk full, read-only, corrupt. The cause is chained."""


class StateDb:
    """One SQLite file with one writer.

    `path` is the file, or ":memory:" for replays and tests. `schema` is a list of `CREATE TABLE IF NOT EXISTS …`
    statements. A file that is not a readable database is renamed to `NAME.corrupt-<Unix seconds>` and a new one is
    begun; `set_aside` then names the old one, and enforcement must wait for the operator's word. On a full disk the
    reserve is given up once (`reserve_used`); it is set up anew when the file is next opened with room for it.
    """

    def __init__(self, path: Path | str, schema: Sequence[str] = ()) -> None:
        self.path = str(path)
        self.set_aside: Path | None = None
        self.reserve_used = False
        self._schema = list(schema)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dsobs-state")
        self._connection: sqlite3.Connection | None = None
        self._writer.submit(self._open_or_set_aside).result()

    def _open_or_set_aside(self) -> None:
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._discard()
            file = Path(self.path)
            if isinstance(error, sqlite3.OperationalError) or not file.exists():
                raise StateError(f"{self.path}: {error}") from error
            aside = file.with_name(f"{file.name}.corrupt-{int(time.time())}")
            # The log goes with its file: SQLite would take it for the new one's, and it may hold what can be saved.
            for suffix in ("-wal", "-shm", ""):
                with contextlib.suppress(FileNotFoundError):
                    Path(self.path + suffix).rename(f"{aside}{suffix}")
            self.set_aside = aside
            try:
                self._open()
            except sqlite3.Error as again:
                raise StateError(f"{self.path}: {again}") from again
        except OSError as error:
            raise StateError(f"{self.path}: {error}") from error

    def _open(self) -> None:
        if self.path != ":memory:":
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5.0)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        if self._connection.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check failed")
        for statement in self._schema:
            self._connection.execute(statement)
        if self.path != ":memory:":
            with contextlib.suppress(OSError):
                os.chmod(self.path, 0o600)  # noqa: PTH101
            self._allocate_reserve()

    def _allocate_reserve(self) -> None:
        try:
            with Path(self.path + ".reserve").open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError:
            # No room for it: what there is may serve the database better.
            self._give_up_reserve()

    def _give_up_reserve(self) -> bool:
        """Whether there was one."""
        try:
            Path(self.path + ".reserve").unlink()
        except OSError:
            return False
        return True

    def _discard(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._attempt(work)
        except StateError as error:
            cause = error.__cause__
            full = isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            if not (full and self._give_up_reserve()):
                raise
            self.reserve_used = True
            return self._attempt(work)

    def _attempt(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection is None:
                self._open()
            connection = self._connection
            assert connection is not None
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(connection)
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return result
        except (sqlite3.Error, OSError) as error:
            connection = self._connection
            if connection is not None and connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            raise StateError(f"{self.path}: {error}") from error

    def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in one transaction on the writer's thread and waits for it; StateError if it did not commit.

        An exception of `work` itself rolls back and is raised as it is.
        """
        return self._writer.submit(self._transaction, work).result()

    async def transact_async(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The same without holding the event loop."""
        return await asyncio.wrap_future(self._writer.submit(self._transaction, work))

    def close(self) -> None:
        """Ends the writer's thread and closes the file; legal twice."""
        with contextlib.suppress(RuntimeError):
            self._writer.submit(self._discard).result()
        self._writer.shutdown()


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only looks, beside a running dsobs or after it; StateError if there is nothing to read."""
    if not path.is_file():
        raise StateError(f"{path} is not there")
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        yield connection
    except sqlite3.Error as error:
        raise StateError(f"{path}: {error}") from error
    finally:
        if connection is not None:
            connection.close()
