"""One durable outbox for all notifiers.

A notification is a row, written in the transaction that changes the alert's state. Per notifier and dedup key only the
last event counts: one that was not yet sent is replaced by a later one, and a resolve whose trigger never left is not
sent at all. So what a receiver ends up with is always the last that was said, events of one key go out in their order,
and an outage leaves no flood of stale pages behind.

Which keys may be open at a receiver is on disk too, written before a trigger leaves: after SIGKILL between sending and
recording, the same event goes out again under the same dedup key.

Nothing here waits for the disk to page: when the state file can't be written, pages go out from memory.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections import Counter as Tally
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, TypeAlias, TypeVar

import orjson

from dsobs import telemetry
from dsobs.model.clock import Clock
from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Answer, Notifier
from dsobs.notifiers.json_bytes import json_bytes
from dsobs.notifiers.messages import SEVERITIES, dedup_key, severity_of
from dsobs.notifiers.retry import Accepted, GiveUp, RetryAt, decide
from dsobs.state import StateDb, StateError

log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        notifier TEXT NOT NULL,
        queued_at REAL NOT NULL,
        notification TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'pending',
        reason TEXT NOT NULL DEFAULT '',
        done_at REAL
    )""",
    "CREATE INDEX IF NOT EXISTS outbox_pending ON outbox (id) WHERE state = 'pending'",
    """CREATE TABLE IF NOT EXISTS outbox_open_keys (
        notifier TEXT NOT NULL,
        dedup_key TEXT NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (notifier, dedup_key)
    )""",
)
"""Tables for `StateDb`."""

MAX_ROWS = 10_000
KEEP_DONE_SECONDS = 7 * 86400.0
WINDOW_SECONDS = 60.0
PAGES_PER_WINDOW = 120
"""PagerDuty takes about 120 events a minute for one routing key."""
CRITICAL_PER_WINDOW = 110
"""Of these for critical alerts; the rest is kept for coalesced pages."""
OTHERS_PER_WINDOW = 100
"""Of these for all that is not critical."""
COALESCE_EVERY_SECONDS = 12.0
COALESCED_LINES = 100
PARALLEL = 4
"""Requests in flight for one notifier, each for another dedup key."""
WRITE_DEADLINE_SECONDS = 2.0
"""A disk that hangs holds up a page for no longer than this (and an alarm rings in the log)."""
RETRY_STATE_SECONDS = 5.0
PRUNE_EVERY_SECONDS = 3600.0
PRUNE_EVERY_ROWS = 1000

Wait: TypeAlias = Callable[[asyncio.Event, float | None], Awaitable[None]]
"""Waits until the event is set or the clock has come to the time (None: for ever). Tests pass virtual time."""


class RowState(StrEnum):
    """What became of a row; also the label values `outcome` of `dsobs_notifications_total`."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    DEAD = "dead"
    """Refused for good (HTTP 4xx): a person must look."""
    COLLAPSED = "collapsed"
    """A later event of the same key made it moot before it left."""
    COALESCED = "coalesced"
    """Went out as a line of a page for many, because of the limit of pages a minute."""
    DROPPED = "dropped"
    """Too many rows, no such notifier any more, or unreadable."""


class KeyState(StrEnum):
    """What the receiver may know of a dedup key. A key that is not listed is surely not open there."""

    MAYBE = "maybe"
    """A trigger was sent, or was about to be."""
    OPEN = "open"
    """A trigger was accepted."""
    COALESCED = "coalesced"
    """Not open by itself; its trigger was told of in the coalesced page."""
    COALESCED_CRITICAL = "coalesced_critical"
    """The same, in the coalesced page of critical alerts."""


@dataclass(slots=True)
class _Item:
    row: int | None
    """None: in memory only."""
    notification: Notification
    queued_at: float
    attempts: int = 0
    next_at: float = 0.0

    @property
    def is_trigger(self) -> bool:
        return self.notification.event is Event.TRIGGER

    @property
    def rank(self) -> int:
        """0 for critical."""
        return SEVERITIES.index(severity_of(self.notification.severity))

    @property
    def urgency(self) -> tuple[bool, int, float]:
        return (not self.is_trigger, self.rank, self.queued_at)


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
        self._wait: Wait = wait or self._wait_live
        self._max_rows = max_rows
        self._source = source
        self._lanes = {notifier.name: _Lane(notifier, self) for notifier in notifiers}
        self._staged: list[tuple[str, _Item]] = []
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
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self._ended = asyncio.Event()
        self.keys_known = False
        """What is open at the receivers was read from disk. Until then no resolve is taken for moot."""

    # Taking in

    def enqueue(self, connection: sqlite3.Connection, notifications: Iterable[Notification]) -> None:
        """Writes one row for each notifier that accepts, in the caller's transaction on `StateDb`; delivery begins as
        soon as that is committed."""
        now = self._clock.now()
        rows = [
            (name, now, json_bytes(_as_mapping(notification)).decode())
            for notification in notifications
            for name, lane in self._lanes.items()
            if lane.notifier.accepts(notification)
        ]
        if not rows:
            return
        connection.executemany("INSERT INTO outbox (notifier, queued_at, notification) VALUES (?, ?, ?)", rows)
        loop = self._loop
        if loop is not None:
            # Reading back is queued behind this transaction on the one writer thread, so it sees what was committed.
            with contextlib.suppress(RuntimeError):  # The loop has just been closed: the rows wait for the next start.
                loop.call_soon_threadsafe(self._wake.set)

    def enqueue_in_memory(self, notifications: Iterable[Notification]) -> None:
        """For when the state file can't be written (StateError): the page goes out, and is lost only with the process.

        Call it on the event loop's thread.
        """
        now = self._clock.now()
        for notification in notifications:
            for name, lane in self._lanes.items():
                if not lane.notifier.accepts(notification):
                    continue
                if len(self._staged) >= self._max_rows:
                    self._count(name, RowState.DROPPED)
                    log.error("outbox: %s dropped, too many in memory: %s", name, notification.summary)
                    continue
                self._staged.append((name, _Item(None, notification, now)))
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
        self._tasks = [
            asyncio.create_task(self._keep(), name="outbox"),
            *(asyncio.create_task(lane.run(), name=f"outbox-{name}") for name, lane in self._lanes.items()),
        ]
        try:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                if not task.cancelled():
                    task.result()
        finally:
            self._loop = None
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
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
            for task in self._tasks:
                task.cancel()
            await self._ended.wait()

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
                item = _Item(row, _notification(orjson.loads(text)), queued_at)
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
        writing = asyncio.ensure_future(self._db.transact_async(work))
        # One that comes too late is written again with the next save; its own end must not go unread.
        writing.add_done_callback(lambda future: future.cancelled() or future.exception())
        try:
            # Not `wait_for`, which before Python 3.12 may swallow a cancellation.
            async with asyncio.timeout(WRITE_DEADLINE_SECONDS):
                result = await asyncio.shield(writing)
        except (StateError, RuntimeError, TimeoutError) as error:
            if not self._state_failed:
                why = error if isinstance(error, StateError) else f"no answer ({type(error).__name__})"
                log.error("outbox: the state file can't be used, pages go out from memory: %s", why)
            self._state_failed = True
            return None
        if self._state_failed:
            log.warning("outbox: the state file can be used again")
        self._state_failed = False
        return result

    def _count(self, notifier: str, state: RowState) -> None:
        telemetry.NOTIFICATIONS.labels(notifier, state.value).inc()

    async def _wait_live(self, event: asyncio.Event, until: float | None) -> None:
        if until is None:
            await event.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - self._clock.now())):
                await event.wait()

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


@dataclass(slots=True)
class _Coalesced:
    """The page that stands for many, where there are more than may be sent one by one."""

    critical: bool
    dedup_key: str
    member: KeyState
    last_at: float = float("-inf")

    def page(self, items: Sequence[_Item], source: str, now: float) -> Notification:
        names = Tally(item.notification.labels.get("alertname") or item.notification.summary for item in items)
        word = SEVERITIES[min(item.rank for item in items)]
        told = ", ".join(f"{name} ({count})" for name, count in names.most_common(5))
        more = f" and {len(names) - 5} other kinds" if len(names) > 5 else ""
        details = {f"{n:03d}": item.notification.summary for n, item in enumerate(items[:COALESCED_LINES], 1)}
        return Notification(
            at=now,
            event=Event.TRIGGER,
            dedup_key=self.dedup_key,
            summary=f"[{word}] {len(items)} alerts on {source} in one page, beyond the limit of pages: {told}{more}",
            severity=word,
            source=source,
            details={"count": str(len(items)), **details},
            started_at=min(item.notification.at for item in items),
        )

    def end(self, source: str, now: float) -> Notification:
        return Notification(
            at=now,
            event=Event.RESOLVE,
            dedup_key=self.dedup_key,
            summary=f"[resolved] all alerts on {source} that were in one page have ended",
            severity="critical" if self.critical else "warning",
            source=source,
        )


class _Lane:
    """One notifier's way out. Per key at most one event is waiting and one is in flight."""

    def __init__(self, notifier: Notifier, outbox: Outbox) -> None:
        self.notifier = notifier
        self.waiting: dict[str, _Item] = {}
        self.keys: dict[str, KeyState] = {}
        self._outbox = outbox
        self._coalesced = (
            _Coalesced(True, dedup_key(outbox.source, "coalesced-critical"), KeyState.COALESCED_CRITICAL),
            _Coalesced(False, dedup_key(outbox.source, "coalesced"), KeyState.COALESCED),
        )
        self._flying: set[str] = set()
        """Keys of events in flight, and of the coalesced page."""
        self._sent: deque[float] = deque()
        """Times of the sends in the last window."""
        self._not_before = float("-inf")
        self._deliveries: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._closing = False

    def __len__(self) -> int:
        return len(self.waiting) + len(self._flying)

    @property
    def idle(self) -> bool:
        """No request is in flight and nothing has changed since the last look."""
        return not self._deliveries and not self._changed.is_set()

    def close(self) -> None:
        """Ends once nothing more can be sent at once."""
        self._closing = True
        self._changed.set()

    def in_memory_only(self) -> list[_Item]:
        """What is waiting and not on disk."""
        ours = {page.dedup_key for page in self._coalesced}
        return [item for key, item in self.waiting.items() if item.row is None and key not in ours]

    def add(self, item: _Item) -> None:
        """Takes an event; an earlier one of its key that is still waiting is moot."""
        key = item.notification.dedup_key
        older = self.waiting.pop(key, None)
        if older is not None:
            self._replace(older, item)
        self.waiting[key] = item
        self._settle(key)
        self._changed.set()

    def drop(self, item: _Item, reason: str) -> None:
        """Takes a waiting event out for good."""
        del self.waiting[item.notification.dedup_key]
        self._finish(item, RowState.DROPPED, reason)

    def bound_keys(self, most: int) -> None:
        """Forgets the oldest keys of incidents that were never resolved."""
        for key in list(self.keys)[: max(0, len(self.keys) - most)]:
            self._set_key(key, None)

    def settle_coalesced(self) -> None:
        """Ends the coalesced page once none of its alerts is left."""
        for page in self._coalesced:
            key = page.dedup_key
            if (
                self.keys.get(key) in (KeyState.MAYBE, KeyState.OPEN)
                and key not in self._flying
                and key not in self.waiting
                and page.member not in self.keys.values()
            ):
                now = self._outbox.clock.now()
                self.waiting[key] = _Item(None, page.end(self._outbox.source, now), now)
                self._changed.set()

    async def run(self) -> None:
        """Sends what is due until closed."""
        try:
            while True:
                self._changed.clear()
                until = self._start_due(self._outbox.clock.now())
                telemetry.OUTBOX_PENDING.labels(self.notifier.name).set(len(self))
                if self._closing and not self._deliveries:
                    return
                await self._outbox.wait(self._changed, until)
        finally:
            for task in self._deliveries:
                task.cancel()
            await asyncio.gather(*self._deliveries, return_exceptions=True)
            telemetry.OUTBOX_PENDING.labels(self.notifier.name).set(len(self))

    def _start_due(self, now: float) -> float | None:
        """Starts what may be sent now; when to look again if nothing changes."""
        while self._sent and self._sent[0] <= now - WINDOW_SECONDS:
            self._sent.popleft()
        if len(self._deliveries) >= PARALLEL:
            return None  # The end of one wakes this.
        ready = [item for key, item in self.waiting.items() if key not in self._flying]
        if ready and now < self._not_before:
            return self._not_before
        again = [item.next_at for item in ready if item.next_at > now]
        held: list[_Item] = []
        for item in sorted((item for item in ready if item.next_at <= now), key=lambda item: item.urgency):
            if len(self._sent) >= (CRITICAL_PER_WINDOW if item.rank == 0 else OTHERS_PER_WINDOW):
                held.append(item)
            elif len(self._deliveries) < PARALLEL:
                self._start([item], item.notification, now)
            else:
                return None
        if held:
            again.append(self._sent[0] + WINDOW_SECONDS)
            again += self._start_coalesced(held, now)
        return min(again, default=None)

    def _start_coalesced(self, held: Sequence[_Item], now: float) -> list[float]:
        again: list[float] = []
        for page in self._coalesced:
            items = [item for item in held if item.is_trigger and (item.rank == 0) == page.critical]
            if len(items) < 2 or page.dedup_key in self._flying:
                continue
            if now < page.last_at + COALESCE_EVERY_SECONDS:
                again.append(page.last_at + COALESCE_EVERY_SECONDS)
            elif len(self._sent) < PAGES_PER_WINDOW and len(self._deliveries) < PARALLEL:
                page.last_at = now
                self._start(items, page.page(items, self._outbox.source, now), now, page.member)
        return again

    def _start(
        self, items: list[_Item], notification: Notification, now: float, member: KeyState | None = None
    ) -> None:
        for key in (notification.dedup_key, *(item.notification.dedup_key for item in items)):
            self.waiting.pop(key, None)
            self._flying.add(key)
        self._sent.append(now)
        task = asyncio.create_task(self._deliver(items, notification, member))
        self._deliveries.add(task)
        task.add_done_callback(self._delivered)

    def _delivered(self, task: "asyncio.Task[None]") -> None:
        self._deliveries.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("outbox: %s: a delivery ended in an error", self.notifier.name, exc_info=error)

    async def _deliver(self, items: list[_Item], notification: Notification, member: KeyState | None) -> None:
        """Sends `notification`, which is that of the one item, or (with `member`, their new state) stands for all."""
        key = notification.dedup_key
        trigger = notification.event is Event.TRIGGER
        before = self.keys.get(key)
        again = True
        try:
            if trigger and before not in (KeyState.MAYBE, KeyState.OPEN):
                self._set_key(key, KeyState.MAYBE)
                await self._outbox.save()
            answer = await self._send(notification)
            now = self._outbox.clock.now()
            decision = self._outbox.decide(answer, max(item.attempts for item in items), now)
            if trigger and answer.surely_refused and before not in (KeyState.MAYBE, KeyState.OPEN):
                self._set_key(key, before)
            match decision:
                case Accepted():
                    again = False
                    self._accepted(items, notification, member, now)
                case GiveUp(reason):
                    again = False
                    self._refused(items, notification, reason)
                case RetryAt():
                    self._postpone(items, notification, decision, now)
                    if answer.status == 429:
                        self._not_before = decision.at
        finally:
            self._land(items, key, again)
        await self._outbox.save()

    async def _send(self, notification: Notification) -> Answer:
        try:
            return await self.notifier.send(notification)
        except Exception as error:  # A plugin's mistake must not end the delivery of all others.
            log.exception("outbox: notifier %s raised", self.notifier.name)
            return Answer(detail=f"the notifier raised {type(error).__name__}")

    def _accepted(self, items: list[_Item], notification: Notification, member: KeyState | None, now: float) -> None:
        for item in items:
            telemetry.NOTIFICATION_SECONDS.labels(self.notifier.name).observe(max(0.0, now - item.notification.at))
            if member is None:
                self._finish(item, RowState.ACCEPTED)
            else:
                self._finish(item, RowState.COALESCED, f"in {notification.dedup_key}")
                self._set_key(item.notification.dedup_key, member)
        if member is not None:
            telemetry.NOTIFICATIONS.labels(self.notifier.name, RowState.ACCEPTED.value).inc()
        self._set_key(notification.dedup_key, KeyState.OPEN if notification.event is Event.TRIGGER else None)
        log.info("outbox: %s accepted %s: %s", self.notifier.name, notification.event.value, notification.summary)

    def _refused(self, items: list[_Item], notification: Notification, reason: str) -> None:
        for item in items:
            self._finish(item, RowState.DEAD, reason)
        if any(notification.dedup_key == page.dedup_key for page in self._coalesced):
            # Made here, not asked for: else its end would be made anew for ever.
            self._set_key(notification.dedup_key, None)
        log.error(
            "outbox: %s refused this for good, it is not sent again; check its settings: %s: %s",
            self.notifier.name,
            reason,
            notification.summary,
        )

    def _postpone(self, items: list[_Item], notification: Notification, retry: RetryAt, now: float) -> None:
        telemetry.NOTIFICATIONS.labels(self.notifier.name, "retried").inc()
        log.log(
            logging.DEBUG if items[0].attempts else logging.WARNING,
            "outbox: %s did not take this, next try in %.1f s: %s: %s",
            self.notifier.name,
            retry.at - now,
            retry.reason,
            notification.summary,
        )
        for item in items:
            item.attempts += 1
            item.next_at = retry.at

    def _land(self, items: list[_Item], key: str, again: bool) -> None:
        """Ends a flight; `again` puts its events back, unless a later one of the key is there."""
        self._flying.discard(key)
        for item in items:
            own = item.notification.dedup_key
            self._flying.discard(own)
            if again:
                newer = self.waiting.get(own)
                if newer is None:
                    self.waiting[own] = item
                else:
                    self._replace(item, newer)
        for item in items:
            self._settle(item.notification.dedup_key)
        self.settle_coalesced()

    def _replace(self, older: _Item, newer: _Item) -> None:
        self._finish(older, RowState.COLLAPSED, "a later event of this key came before it was accepted")
        newer.attempts, newer.next_at = older.attempts, older.next_at

    def _settle(self, key: str) -> None:
        """Takes out a waiting resolve that the receiver need not hear of."""
        item = self.waiting.get(key)
        if item is None or item.is_trigger or key in self._flying:
            return
        state = self.keys.get(key)
        if state in (KeyState.COALESCED, KeyState.COALESCED_CRITICAL):
            self._set_key(key, None)
            reason = "its trigger was told of in a coalesced page"
        elif state is None and self._outbox.keys_known:
            reason = "its trigger never left"
        else:
            return
        del self.waiting[key]
        self._finish(item, RowState.COLLAPSED, reason)
        self.settle_coalesced()

    def _finish(self, item: _Item, state: RowState, reason: str = "") -> None:
        self._outbox.finish(self.notifier.name, item.row, state, reason)

    def _set_key(self, key: str, state: KeyState | None) -> None:
        self.keys.pop(key, None)  # So that the dict stays in the order of change.
        if state is not None:
            self.keys[key] = state
        self._outbox.key_changed(self.notifier.name, key, state)


def _as_mapping(notification: Notification) -> dict[str, object]:
    return {
        "at": notification.at,
        "event": notification.event.value,
        "dedup_key": notification.dedup_key,
        "summary": notification.summary,
        "severity": notification.severity,
        "source": notification.source,
        "component": notification.component,
        "details": dict(notification.details),
        "links": [list(link) for link in notification.links],
        "started_at": notification.started_at,
        "labels": dict(notification.labels),
        "annotations": dict(notification.annotations),
    }


def _notification(fields: dict[str, Any]) -> Notification:
    return Notification(
        **{**fields, "event": Event(fields["event"]), "links": tuple((href, text) for href, text in fields["links"])}
    )
