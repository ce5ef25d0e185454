"""Which files there are: patterns looked up, generations opened, followed through rotation, and closed.

A path is a name only. What is read is a generation (`Feed`), known by device and inode while it is open and by its
first line and checkpoint afterwards. No step takes more than a few milliseconds for 1,000 files; what may take longer
(large folders, compressed files) is done in a thread.
"""

import asyncio
import errno
import itertools
import logging
import os
import time
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from dsobs.config.logs import Logs
from dsobs.logs.checkpoint import Checkpoint
from dsobs.logs.feed import Feed
from dsobs.logs.identity import Fingerprint, stem
from dsobs.logs.metrics import BEHIND_BYTES, BEHIND_SECONDS, FILES, LOST
from dsobs.logs.pace import Pace
from dsobs.logs.patterns import COMPRESSED, Pattern, found_by, patterns
from dsobs.logs.siblings import Folders, find_between, find_compressed_between, find_moved, is_of, open_tail
from dsobs.logs.spool import Spool
from dsobs.logs.tail import Change, FileId, Tail
from dsobs.logs.transforms import Transform

log = logging.getLogger(__name__)

BUSY_SECONDS = 20.0
"""A file that grew within this time is looked at more often, the more often the shorter ago that was."""
QUIET_SHARE = 0.1
"""Of the time that it has not grown for, so much may pass until it is looked at again."""
_UNPACK = "gunzip -c FILE | dsobs logs ship --from - sends what is in one"
STEP_SECONDS = 0.005
"""So long others wait for a loop over files."""


class Steps:
    """A loop over files lets others have their turn."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()

    async def breathe(self) -> None:
        """After each file."""
        if time.perf_counter() - self._begun >= STEP_SECONDS:
            await asyncio.sleep(0)
            self._begun = time.perf_counter()


class Sources:
    """All files of the settings."""

    def __init__(
        self,
        settings: Logs,
        *,
        origin: str,
        common: Mapping[str, Any],
        transforms: list[Transform],
        kept: Iterable[Checkpoint],
        new_id: Callable[[], int],
        first_run: bool,
        pace: Pace,
        whole: bool = False,
        spool: Spool | None = None,
        own: Container[str] = (),
    ) -> None:
        """`kept`: the checkpoints, of which each is used once. `first_run`: there never were any. `own`: paths that
        are no logs, for the shipper writes them itself.

        `whole`: what is there at the start is all, nothing is waited for. `spool`: what files in its folder are of.
        """
        self.feeds: dict[FileId, Feed] = {}
        """Open generations, by the file that they are in."""
        self.leaving: list[Feed] = []
        """Generations of which nothing can be read any more, with records that are held or under way."""
        self.behind_seconds = 0.0
        """Age of the oldest line that is not acknowledged."""
        self.unreadable: dict[str, str] = {}
        """Path → why it can't be read."""
        self.forgotten: list[int] = []
        """Ids of checkpoints that are of no use any more; whoever saves empties it."""
        self._settings, self._origin, self._common, self._transforms = settings, origin, common, transforms
        self._patterns = patterns(settings)
        self._kept = {one.id: one for one in kept}
        self._new_id = new_id
        self._from_end = first_run and settings.from_end
        self._whole, self._pace, self._spool, self._own = whole, pace, spool, own
        self._scanned = False
        self._all_looked_at = float("-inf")
        self.active: list[Feed] = []
        """Those that grew lately, or of which something is to be read, acknowledged or kept: looked at more often."""
        self.total_bytes = 0
        """Of all files that are open, as at the last look at all."""
        self._quiet_bytes = 0
        """Acknowledged bytes of those that are not active."""
        self.scanning = False
        """Files are being found, and nothing may be read until it is known which come before which."""
        self._cut: list[Feed] = []
        """Files that begin anew, to be dealt with."""
        self._kept_by: dict[Fingerprint, list[Checkpoint]] = {}
        for one in self._kept.values():
            self._kept_by.setdefault(one.fingerprint, []).append(one)

    # Looking for files.

    async def scan(self, now: float) -> None:
        """Looks for files that came or went."""
        due = [pattern for pattern in self._patterns if pattern.is_due(now, self._pace.deep_scan)]
        if not due:
            return
        for pattern in due:
            await asyncio.to_thread(pattern.look_up, now)
        found, failed = await asyncio.to_thread(found_by, self._patterns, self._settings.exclude, self._own)
        self.scanning = True
        for path, error in (*failed, *self._compressed(due)):
            self.cannot_read(path, error)
        try:
            await self._compare(found, now)
        finally:
            self.scanning = False

    async def _compare(self, found: Mapping[FileId, tuple[str, Pattern]], now: float) -> None:
        """What there is with what is open."""
        steps = Steps()
        for where, feed in self.feeds.items():
            if where in found:
                path = found[where][0]
                if str(feed.tail.path) != path:
                    feed.tail.path, feed.moved_at = Path(path), now
                feed.gone_at = None
            elif feed.gone_at is None:
                feed.gone_at = feed.moved_at = now
        new = [(path, pattern) for where, (path, pattern) in found.items() if where not in self.feeds]
        gone = [
            one
            for one in (*self.feeds.values(), *self.leaving)
            if (one.gone_at is not None or one.truncated) and one.tail.fd >= 0
        ]
        for path, pattern in new:
            self._add(path, pattern, now, gone)
            await steps.breathe()
        if not self._scanned:
            self._scanned = True
            await self._look_for_moved(now)
            self._from_end = False
        wanted = {path for one in self._patterns for path in (*one.found, *one.compressed, *one.closed)}
        for path in self.unreadable.keys() - wanted:
            del self.unreadable[path]
        before = set(map(id, self.active))
        self.active += [feed for feed in self.feeds.values() if feed.moved_at == now and id(feed) not in before]
        FILES.set(len(self.feeds))

    def _compressed(self, due: Iterable[Pattern]) -> list[tuple[str, OSError]]:
        """Those that were asked for; others of all that is there are named."""
        asked: list[tuple[str, OSError]] = []
        for one in due:
            if one.glob.endswith(COMPRESSED):
                asked += [(path, OSError(errno.EINVAL, f"it is compressed; {_UNPACK}")) for path in one.compressed]
            elif self._whole and one.compressed:
                log.warning(
                    "%s and others of %s are compressed and passed over; %s", one.compressed[0], one.glob, _UNPACK
                )
        return asked

    def chain(self, spool: Spool) -> None:
        """Segments are read one after the other, each to its end once there is another. To be called after `scan`."""
        ended = spool.ended
        segments = sorted((one for one in self.feeds.values() if one.queued), key=lambda one: one.path.name)
        for feed in segments[:1]:
            feed.after = None
        for before, feed in itertools.pairwise(segments):
            feed.after = before
        for feed in segments:
            if not feed.complete and (ended or spool.is_complete(feed.path)):
                # What was found to be its end may not be it.
                feed.complete, feed.drained = True, False
                if all(one is not feed for one in self.active):
                    self.active.append(feed)

    def cannot_read(self, path: str, error: OSError) -> None:
        """Tells it once."""
        if isinstance(error, FileNotFoundError):
            return
        why = error.strerror or type(error).__name__
        if self.unreadable.get(path) != why:
            log.error("%s can't be read: %s", path, why)
        self.unreadable[path] = why

    def _add(self, path: str, pattern: Pattern, now: float, gone: Iterable[Feed]) -> None:
        try:
            tail = open_tail(Path(path), self._settings.max_line_bytes)
        except OSError as error:
            self.cannot_read(path, error)
            return
        self.unreadable.pop(path, None)
        if tail is not None:
            feed = Feed(tail, pattern.format, pattern.text, now)
            feed.queued = self._spool is not None and feed.path.parent == self._spool.folder
            self._begin(feed, now, gone)

    def _begin(self, feed: Feed, now: float, gone: Iterable[Feed]) -> None:
        """Follows a generation that is new here; those before it of the same name, of `gone`, are finished first."""
        where = (feed.tail.device, feed.tail.inode)
        if where in self.feeds:
            feed.tail.close()
            return
        before = _newest(gone, stem(feed.path))
        self.feeds[where] = feed
        if before is not None:
            for tail in find_between(
                feed.path, before.tail.modified, self._taken, self._settings.max_line_bytes, Folders()
            ):
                between = Feed(tail, feed.format, feed.source, now)
                between.gone_at, between.after, before = now, before, between
                self.feeds[tail.device, tail.inode] = between
                self._identify(between)
            feed.after = before
        self._identify(feed)

    def _taken(self, where: FileId) -> bool:
        return where in self.feeds

    def _identify(self, feed: Feed) -> None:
        """Gives the generation its checkpoint, once its first line is there and can be read."""
        try:
            self._give_checkpoint(feed)
        except OSError as error:
            self.cannot_read(str(feed.path), error)
            feed.id, feed.failing = 0, True

    def _give_checkpoint(self, feed: Feed) -> None:
        tail = feed.tail
        if not tail.identify(complete=self._whole or feed.complete or feed.gone_at is not None):
            return
        if self._whole:
            feed.goal = tail.size
        assert tail.fingerprint is not None
        alike = self._kept_by.get(tail.fingerprint, ())
        own = [one for one in alike if one.id in self._kept and is_of(tail, one)]
        if feed.queued:
            own = [one for one in own if one.path.name == feed.path.name]
        # Several may fit by their first lines: the one in the same place, then the one that was read the farthest.
        own.sort(key=lambda one: ((one.device, one.inode) == (tail.device, tail.inode), one.acknowledged))
        kept = own[-1] if own else None
        if kept is not None:
            feed.resume(kept)
            del self._kept[kept.id]
        else:
            feed.id = self._new_id()
            if self._from_end:
                feed.tail.start_at(feed.tail.end_of_lines())
                feed.progress.acknowledged = feed.tail.position
        feed.open(self._origin, self._common, self._transforms, timezone=self._settings.timezone, kept=kept)

    async def _look_for_moved(self, now: float) -> None:
        """At the start: what was read before and is under another name now, and what came after it and went too."""
        folders, most, steps = Folders(), self._settings.max_line_bytes, Steps()
        alive: dict[str, list[Feed]] = {}
        for live in self.feeds.values():
            if live.gone_at is None:
                alive.setdefault(stem(live.path), []).append(live)
        hidden = {one.id for one in self._kept.values() if self._is_unreadable(one.path)}
        for kept in sorted(self._kept.values(), key=lambda one: one.modified):
            if kept.id not in self._kept or kept.id in hidden:
                # It came between an older one and its successor; or nobody knows what became of it.
                continue
            await steps.breathe()
            tail = await find_moved(kept, self._taken, most, folders)
            successors = alive.get(stem(kept.path), [])
            between = await self._all_between(kept, tail, folders)
            pattern = self._like(kept.path)
            chain: list[Feed] = []
            if tail is not None:
                moved = Feed(tail, pattern.format, pattern.text, now)
                moved.gone_at = now
                self.feeds[tail.device, tail.inode] = moved
                self._identify(moved)
                chain.append(moved)
            elif kept.size > kept.acknowledged:
                LOST.labels("rotated_away").inc(kept.size - kept.acknowledged)
                log.error(
                    "%s was rotated away before its last %d bytes were sent", kept.path, kept.size - kept.acknowledged
                )
            for one in between:
                if (one.device, one.inode) in self.feeds:
                    one.close()
                    continue
                feed = Feed(one, pattern.format, pattern.text, now)
                feed.gone_at = now
                self.feeds[one.device, one.inode] = feed
                self._identify(feed)
                chain.append(feed)
            for earlier, later in zip(chain, [*chain[1:], *successors[:1]], strict=False):
                if later is not earlier:
                    later.after = earlier
        self.forgotten += self._kept.keys() - hidden
        self._kept = {id_: one for id_, one in self._kept.items() if id_ in hidden}
        self._kept_by = {}
        for left in self._kept.values():
            self._kept_by.setdefault(left.fingerprint, []).append(left)

    async def _all_between(self, kept: Checkpoint, moved: Tail | None, folders: Folders) -> list[Tail]:
        """What came after `kept`, which is `moved` now, and went too, oldest first."""
        most, held = self._settings.max_line_bytes, self._settings.max_held_bytes
        plain = find_between(kept.path, kept.modified, self._taken, most, folders)
        but = moved.path if moved is not None else None
        packed = await find_compressed_between(kept.path, kept.modified, but, most, held, folders)
        found = [*packed, *((tail.modified, tail) for tail in plain)]
        return [tail for _, tail in sorted(found, key=lambda one: one[0])]

    def _is_unreadable(self, path: Path) -> bool:
        return any(str(one) in self.unreadable for one in (path, *path.parents))

    def _like(self, path: Path) -> Pattern:
        """The pattern that a path is like; its rotated name may be like none."""
        names = (path, Path(stem(path)))
        return next((one for one in self._patterns if any(name.match(one.glob) for name in names)), self._patterns[0])

    # Looking at files.

    def look(self, now: float) -> float:
        """At all files, or at those whose turn it is; seconds until it is one's turn again."""
        if now - self._all_looked_at >= self._pace.look_idle:
            self._all_looked_at = now
            self._look_at_all(now)
            self._let_go()
            self._settle(now)
            return 0.0
        due = self._all_looked_at + self._pace.look_idle
        for feed in self.active:
            if now >= feed.look_at and feed.tail.fd >= 0 and not (feed.truncated or feed.cut):
                self._heed(feed, self._changed(feed), now)
                feed.look_at = now + min(self._pace.look_idle, QUIET_SHARE * (now - feed.moved_at))
            due = min(due, feed.look_at)
        return due - now

    def _look_at_all(self, now: float) -> None:
        active = []
        total = quiet = 0
        long_ago = now - BUSY_SECONDS
        for feed in list(self.feeds.values()):
            again, feed.failing = feed.failing and not feed.cut, False
            change = self._changed(feed) if not feed.cut else Change.NONE
            if change is not Change.NONE or feed.id == 0:
                self._heed(feed, change, now)
            if again and feed.id == 0 and not feed.failing:
                self._identify(feed)
            if (
                feed.moved_at > long_ago
                or not feed.drained
                or feed.gone_at is not None
                or feed.complete
                or feed.kept_acknowledged != feed.progress.acknowledged
                or feed.progress.outstanding
                or feed.holds
            ):
                active.append(feed)
            else:
                quiet += feed.progress.acknowledged
            total += feed.tail.size
        self.active, self.total_bytes, self._quiet_bytes = active, total, quiet

    @property
    def acknowledged_bytes(self) -> int:
        """Of all files that are open."""
        return self._quiet_bytes + sum(min(one.progress.acknowledged, one.tail.size) for one in self.active)

    def readable(self) -> list[Feed]:
        """Generations that may have something to read, by what is known; none while files are being found."""
        return [] if self.scanning else [feed for feed in self.active if feed.readable]

    def is_read(self, feed: Feed, now: float) -> bool:
        """Looks at a generation that was read to its end, out of its turn: whether that is still its end."""
        if not feed.cut:
            self._heed(feed, self._changed(feed), now)
        return feed.drained and not (feed.truncated or feed.cut)

    def _settle(self, now: float) -> None:
        """Forgets generations that were left once their records are all acknowledged; says how far behind all is."""
        for feed in [one for one in self.leaving if not one.progress.outstanding and not one.holds]:
            self.leaving.remove(feed)
            feed.tail.close()
            self.forgotten.append(feed.id)
        behind = {pattern.text: (0, now) for pattern in self._patterns}
        for feed in self.active:
            size, oldest = behind[feed.source]
            since = feed.lag.since(feed.progress.acknowledged) if feed.behind else None
            behind[feed.source] = (size + feed.behind, oldest if since is None else min(oldest, since))
        for source, (size, oldest) in behind.items():
            BEHIND_BYTES.labels(source).set(size)
            BEHIND_SECONDS.labels(source).set(now - oldest)
        self.behind_seconds = max((now - oldest for _, oldest in behind.values()), default=0.0)

    def _changed(self, feed: Feed) -> Change:
        """What a look at it shows; nothing where that fails, as on a server's file that is not there any more."""
        try:
            return feed.tail.look()
        except OSError as error:
            self.cannot_read(str(feed.path), error)
            feed.failing = True
            return Change.NONE

    def could_read(self, path: str) -> None:
        """It is readable again, if it was not."""
        if self.unreadable and self.unreadable.pop(path, None) is not None:
            log.info("%s can be read again", path)

    def _heed(self, feed: Feed, change: Change, now: float) -> None:
        if change is Change.TRUNCATED:
            self.truncated(feed)
        elif change is Change.GROWN:
            feed.moved_at, feed.drained = now, False
            feed.lag.saw(feed.tail.size, now)
        if feed.id == 0 and not feed.cut and (change is Change.GROWN or feed.complete or feed.gone_at is not None):
            self._identify(feed)

    def truncated(self, feed: Feed) -> None:
        """The file begins anew, which `begin_anew` deals with: nothing is read of it until then."""
        if not feed.cut:
            feed.cut = True
            self._cut.append(feed)

    @property
    def beginning_anew(self) -> bool:
        """There is something for `begin_anew`."""
        return bool(self._cut)

    async def begin_anew(self, now: float) -> None:
        """The next generation of each file that was truncated. What was not read is in a copy, or lost."""
        while self._cut:
            await self._begin_anew(self._cut[0], now)
            del self._cut[0]

    async def _begin_anew(self, feed: Feed, now: float) -> None:
        tail = feed.tail
        where = (tail.device, tail.inode)
        del self.feeds[where]
        fresh = Tail(os.dup(tail.fd), tail.path, max_line_bytes=tail.max_line_bytes)
        if feed.id:
            copy = await find_moved(feed.as_read(), self._taken, tail.max_line_bytes, Folders())
            if copy is not None:
                copy.take_over(tail)
                tail.close()
                feed.tail, feed.gone_at, feed.drained = copy, now, False
                self.feeds[copy.device, copy.inode] = feed
            else:
                self._count_truncated(feed)
                feed.truncated = feed.ending = True
                self.leaving.append(feed)
        else:
            tail.close()
        feed.cut = False
        successor = Feed(fresh, feed.format, feed.source, now)
        successor.gone_at = None if feed.gone_at is None or feed.tail is not tail else feed.gone_at
        if feed.id and not feed.truncated:
            successor.after = feed
        self.feeds[where] = successor
        self.active.append(successor)
        self._identify(successor)

    def _count_truncated(self, feed: Feed) -> None:
        read = feed.as_read()
        if any(one is not feed and one.tail.fd >= 0 and is_of(one.tail, read) for one in self.feeds.values()):
            # A pattern has found its copy already.
            return
        lost = max(0, feed.tail.most - feed.tail.position)
        if lost:
            LOST.labels("truncated").inc(lost)
            log.warning("%s was truncated before %d bytes of it were read", feed.path, lost)

    # Letting go.

    def _let_go(self) -> None:
        """Gives up the oldest of the deleted files while they hold more of the disk than they may."""
        # What is gone is among the active.
        deleted = [one for one in self.active if one.tail.links == 0 and one.gone_at is not None and not one.cut]
        held = sum(feed.tail.held_bytes for feed in deleted)
        for feed in sorted(deleted, key=lambda one: one.gone_at or 0.0):
            if held <= self._settings.max_held_bytes:
                break
            held -= feed.tail.held_bytes
            lost = feed.tail.behind
            if lost:
                LOST.labels("rotated_away").inc(lost)
                log.error("%s is deleted and given up with %d bytes unread: logs.max_held_bytes", feed.path, lost)
            self.close(feed)

    def close(self, feed: Feed) -> None:
        """Reads no more of it; what its parser holds is still sent, what is under way still acknowledged."""
        feed.ending = True
        where = (feed.tail.device, feed.tail.inode)
        if self.feeds.get(where) is feed:
            del self.feeds[where]
        feed.tail.close()
        if feed.holds:
            self.leaving.append(feed)
        elif feed.id:
            self.forgotten.append(feed.id)

    def close_all(self) -> None:
        """At the end; checkpoints stay."""
        for feed in (*self.feeds.values(), *self.leaving):
            feed.tail.close()
        self.feeds.clear()
        self.leaving.clear()


def _newest(gone: Iterable[Feed], name: str) -> Feed | None:
    """Of those whose files had this name, the one that was written to last."""
    alike = [one for one in gone if stem(one.path) == name]
    return max(alike, key=lambda one: one.tail.modified, default=None)
