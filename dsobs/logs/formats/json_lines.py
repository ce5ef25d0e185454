"""JSON lines: each line is an object whose keys are kept; what is no object is sent as text."""

from collections.abc import Mapping
from typing import Any

import orjson

from dsobs.logs.formats.raw import iso_time, raw_document
from dsobs.logs.record import Common, Lines, LogFile, Record


class JsonLines:
    """One JSON object a line."""

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> "JsonParser":
        """A parser."""
        del file
        return JsonParser(common.reserved, as_fields=as_fields)


class JsonParser:
    """Keeps nothing between blocks."""

    dataset = "json"
    fields: Mapping[str, Any] = {}
    held_from = None

    def __init__(self, reserved: frozenset[str], *, as_fields: bool) -> None:
        self._reserved = reserved
        self._as_fields = as_fields

    def parse(self, lines: Lines) -> list[Record]:
        """One record a line; empty lines are none."""
        start = lines.start
        records: list[Record] = []
        loads, free = orjson.loads, self._reserved.isdisjoint
        plain = not self._as_fields and not lines.fault
        for line in lines.lines:
            try:
                fields = loads(line)
                if plain and "@timestamp" in fields and free(fields) and line[0] == 123:
                    records.append((start, line, line))
                else:
                    records.append((start, line, self._document(line, fields, lines)))
            except (ValueError, TypeError):
                if line.strip():
                    records.append((start, line, raw_document(line, lines.read_at, lines.fault, "not_json")))
            start += len(line) + 1
        return records

    def _document(self, line: bytes, fields: Any, lines: Lines) -> dict[str, Any]:
        if type(fields) is not dict:
            return raw_document(line, lines.read_at, lines.fault, "not_json")
        if "@timestamp" not in fields:
            fields["@timestamp"] = iso_time(lines.read_at)
        return fields

    def flush(self) -> list[Record]:
        """Nothing: no line waits for another."""
        return []
