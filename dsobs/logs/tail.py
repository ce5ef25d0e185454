"""One generation of one file, read in blocks of whole lines through an open descriptor.

Nothing is buffered between reads: `position` stands behind the last line feed that was read, and what is behind it is
read again. So 1,000 files cost 1,000 descriptors and next to no memory.

A generation ends when its file is truncated, or is gone (deleted, or renamed and no longer written to). That it was
truncated is seen by its size, by its first line, and by the bytes before the position, which every read brings along.
"""

import os
from enum import Enum
from pathlib import Path

from dsobs.logs.identity import HEAD_BYTES, MARK_BYTES, Fingerprint, fingerprint, mark
from dsobs.logs.metrics import LOST, READ_BYTES
from dsobs.logs.record import Lines

BLOCK_BYTES = 256 * 1024
"""Most that is read at a time, unless lines may be longer."""
BLOCK_LINES = 256
"""Most lines of it that are given at a time: they are parsed, redacted and encoded in less than 20 ms."""
LEAST_BYTES = 16 * 1024
"""Read at a time where there are few."""


FileId = tuple[int, int]
"""Device and inode; 63 bits each, as SQLite keeps them."""
_MASK = (1 << 63) - 1


def file_id(status: os.stat_result) -> FileId:
    """Of a file, as long as somebody has it open; afterwards another may have it."""
    return (status.st_dev & _MASK, status.st_ino & _MASK)


class Change(Enum):
    """What a look at the file showed."""

    NONE = "none"
    GROWN = "grown"
    TRUNCATED = "truncated"


class TruncatedError(Exception):
    """The file is not the one any more that was read before."""


class Tail:
    """A reader of one file generation."""

    def __init__(self, fd: int, path: Path, *, max_line_bytes: int) -> None:
        """`fd` is closed by `close`; `path` is where the file was found."""
        self.fd = fd
        self.path = path
        self.position = 0
        """Offset of the first byte that is still to be read."""
        self.fingerprint: Fingerprint | None = None
        self.max_line_bytes = max_line_bytes
        self._skipping = False
        """The position is inside an over-long line, whose beginning was given already."""
        self._before = b""
        """What stood before the position when it was read."""
        self._usual = BLOCK_BYTES
        """Bytes in which there are about `BLOCK_LINES` lines, going by the last block."""
        status = os.fstat(fd)
        self.device, self.inode = file_id(status)
        self.size, self.modified, self.links = status.st_size, status.st_mtime_ns, status.st_nlink
        """As at the last look; `modified` in nanoseconds."""
        self.most = status.st_size
        """The largest that it was seen."""
        self.held_bytes = status.st_blocks * 512
        """Of the disk."""

    @property
    def behind(self) -> int:
        """Bytes that are there and not read."""
        return max(0, self.size - self.position)

    # Looking.

    def look(self) -> Change:
        """How the file stands now."""
        status = os.fstat(self.fd)
        size, modified, self.links = status.st_size, status.st_mtime_ns, status.st_nlink
        if size == self.size and modified == self.modified:
            return Change.NONE
        grown = size > self.size
        self.size, self.modified, self.held_bytes = size, modified, status.st_blocks * 512
        self.most = max(self.most, size)
        if size < self.position or not (grown or self._is_same()):
            return Change.TRUNCATED
        return Change.GROWN if grown else Change.NONE

    def identify(self, *, complete: bool = False) -> bool:
        """Takes the fingerprint, once its bytes are there (`complete`: no more will come); whether there is one."""
        if self.fingerprint is None:
            self.fingerprint = fingerprint(os.pread(self.fd, HEAD_BYTES, 0), complete=complete)
        return self.fingerprint is not None

    def head(self, most: int) -> bytes:
        """Its first bytes, without the holes before lines; none where they can't be read."""
        try:
            head = os.pread(self.fd, most, 0)
        except OSError:
            return b""
        return b"\n".join(line.lstrip(b"\0") for line in head.split(b"\n")) if b"\0" in head else head

    def is_still(self) -> bool:
        """Whether it begins with the line that it was known by; true while it has none."""
        known = self.fingerprint
        if known is None:
            return True
        head = os.pread(self.fd, known.length, 0)
        return len(head) == known.length and fingerprint(head, complete=True) == known

    def _is_same(self) -> bool:
        before = self._before
        return self.is_still() and os.pread(self.fd, len(before), self.position - len(before)) == before

    def mark_at(self, offset: int) -> bytes:
        """`identity.mark` of the bytes before `offset`."""
        return mark(self._bytes_before(offset))

    @property
    def mark_read(self) -> bytes:
        """`identity.mark` of the bytes before the position, though the file may have lost them since."""
        return mark(self._before)

    def take_over(self, other: "Tail") -> None:
        """Goes on where `other` stands, in a copy of its file."""
        self.position, self._skipping, self._before = other.position, other._skipping, other._before  # noqa: SLF001

    def _bytes_before(self, offset: int) -> bytes:
        first = max(0, offset - MARK_BYTES)
        return os.pread(self.fd, offset - first, first)

    # Reading.

    def start_at(self, position: int) -> None:
        """Reads from there, the beginning of a line."""
        self.position, self._skipping = position, False
        self._before = self._bytes_before(position)

    def end_of_lines(self) -> int:
        """Offset behind the last line feed that is there; OSError."""
        end = self.size
        while end > 0:
            first = max(0, end - 65536)
            found = os.pread(self.fd, end - first, first).rfind(b"\n")
            if found >= 0:
                return first + found + 1
            end = first
        return 0

    def read(self, now: float) -> list[Lines]:
        """The next block of whole lines, in pieces that each have at most one fault; empty where there is none.

        TruncatedError where the file is not the one that was read before; nothing was read then. OSError.
        """
        before = len(self._before)
        data = self._some(before)
        if not data.startswith(self._before) or not self.is_still():
            raise TruncatedError
        begin = before
        pieces: list[Lines] = []
        if self._skipping or data[begin : begin + 1] == b"\0":
            begin, pieces = self._skip(data, begin, now)
            if self._skipping:
                return pieces
        lines = data[begin:].split(b"\n", BLOCK_LINES)
        end = len(data) - len(lines.pop())
        if lines:
            pieces += self._pieces(lines, self.position, self.position + end - begin, now, holes=b"\0" in data)
            self._usual = min(BLOCK_BYTES, max(LEAST_BYTES, (end - begin) * 5 // 4))
            self._advance(data, begin, end)
        elif len(data) - begin > self.max_line_bytes and data[begin] != 0:
            end = begin + self.max_line_bytes
            # It ends where it begins: only with its line feed, which may be far, is the line done with.
            pieces.append(Lines(self.position, self.position, [data[begin:end]], now, "cut"))
            self._advance(data, begin, end)
            self._skipping = True
        return pieces

    def _some(self, before: int) -> bytes:
        """From `before` bytes before the position on: about a block, or all that a line may have if none ends there."""
        at, usual = self.position - before, before + self._usual
        data = os.pread(self.fd, usual, at)
        if len(data) == usual and data.find(b"\n", before) < 0:
            data = os.pread(self.fd, before + max(BLOCK_BYTES, self.max_line_bytes + 1), at)
        return data

    def again(self, start: int, end: int, now: float) -> list[Lines]:
        """The whole lines between two offsets that were read before; the position stays. OSError."""
        data = os.pread(self.fd, end - start, start)
        lines = data.split(b"\n")
        rest = lines.pop()
        return self._pieces(lines, start, start + len(data) - len(rest), now, holes=b"\0" in data) if lines else []

    def rest(self, now: float, *, gone: bool) -> list[Lines]:
        """A last line without its line feed, once nothing more will come, and the file is read to its end.

        Of what was there at the last look. Unless the file is `gone` the line is not done with: if its end should come,
        it is another record. OSError.
        """
        data = os.pread(self.fd, min(self.max_line_bytes + 1, self.behind), self.position)
        end = self.position + len(data) if gone else self.position
        text = data.lstrip(b"\0")
        start = self.position + len(data) - len(text)
        self.position = end
        data = text
        if not data or self._skipping:
            return []
        fault = "cut" if len(data) > self.max_line_bytes else "unfinished"
        return [Lines(start, end, [data[: self.max_line_bytes]], now, fault)]

    def _advance(self, data: bytes, begin: int, end: int) -> None:
        self.position += end - begin
        self._before = data[max(0, end - MARK_BYTES) : end]
        READ_BYTES.inc(end - begin)

    def _skip(self, data: bytes, begin: int, now: float) -> tuple[int, list[Lines]]:
        """Over the rest of an over-long line, or over NUL bytes that stand where a line begins, if others follow.

        Gives where `data` goes on, and a piece without lines that moves the position.
        """
        start = self.position
        if self._skipping:
            found = data.find(b"\n", begin)
            end = found + 1 if found >= 0 else len(data)
            self._skipping = found < 0
            LOST.labels("cut").inc(end - begin - (found >= 0))
        else:
            # A hole, left by a writer that goes on at its old offset after a truncation.
            end = len(data) - len(data[begin:].lstrip(b"\0"))
            if end == len(data) and len(data) - begin < BLOCK_BYTES:
                # Nothing behind it: room that the writer will yet fill.
                return begin, []
            LOST.labels("nul").inc(end - begin)
        self._advance(data, begin, end)
        return end, [] if self._skipping else [Lines(start, self.position, [], now)]

    def _pieces(self, lines: list[bytes], start: int, end: int, now: float, *, holes: bool) -> list[Lines]:
        """Of whole lines that stand between two offsets of the file; `holes`: there may be NUL before some.

        What is cut off them is the same wherever a block begins, or a record would have another id the next time.
        """
        most = self.max_line_bytes
        holes = holes and any(line.startswith(b"\0") for line in lines)
        if not holes and max(map(len, lines)) <= most:
            return [Lines(start, end, lines, now)]
        pieces: list[Lines] = []
        whole: list[bytes] = []
        at = start
        for line in lines:
            text = line.lstrip(b"\0") if holes else line
            behind = at + len(line) + 1
            if len(text) == len(line) <= most:
                whole.append(line)
            else:
                if whole:
                    pieces.append(Lines(start, at, whole, now))
                fault = "cut" if len(text) > most else ""
                pieces.append(Lines(behind - len(text) - 1, behind, [text[:most]], now, fault))
                if fault:
                    LOST.labels("cut").inc(len(text) - most)
                if len(text) < len(line):
                    LOST.labels("nul").inc(len(line) - len(text))
                whole, start = [], behind
            at = behind
        if whole:
            pieces.append(Lines(start, at, whole, now))
        return pieces

    def close(self) -> None:
        """Gives the descriptor back; legal twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
