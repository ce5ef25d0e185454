"""Records to bodies for the sink: ids, common fields, and what is acknowledged when a body is.

A record of a body is two lines, `{"create":{"_id":"KEY-OFFSET-HASH"}}` and its document. KEY says which file generation
(`dsobs.logs.tail.identity_key`), OFFSET and HASH (XXH3, 64 bits, of the record's bytes) are hexadecimal.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from xxhash import xxh3_64_intdigest

from dsobs.logs.checkpoint import Progress
from dsobs.logs.record import Common, Record


class Encoder:
    """Bodies for the records of one file generation."""

    def __init__(self, key: str, common: Common) -> None:
        self._common = common
        self._reserved = common.reserved
        self._id = b'{"create":{"_id":"' + key.encode() + b"-"
        self._fields = orjson.dumps(dict(common.fields))[1:-1] + b"," if common.fields else b""

    def encode(self, records: Sequence[Record]) -> bytes:
        """The body of `records`."""
        head, middle, digest = self._id, self._fields, xxh3_64_intdigest
        parts = []
        for start, raw, document in records:
            text = document if type(document) is bytes else self._text(document)  # type: ignore[arg-type]
            parts.append(
                b'%b%x-%016x"}}\n{"log.offset":%d,%b%b\n' % (head, start, digest(raw), start, middle, text[1:])
            )
        return b"".join(parts)

    def _text(self, document: dict[str, Any]) -> bytes:
        """JSON of a document that goes behind the common fields; where both have a field, the document's own goes."""
        if not self._reserved.isdisjoint(document):
            return b""
        return orjson.dumps(document, default=str, option=orjson.OPT_NON_STR_KEYS)


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
