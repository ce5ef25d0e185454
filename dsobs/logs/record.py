"""What goes from the tail to the sink: lines, records, and where they stand. Built for batches, not for single records.

Offsets are bytes from the beginning of the file (of its present generation); times are Unix seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Document: TypeAlias = dict[str, Any] | bytes
"""What is sent of a record: its fields, by ECS names (dotted or nested), with `@timestamp` as ISO 8601 text.

Or, where nothing needs to look into it: the text of a JSON object that was checked to be one, that begins with `{`, is
not empty, holds `@timestamp`, and holds none of the keys in `Reserved`. Then it is sent as it is, which is the fastest.
"""

Record: TypeAlias = tuple[int, bytes, Document]
"""(offset of its first byte, its bytes as they stand in the file without the last line feed, its document).

The bytes make the id; a transform may change the document, never the bytes.
"""


@dataclass(slots=True)
class Lines:
    """Whole lines of one file, in order: what a parser is given."""

    start: int
    """Offset of the first line."""
    end: int
    """Offset behind the last one; there the next block begins."""
    lines: list[bytes]
    """Without line feeds; each takes `len(line) + 1` bytes of the file."""
    read_at: float
    """When they were read: the time of a record that has none of its own."""
    fault: str = ""
    """`cut` (over-long; its first bytes), `unfinished` (the file ended without a line feed): then there is one line,
    and what is made of it must say so."""


@dataclass(frozen=True, slots=True)
class LogFile:
    """A file as formats and documents know it."""

    path: Path
    """As it was found by its pattern, not resolved: Kubernetes says pod and container in it."""
    modified_at: float
    """Its time of modification, when it was opened: resolves time stamps without a year."""
    format: str
    """Name of its format; `auto` where it is to be found out."""
    head: bytes = b""
    """Its first bytes, if they were read: what its format is found out by, the same after every restart."""
    timezone: str = ""
    """IANA name of the zone of times that name none. Empty: this host's."""
    decided: str = ""
    """What an earlier parser of it had found out (`Parser.decided`): it stays so, whatever else may speak for."""


@dataclass(frozen=True, slots=True)
class Common:
    """Fields that all records of one file have."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """By dotted name: `host.name`, `service.name`, `log.file.path` …"""

    @property
    def reserved(self) -> frozenset[str]:
        """Keys that a `bytes` document must not have at its top level: these names and what they begin with."""
        heads = {name.split(".", 1)[0] for name in self.fields}
        return frozenset({*self.fields, *heads, "log.offset", "log"})
