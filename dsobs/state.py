"""State on disk: SQLite in WAL mode with `synchronous=FULL`, one writer, never on the event loop.

What is committed survives SIGKILL and power loss; a file that can't be read is set aside, never repaired by guess.
A disk that hangs holds up nobody for longer than a deadline, and then nobody until it answers again.
Each part of dsobs that keeps state owns its tables and brings them as `Schema`.
"""

import asyncio
import contextlib
import os
import shutil
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

RESERVE_BYTES = 256 * 1024
"""Kept allocated beside the file, and given up when the disk is full, so that the last rows can be committed."""
WRITE_SECONDS = 2.0
"""A transaction that has not ended after this has failed for whoever waits."""
OPEN_SECONDS = 30.0
"""The same for opening the file and for what is read at the start, when nothing else goes on yet."""
LOCK_SECONDS = 1.0
"""Waiting for another process that has the file locked; less than `WRITE_SECONDS`, so that the error says so."""


class StateError(Exception):
    """The state file could not be read or written: disk full, read-only, corrupt. The cause is chained."""


class StateDb:
    """One SQLite file with one writer.

    `path` is the file, or ":memory:" for replays and tests. `schema` is a list of `CREATE TABLE IF NOT EXISTS …`
    statements. A file that is not a readable database is renamed to `NAME.corrupt-<Unix seconds>` and a new one is
    begun; `set_aside` then names the old one, and enforcement must wait for the operator's word. On a full disk the
    reserve is given up once (`reserve_used`); it is set up anew when the file is next opened with room for it.

    A transaction that misses its deadline is a StateError: it is rolled back where that is still possible, and may be
    committed late where the disk hangs in the commit itself. Until it ends, every other is a StateError at once, so
    that nothing piles up behind it.
    """

    def __init__(self, path: Path | str, schema: Sequence[str] = ()) -> None:
        self.path = str(path)
        self.set_aside: Path | None = None
        self.reserve_used = False
        self._schema = list(schema)
        self._connection: sqlite3.Connection | None = None
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._overdue: _Job | None = None
        self._closed = False
        # A daemon, unlike those of an executor: a disk that hangs must not keep the process from ending.
        threading.Thread(target=self._write, name="dsobs-state", daemon=True).start()
        self._wait(self._submit(lambda _: self._open_or_set_aside()), OPEN_SECONDS)

    def _write(self) -> None:
        """The writer's thread."""
        while (job := self._jobs.get()) is not None:
            job.run()

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
        self._connection = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, timeout=LOCK_SECONDS
        )
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
        result: T = self._wait(self._submit(lambda job: self._transaction(job.guarded(work))), OPEN_SECONDS)
        return result

    async def transact_async(
        self,
        work: Callable[[sqlite3.Connection], T],
        *,
        deadline: float = WRITE_SECONDS,
        late: Callable[[T], object] | None = None,
    ) -> T:
        """The same without holding the event loop, for at most `deadline` seconds.

        `late` gets the result of one that was committed after all when nobody waited any more, on the event loop.
        """
        job = self._submit(lambda job: self._transaction(job.guarded(work)))
        writing = asyncio.wrap_future(job.future)
        # An end that comes too late must not go unread. Cancelling who waits does not cancel what is being written.
        writing.add_done_callback(lambda future: future.cancelled() or future.exception())
        done, _ = await asyncio.wait([writing], timeout=deadline)
        if not done:
            error = self._give_up(job, deadline)
            if late is not None:
                loop = asyncio.get_running_loop()
                job.future.add_done_callback(lambda _: _tell_late(job, loop, late))
            raise error
        result: T = await writing
        return result

    def _submit(self, work: "Callable[[_Job], Any]") -> "_Job":
        job = _Job(work)
        if self._closed:
            raise StateError(f"{self.path}: closed")
        overdue = self._overdue
        if overdue is not None and not overdue.future.done():
            raise StateError(f"{self.path}: the disk has not answered for {overdue.age:.0f} s")
        self._jobs.put(job)
        return job

    def _wait(self, job: "_Job", deadline: float) -> Any:
        try:
            return job.future.result(deadline)
        except TimeoutError:
            if job.future.done():
                raise
            raise self._give_up(job, deadline) from None

    def _give_up(self, job: "_Job", deadline: float) -> StateError:
        job.give_up()
        if not job.future.cancelled():
            self._overdue = job
        return StateError(f"{self.path}: the disk has not answered for {deadline:g} s")

    def close(self, deadline: float = WRITE_SECONDS) -> None:
        """Ends the writer's thread and closes the file, unless the disk hangs for longer; legal twice."""
        if self._closed:
            return
        with contextlib.suppress(StateError):
            self._wait(self._submit(lambda _: self._discard()), deadline)
        self._closed = True
        self._jobs.put(None)


class _Job:
    """What the writer's thread is to do, and its end."""

    def __init__(self, work: "Callable[[_Job], Any]") -> None:
        self.future: Future[Any] = Future()
        self.given_up = False
        self._work = work
        self._since = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self._since

    def guarded(self, work: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
        """`work`, which is not committed once nobody waits for it."""

        def guarded(connection: sqlite3.Connection) -> T:
            result = work(connection)
            if self.given_up:
                raise _GivenUpError
            return result

        return guarded

    def run(self) -> None:
        """On the writer's thread."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._work(self)
        except BaseException as error:  # noqa: BLE001  It is raised where the result is waited for.
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def give_up(self) -> None:
        """Nobody waits any more: it is not begun, or rolled back if that is still possible."""
        self.given_up = True
        self.future.cancel()


class _GivenUpError(Exception):
    """The transaction came too late."""


def _tell_late(job: _Job, loop: asyncio.AbstractEventLoop, late: Callable[[Any], object]) -> None:
    if not job.future.cancelled() and job.future.exception() is None:
        with contextlib.suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(late, job.future.result())


@contextlib.contextmanager
def copied(path: Path, schema: Sequence[str] = (), deadline: float = OPEN_SECONDS) -> Iterator[sqlite3.Connection]:
    """A connection to a copy of a file that can't be written, as on a read-only disk; StateError where it can't be
    read. SQLite itself can't: it wants to write beside a file with a log of what was committed last."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(_temporary_folder())
            copy = _copying(path, Path(folder) / path.name)
            copy.result(deadline)
            connection = stack.enter_context(contextlib.closing(sqlite3.connect(Path(folder) / path.name)))
            for statement in schema:
                connection.execute(statement)
        except TimeoutError as error:
            raise StateError(f"{path}: the disk has not answered for {deadline:g} s") from error
        except (OSError, sqlite3.Error) as error:
            raise StateError(f"{path}: {error}") from error
        yield connection


def _temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    try:
        return tempfile.TemporaryDirectory(prefix="dsobs-")
    except OSError:
        # A container whose root is read-only has this.
        return tempfile.TemporaryDirectory(prefix="dsobs-", dir="/dev/shm")


def _copying(path: Path, to: Path) -> "Future[None]":
    """In a daemon, as a disk that hangs must not keep the process from ending."""
    done: Future[None] = Future()

    def copy() -> None:
        try:
            shutil.copyfile(path, to)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(f"{path}-wal", f"{to}-wal")
        except OSError as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=copy, name="dsobs-state-copy", daemon=True).start()
    return done


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only looks, beside a running dsobs or after it; StateError if there is nothing to read."""
    try:
        there = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        there = False
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from error
    if not there:
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
