"""The loop: files are watched, blocks are read while the sink takes them, and what it took is kept each second.

Two tasks share the work. The watch looks for files and changes, flushes, closes and keeps, so that a rotation is seen
while the sink is away; the pump reads. Each step between two awaits is one block or one look, a few milliseconds.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsobs.config.logs import Elasticsearch, Logs
from dsobs.config.otlp import OtlpLogs
from dsobs.logs.batch import Batch
from dsobs.logs.checkpoint import Checkpoints
from dsobs.logs.dead_letters import DeadLetters
from dsobs.logs.delivery import Delivery
from dsobs.logs.failures import Seldom, encoded, letter, transformed
from dsobs.logs.feed import Feed
from dsobs.logs.formats import format_named
from dsobs.logs.lock import locked
from dsobs.logs.metrics import HELD
from dsobs.logs.pace import Pace
from dsobs.logs.patterns import OwnFiles, patterns
from dsobs.logs.record import Lines, Record
from dsobs.logs.siblings import raise_file_limit
from dsobs.logs.sinks import Sink, SinkSettings, open_sink, records_path
from dsobs.logs.sources import Sources, Steps
from dsobs.logs.spool import Spool
from dsobs.logs.status import Status, StatusFile
from dsobs.logs.tail import TruncatedError
from dsobs.logs.transforms import open_transforms
from dsobs.state import StateError

log = logging.getLogger(__name__)

_ECS_VERSION = "8.11.0"


class Shipper:
    """Ships what the settings name, until `stop`; with `once`, until all that is there is acknowledged."""

    def __init__(
        self,
        settings: Logs,
        directory: Path,
        *,
        service: str = "",
        once: bool = False,
        pace: Pace | None = None,
        on_tick: Callable[[Status], None] = lambda _: None,
        sink: str = "",
        spool: Spool | None = None,
    ) -> None:
        """`directory` holds `logs.db` and is made; `service` is used where the settings name none.

        `sink`: a plugin's name; empty: what the settings say. `spool`: it is run, the settings name the files in its
        folder, and shipping ends when it has ended and all of it is acknowledged.
        """
        self.settings = settings
        self.directory = directory
        self.unfinished: dict[str, int] = {}
        """With `once`: files whose last line has no end → its bytes, which were sent as they stand."""
        self._service = settings.service or service
        self._once, self._pace = once, pace or Pace()
        self._sink_name, self._spool = (
            sink or _sink_name(settings),
            spool,
        )
        self.running = False
        """It has opened everything, and ships."""
        self._on_tick = on_tick
        self._stopping = asyncio.Event()
        self._work = asyncio.Event()
        """There may be something to read."""
        self._batches: dict[str, Batch] = {}
        """By index, what is being filled."""
        self._full: deque[Batch] = deque()
        """What waits for room; while something does, nothing is read."""
        self._tell_failure = Seldom()
        self._kept_error = ""
        self._pump_idle = False
        self._failure: BaseException | None = None
        self._drains = True

    def stop(self, *, drain: bool = True) -> None:
        """Asks the loop to end; legal before the start and twice. `drain`: what is in flight gets a moment."""
        self._drains = drain
        self._stopping.set()
        self._work.set()

    async def run(self) -> None:
        """Until the end; LockedError, StateError, LookupError or OSError where it can't begin."""
        raise_file_limit()
        with locked(self.directory), contextlib.closing(Checkpoints(self.directory / "logs.db")) as checkpoints:
            if checkpoints.db.set_aside is not None:
                log.error("%s was unreadable and set aside; files are sent again, under the same ids", self.directory)
            self._checkpoints = checkpoints
            self._told = StatusFile(self.directory)
            for one in patterns(self.settings):
                format_named(one.format)
            self._transforms = open_transforms(self.settings)
            elastic = self.settings.elasticsearch
            sink: Sink = open_sink(self._sink_name, SinkSettings(self.settings, self.directory))
            self.delivery = Delivery(
                sink,
                DeadLetters(self.directory),
                most_in_flight=self._receiver.max_in_flight if self._receiver is not None else 1,
                retry_share=self._pace.retry,
                most_refused=elastic.max_refused if elastic is not None else 1.0,
            )
            origin = self.settings.origin or socket.gethostname()
            self.sources = Sources(
                self.settings,
                origin=origin,
                common=self._common(origin),
                transforms=self._transforms,
                kept=checkpoints.load(),
                new_id=checkpoints.new_id,
                first_run=checkpoints.first_run(),
                pace=self._pace,
                whole=self._once,
                spool=self._spool,
                own=OwnFiles(self.directory, records_path(self.settings, self.directory)),
            )
            try:
                if self._spool is not None:
                    self._spool.start()
                self.running = True
                await self._both()
            finally:
                self.running = False
                if self._spool is not None:
                    await asyncio.to_thread(self._spool.stop)
                    self._spool.close()
                await self.delivery.drain(self._pace.drain if self._drains and not self._failure else 0.0)
                await self._keep()
                status = self.status()
                self.sources.close_all()
                await sink.close()
                self._told.write(status)
                self._told.close()
                self._on_tick(status)

    def _common(self, origin: str) -> dict[str, Any]:
        fields: dict[str, Any] = {"ecs.version": _ECS_VERSION, "host.name": origin}
        if self._service:
            fields["service.name"] = self._service
        for pair in self.settings.labels:
            name, _, value = pair.partition("=")
            fields[f"labels.{name}"] = value
        return fields

    async def _both(self) -> None:
        tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._pump())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._failure = task.exception()
                if self._failure is not None:
                    raise self._failure
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._full += self._batches.values()
            self._submit_full()

    # The watch.

    async def _watch(self) -> None:
        scanned = ticked = float("-inf")
        while not self._stopping.is_set():
            now = time.monotonic()
            hurries = self._spool is not None and self._spool.ended and self.delivery.trouble is None
            if hurries or now - scanned >= (self._pace.scan if not self._once else float("inf")):
                scanned = now
                await self.sources.scan(now)
                if self._spool is not None:
                    self.sources.chain(self._spool)
                await asyncio.sleep(0)
            idle = self.sources.look(now)
            await self.sources.begin_anew(now)
            if self.sources.readable():
                self._work.set()
            if hurries or now - ticked >= self._pace.tick:
                ticked = now
                await self._tick(now)
            if self._once and self._done():
                return
            if self._spool is not None and self._spool.ended and self._spool.empty:
                return
            due = min(now + idle, ticked + self._pace.tick, scanned + self._pace.scan)
            pause = self._pace.look if hurries or self._once else max(due - now, self._pace.look)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _tick(self, now: float) -> None:
        self._end_gone(now)
        await self._keep()
        status = self.status()
        self._told.write(status)
        self._on_tick(status)

    def status(self) -> Status:
        """How it stands now."""
        return Status(
            total_bytes=self.sources.total_bytes,
            acknowledged_bytes=self.sources.acknowledged_bytes,
            behind_seconds=self.sources.behind_seconds,
            files=len(self.sources.feeds),
            in_flight=self.delivery.in_flight,
            trouble=("state", self._kept_error) if self._kept_error else self.delivery.trouble or self._spool_trouble,
            unreadable=dict(self.sources.unreadable),
            ever_sent=self.delivery.succeeded_at is not None,
        )

    @property
    def _spool_trouble(self) -> tuple[str, str] | None:
        return ("spool", self._spool.trouble) if self._spool is not None and self._spool.trouble else None

    def _end_gone(self, now: float) -> None:
        """Closes what is gone for good, after its last line was sent, and sends what parsers held for too long."""
        for feed in list(self.sources.active):
            if feed.tail.fd < 0 or feed.truncated or feed.cut:
                continue
            if not feed.drained or feed.id == 0:
                if (
                    feed.id == 0
                    and feed.gone_for_good(now, self._pace)
                    and feed.tail.size == 0
                    and self._may_close(feed)
                ):
                    self.sources.close(feed)
                continue
            if feed.holds and now - feed.moved_at >= self._pace.flush:
                self._add(feed, feed.flush(), feed.tail.position)
            over = feed.gone_for_good(now, self._pace) and not feed.progress.outstanding
            # Its writer may have come back since the last look.
            if over and self.sources.is_read(feed, now) and not self._rest(feed, gone=True) and self._may_close(feed):
                self.sources.close(feed)
        for feed in self.sources.leaving:
            if feed.holds:
                self._add(feed, feed.flush(), feed.tail.position)

    def _may_close(self, feed: Feed) -> bool:
        """Whether it may be closed: a segment only when that all of it is acknowledged is on disk; then it goes."""
        if not feed.queued or self._spool is None:
            return True
        if (
            feed.progress.outstanding
            or feed.holds
            or (feed.id and feed.kept_acknowledged != feed.progress.acknowledged)
        ):
            return False
        self._spool.release(feed.path)
        return True

    def _rest(self, feed: Feed, *, gone: bool) -> bool:
        """Adds the last line without its end; whether there was one."""
        try:
            pieces = feed.tail.rest(time.time(), gone=gone)
        except OSError as error:
            log.error("%s: %s", feed.path, error.strerror)
            return False
        for piece in pieces:
            self._add_lines(feed, piece)
        if feed.holds:
            self._add(feed, feed.flush(), feed.tail.position)
        return bool(pieces)

    async def _keep(self) -> None:
        """Commits what is acknowledged. While that fails nothing more is read."""
        changed, steps = [], Steps()
        for feed in list(self.sources.active):
            await steps.breathe()
            with contextlib.suppress(OSError):
                one = feed.checkpoint()
                if one is not None:
                    changed.append((feed, one))
        gone, self.sources.forgotten = self.sources.forgotten, []
        if not changed and not gone:
            return
        try:
            await self._checkpoints.save([one for _, one in changed], gone)
        except StateError as error:
            self.sources.forgotten += gone
            if self._kept_error != str(error):
                log.error("shipping pauses, what is acknowledged can't be kept: %s", error)
            self._kept_error = str(error)
            HELD.labels("state").set(1)
            return
        if self._kept_error:
            log.info("what is acknowledged is kept again")
        self._kept_error = ""
        HELD.labels("state").set(0)
        for feed, one in changed:
            feed.kept(one)
        self._work.set()

    # The pump.

    async def _pump(self) -> None:
        wait = self._wait_seconds()
        while not self._stopping.is_set():
            self._pump_idle = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._work.wait(), wait)
            self._work.clear()
            self._pump_idle = False
            while not self._stopping.is_set():
                ready = self.sources.readable() if not self._kept_error else []
                for feed in ready:
                    await self._room()
                    if feed.readable and not self.sources.scanning:
                        self._read(feed)
                    await asyncio.sleep(0)
                ends = self._once or (self._spool is not None and self._spool.ended)
                self._close_aged(everything=ends and not ready)
                self._submit_full()
                if not ready:
                    break
            wait = self._wait_seconds()

    def _read(self, feed: Feed) -> None:
        """One block of it."""
        before = feed.tail.position
        try:
            pieces = feed.tail.read(time.time())
        except TruncatedError:
            self.sources.truncated(feed)
            return
        except OSError as error:
            self.sources.cannot_read(str(feed.path), error)
            # With `once` that is its end, and is told.
            feed.failing, feed.ending = True, self._once
            return
        self.sources.could_read(str(feed.path))
        for piece in pieces:
            self._add_lines(feed, piece)
        if feed.tail.position == before:
            feed.drained = True
        if self._once and (feed.drained or feed.at_goal):
            self._end_of(feed)

    def _end_of(self, feed: Feed) -> None:
        """With `once`: all that was there at the start, and so also what has no end."""
        if not feed.at_goal:
            if not self.sources.is_read(feed, time.monotonic()):
                return
            if self._rest(feed, gone=False):
                self.unfinished[str(feed.path)] = feed.tail.behind
        if feed.holds:
            self._add(feed, feed.flush(), feed.tail.position)
        feed.ending = True

    def _add_lines(self, feed: Feed, lines: Lines) -> None:
        records = feed.parse(lines)
        self._add(feed, records, feed.done_to(lines))

    def _add(self, feed: Feed, records: list[Record], end: int) -> None:
        """To be sent; with them everything before offset `end` is done with."""
        records, failed = transformed(self._transforms, records, self._tell_failure)
        if not records and not failed:
            feed.progress.done(feed.progress.begin(end))
        several = False
        while records:
            batch = self._batch(feed)
            some = records[: self._bulk_records - batch.count]
            records = records[len(some) :]
            body, count, bad = encoded(feed.encode, some, self._tell_failure)
            failed += bad
            # Up to what is still to come; but nobody knows where a record of several lines ends, whose lines may stand
            # between others, and reading must not begin inside it.
            several = several or (bool(records) and any(b"\n" in raw for _, raw, _ in some))
            done = end if not records else 0 if several else min(end, *(start for start, _, _ in records))
            batch.add(body, count, feed.progress, 0 if failed else done)
            if batch.size >= self._bulk_bytes or batch.count >= self._bulk_records:
                self._full.append(self._batches.pop(batch.index))
        if failed:
            letters = Batch(self._index(feed), time.monotonic(), refusals=[why for _, why in failed])
            body = b"".join(letter(feed.encode, record, time.time()) for record, _ in failed)
            letters.add(body, len(failed), feed.progress, end)
            self._full.append(letters)
            self._work.set()

    def _index(self, feed: Feed) -> str:
        return self.settings.index or f"logs-dsobs.{feed.dataset}-{self.settings.namespace}"

    def _batch(self, feed: Feed) -> Batch:
        """The one that records of `feed` are added to."""
        index = self._index(feed)
        batch = self._batches.get(index)
        if batch is None:
            batch = self._batches[index] = Batch(index, time.monotonic())
            # Whoever adds to it, the pump sends it when it is due.
            self._work.set()
        return batch

    @property
    def _receiver(self) -> Elasticsearch | OtlpLogs | None:
        return self.settings.elasticsearch or self.settings.otlp

    @property
    def _bulk_bytes(self) -> int:
        return self._receiver.bulk_bytes if self._receiver is not None else 4 * 1024 * 1024

    @property
    def _bulk_records(self) -> int:
        return self._receiver.bulk_records if self._receiver is not None else 10_000

    @property
    def _bulk_wait(self) -> float:
        return self._receiver.bulk_wait if self._receiver is not None else 0.2

    async def _room(self) -> None:
        """Waits until what is full is under way, and there is room for more."""
        self._submit_full()
        while not self.delivery.has_room():
            await self.delivery.room()
            self._submit_full()

    def _submit_full(self) -> None:
        while self._full and self.delivery.has_room():
            self.delivery.submit(self._full.popleft())

    def _close_aged(self, *, everything: bool) -> None:
        """Adds no more to those that waited long enough."""
        now = time.monotonic()
        for batch in list(self._batches.values()):
            if everything or now - batch.began >= self._bulk_wait:
                self._full.append(self._batches.pop(batch.index))

    def _wait_seconds(self) -> float | None:
        """Until the oldest batch is due."""
        if self._full:
            return self._pace.look
        if not self._batches:
            return None
        due = min(batch.began for batch in self._batches.values()) + self._bulk_wait
        return max(0.001, due - time.monotonic())

    def _done(self) -> bool:
        """With `once`: everything that is there was read, and is acknowledged."""
        return (
            self._pump_idle
            and not self._work.is_set()
            and not self._batches
            and not self._full
            and not self.delivery.in_flight
            and not self.sources.beginning_anew
            and not any(feed.readable for feed in self.sources.feeds.values())
        )


def _sink_name(settings: Logs) -> str:
    if settings.elasticsearch is not None:
        return "elasticsearch"
    return "otlp" if settings.otlp is not None else "file"
