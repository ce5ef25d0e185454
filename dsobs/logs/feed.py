"""One file generation on its way: its reader, its parser, its bodies, and how far the sink has acknowledged it."""

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsobs.logs.batch import Encoder
from dsobs.logs.checkpoint import Checkpoint, Progress
from dsobs.logs.failures import Seldom
from dsobs.logs.formats import Parser, format_named
from dsobs.logs.formats.plain import PlainParser, text_records
from dsobs.logs.identity import identity_key
from dsobs.logs.lag import Lag
from dsobs.logs.metrics import FAILED, LOST
from dsobs.logs.pace import Pace
from dsobs.logs.record import Common, Lines, LogFile, Record
from dsobs.logs.tail import Tail
from dsobs.logs.transforms import Transform

log = logging.getLogger(__name__)

HEAD_BYTES = 64 * 1024
"""Of a file's beginning, by which its format is found out."""


class Feed:
    """One generation, from its first look until it is closed."""

    def __init__(self, tail: Tail, format_: str, source: str, now: float) -> None:
        """`source` is the pattern that it was found by, or that its name is like; times are monotonic."""
        self.tail = tail
        self.format = format_
        self.source = source
        self.lag = Lag()
        age = max(0.0, time.time() - tail.modified / 1e9)
        self.lag.saw(tail.size, now - age)
        self.progress = Progress()
        self.kept_acknowledged = -1
        """As it is on disk."""
        self.id = 0
        """Of its checkpoint; 0 until it is identified."""
        self.goal: int | None = None
        """Offset to which it is read at least; then it is ending. None: as far as it goes."""
        self.after: Feed | None = None
        """The generation that is finished first."""
        self.gone_at: float | None = None
        """Since when no pattern finds it."""
        self.queued = False
        """A segment of a `Spool`: known by its name, which no other has."""
        self.complete = False
        """Nothing more will be written to it."""
        self.cut = False
        """Its file was seen to begin anew, which is still to be dealt with: nothing is read of it meanwhile."""
        self.look_at = now
        """When it is to be looked at again, if it is among those that are looked at often."""
        self.truncated = False
        """The descriptor is another generation's; what was not read of this one is lost."""
        self.drained = False
        """At its last reading there was nothing more, but perhaps a line without its end."""
        self.failing = False
        """It could not be read the last time, and is tried again at the next look at all files."""
        self.ending = False
        """Nothing more is read from it."""
        self.moved_at = now
        """When it last grew."""
        self.encoder: Encoder | None = None
        self.key = ""
        """What its record ids begin with."""
        self._tell_failure = Seldom()
        self._parser: Parser | None = None
        self._kept: tuple[object, ...] | None = None

    @property
    def path(self) -> Path:
        """Where it was last seen."""
        return self.tail.path

    @property
    def readable(self) -> bool:
        """There may be something to read, and it is its turn."""
        if self.id == 0 or self.ending or self.drained or self.cut or self.failing:
            return False
        return self.after is None or self.after.finished

    @property
    def at_goal(self) -> bool:
        """All is read that was there at the start."""
        return self.goal is not None and self.tail.position >= self.goal

    @property
    def finished(self) -> bool:
        """Nothing of it will be read any more, for all that is known."""
        return self.ending or self.tail.fd < 0 or ((self.complete or self.gone_at is not None) and self.drained)

    def resume(self, kept: Checkpoint) -> None:
        """Goes on where `kept` says; before `open`."""
        self.id = kept.id
        self.progress.acknowledged = kept.acknowledged
        self.tail.start_at(kept.acknowledged)

    def open(
        self,
        origin: str,
        common: Mapping[str, Any],
        transforms: list[Transform],
        *,
        timezone: str = "",
        kept: Checkpoint | None = None,
    ) -> None:
        """Makes the parser; the tail is identified. `kept`: what was found out about the generation earlier."""
        tail = self.tail
        assert tail.fingerprint is not None
        self._common = Common({**common, **({} if self.queued else {"log.file.path": str(self.path)})})
        # What an earlier parser was given and found out, this one is given too, or the same lines might become other
        # records in another stream.
        self._head_bytes = (kept.head_bytes if kept is not None else 0) or min(tail.size, HEAD_BYTES)
        head = tail.head(self._head_bytes)
        decided = kept.decided if kept is not None else ""
        self._file = LogFile(self.path, tail.modified / 1e9, self.format, head, timezone, decided)
        self._as_fields = any(transform.needs_fields for transform in transforms)
        same = kept is not None and (kept.device, kept.inode) == (tail.device, tail.inode)
        # A file that was renamed keeps its ids; one that is a copy has those of its name.
        named = Path(self.path.name) if self.queued else self.path
        self.key = (kept.key if kept is not None and same else "") or identity_key(origin, named, tail.fingerprint)
        self._parser = self._opened()

    # Parsing.

    def _opened(self) -> Parser:
        try:
            return format_named(self.format).open(self._file, self._common, as_fields=self._as_fields)
        except Exception:
            log.exception("format %s can't be opened for %s; its lines are sent as text", self.format, self.path)
            FAILED.labels("format").inc()
            return PlainParser()

    def _again(self) -> Parser:
        """A parser in place of one that failed."""
        if self._parser is not None and self._parser.decided:
            self._file = replace(self._file, decided=self._parser.decided)
        self._parser = self._opened()
        return self._parser

    def parse(self, lines: Lines) -> list[Record]:
        """The records that `lines` finish. A format that fails costs nothing: the line it fails on is sent as text."""
        parser = self._parser
        assert parser is not None
        held = parser.held_from
        try:
            return parser.parse(lines)
        except Exception:
            # A format may be anybody's plugin: its error must neither hold up the file nor lose a line of it.
            if self._tell_failure.now():
                log.exception("format %s failed on lines of %s, which are sent as text", self.format, self.path)
            return self._apart(lines, held)

    def _apart(self, lines: Lines, held: int | None) -> list[Record]:
        """Of single lines, from the first that is not in a record yet (`held`), so that blocks make no difference."""
        self._again()
        records: list[Record] = []
        for piece in (*self._read_again(held, lines.start), lines):
            start = piece.start
            for line in piece.lines:
                behind = start + len(line) + 1
                # An over-long line that has no end yet is not done with.
                end = piece.end if len(piece.lines) == 1 else behind
                records += self._single(Lines(start, end, [line], piece.read_at, piece.fault))
                start = behind
        return records

    def _single(self, line: Lines) -> list[Record]:
        parser = self._parser
        assert parser is not None
        try:
            return parser.parse(line)
        except Exception:  # noqa: BLE001 - it was told
            FAILED.labels("format").inc()
            records = self._flushed(parser, line.start)
            self._again()
            return records + text_records(line, "format_failed")

    def flush(self) -> list[Record]:
        """What the parser holds, as it stands."""
        assert self._parser is not None
        return self._flushed(self._parser, self.tail.position)

    def _flushed(self, parser: Parser, end: int) -> list[Record]:
        held = parser.held_from
        try:
            return parser.flush()
        except Exception:
            if self._tell_failure.now():
                log.exception("format %s failed on what it held of %s, which is sent as text", self.format, self.path)
            FAILED.labels("format").inc()
            self._again()
            return [record for piece in self._read_again(held, end) for record in text_records(piece, "format_failed")]

    def _read_again(self, start: int | None, end: int) -> list[Lines]:
        """Lines that a parser had been given."""
        if start is None or start >= end:
            return []
        try:
            return self.tail.again(start, end, time.time())
        except OSError as error:
            LOST.labels("format_failed").inc(end - start)
            log.error("%s: %d bytes that its format failed on can't be read again: %s", self.path, end - start, error)
            return []

    @property
    def behind(self) -> int:
        """Bytes of lines that are there and not acknowledged; a last line that has no end yet is none."""
        return max(0, (self.tail.position if self.drained else self.tail.size) - self.progress.acknowledged)

    @property
    def dataset(self) -> str:
        """What kind of log it is, once there was a record."""
        assert self._parser is not None
        return self._parser.dataset

    @property
    def holds(self) -> bool:
        """The parser waits for further lines of a record."""
        return self._parser is not None and self._parser.held_from is not None

    def done_to(self, lines: Lines) -> int:
        """What is done with once all records up to and with `lines` are acknowledged: not what the parser holds.

        With a line that is not done with, for its end may come, it is nothing more than before: the line may have gone
        into a record that began earlier.
        """
        if lines.end == lines.start:
            return 0
        held = self._parser.held_from if self._parser is not None else None
        return lines.end if held is None else min(held, lines.end)

    def encode(self, records: list[Record]) -> bytes:
        """Their body."""
        assert self._parser is not None
        if self.encoder is None:
            try:
                self.encoder = Encoder(self.key, Common({**self._common.fields, **self._parser.fields}))
            except Exception:
                log.exception("format %s has fields that can't be sent; they are left out", self.format)
                FAILED.labels("format").inc()
                self.encoder = Encoder(self.key, self._common)
        return self.encoder.encode(records)

    # Keeping.

    def checkpoint(self) -> Checkpoint | None:
        """What is to be kept, if it changed since `kept`; OSError."""
        tail, state = self.tail, self._state()
        if self.id == 0 or self.truncated or self.cut or tail.fd < 0 or state == self._kept:
            return None
        assert tail.fingerprint is not None
        return Checkpoint(
            self.id,
            tail.path,
            tail.device,
            tail.inode,
            tail.fingerprint,
            self.progress.acknowledged,
            tail.mark_at(self.progress.acknowledged),
            tail.size,
            tail.modified,
            self.key,
            self._head_bytes,
            self._parser.decided if self._parser is not None else "",
        )

    def as_read(self) -> Checkpoint:
        """Of what was read, acknowledged or not: by it a copy of the file is known."""
        tail = self.tail
        assert tail.fingerprint is not None
        return Checkpoint(
            self.id,
            tail.path,
            tail.device,
            tail.inode,
            tail.fingerprint,
            tail.position,
            tail.mark_read,
            tail.most,
            tail.modified,
        )

    def _state(self) -> tuple[object, ...]:
        decided = self._parser.decided if self._parser is not None else ""
        return (self.progress.acknowledged, self.tail.path, self.tail.size, self.tail.inode, decided)

    def kept(self, one: Checkpoint) -> None:
        """`one` is on disk."""
        self._kept = (one.acknowledged, one.path, one.size, one.inode, one.decided)
        self.kept_acknowledged = one.acknowledged

    def gone_for_good(self, now: float, pace: Pace) -> bool:
        """Nothing more will come: it is complete, or gone for so long that its writer has gone too."""
        if self.complete:
            return True
        if self.gone_at is None:
            return False
        patience = pace.deleted if self.tail.links == 0 else pace.renamed
        return now - max(self.moved_at, self.gone_at) >= patience
