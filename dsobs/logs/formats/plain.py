"""Plain text: each line is a record, its text is the message, its time is when it was read."""

from collections.abc import Mapping
from typing import Any

import orjson

from dsobs.logs.formats.raw import iso_time, raw_document
from dsobs.logs.metrics import BLANK_LINES
from dsobs.logs.record import Common, Lines, LogFile, Record

_BETWEEN = b"\x7f"
"""Stands between lines while they are written as one JSON string: it is none of the characters that JSON escapes."""


class Plain:
    """Lines of text."""

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> "PlainParser":
        """A parser."""
        del file
        return PlainParser(as_fields=as_fields or not common.reserved.isdisjoint(("@timestamp", "message")))


class PlainParser:
    """Keeps nothing between blocks."""

    dataset = "plain"
    fields: Mapping[str, Any] = {}
    decided = ""
    held_from = None

    def __init__(self, *, as_fields: bool = True) -> None:
        self._as_fields = as_fields

    def parse(self, lines: Lines) -> list[Record]:
        """One record a line; empty lines are none."""
        texts = None if self._as_fields or lines.fault else _as_json(lines.lines)
        if texts is None:
            return text_records(lines)
        head = b'{"@timestamp":"%b","message":"' % iso_time(lines.read_at).encode()
        start = lines.start
        records: list[Record] = []
        for line, text in zip(lines.lines, texts, strict=True):
            if line:
                records.append((start, line, b'%b%b"}' % (head, text)))
            else:
                BLANK_LINES.inc()
            start += len(line) + 1
        return records

    def flush(self) -> list[Record]:
        """Nothing: no line waits for another."""
        return []


def text_records(lines: Lines, *faults: str) -> list[Record]:
    """A record a line that says `faults` and that of the lines; empty lines are none."""
    start = lines.start
    records: list[Record] = []
    for line in lines.lines:
        if line:
            records.append((start, line, raw_document(line, lines.read_at, lines.fault, *faults)))
        else:
            BLANK_LINES.inc()
        start += len(line) + 1
    return records


def _as_json(lines: list[bytes]) -> list[bytes] | None:
    """Each line as it stands in a JSON string; None where they have to be looked at one by one."""
    joined = _BETWEEN.join(lines)
    if joined.count(_BETWEEN) != len(lines) - 1:
        return None
    try:
        text = joined.decode()
    except UnicodeDecodeError:
        return None
    return orjson.dumps(text)[1:-1].split(_BETWEEN)
