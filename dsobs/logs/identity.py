"""How a file is known again: by its first line, whatever it is called and whichever inode it has."""

import re
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64_hexdigest, xxh3_128_digest

HEAD_BYTES = 1024
"""Most of the first line that makes a fingerprint."""
MARK_BYTES = 256
"""Bytes before a position whose hash shows that the file is still the one that the position was of."""

_ROTATED = re.compile(
    r"(?:\.\d{1,3}|[.-]\d{8}(?:[-_T.]?\d{2,6})?|[.-]\d{4}-\d{2}-\d{2}(?:[-_T.]?\d{2}[-:.]?\d{2}(?:[-:.]?\d{2})?)?)+$"
)
_COMPRESSED = ".gz"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The first complete line with its line feed, or its first `HEAD_BYTES`."""

    length: int
    digest: bytes


def fingerprint(head: bytes, *, complete: bool = False) -> Fingerprint | None:
    """Of a file that begins with `head`, of which `HEAD_BYTES` are enough; None while its first line is not there.

    `complete`: nothing more will come.
    """
    end = head.find(b"\n", 0, HEAD_BYTES) + 1
    if not end:
        if len(head) < HEAD_BYTES and not (complete and head):
            return None
        end = min(len(head), HEAD_BYTES)
    return Fingerprint(end, xxh3_128_digest(head[:end]))


def mark(before: bytes) -> bytes:
    """Of the up to `MARK_BYTES` bytes that stand before a position."""
    return xxh3_128_digest(before[-MARK_BYTES:])


def stem(path: Path) -> str:
    """The name that a file has, or had before it was rotated: `a/b.log` for `a/b.log.1` and `a/b.log-20261124.gz`."""
    name = path.name.removesuffix(_COMPRESSED)
    cut = _ROTATED.sub("", name)
    return str(path.with_name(cut or name))


def identity_key(origin: str, path: Path, found: Fingerprint) -> str:
    """What record ids begin with: 16 hexadecimal digits from the origin, the file's `stem` and its first line.

    Files of one stem with the same first line have the same key: their records differ by the hash of their bytes.
    """
    return xxh3_64_hexdigest(b"\0".join((origin.encode(), stem(path).encode("utf-8", "surrogateescape"), found.digest)))
