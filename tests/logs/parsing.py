"""Parses whole files at once or in blocks of any size, for tests of formats."""

from pathlib import Path
from typing import Any

import orjson

from dsobs.logs.formats import Parser, format_named
from dsobs.logs.record import Common, Lines, LogFile, Record

READ_AT = 1_795_508_000.0
"""2026-11-24T08:13:20Z."""


def opened(
    format_: str,
    *,
    path: str = "/var/log/server.log",
    modified_at: float = READ_AT,
    head: bytes = b"",
    timezone: str = "UTC",
    common: Common | None = None,
    as_fields: bool = False,
) -> Parser:
    """A parser."""
    file = LogFile(Path(path), modified_at, format_, head, timezone)
    return format_named(format_).open(file, common or Common(), as_fields=as_fields)


def blocks(data: bytes, *, lines_each: int = 10**9, read_at: float = READ_AT, start: int = 0) -> list[Lines]:
    """A file's bytes, which end with a line feed, as the tail gives them."""
    lines = data.split(b"\n")[:-1]
    made = []
    for place in range(0, len(lines), lines_each):
        some = lines[place : place + lines_each]
        end = start + sum(map(len, some)) + len(some)
        made.append(Lines(start, end, some, read_at))
        start = end
    return made


def parsed(parser: Parser, data: bytes, *, lines_each: int = 10**9, start: int = 0) -> list[Record]:
    """All records of a file."""
    records = []
    for block in blocks(data, lines_each=lines_each, start=start):
        records += parser.parse(block)
    return records + parser.flush()


def fields(record: Record) -> dict[str, Any]:
    """A record's document."""
    document = record[2]
    return document if isinstance(document, dict) else orjson.loads(document)


def by_offset(records: list[Record]) -> list[tuple[int, bytes, dict[str, Any]]]:
    """Records in the order of their offsets, with their documents as fields."""
    return sorted(
        ((start, raw, fields((start, raw, document))) for start, raw, document in records), key=lambda r: r[0]
    )


def documents(parser: Parser, *lines: str | bytes) -> list[dict[str, Any]]:
    """Documents of these lines, in the order of their offsets."""
    data = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    return [fields(record) for record in sorted(parsed(parser, data), key=lambda record: record[0])]
