"""Lines on their way through layers of formats: a container runtime's outside, the server's own inside."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Protocol, TypeAlias

from dsobs.logs.record import Lines, Record

Piece: TypeAlias = tuple[int, bytes, bytes, str, str]
"""(offset, bytes as they stand in the file, the text in them, its ISO time or "", stream or "").

Where a runtime split a line, its parts come as one piece, the bytes joined by line feeds."""


class Held:
    """What is not finished yet, and from where a parser must read again to make the same records of it.

    It may begin anywhere but in the middle of a record of several lines, though that is finished, since what is left
    of its lines would be taken for another record.
    """

    def __init__(self) -> None:
        self._open: dict[Hashable, int] = {}
        self._finished: list[tuple[int, int]] = []

    def begin(self, key: Hashable, start: int) -> None:
        """A record of `key` began at offset `start`."""
        self._open[key] = start

    def end(self, key: Hashable, last: int) -> None:
        """It is finished; its last line begins at offset `last`."""
        start = self._open.pop(key)
        if not self._open:
            self._finished.clear()
        elif last > start:
            self._finished.append((start, last))

    @property
    def offset(self) -> int | None:
        """Where reading begins after a restart; None: nothing is held."""
        if not self._open:
            return None
        offset = min(self._open.values())
        if self._finished:
            moved = True
            while moved:
                inside = [start for start, last in self._finished if start < offset <= last]
                moved = bool(inside)
                offset = min((offset, *inside))
            self._finished = [(start, last) for start, last in self._finished if last >= offset]
        return offset


class Body(Protocol):
    """A parser of pieces: what a format makes of text, wherever that comes from."""

    @property
    def dataset(self) -> str:
        """As of `dsobs.logs.formats.Parser`."""

    @property
    def decided(self) -> str:
        """As of `dsobs.logs.formats.Parser`."""

    def take(self, pieces: Iterable[Piece], read_at: float, fault: str = "") -> list[Record]:
        """Records that `pieces` finish."""

    def flush(self) -> list[Record]:
        """What is not finished, as it stands."""


class BodyParser:
    """A parser of files whose lines are pieces as they are."""

    def __init__(self, body: Body, held: Held, fields: Mapping[str, Any] | None = None) -> None:
        self._body = body
        self._held = held
        self.fields: Mapping[str, Any] = fields or {}

    @property
    def dataset(self) -> str:
        """The body's."""
        return self._body.dataset

    @property
    def decided(self) -> str:
        """The body's."""
        return self._body.decided

    @property
    def held_from(self) -> int | None:
        """Offset of the first line that is not in a record yet."""
        return self._held.offset

    def parse(self, lines: Lines) -> list[Record]:
        """What the body makes of `lines`."""
        start = lines.start
        pieces: list[Piece] = []
        add = pieces.append
        for line in lines.lines:
            add((start, line, line, "", ""))
            start += len(line) + 1
        return self._body.take(pieces, lines.read_at, lines.fault)

    def flush(self) -> list[Record]:
        """What the body holds."""
        return self._body.flush()
