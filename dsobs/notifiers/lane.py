"""One notifier's way out: in order per key, limited per minute, critical first."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from dsobs import telemetry
from dsobs.model.clock import Clock
from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Answer, Notifier
from dsobs.notifiers.coalesced import COALESCE_EVERY_SECONDS, Coalesced
from dsobs.notifiers.messages import dedup_key
from dsobs.notifiers.retry import Accepted, GiveUp, RetryAt
from dsobs.notifiers.rows import Item, KeyState, RowState

log = logging.getLogger(__name__)

WINDOW_SECONDS = 60.0
PAGES_PER_WINDOW = 120
"""PagerDuty takes about 120 events a minute for one routing key."""
CRITICAL_PER_WINDOW = 110
"""Of these for critical alerts; the rest is kept for coalesced pages."""
OTHERS_PER_WINDOW = 100
"""Of these for all that is not critical."""
LOUD_EACH = 10
"""Of tries that fail for wrong settings the first and then each tenth, about every 10 min, is said."""
PARALLEL = 4
"""Requests in flight for one notifier, each for another dedup key."""


class Keeper(Protocol):
    """What a lane needs of the outbox."""

    keys_known: bool
    primary_takes: bool
    """Triggers of notifiers that are a fallback wait: another way takes them."""

    @property
    def clock(self) -> Clock:
        """Where lanes take the time from."""
        ...

    @property
    def source(self) -> str:
        """What alerts call the server."""
        ...

    def finish(self, notifier: str, row: int | None, state: RowState, reason: str = "") -> None:
        """Notes what became of a row, to be written by the next `save`, and counts it."""
        ...

    def key_changed(self, notifier: str, key: str, state: KeyState | None) -> None:
        """Notes what a receiver may know of a key, to be written by the next `save`."""
        ...

    async def save(self) -> bool:
        """Writes what was noted."""
        ...

    def decide(self, answer: Answer, attempt: int, now: float) -> Accepted | RetryAt | GiveUp:
        """What follows from an answer."""
        ...

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Waits for the event or the time."""
        ...


class Lane:
    """One notifier's way out. Per key at most one event is waiting and one is in flight."""

    def __init__(self, notifier: Notifier, outbox: Keeper) -> None:
        self.notifier = notifier
        self.waiting: dict[str, Item] = {}
        self.keys: dict[str, KeyState] = {}
        self._outbox = outbox
        self._coalesced = (
            Coalesced(True, dedup_key(outbox.source, "coalesced-critical"), KeyState.COALESCED_CRITICAL),
            Coalesced(False, dedup_key(outbox.source, "coalesced"), KeyState.COALESCED),
        )
        self._aloft: list[Item] = []
        """What is in flight."""
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
    def _pending(self) -> int:
        return len(self) - sum(map(self._left_to_primary, self.waiting.values()))

    @property
    def idle(self) -> bool:
        """No request is in flight and nothing has changed since the last look."""
        return not self._deliveries and not self._changed.is_set()

    def close(self) -> None:
        """Ends once nothing more can be sent at once."""
        self._closing = True
        self._changed.set()

    def in_memory_only(self) -> list[Item]:
        """What is waiting and not on disk."""
        ours = {page.dedup_key for page in self._coalesced}
        return [item for key, item in self.waiting.items() if item.row is None and key not in ours]

    def add(self, item: Item) -> None:
        """Takes an event; an earlier one of its key that is still waiting is moot."""
        key = item.notification.dedup_key
        older = self.waiting.pop(key, None)
        if older is not None:
            self._replace(older, item)
        self.waiting[key] = item
        self._settle(key)
        self._changed.set()

    def drop(self, item: Item, reason: str) -> None:
        """Takes a waiting event out for good."""
        del self.waiting[item.notification.dedup_key]
        self._finish(item, RowState.DROPPED, reason)

    def drop_all(self, reason: str) -> None:
        """Takes everything out: the notifier is gone."""
        for item in list(self.waiting.values()):
            self.drop(item, reason)
            log.warning("outbox: %s: %s: %s", self.notifier.name, reason, item.notification.summary)

    def _left_to_primary(self, item: Item) -> bool:
        """A fallback's trigger that another way takes; it waits, and its resolve takes it out again."""
        return item.is_trigger and self._outbox.primary_takes and bool(getattr(self.notifier, "fallback", False))

    def forget_taken(self, before: float) -> None:
        """Takes out a fallback's triggers that were queued earlier than this: the other way took them."""
        for key, item in list(self.waiting.items()):
            if item.queued_at < before and self._left_to_primary(item):
                del self.waiting[key]
                self._finish(item, RowState.COLLAPSED, "another way took it")

    def wake(self) -> None:
        """Something outside has changed."""
        self._changed.set()

    def oldest(self, now: float) -> float:
        """When the oldest that is waiting or in flight was queued; `now` where there is none."""
        waiting = [item for item in self.waiting.values() if not self._left_to_primary(item)]
        return min((item.queued_at for item in (*waiting, *self._aloft)), default=now)

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
                self.waiting[key] = Item(None, page.end(self._outbox.source, now), now)
                self._changed.set()

    async def run(self) -> None:
        """Sends what is due until closed."""
        try:
            while True:
                self._changed.clear()
                until = self._start_due(self._outbox.clock.now())
                telemetry.OUTBOX_PENDING.labels(self.notifier.name).set(self._pending)
                if self._closing and not self._deliveries:
                    return
                await self._outbox.wait(self._changed, until)
        finally:
            for task in self._deliveries:
                task.cancel()
            await asyncio.gather(*self._deliveries, return_exceptions=True)
            telemetry.OUTBOX_PENDING.labels(self.notifier.name).set(self._pending)

    def _start_due(self, now: float) -> float | None:
        """Starts what may be sent now; when to look again if nothing changes."""
        while self._sent and self._sent[0] <= now - WINDOW_SECONDS:
            self._sent.popleft()
        if len(self._deliveries) >= PARALLEL:
            return None  # The end of one wakes this.
        ready = [
            item for key, item in self.waiting.items() if key not in self._flying and not self._left_to_primary(item)
        ]
        if ready and now < self._not_before:
            return self._not_before
        again = [item.next_at for item in ready if item.next_at > now]
        held: list[Item] = []
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

    def _start_coalesced(self, held: Sequence[Item], now: float) -> list[float]:
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

    def _start(self, items: list[Item], notification: Notification, now: float, member: KeyState | None = None) -> None:
        for key in (notification.dedup_key, *(item.notification.dedup_key for item in items)):
            self.waiting.pop(key, None)
            self._flying.add(key)
        self._sent.append(now)
        self._aloft += items
        task = asyncio.create_task(self._deliver(items, notification, member))
        self._deliveries.add(task)
        task.add_done_callback(self._delivered)

    def _delivered(self, task: "asyncio.Task[None]") -> None:
        self._deliveries.discard(task)
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("outbox: %s: a delivery ended in an error", self.notifier.name, exc_info=error)

    async def _deliver(self, items: list[Item], notification: Notification, member: KeyState | None) -> None:
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

    def _accepted(self, items: list[Item], notification: Notification, member: KeyState | None, now: float) -> None:
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

    def _refused(self, items: list[Item], notification: Notification, reason: str) -> None:
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

    def _postpone(self, items: list[Item], notification: Notification, retry: RetryAt, now: float) -> None:
        telemetry.NOTIFICATIONS.labels(self.notifier.name, "retried").inc()
        attempts = items[0].attempts
        level = logging.ERROR if retry.loud and attempts % LOUD_EACH == 0 else logging.WARNING
        log.log(
            level if attempts == 0 or level == logging.ERROR else logging.DEBUG,
            "outbox: %s did not take this%s, next try in %.1f s: %s: %s",
            self.notifier.name,
            "; check its settings" if retry.loud else "",
            retry.at - now,
            retry.reason,
            notification.summary,
        )
        for item in items:
            item.attempts += 1
            item.next_at = retry.at

    def _land(self, items: list[Item], key: str, again: bool) -> None:
        """Ends a flight; `again` puts its events back, unless a later one of the key is there."""
        self._flying.discard(key)
        self._aloft = [item for item in self._aloft if not any(item is one for one in items)]
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

    def _replace(self, older: Item, newer: Item) -> None:
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

    def _finish(self, item: Item, state: RowState, reason: str = "") -> None:
        self._outbox.finish(self.notifier.name, item.row, state, reason)

    def _set_key(self, key: str, state: KeyState | None) -> None:
        self.keys.pop(key, None)  # So that the dict stays in the order of change.
        if state is not None:
            self.keys[key] = state
        self._outbox.key_changed(self.notifier.name, key, state)
