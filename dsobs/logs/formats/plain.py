"""Plain text: each line is a record, its text is the message, its time is when it was read."""

from collections.abc import Mapping
from typing import Any

from dsobs.logs.formats.raw import raw_document
from dsobs.logs.metrics import BLANK_LINES
from dsobs.logs.record import Common, Lines, LogFile, Record


class Plain:
    """Lines of text."""

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> "PlainParser":
        """A parser; documents are always fields."""
        del file, common, as_fields
        return PlainParser()


class PlainParser:
    """Keeps nothing between blocks."""

    dataset = "plain"
    fields: Mapping[str, Any] = {}
    decided = ""
    held_from = None

    def parse(self, lines: Lines) -> list[Record]:
        """One record a line; empty lines are none."""
        start = lines.start
        records: list[Record] = []
        for line in lines.lines:
            if line:
                records.append((start, line, raw_document(line, lines.read_at, lines.fault)))
            else:
                BLANK_LINES.inc()
            start += len(line) + 1
        return records

    def flush(self) -> list[Record]:
        """Nothing: no line waits for another."""
        return []
