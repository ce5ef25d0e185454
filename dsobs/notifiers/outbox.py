"""One durable outbox for all notifiers.

A notification is a row, written in the transaction that changes the alert's state. Per notifier and dedup key only the
last event counts: one that was not yet sent is replaced by a later one, and a resolve whose trigger never left is not
sent at all. So what a receiver ends up with is always the last that was said, events of one key go out in their order,
and an outage leaves no flood of stale pages behind.

Which keys may be open at a receiver is on disk too, written before a trigger leaves: after SIGKILL between sending and
recording, the same event goes out again under the same dedup key.

A disk that fails or hangs holds up a page for 2 s at most (`dsobs.state.WRITE_SECONDS`): then it goes out from memory.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import TypeVar

from dsobs import telemetry
from dsobs.model.clock import Clock
from dsobs.model.notification import Notification
from dsobs.model.notifier import Answer, Notifier
from dsobs.notifiers.lane import Lane
from dsobs.notifiers.retry import Accepted, GiveUp, RetryAt, decide
from dsobs.notifiers.rows import SCHEMA, Item, KeyState, RowState, notification_of_row, row_text
from dsobs.notifiers.wait import Wait, wait_on
from dsobs.state import StateDb, StateError

log = logging.getLogger(__name__)

__all__ = ["SCHEMA", "Outbox"]

T = TypeVar("T")

MAX_ROWS = 10_000
KEEP_DONE_SECONDS = 7 * 86400.0
RETRY_STATE_SECONDS = 5.0
PRUNE_EVERY_SECONDS = 3600.0
PRUNE_EVERY_ROWS = 1000


class Outbox:
    """Delivers notifications: durable, in order per key, limited per minute, over restarts.

    `db` has `SCHEMA`'s tables; None (it could not be opened) keeps everything in memory. `source` is what alerts
    call the server: coalesced pages are under its name.
    """

    def __init__(
        self,
        db: StateDb | None,
        notifiers: Sequence[Notifier],
        clock: Clock,
        *,
        source: str,
        wait: Wait | None = None,
        rng: Random | None = None,
        max_rows: int = MAX_ROWS,
    ) -> None:
        self._db = db
        self._clock = clock
        self._rng = rng or Random()
        self._wait: Wait = wait or wait_on(clock)
        self._max_rows = max_rows
        self._source = source
        self._lanes = {notifier.name: Lane(notifier, self) for notifier in notifiers}
        self._staged: list[tuple[str, Item]] = []
        self._seen_row = 0
        self._latest_in_memory: dict[tuple[str, str], float] = {}
        self._dirty_rows: dict[int, tuple[RowState, str, float]] = {}
        self._dirty_keys: dict[tuple[str, str], KeyState | None] = {}
        self._saving = asyncio.Lock()
        self._state_failed = False
        self._done_since_prune = 0
        self._prune_at = 0.0
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._running: dict[Lane, asyncio.Task[None]] = {}
        self._closing = False
        self._ended = asyncio.Event()
        self.primary_takes = False
        """Set by `leave_to_primary`."""
        self.keys_known = False
        """What is open at the receivers was read from disk. Until then no resolve is taken for moot."""

    # Taking in

    @property
    def names(self) -> frozenset[str]:
        """Of all notifiers."""
        return frozenset(self._lanes)

    def enqueue(
        self, connection: sqlite3.Connection, notifications: Iterable[Notification], only: str | None = None
    ) -> None:
        """Writes one row for each notifier that accepts (`only`: this one), in the caller's transaction on `StateDb`;
        delivery begins as soon as that is committed."""
        now = self._clock.now()
        lanes = self._lanes  # On the writer's thread; `use` puts another dictionary in its place.
        rows = [
            (name, now, row_text(notification))
            for notification in notifications
            for name, lane in lanes.items()
            if only in (None, name) and lane.notifier.accepts(notification)
        ]
        if not rows:
            return
        connection.executemany("INSERT INTO outbox (notifier, queued_at, notification) VALUES (?, ?, ?)", rows)
        loop = self._loop
        if loop is not None:
            # Reading back is queued behind this transaction on the one writer thread, so it sees what was committed.
            with contextlib.suppress(RuntimeError):  # The loop has just been closed: the rows wait for the next start.
                loop.call_soon_threadsafe(self._wake.set)

    def enqueue_in_memory(self, notifications: Iterable[Notification], only: str | None = None) -> None:
        """For when the state file can't be written (StateError): the page goes out, and is lost only with the process.

        Call it on the event loop's thread.
        """
        now = self._clock.now()
        for notification in notifications:
            for name, lane in self._lanes.items():
                if only not in (None, name) or not lane.notifier.accepts(notification):
                    continue
                if len(self._staged) >= self._max_rows:
                    self._count(name, RowState.DROPPED)
                    log.error("outbox: %s dropped, too many in memory: %s", name, notification.summary)
                    continue
                self._staged.append((name, Item(None, notification, now)))
        self._wake.set()

    async def put(self, notifications: Sequence[Notification]) -> None:
        """`enqueue` in a transaction of its own, from memory where that fails."""
        if self._db is None:
            self.enqueue_in_memory(notifications)
            return
        try:
            await self._db.transact_async(lambda connection: self.enqueue(connection, notifications))
        except StateError as error:
            log.error("outbox: paging from memory, the state file can't be written: %s", error)
            self.enqueue_in_memory(notifications)

    @property
    def pending(self) -> int:
        """Notifications not yet accepted, over all notifiers, one for each."""
        return sum(len(lane) for lane in self._lanes.values()) + len(self._staged)

    # Life

    async def run(self) -> None:
        """Delivers until `stop`, or until cancelled; what is not delivered by then stays on disk."""
        self._loop = asyncio.get_running_loop()
        self._ended.clear()
        self._wake.set()
        self._keeping = asyncio.create_task(self._keep(), name="outbox")
        for lane in self._lanes.values():
            self._start(lane)
        try:
            await asyncio.wait([self._keeping])
            if not self._keeping.cancelled() and self._running:
                await asyncio.wait(self._running.values())
            for task in (self._keeping, *self._running.values()):
                if task.done() and not task.cancelled():
                    task.result()
        finally:
            self._loop = None
            await self._cancel()
            self._running.clear()
            await self.save()
            self._count_lost()
            self._ended.set()

    async def stop(self, drain_seconds: float = 5.0) -> None:
        """Sends what can be sent at once, for at most `drain_seconds`; the rest stays on disk. Legal twice, and before
        `run`."""
        self._closing = True
        self._wake.set()
        if self._loop is None:
            return
        try:
            async with asyncio.timeout(drain_seconds):
                await self._ended.wait()
        except TimeoutError:
            await self._cancel()
            await self._ended.wait()

    def _start(self, lane: Lane) -> None:
        self._running[lane] = asyncio.create_task(self._run(lane), name=f"outbox-{lane.notifier.name}")

    async def _run(self, lane: Lane) -> None:
        try:
            await lane.run()
        except Exception:
            # Without one of its lanes the outbox is not whole: who runs it must hear of it.
            if self._keeping is not None:
                self._keeping.cancel()
            raise

    async def _cancel(self) -> None:
        tasks = [*self._running.values(), *([self._keeping] if self._keeping is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def use(self, notifiers: Sequence[Notifier]) -> None:
        """Delivers through these from now on, on the event loop's thread. What waits for one of the same name waits on;
        what waits for one that is gone is dropped."""
        lanes: dict[str, Lane] = {}
        for notifier in notifiers:
            lane = self._lanes.get(notifier.name)
            if lane is None:
                lane = Lane(notifier, self)
                # What is open at a receiver that was configured earlier is on disk.
                self.keys_known = False
                if self._loop is not None:
                    self._start(lane)
            lane.notifier = notifier
            lanes[notifier.name] = lane
        gone = [lane for name, lane in self._lanes.items() if name not in lanes]
        self._lanes = lanes
        for lane in gone:
            if (task := self._running.pop(lane, None)) is not None:
                task.cancel()
            lane.drop_all("no such notifier is configured")
            telemetry.OUTBOX_OLDEST.remove(lane.notifier.name)
        self._wake.set()

    def leave_to_primary(self, takes: bool, taken_before: float = float("-inf")) -> None:
        """Whether another way takes alerts: then triggers of notifiers that are a `fallback` wait. Those that were
        queued before `taken_before` were certainly taken."""
        if takes:
            for lane in self._lanes.values():
                lane.forget_taken(taken_before)
        if takes != self.primary_takes:
            self.primary_takes = takes
            for lane in self._lanes.values():
                lane.wake()

    def note_age(self, now: float) -> None:
        """Sets the gauge of how long the oldest notification waits, for each notifier."""
        for name, lane in self._lanes.items():
            telemetry.OUTBOX_OLDEST.labels(name).set(max(0.0, now - lane.oldest(now)))

    def _count_lost(self) -> None:
        lost = [(name, item) for name, lane in self._lanes.items() for item in lane.in_memory_only()]
        for name, item in (*lost, *self._staged):
            self._count(name, RowState.DROPPED)
            log.error("outbox: lost with this process, never recorded: %s: %s", name, item.notification.summary)

    # Between disk and lanes

    async def _keep(self) -> None:
        while True:
            self._wake.clear()
            closing = self._closing
            loaded = await self._load()
            self._bound()
            for lane in self._lanes.values():
                lane.settle_coalesced()
            saved = await self.save()
            now = self._clock.now()
            if loaded and saved and (now >= self._prune_at or self._done_since_prune >= PRUNE_EVERY_ROWS):
                await self._prune(now)
            if closing:
                for lane in self._lanes.values():
                    lane.close()
                return
            # A failed prune is tried again with the next hour; failed loads and saves soon.
            until = self._prune_at if loaded and saved else now + RETRY_STATE_SECONDS
            await self._wait(self._wake, until)

    async def _load(self) -> bool:
        """Takes new rows, then what was staged in memory after them; whether the disk could be read."""
        # What is staged while rows are read may be later than a row that this reading misses: it waits for the next.
        count = len(self._staged)
        loaded = await self._load_rows() if self._db is not None else True
        staged = self._staged[:count]
        del self._staged[:count]
        for name, item in staged:
            if not loaded:
                # An earlier row of the same key may turn up later; it must not undo this one.
                self._latest_in_memory[name, item.notification.dedup_key] = item.queued_at
            self._lanes[name].add(item)
        return loaded

    async def _load_rows(self) -> bool:
        first, seen = not self.keys_known, self._seen_row

        def read(
            connection: sqlite3.Connection,
        ) -> tuple[list[tuple[str, str, str]], list[tuple[int, str, float, str]]]:
            keys = (
                connection.execute("SELECT notifier, dedup_key, state FROM outbox_open_keys").fetchall()
                if first
                else []
            )
            rows = connection.execute(
                "SELECT id, notifier, queued_at, notification FROM outbox "
                "WHERE state = 'pending' AND id > ? ORDER BY id",
                (seen,),
            ).fetchall()
            return keys, rows

        answer = await self._transact(read)
        if answer is None:
            return False
        keys, rows = answer
        for name, key, state in keys:
            if name in self._lanes:
                # What happened since the start is newer than what is on disk.
                self._lanes[name].keys.setdefault(key, KeyState(state))
        self.keys_known = True
        for row, name, queued_at, text in rows:
            self._seen_row = row
            try:
                item = Item(row, notification_of_row(text), queued_at)
            except (ValueError, KeyError, TypeError) as error:
                self.finish(name, row, RowState.DROPPED, f"unreadable row: {error}")
                log.error("outbox: row %d is unreadable and left out: %s", row, error)
                continue
            if name not in self._lanes:
                self.finish(name, row, RowState.DROPPED, "no such notifier is configured")
                log.warning("outbox: no notifier %s is configured any more: %s", name, item.notification.summary)
            elif queued_at < self._latest_in_memory.get((name, item.notification.dedup_key), queued_at):
                self.finish(name, row, RowState.COLLAPSED, "a later event went out from memory")
            else:
                self._lanes[name].add(item)
        self._latest_in_memory.clear()
        return True

    def _bound(self) -> None:
        excess = sum(map(len, self._lanes.values())) - self._max_rows
        if excess <= 0:
            return
        everything = [(lane, item) for lane in self._lanes.values() for item in lane.waiting.values()]
        everything.sort(key=lambda pair: (-pair[1].rank, pair[1].queued_at))
        for lane, item in everything[:excess]:
            lane.drop(item, f"more than {self._max_rows} waiting")
        log.error("outbox: %d notifications dropped, more than %d were waiting", excess, self._max_rows)

    async def _prune(self, now: float) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM outbox WHERE state != 'pending' AND done_at < ?", (now - KEEP_DONE_SECONDS,)
            )
            connection.execute(
                "DELETE FROM outbox WHERE state != 'pending' AND id NOT IN "
                "(SELECT id FROM outbox WHERE state != 'pending' ORDER BY id DESC LIMIT ?)",
                (self._max_rows - PRUNE_EVERY_ROWS if self._max_rows > PRUNE_EVERY_ROWS else self._max_rows,),
            )

        self._prune_at = now + PRUNE_EVERY_SECONDS
        self._done_since_prune = 0
        for lane in self._lanes.values():
            lane.bound_keys(self._max_rows)
        if self._db is not None:
            await self._transact(work)

    def finish(self, notifier: str, row: int | None, state: RowState, reason: str = "") -> None:
        """Notes what became of a row, to be written by the next `save`, and counts it."""
        self._count(notifier, state)
        if row is not None:
            self._dirty_rows[row] = (state, reason, self._clock.now())
            self._done_since_prune += 1

    def key_changed(self, notifier: str, key: str, state: KeyState | None) -> None:
        """Notes what a receiver may know of a key, to be written by the next `save`."""
        self._dirty_keys[notifier, key] = state

    async def save(self) -> bool:
        """Writes what was noted; False if it could not be, then it is kept for the next time."""
        if self._db is None:
            self._dirty_rows.clear()
            self._dirty_keys.clear()
            return True
        async with self._saving:
            rows, self._dirty_rows = self._dirty_rows, {}
            keys, self._dirty_keys = self._dirty_keys, {}
            if not rows and not keys:
                return True

            def write(connection: sqlite3.Connection) -> bool:
                connection.executemany(
                    "UPDATE outbox SET state = ?, reason = ?, done_at = ? WHERE id = ?",
                    [(state.value, reason, at, row) for row, (state, reason, at) in rows.items()],
                )
                connection.executemany(
                    "DELETE FROM outbox_open_keys WHERE notifier = ? AND dedup_key = ?",
                    [pair for pair, state in keys.items() if state is None],
                )
                connection.executemany(
                    "INSERT OR REPLACE INTO outbox_open_keys (notifier, dedup_key, state) VALUES (?, ?, ?)",
                    [(*pair, state.value) for pair, state in keys.items() if state is not None],
                )
                return True

            if await self._transact(write):
                return True
            self._dirty_rows = rows | self._dirty_rows
            self._dirty_keys = keys | self._dirty_keys
            return False

    async def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """The result, or None where the disk refused or did not answer in time."""
        assert self._db is not None
        try:
            result = await self._db.transact_async(work)
        except StateError as error:
            if not self._state_failed:
                log.error("outbox: the state file can't be used, pages go out from memory: %s", error)
            self._state_failed = True
            return None
        if self._state_failed:
            log.warning("outbox: the state file can be used again")
        self._state_failed = False
        return result

    def _count(self, notifier: str, state: RowState) -> None:
        telemetry.NOTIFICATIONS.labels(notifier, state.value).inc()

    # For the lanes

    @property
    def clock(self) -> Clock:
        """Where lanes take the time from."""
        return self._clock

    @property
    def source(self) -> str:
        """What alerts call the server."""
        return self._source

    def decide(self, answer: Answer, attempt: int, now: float) -> Accepted | RetryAt | GiveUp:
        """`retry.decide` with this outbox's randomness."""
        return decide(answer, attempt, now, self._rng)

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Waits for the event or the time."""
        await self._wait(event, until)
