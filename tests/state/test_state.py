import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from dsobs.state import RESERVE_BYTES, StateDb, StateError, read_only

T = TypeVar("T")
SCHEMA = ("CREATE TABLE IF NOT EXISTS rows (n INTEGER PRIMARY KEY, filler TEXT NOT NULL)",)

WRITER = f"""
import sys
import threading
import time
from dsobs.state import StateDb
db = StateDb(sys.argv[1], {SCHEMA!r})
for n in range(1_000_000):
    db.transact(lambda connection: connection.execute("INSERT INTO rows VALUES (?, 'x')", (n,)))
    print(n, flush=True)
"""

FILLER = f"""
import sys
import threading
import time
from pathlib import Path
from typing import TypeVar
from dsobs.state import StateDb, StateError
db = StateDb(sys.argv[1], {SCHEMA!r})
ballast = Path(sys.argv[1]).with_name("ballast").open("wb", buffering=0)
try:
    while True:
        ballast.write(bytes(4096))
except OSError:
    pass
db.transact(lambda connection: connection.execute("INSERT INTO rows VALUES (-1, ?)", ("x" * 50_000,)))
print("used" if db.reserve_used else "not used")
try:
    for n in range(1000):
        db.transact(lambda connection: connection.execute("INSERT INTO rows VALUES (?, ?)", (n, "x" * 50_000)))
except StateError as error:
    print(str(error).partition(": ")[2])
ballast.close()
db.close()
again = StateDb(sys.argv[1], {SCHEMA!r})
print(again.transact(lambda connection: connection.execute("SELECT count(*) > 0 FROM rows").fetchone()[0]))
again.close()
"""


def insert(n: int) -> Callable[[sqlite3.Connection], None]:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO rows VALUES (?, 'x')", (n,))

    return work


def rows(connection: sqlite3.Connection) -> list[int]:
    return [n for (n,) in connection.execute("SELECT n FROM rows ORDER BY n")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.mark.parametrize("acknowledged", [1, 7, 40])
def test_what_was_committed_survives_sigkill(path: Path, acknowledged: int) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for expected in range(acknowledged):
            assert int(writer.stdout.readline()) == expected
        writer.kill()
        rest = [int(line) for line in writer.stdout if line.endswith("\n")]
        assert writer.wait() == -signal.SIGKILL
    last = rest[-1] if rest else acknowledged - 1
    db = StateDb(path, SCHEMA)
    kept = db.transact(rows)
    db.close()
    assert db.set_aside is None
    assert kept == list(range(len(kept)))
    assert len(kept) - 1 in (last, last + 1)


def test_a_corrupt_file_is_set_aside_and_named(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)
    db = StateDb(path, SCHEMA)
    db.transact(insert(1))
    db.close()
    assert db.set_aside is not None
    assert db.set_aside.name.startswith("state.db.corrupt-")
    assert db.set_aside.read_bytes().startswith(b"no database at all")


def test_a_page_overwritten_inside_the_file_is_noticed(path: Path) -> None:
    db = StateDb(path, SCHEMA)
    db.transact(lambda connection: connection.executemany("INSERT INTO rows VALUES (?, ?)", pages()))
    db.close()
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xa5" * 4096
    path.write_bytes(content)
    db = StateDb(path, SCHEMA)
    assert db.set_aside is not None
    assert db.transact(rows) == []
    db.close()


def pages() -> list[tuple[int, str]]:
    return [(n, "x" * 1000) for n in range(100)]


def test_a_sound_file_is_not_set_aside(path: Path) -> None:
    for n in range(3):
        db = StateDb(path, SCHEMA)
        db.transact(insert(n))
        db.close()
        assert db.set_aside is None
    with read_only(path) as connection:
        assert rows(connection) == [0, 1, 2]


def test_a_directory_that_cannot_be_written_is_a_state_error(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    tmp_path.chmod(0o755)
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)  # nothing is read-only to root
    try:
        with pytest.raises(StateError, match=r"state\.db"):
            StateDb(folder / "state.db", SCHEMA)
        with pytest.raises(StateError, match=r"state\.db"):
            StateDb(folder / "below" / "state.db", SCHEMA)
    finally:
        os.seteuid(uid)


def test_an_exception_of_the_work_rolls_back_and_is_raised_as_it_is(path: Path) -> None:
    def work(connection: sqlite3.Connection) -> None:
        insert(1)(connection)
        raise LookupError("mine")

    db = StateDb(path, SCHEMA)
    with pytest.raises(LookupError, match="mine"):
        db.transact(work)
    assert db.transact(rows) == []
    db.transact(insert(2))
    assert db.transact(rows) == [2]
    db.close()


def test_an_error_of_the_database_rolls_back_and_is_a_state_error_with_its_cause(path: Path) -> None:
    def work(connection: sqlite3.Connection) -> None:
        insert(1)(connection)
        insert(1)(connection)

    db = StateDb(path, SCHEMA)
    with pytest.raises(StateError) as caught:
        db.transact(work)
    assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
    assert db.transact(rows) == []
    db.close()


async def test_transactions_of_tasks_are_one_after_the_other(path: Path) -> None:
    db = StateDb(path, SCHEMA)
    await asyncio.gather(*(db.transact_async(insert(n)) for n in range(20)))
    assert await db.transact_async(rows) == list(range(20))
    db.close()


def test_close_is_legal_twice_and_memory_needs_no_file() -> None:
    db = StateDb(":memory:", SCHEMA)
    db.transact(insert(1))
    db.close()
    db.close()


def test_the_file_is_for_its_owner_only(path: Path) -> None:
    StateDb(path, SCHEMA).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_takes_last_rows_from_the_reserve_then_is_a_state_error(tmp_path: Path) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    # A file system of 2 MiB in a mount namespace of its own, gone with the process.
    script = 'mount -t tmpfs -o size=2m none "$1" && exec "$2" -c "$3" "$1/state.db"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(mounted), sys.executable, FILLER]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("no right to mount here")
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["used", "database or disk is full", "1"]


def test_the_reserve_is_really_allocated(path: Path) -> None:
    StateDb(path, SCHEMA).close()
    reserve = path.with_name("state.db.reserve").stat()
    assert reserve.st_size == RESERVE_BYTES
    assert reserve.st_blocks * 512 >= RESERVE_BYTES


def test_reading_beside_it_needs_a_file_that_is_there(path: Path) -> None:
    with pytest.raises(StateError, match="is not there"), read_only(path):
        pass


class Disk:
    """Work that hangs until it is let go, as a commit on a disk that does not answer."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.back = threading.Event()

    def hangs(self, connection: sqlite3.Connection) -> None:
        self.begun.set()
        assert self.back.wait(30)


async def test_a_disk_that_hangs_is_waited_for_until_the_deadline_and_then_by_nobody(path: Path) -> None:
    db, disk = StateDb(path, SCHEMA), Disk()
    begun = time.monotonic()
    with pytest.raises(StateError, match=r"the disk has not answered for 0\.1 s"):
        await db.transact_async(disk.hangs, deadline=0.1)
    for n in range(100):
        with pytest.raises(StateError, match="the disk has not answered for"):
            await db.transact_async(insert(n))
    with pytest.raises(StateError, match="the disk has not answered for"):
        db.transact(insert(1))
    assert time.monotonic() - begun < 8.0  # Not 100 times the deadline.
    disk.back.set()
    await until_answered(db)
    assert await db.transact_async(rows) == []
    db.close()


async def until_answered(db: StateDb) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await db.transact_async(rows)
            except StateError:
                await asyncio.sleep(0.01)
            else:
                return


async def test_what_waits_behind_a_transaction_that_hangs_is_never_written(path: Path) -> None:
    db, disk = StateDb(path, SCHEMA), Disk()
    hung = asyncio.ensure_future(db.transact_async(disk.hangs, deadline=30))
    await asyncio.to_thread(disk.begun.wait, 10)
    with pytest.raises(StateError):
        await db.transact_async(insert(1), deadline=0.05)
    disk.back.set()
    await hung
    assert await db.transact_async(rows) == []
    db.close()


async def test_work_that_ends_after_its_deadline_is_rolled_back(path: Path) -> None:
    db, disk = StateDb(path, SCHEMA), Disk()

    def slow(connection: sqlite3.Connection) -> None:
        insert(1)(connection)
        disk.hangs(connection)

    with pytest.raises(StateError):
        await db.transact_async(slow, deadline=0.05)
    disk.back.set()
    await until_answered(db)
    assert await db.transact_async(rows) == []
    db.close()


class SlowCommit(StateDb):
    """A file whose commits hang while `disk` does."""

    disk: Disk | None = None

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        result = super()._transaction(work)
        if self.disk is not None:
            self.disk.hangs(None)  # type: ignore[arg-type]
        return result


async def test_one_that_is_committed_after_its_deadline_is_told_late(path: Path) -> None:
    db, told = SlowCommit(path, SCHEMA), asyncio.get_running_loop().create_future()
    db.disk = disk = Disk()

    def work(connection: sqlite3.Connection) -> int:
        insert(7)(connection)
        return 7

    with pytest.raises(StateError):
        await db.transact_async(work, deadline=0.05, late=told.set_result)
    assert not told.done()
    disk.back.set()
    assert await asyncio.wait_for(told, 10) == 7
    db.disk = None
    assert await db.transact_async(rows) == [7]
    db.close()


HUNG_AT_THE_END = f"""
import asyncio, sys, threading
from dsobs.state import StateDb, StateError
db = StateDb(sys.argv[1], {SCHEMA!r})
try:
    asyncio.run(db.transact_async(lambda connection: threading.Event().wait(), deadline=0.05))
except StateError:
    db.close(0.05)
    print("closed")
"""


def test_a_disk_that_hangs_does_not_keep_the_process_from_ending(path: Path) -> None:
    command = [sys.executable, "-c", HUNG_AT_THE_END, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=90)
    assert done.stdout == "closed\n"


async def test_a_file_locked_by_another_process_is_said_to_be_locked(path: Path) -> None:
    db = StateDb(path, SCHEMA)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StateError, match="database is locked"):
        await db.transact_async(insert(1))
    other.execute("ROLLBACK")
    other.close()
    await db.transact_async(insert(2))
    db.close()
