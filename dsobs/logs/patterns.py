"""File name patterns of the settings, and what they find."""

import contextlib
import glob
import os
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dsobs.config.logs import Logs
from dsobs.logs.tail import FileId, file_id

COMPRESSED = ".gz"
CLOCK_STEP_NS = 100_000_000
"""A folder's time of modification moves in steps no longer than this."""


@dataclass(slots=True)
class Pattern:
    """One of the patterns, and what it found."""

    text: str
    """As in the settings."""
    format: str
    glob: str
    found: list[str] = field(default_factory=list)
    compressed: list[str] = field(default_factory=list)
    """What it found and nobody reads: what was in them was read before they were compressed, or never."""
    closed: dict[str, OSError] = field(default_factory=dict)
    """The folder that it can't look into, if that is why it finds nothing."""
    folder_time: int = -1
    """When its folder changed, nanoseconds, as it was looked up; -1: to be looked up."""
    looked_at: float = float("-inf")

    @property
    def folder(self) -> str | None:
        """The one folder that it looks into, if it is one."""
        head = os.path.dirname(self.glob)  # noqa: PTH120 - a pattern, no path
        return None if glob.has_magic(head) else head or "."

    def is_due(self, now: float, deep_scan: float) -> bool:
        """Whether it may find something else by now."""
        return now - self.looked_at >= deep_scan or (self.folder is not None and self._changed() != self.folder_time)

    def _changed(self) -> int:
        with contextlib.suppress(OSError):
            if self.folder is not None:
                return Path(self.folder).stat().st_mtime_ns
        return 0

    def look_up(self, now: float) -> None:
        """Looks what it finds now; that takes as long as its folders are large."""
        changed = self._changed()
        # The folder's clock moves in steps: within one, something may come after the look.
        settled = time.time_ns() - changed > CLOCK_STEP_NS
        self.folder_time = changed if settled else -1
        found = glob.glob(self.glob, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        self.found = [path for path in found if not path.endswith(COMPRESSED)]
        self.compressed = [path for path in found if path.endswith(COMPRESSED)]
        self.closed = {} if found else self._closed()
        self.looked_at = now

    def _closed(self) -> dict[str, OSError]:
        # glob passes over what it may not look into.
        head = self.glob
        while glob.has_magic(head):
            head = os.path.dirname(head)  # noqa: PTH120
        try:
            if head == self.glob:
                os.stat(head)  # noqa: PTH116
            else:
                os.scandir(head or ".").close()
        except PermissionError as error:
            return {head: error}
        except OSError:
            pass
        return {}


class OwnFiles:
    """What a shipper writes itself; to ship it as a log would go on for ever."""

    def __init__(self, directory: Path, records: Path) -> None:
        """`directory` holds its state, `records` is the file of its file sink."""
        self._state, self._records = os.path.realpath(directory), os.path.realpath(records.parent)
        self._name = records.name
        self._folders: dict[str, str] = {}

    def __contains__(self, path: object) -> bool:
        # A thousand a time, and `os.path.split` takes four times as long.
        folder, _, name = str(path).rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder or "/")
        where = self._folders[folder]
        return (where == self._state and name.startswith(_STATE_FILES)) or (
            where == self._records and (name == self._name or name.startswith(f"{self._name}."))
        )


_STATE_FILES = ("logs.db", "lock", "status.json", "dead-letters")


def found_by(
    all_patterns: Sequence[Pattern], excluded: Sequence[str], own: Container[str] = ()
) -> tuple[dict[FileId, tuple[str, Pattern]], list[tuple[str, OSError]]]:
    """The files that they found, each with the first that did, and those that can't be looked at."""
    found: dict[FileId, tuple[str, Pattern]] = {}
    failed: list[tuple[str, OSError]] = []
    for pattern in all_patterns:
        failed += pattern.closed.items()
        for path in pattern.found:
            try:
                status = os.stat(path)  # noqa: PTH116 - a thousand a time
            except OSError as error:
                failed.append((path, error))
                continue
            if path not in own and not (excluded and any(Path(path).match(one) for one in excluded)):
                found.setdefault(file_id(status), (path, pattern))
    return found, failed


def patterns(settings: Logs) -> list[Pattern]:
    """Those of the settings: `FORMAT:PATTERN`, or a pattern of format `auto`."""
    made = []
    for text in settings.files:
        name, colon, rest = text.partition(":")
        format_, where = (name, rest) if colon and "/" not in name else ("auto", text)
        # A file is the same one from wherever it is named: its path is in its ids and checkpoint.
        made.append(Pattern(text, format_, os.path.abspath(where)))  # noqa: PTH100 - a pattern, no path
    return made
