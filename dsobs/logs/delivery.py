"""Batches to the sink until every record is decided: taken, there already, or put to the dead letters.

The answers are judged by `retry.decide`; this is the one place that does what it says.
"""

import asyncio
import logging
import time
from collections import deque

from dsobs.logs.as_text import as_text
from dsobs.logs.batch import Batch, split
from dsobs.logs.concurrency import Concurrency
from dsobs.logs.dead_letters import DeadLetters, DeadLettersFullError
from dsobs.logs.metrics import ATTEMPTS, HELD, IN_FLIGHT_LIMIT, RECORDS
from dsobs.logs.retry import HOLD_DELAY, Action, decide
from dsobs.logs.sinks import Answer, Refusal, Sink

log = logging.getLogger(__name__)

WINDOW = 1000
"""Records over which the share of refused ones is taken."""
FEW = 20
"""So many refused records in the window never hold shipping, whatever their share."""
TELL_SECONDS = 60.0
"""A trouble that comes and goes is logged at most this often."""
HOLD_REASONS = ("refused_records", "authorization", "index", "dead_letters")


class Window:
    """Of the last `WINDOW` records, how many were refused for good."""

    def __init__(self, most: float) -> None:
        self._most = most
        self._runs: deque[tuple[int, int]] = deque()
        """(records, refused among them) of each answer, newest last."""
        self._records = self._refused = 0

    def allows(self, refused: int, records: int) -> bool:
        """Whether so many refused ones among so many more records are still few."""
        together = self._refused + refused
        return together <= FEW or together <= self._most * max(WINDOW, self._records + records)

    def add(self, refused: int, records: int) -> None:
        """So many records were decided on."""
        records, refused = min(records, WINDOW), min(refused, WINDOW)
        self._runs.append((records, refused))
        self._records += records
        self._refused += refused
        while self._records - self._runs[0][0] >= WINDOW:
            records, refused = self._runs.popleft()
            self._records -= records
            self._refused -= refused


class Delivery:
    """Requests in flight, and what follows from their answers."""

    def __init__(
        self,
        sink: Sink,
        dead_letters: DeadLetters,
        *,
        most_in_flight: int,
        most_refused: float,
        retry_share: float = 1.0,
    ) -> None:
        self._sink = sink
        self._dead_letters = dead_letters
        self._retry_share = retry_share
        self._concurrency = Concurrency(most_in_flight)
        self._window = Window(most_refused)
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._putting = asyncio.Lock()
        self._troubles: dict[str, str] = {}
        """What goes wrong now → what is said of it; reasons of HOLD_REASONS are those that somebody must mend."""
        self._told_at: dict[str, float] = {}
        self._well_at = 0.0
        """When the last trouble was over."""
        self.succeeded_at: float | None = None
        """Monotonic time of the last record that was taken."""
        for reason in HOLD_REASONS:
            HELD.labels(reason).set(0)

    # Room.

    @property
    def in_flight(self) -> int:
        """Batches that are not decided."""
        return len(self._tasks)

    def has_room(self) -> bool:
        """Another batch may be begun."""
        return len(self._tasks) < self._concurrency.limit

    async def room(self) -> None:
        """Waits for it."""
        while not self.has_room():
            self._changed.clear()
            await self._changed.wait()

    @property
    def trouble(self) -> tuple[str, str] | None:
        """(reason, what is said of it) of what keeps records from being sent, those that must be mended first."""
        for reason in (*HOLD_REASONS, *self._troubles):
            if reason in self._troubles:
                return reason, self._troubles[reason]
        return None

    # Delivering.

    def submit(self, batch: Batch) -> None:
        """Begins to deliver it."""
        task = asyncio.get_running_loop().create_task(self._deliver(batch))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._changed.set()
        if not task.cancelled() and task.exception() is not None:
            log.critical("a batch could not be handled", exc_info=task.exception())

    async def drain(self, seconds: float) -> None:
        """Waits so long for what is in flight, then gives it up; it is sent again after the next start."""
        if self._tasks and seconds > 0:
            await asyncio.wait(self._tasks, timeout=seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _deliver(self, batch: Batch) -> None:
        if batch.refusals:
            letters = list(zip(split(batch.pieces), batch.refusals, strict=True))
            while not await self._put_aside(batch.index, letters):
                await self._pause(HOLD_DELAY)
        else:
            await self._send(batch.index, batch.pieces, batch.count)
        batch.done()

    async def _send(self, index: str, pieces: list[bytes], count: int) -> None:
        attempt = 0
        while count:
            attempt += 1
            answer = await self._attempt(index, pieces, count)
            if answer.status == 200:
                pieces, count, delay = await self._sort(index, pieces, count, answer, attempt)
                if count:
                    await self._pause(delay)
                continue
            decision = decide(answer.status, answer.type, attempt, count=count, retry_after=answer.retry_after)
            if decision.action is Action.SPLIT:
                records = split(pieces)
                half = len(records) // 2
                await self._send(index, records[:half], half)
                pieces, count, attempt = records[half:], len(records) - half, 0
                continue
            if decision.action is Action.DEAD_LETTER:
                refusal = Refusal(answer.status or 0, answer.type, answer.detail)
                kept = await self._put_aside(index, [(record, refusal) for record in split(pieces)], count)
                if kept:
                    return
                await self._pause(HOLD_DELAY)
                continue
            self._in_trouble(_hold_reason(answer) if decision.action is Action.HOLD else "sink", answer.detail)
            await self._pause(decision.delay)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._retry_share)

    async def _attempt(self, index: str, pieces: list[bytes], count: int) -> Answer:
        began = time.monotonic()
        try:
            answer = await self._sink.send(index, pieces, count)
        except Exception as error:
            # It may be anybody's plugin. Whether the records were taken is unknown.
            log.exception("the sink failed")
            answer = Answer(None, detail=f"the sink failed: {error!r}")
        now = time.monotonic()
        full = answer.status in (None, 429, 503) or any(one.status == 429 for one in answer.refused.values())
        if full:
            self._concurrency.pushed_back(now)
        elif answer.status == 200:
            self._concurrency.succeeded(now - began, now)
        IN_FLIGHT_LIMIT.set(self._concurrency.limit)
        ATTEMPTS.labels(str(answer.status or "no_answer")).inc()
        self._changed.set()
        return answer

    async def _sort(
        self, index: str, pieces: list[bytes], count: int, answer: Answer, attempt: int
    ) -> tuple[list[bytes], int, float]:
        """Settles the records that are decided; gives those to send again, how many, and after how many seconds."""
        duplicates = 0
        delay = 0.0
        again: list[int] = []
        bad: list[tuple[int, Refusal]] = []
        trouble: tuple[str, str] | None = None
        for number, refusal in answer.refused.items():
            decision = decide(refusal.status, refusal.type, attempt)
            if decision.action is Action.DONE:
                duplicates += 1
            elif decision.action is Action.DEAD_LETTER:
                bad.append((number, refusal))
            else:
                again.append(number)
                delay = max(delay, decision.delay)
                held = decision.action is Action.HOLD
                text = f"records are refused: {refusal.type or refusal.status}: {refusal.reason}"
                trouble = (_hold_reason(Answer(refusal.status, type=refusal.type)) if held else "sink", text)
        taken = count - len(answer.refused)
        RECORDS.labels("sent").inc(taken - answer.quarantined - answer.rejected)
        RECORDS.labels("quarantined").inc(answer.quarantined)
        RECORDS.labels("rejected").inc(answer.rejected)
        RECORDS.labels("duplicate").inc(duplicates)
        self._window.add(0, taken + duplicates)
        if taken or duplicates:
            self.succeeded_at = time.monotonic()
        records = split(pieces) if again or bad else []
        for number, refusal in list(bad):
            words = as_text(records[number], refusal)
            if words is not None:
                records[number] = words
                again.append(number)
                bad.remove((number, refusal))
        if bad and not await self._put_aside(index, [(records[number], refusal) for number, refusal in bad], count):
            again += [number for number, _ in bad]
            delay = max(delay, HOLD_DELAY)
        elif trouble is not None:
            self._in_trouble(*trouble)
        else:
            self._recovered()
        return [records[number] for number in sorted(again)], len(again), delay

    async def _put_aside(self, index: str, letters: list[tuple[bytes, Refusal]], count: int | None = None) -> bool:
        """Whether these records are with the dead letters; False: they must be held.

        `count`: of how many that were sent with them; None: they were not sent, so that the server is not to blame.
        """
        said = f"{letters[0][1].type or letters[0][1].status}: {letters[0][1].reason}"
        if count is not None and not self._window.allows(len(letters), count):
            self._in_trouble(
                "refused_records",
                f"more than logs.elasticsearch.max_refused of the records are refused, as by a wrong template: {said}",
            )
            return False
        try:
            # One at a time, for they are in one file; not in the loop, for it is synced.
            async with self._putting:
                await asyncio.to_thread(self._dead_letters.add, index, letters, time.time())
        except (OSError, DeadLettersFullError) as error:
            self._in_trouble("dead_letters", f"dead letters can't be kept: {error}")
            return False
        if count is not None:
            self._window.add(len(letters), len(letters))
        if self._troubles.pop("dead_letters", None):
            HELD.labels("dead_letters").set(0)
        RECORDS.labels("dead_letter").inc(len(letters))
        log.warning("%d records refused and put to %s; the first: %s", len(letters), self._dead_letters.path, said)
        return True

    # Telling.

    def _in_trouble(self, reason: str, text: str) -> None:
        if reason in HOLD_REASONS:
            HELD.labels(reason).set(1)
        now = time.monotonic()
        if reason not in self._troubles and now - self._told_at.get(reason, float("-inf")) >= TELL_SECONDS:
            self._told_at[reason] = now
            log.error("%s; trying again, nothing is lost", text)
        self._troubles[reason] = text

    def _recovered(self) -> None:
        if any(self._told_at.get(reason, 0.0) > self._well_at for reason in self._troubles):
            log.info("records are taken again")
        if self._troubles:
            self._well_at = time.monotonic()
        for reason in self._troubles:
            if reason in HOLD_REASONS:
                HELD.labels(reason).set(0)
        self._troubles.clear()


def _hold_reason(answer: Answer) -> str:
    return "authorization" if answer.status in (401, 403, 407) and "block" not in answer.type else "index"
