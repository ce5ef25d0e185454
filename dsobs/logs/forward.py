"""From the file sink to Elasticsearch: what a site kept while it was offline, in order, no faster than was set.

The sink's files are the queue. Each record goes on under the id and to the data stream that stand in its line, so that
one that is sent again is found to be there. One request is under way at a time. A file that the disk budget takes away
before it was sent is given up and counted.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from dsobs.logs.batch import Batch
from dsobs.logs.checkpoint import Checkpoint, Checkpoints, Progress
from dsobs.logs.dead_letters import DeadLetters
from dsobs.logs.delivery import Delivery
from dsobs.logs.identity import HEAD_BYTES, MARK_BYTES, Fingerprint, fingerprint, mark
from dsobs.logs.lock import locked
from dsobs.logs.metrics import FORWARD_WAITING, HELD, LOST
from dsobs.logs.pace import Pace
from dsobs.logs.search import sink_files
from dsobs.logs.sinks import Sink, SinkSettings, open_sink
from dsobs.logs.status import Status, StatusFile
from dsobs.logs.tail import FileId, file_id
from dsobs.state import StateError

log = logging.getLogger(__name__)

BLOCK_BYTES = 256 * 1024
MAX_LINE_BYTES = 64 * 1024 * 1024
"""A longer one is no record of the sink's."""
_INDEX, _ID = b'{"_index":"', b'","_id":"'


@dataclass(slots=True)
class Kept:
    """One file of the sink."""

    id: int
    path: Path
    fd: int
    where: FileId
    fingerprint: Fingerprint
    progress: Progress
    position: int = 0
    """Offset of the first line that is still to be read."""
    size: int = 0
    before: bytes = b""
    """What stood before the position when it was read."""
    saved: int = -1
    """The acknowledged position that is on disk."""
    current: bool = True
    """The sink may still write to it."""


class Forwarder:
    """Sends what stands in the sink's files, until `stop`; with `once`, until all that is there is acknowledged."""

    def __init__(
        self,
        settings: SinkSettings,
        path: Path,
        *,
        most_bytes_per_second: float = 0.0,
        once: bool = False,
        pace: Pace | None = None,
        on_tick: Callable[[Status], None] = lambda _: None,
    ) -> None:
        """`path` is the sink's file; its state is kept in the settings' `directory`, which is another than the
        shipper's. A rate of 0 is none."""
        assert settings.logs.elasticsearch is not None
        self._elastic = settings.logs.elasticsearch
        self._settings, self.path = settings, path
        self._rate = most_bytes_per_second
        self._once, self._pace, self._on_tick = once, pace or Pace(), on_tick
        self.directory = settings.directory
        self.unfinished: dict[str, int] = {}
        """None: the sink writes whole lines."""
        self._drains = True
        self._stopping = asyncio.Event()
        self._files: list[Kept] = []
        """Oldest first."""
        self._leaving: list[Kept] = []
        """Given up, with records under way."""
        self._not_before = 0.0
        """Loop time of the next request, by the rate."""
        self._forgotten: list[int] = []
        """Ids of checkpoints that are of no use any more."""
        self._kept_error = ""

    def stop(self, *, drain: bool = True) -> None:
        """Asks it to end; legal before the start and twice. `drain`: what is in flight gets a moment."""
        self._drains = drain
        self._stopping.set()

    async def run(self) -> None:
        """Until the end; LockedError, StateError, LookupError or OSError where it can't begin."""
        directory = self._settings.directory
        with locked(directory), contextlib.closing(Checkpoints(directory / "logs.db")) as checkpoints:
            self._checkpoints = checkpoints
            self._known = checkpoints.load()
            self._told = StatusFile(directory)
            sink: Sink = open_sink("elasticsearch", self._settings)
            self._delivery = Delivery(
                sink,
                DeadLetters(directory),
                most_in_flight=1,
                most_refused=self._elastic.max_refused,
                retry_share=self._pace.retry,
            )
            try:
                await self._loop()
            finally:
                await self._delivery.drain(self._pace.drain if self._drains else 0.0)
                await self._keep()
                self._tell()
                self._told.close()
                for one in self._files:
                    os.close(one.fd)
                self._files.clear()
                await sink.close()

    async def _loop(self) -> None:
        ticked = float("-inf")
        while not self._stopping.is_set():
            now = asyncio.get_running_loop().time()
            if now - ticked >= self._pace.tick:
                ticked = now
                self._look()
                await self._keep()
                self._tell()
            batch = None
            if self._delivery.has_room() and now >= self._not_before and not self._kept_error:
                batch = self._next_batch()
            if batch is not None:
                if self._rate:
                    self._not_before = max(now, self._not_before) + batch.size / self._rate
                self._delivery.submit(batch)
            elif self._once and self._done():
                self._look()
                if self._done():
                    return
            with contextlib.suppress(TimeoutError):
                if batch is None:
                    await asyncio.wait_for(self._stopping.wait(), self._pace.look)
                else:
                    await asyncio.wait_for(self._delivery.room(), self._pace.tick)

    def _done(self) -> bool:
        return not self._delivery.in_flight and not any(one.position < one.size for one in self._files)

    def _tell(self) -> None:
        status = self.status()
        FORWARD_WAITING.set(status.total_bytes - status.acknowledged_bytes)
        self._told.write(status)
        self._on_tick(status)

    def status(self) -> Status:
        """How it stands now."""
        return Status(
            total_bytes=sum(one.size for one in self._files),
            acknowledged_bytes=sum(one.progress.acknowledged for one in self._files),
            files=len(self._files),
            in_flight=self._delivery.in_flight,
            trouble=("state", self._kept_error) if self._kept_error else self._delivery.trouble,
            ever_sent=self._delivery.succeeded_at is not None,
        )

    # Files.

    def _look(self) -> None:
        """Which files there are now, and how large."""
        found = self._stable_list()
        places = {where: number for number, (where, _) in enumerate(found)}
        for where, path in found:
            if all(one.where != where for one in self._files):
                self._open(path, where)
        for one in [one for one in self._leaving if not one.progress.outstanding]:
            self._leaving.remove(one)
            self._forgotten.append(one.id)
        for one in list(self._files):
            status = os.fstat(one.fd)
            one.size = status.st_size
            if status.st_nlink == 0:
                self._give_up(one)
            elif one.where in places:
                one.path = found[places[one.where]][1]
                one.current = one.path == self.path
        self._files.sort(key=lambda one: places.get(one.where, -1))
        if self._files:
            # What was kept of files that went while nobody forwarded.
            for known in self._known:
                self._lose(known.size - known.acknowledged)
                self._forgotten.append(known.id)
            self._known.clear()

    def _stable_list(self) -> list[tuple[FileId, Path]]:
        """The sink's files, oldest first; it may rotate them at any moment, so that two looks must agree."""
        before: list[tuple[FileId, Path]] | None = None
        while True:
            found = []
            for path in sink_files(self.path):
                with contextlib.suppress(FileNotFoundError):
                    found.append((file_id(path.stat()), path))
            if found == before:
                return found
            before = found

    def _open(self, path: Path, where: FileId) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        first = fingerprint(os.pread(fd, HEAD_BYTES, 0), complete=path != self.path)
        if first is None or file_id(os.fstat(fd)) != where:
            os.close(fd)
            return
        known = next((one for one in self._known if one.fingerprint == first), None)
        if known is None:
            id_, acknowledged = self._checkpoints.new_id(), 0
        else:
            id_, acknowledged = known.id, known.acknowledged
            self._known.remove(known)
        kept = Kept(id_, path, fd, where, first, Progress(acknowledged), acknowledged)
        kept.size = os.fstat(fd).st_size
        self._files.append(kept)

    def _give_up(self, one: Kept) -> None:
        """The budget took its name: it holds disk space no longer."""
        self._lose(one.size - one.position)
        one.size = one.position
        os.close(one.fd)
        self._files.remove(one)
        self._leaving.append(one)

    @staticmethod
    def _lose(size: int) -> None:
        if size > 0:
            LOST.labels("disk_budget").inc(size)
            log.error("%d bytes were taken by the disk budget (logs.file.max_bytes) before they were sent", size)

    # Records.

    def _next_batch(self) -> Batch | None:
        """From the oldest file with something to send."""
        for one in self._files:
            if one.current:
                one.size = os.fstat(one.fd).st_size
            if one.size != one.position:
                batch = self._read(one)
                if batch is not None:
                    return batch
                if one.current:
                    break
        return None

    def _read(self, one: Kept) -> Batch | None:
        """Records of one index, as many as a request takes; None where no whole line is there."""
        batch: Batch | None = None
        most = self._elastic.bulk_bytes
        if self._rate:
            most = min(most, max(16 * 1024, int(self._rate)))
        while batch is None or (batch.size < most and batch.count < self._elastic.bulk_records):
            data = self._block(one, min(BLOCK_BYTES, most))
            if not data:
                break
            at = 0
            for index, bodies, size in runs(data[:-1].split(b"\n"), self._settings.logs.index):
                if batch is not None and index not in (None, batch.index):
                    return batch
                at += size
                if index is None:
                    self._pass_over(one, size)
                else:
                    batch = batch or Batch(index, time.monotonic())
                    one.position += size
                    batch.add(b"".join(bodies), len(bodies), one.progress, one.position)
                one.before = data[max(0, at - MARK_BYTES) : at]
        return batch

    def _block(self, one: Kept, size: int) -> bytes:
        """The next whole lines. What is no line is passed over, once nothing can come behind it."""
        before = len(one.before)
        while True:
            data = os.pread(one.fd, before + size, one.position - before)
            if not data.startswith(one.before):
                self._rewind(one)
                return b""
            end = data.rfind(b"\n", before) + 1
            if end:
                return data[before:end]
            if len(data) < before + size:
                if len(data) > before and not one.current:
                    self._pass_over(one, len(data) - before)
                return b""
            if size >= MAX_LINE_BYTES:
                self._pass_over(one, size)
                return b""
            size *= 4

    def _rewind(self, one: Kept) -> None:
        """The sink took back lines of a batch that it could not write whole: what is there is sent again."""
        log.warning(
            "%s was cut behind what was sent; it is sent again from its beginning, under the same ids", one.path
        )
        one.progress, one.position, one.before, one.saved = Progress(), 0, b"", -1

    def _pass_over(self, one: Kept, size: int) -> None:
        LOST.labels("no_record").inc(size)
        log.error("%s: %d bytes from offset %d are no record and left out", one.path, size, one.position)
        one.position += size
        one.before = b""
        one.progress.done(one.progress.begin(one.position))

    # Keeping.

    async def _keep(self) -> None:
        """Commits what is acknowledged. While that fails nothing more is sent."""
        changed = [one for one in (*self._files, *self._leaving) if one.progress.acknowledged != one.saved]
        rows = [
            Checkpoint(one.id, one.path, *one.where, one.fingerprint, one.progress.acknowledged, mark(b""), one.size, 0)
            for one in changed
        ]
        gone = list(self._forgotten)
        if not rows and not gone:
            return
        try:
            await self._checkpoints.save(rows, gone)
        except StateError as error:
            if self._kept_error != str(error):
                log.error("forwarding pauses, what is acknowledged can't be kept: %s", error)
            self._kept_error = str(error)
            HELD.labels("forward_state").set(1)
            return
        self._kept_error = ""
        HELD.labels("forward_state").set(0)
        self._forgotten = self._forgotten[len(gone) :]
        for one, row in zip(changed, rows, strict=True):
            one.saved = row.acknowledged


def runs(lines: Iterable[bytes], index: str = "") -> Iterator[tuple[str | None, list[bytes], int]]:
    """(index, bodies, bytes of their lines) of neighbours with the same index; None where lines are no records.

    `index` stands for what the lines say, unless it is empty.
    """
    running: str | None = None
    bodies: list[bytes] = []
    size = 0
    for line in lines:
        record = parse(line)
        where = None if record is None else index or record[0]
        if size and where != running:
            yield running, bodies, size
            bodies, size = [], 0
        running = where
        size += len(line) + 1
        if record is not None:
            bodies.append(record[1])
    if size:
        yield running, bodies, size


def parse(line: bytes) -> tuple[str, bytes] | None:
    """(index, body of one record) of a line that the file sink wrote; None if it is none."""
    end = line.find(b'"', len(_INDEX))
    behind = end + len(_ID)
    stop = line.find(b'"', behind)
    if not line.startswith(_INDEX) or line[end:behind] != _ID or stop < 0 or line[stop + 1 : stop + 2] != b",":
        return None
    try:
        orjson.loads(line)
    except ValueError:
        return None
    index = line[len(_INDEX) : end].decode("ascii", "replace")
    return index, b'{"create":{"_id":"%b"}}\n{%b\n' % (line[behind:stop], line[stop + 2 :])
