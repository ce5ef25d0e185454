"""Records to bodies for the sink: ids, common fields, and what is acknowledged when a body is.

A record of a body is two lines, `{"create":{"_id":"KEY-OFFSET-HASH"}}` and its document. KEY says which file generation
(`identity.identity_key`), OFFSET and HASH (XXH3, 64 bits, of the record's bytes) are hexadecimal. The document begins
with `log.offset` and the fields that all records of the file have.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from xxhash import xxh3_64_hexdigest

from dsobs.logs.checkpoint import Progress
from dsobs.logs.record import Common, Record
from dsobs.logs.sinks import Refusal


class Encoder:
    """Bodies for the records of one file generation."""

    def __init__(self, key: str, common: Common) -> None:
        self._fields = dict(common.fields)
        self._reserved = common.reserved
        self._id = b'{"create":{"_id":"' + key.encode() + b"-"
        self._spliced = orjson.dumps(self._fields)[1:-1] + b"," if self._fields else b""

    def encode(self, records: Sequence[Record]) -> bytes:
        """The body of `records`."""
        head, fields, digest, reserved = self._id, self._spliced, xxh3_64_hexdigest, self._reserved
        parts: list[bytes] = []
        add = parts.append
        for start, raw, document in records:
            if type(document) is dict:
                if reserved.isdisjoint(document):
                    text = _json(document)
                else:
                    whole = self._merged(start, document)
                    add(b'%b%x-%b"}}\n%b\n' % (head, start, digest(raw).encode(), whole))
                    continue
            else:
                text = document  # type: ignore[assignment]
            add(b'%b%x-%b"}}\n{"log.offset":%d,%b%b\n' % (head, start, digest(raw).encode(), start, fields, text[1:]))
        return b"".join(parts)

    def _merged(self, start: int, document: dict[str, Any]) -> bytes:
        """A document that has some of the common fields itself: its own stay, whether nested or dotted."""
        fields = {"log.offset": start, **self._fields}
        return _json({**{name: value for name, value in fields.items() if not _has(document, name)}, **document})


def _has(document: dict[str, Any], name: str) -> bool:
    """Whether `name`, dotted, would stand twice in Elasticsearch's eyes, or where an object is something else."""
    if name in document:
        return True
    head, dot, rest = name.partition(".")
    if not dot or head not in document:
        return False
    inner = document[head]
    return not isinstance(inner, dict) or _has(inner, rest)


def _json(document: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # Lone surrogates, or numbers beyond 64 bits: no record may hold up its file.
        return json.dumps(document, default=str).encode()


@dataclass(slots=True)
class Batch:
    """What goes to the sink in one request."""

    index: str
    began: float
    """Monotonic time at which its first record was added."""
    pieces: list[bytes] = field(default_factory=list)
    count: int = 0
    size: int = 0
    """Bytes of the pieces together."""
    spans: list[tuple[Progress, int]] = field(default_factory=list)
    """Whose lines these are, and the ticket that `Progress.begin` gave for them."""
    refusals: list[Refusal] = field(default_factory=list)
    """Why these records, in their order, can't be sent: all of them go to the dead letters. Empty: they are sent."""

    def add(self, piece: bytes, count: int, progress: Progress, end: int) -> None:
        """`count` records whose body is `piece`; with them everything before offset `end` is done with."""
        self.pieces.append(piece)
        self.count += count
        self.size += len(piece)
        self.spans.append((progress, progress.begin(end)))

    def done(self) -> None:
        """The sink is done with all of it."""
        for progress, ticket in self.spans:
            progress.done(ticket)
        self.spans.clear()


def split(body: Sequence[bytes]) -> list[bytes]:
    """The records of a body, one by one, each two lines with their line feeds."""
    lines = b"".join(body).split(b"\n")
    return [b"%b\n%b\n" % pair for pair in zip(lines[0:-1:2], lines[1:-1:2], strict=True)]
