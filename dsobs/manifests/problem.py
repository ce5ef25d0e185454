"""What is to be said about a manifest."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing to say; `str()` is the line to print."""

    line: int
    """From 1; 0 for the file as a whole."""
    file: str
    """As the user gave it; `-` for stdin."""
    workload: str
    """`Kind/name`; empty where it is about no workload."""
    message: str
    """What is, and what to do about it."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (where, self.workload, self.message) if part)


class ManifestError(Exception):
    """A workload can't be used as it is written. `line` counts from 1 in the text that was given."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line
