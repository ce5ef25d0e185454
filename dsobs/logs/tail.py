"""One file, read to its end through rotation, and known again after a restart."""

from pathlib import Path

FINGERPRINT_BYTES = 1024


def identity_key(origin: str, path: Path, fingerprint: bytes) -> str:
    """What record ids begin with: 16 hexadecimal digits from the origin, the file's name and its first line."""
    raise NotImplementedError
