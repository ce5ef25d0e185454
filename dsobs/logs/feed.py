"""One file generation on its way: its reader, its parser, its bodies, and how far the sink has acknowledged it."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsobs.logs.batch import Encoder
from dsobs.logs.checkpoint import Checkpoint, Progress
from dsobs.logs.formats import Parser, format_named
from dsobs.logs.formats.plain import PlainParser
from dsobs.logs.identity import identity_key
from dsobs.logs.lag import Lag
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
        self.truncated = False
        """The descriptor is another generation's; what was not read of this one is lost."""
        self.drained = False
        """At its last reading there was nothing more, but perhaps a line without its end."""
        self.ending = False
        """Nothing more is read from it."""
        self.moved_at = now
        """When it last grew."""
        self.encoder: Encoder | None = None
        self._parser: Parser | None = None
        self._kept: tuple[int, Path, int, int] | None = None

    @property
    def path(self) -> Path:
        """Where it was last seen."""
        return self.tail.path

    @property
    def readable(self) -> bool:
        """There may be something to read, and it is its turn."""
        if self.id == 0 or self.ending or self.drained:
            return False
        return self.after is None or self.after.finished

    @property
    def at_goal(self) -> bool:
        """All is read that was there at the start."""
        return self.goal is not None and self.tail.position >= self.goal

    @property
    def finished(self) -> bool:
        """Nothing of it will be read any more, for all that is known."""
        return self.ending or self.tail.fd < 0 or (self.gone_at is not None and self.drained)

    def open(self, origin: str, common: Mapping[str, Any], transforms: list[Transform], *, timezone: str = "") -> None:
        """Makes parser and encoder; the tail is identified."""
        assert self.tail.fingerprint is not None
        base = Common({**common, "log.file.path": str(self.path)})
        head = self.tail.head(HEAD_BYTES)
        file = LogFile(self.path, self.tail.modified / 1e9, self.format, head, timezone)
        as_fields = any(transform.needs_fields for transform in transforms)
        self._parser = format_named(self.format).open(file, base, as_fields=as_fields)
        self._key = identity_key(origin, self.path, self.tail.fingerprint)
        self._common = base

    def parse(self, lines: Lines) -> list[Record]:
        """The records that `lines` finish."""
        assert self._parser is not None
        try:
            return self._parser.parse(lines)
        except Exception:
            # A format may be anybody's plugin: its error must not hold up the file, nor lose a line of it.
            log.exception("format %s failed on lines of %s; they are sent as text", self.format, self.path)
            return PlainParser().parse(lines)

    def flush(self) -> list[Record]:
        """What the parser holds, as it stands."""
        assert self._parser is not None
        return self._parser.flush()

    @property
    def behind(self) -> int:
        """Bytes that are there and not acknowledged."""
        return max(0, self.tail.size - self.progress.acknowledged)

    @property
    def dataset(self) -> str:
        """What kind of log it is, once there was a record."""
        assert self._parser is not None
        return self._parser.dataset

    @property
    def holds(self) -> bool:
        """The parser waits for further lines of a record."""
        return self._parser is not None and self._parser.held_from is not None

    def done_to(self, end: int) -> int:
        """What is done with once all records up to `end` are acknowledged: not what the parser holds."""
        held = self._parser.held_from if self._parser is not None else None
        return end if held is None else min(held, end)

    def encode(self, records: list[Record]) -> bytes:
        """Their body."""
        assert self._parser is not None
        if self.encoder is None:
            self.encoder = Encoder(self._key, Common({**self._common.fields, **self._parser.fields}))
        return self.encoder.encode(records)

    # Keeping.

    def checkpoint(self) -> Checkpoint | None:
        """What is to be kept, if it changed since `kept`; OSError."""
        tail, state = self.tail, self._state()
        if self.id == 0 or self.truncated or tail.fd < 0 or state == self._kept:
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

    def _state(self) -> tuple[int, Path, int, int]:
        return (self.progress.acknowledged, self.tail.path, self.tail.size, self.tail.inode)

    def kept(self, one: Checkpoint) -> None:
        """`one` is on disk."""
        self._kept = (one.acknowledged, one.path, one.size, one.inode)
        self.kept_acknowledged = one.acknowledged

    def gone_for_good(self, now: float, pace: Pace) -> bool:
        """Gone for so long that its writer has gone too."""
        if self.gone_at is None:
            return False
        patience = pace.deleted if self.tail.links == 0 else pace.renamed
        return now - max(self.moved_at, self.gone_at) >= patience
