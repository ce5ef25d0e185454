"""Changes of a workload that are written down in it, so that they can be taken back.

The record is an annotation of the pods: what was added, by its path, and the text of what was replaced, as it stood. It
needs no copy of the whole manifest, and holds after the manifest was changed by hand, or read back from a cluster.
"""

import json
from typing import Any, TypeAlias

from dsobs.manifests.nodes import Path
from dsobs.manifests.problem import ManifestError
from dsobs.manifests.text import Document
from dsobs.manifests.workloads import Workload

ANNOTATION = "dsobs.io/injected"
"""Of the pods; its value is the record, as JSON."""

_Change: TypeAlias = dict[str, Any]


class Changes:
    """Changes the workload and keeps the record. Each method leaves alone what is as it should be already."""

    def __init__(self, document: Document, workload: Workload) -> None:
        self.document = document
        self.workload = workload
        self._place: Path = (*workload.annotations, ANNOTATION)
        self._record: list[_Change] = []
        self._kept: list[_Change] = []
        written = document.get(self._place)
        if written is not None:
            self._record = _read(written, document.line(self._place))
            self._kept = list(self._record)

    @property
    def injected(self) -> bool:
        """Whether something was written down before."""
        return self.document.has(self._place)

    def added(self, path: Path) -> bool:
        """Whether what stands at `path` was put there by an earlier run."""
        return any(change.get("add") == self._relative(path) for change in self._record)

    def changed(self, path: Path) -> bool:
        """Whether an earlier run replaced what stands at `path`."""
        return any(change.get("change") == self._relative(path) for change in self._record)

    def set_key(self, path: Path, value: Any) -> None:
        """Puts a key there; what it held before is written down, unless an earlier run put that there."""
        document = self.document
        if document.has(path):
            if document.get(path) == value:
                return
            if not self.added(path) and not self.changed(path):
                self._note(
                    {"change": self._relative(path), "raw": document.raw(path), "column": document.column_of(path)}
                )
        else:
            self._note_added(path)
        document.put(path, value)

    def set_number(self, path: Path, value: int) -> None:
        """Puts another number in the place of one, and nothing else."""
        if self.document.has(path):
            if self.document.get(path) == value:
                return
            self._note({"change": self._relative(path), "raw": self.document.raw_value(path), "column": None})
            self.document.replace_value(path, str(value))
        else:
            self.set_key(path, value)

    def add_item(self, path: Path, field: str, item: dict[str, Any]) -> None:
        """Adds an item to the list at `path` unless it has one of the same `field`."""
        place = (*path, (field, str(item[field])))
        if not self.document.has(place):
            self._note_added(place)
            self.document.append(path, item)

    def write(self) -> None:
        """Puts the record into the annotation, last."""
        if self._record == self._kept:
            return
        if not self.document.has(self._place):
            self._note_added(self._place)
        self.document.put(self._place, json.dumps(self._record, ensure_ascii=False, separators=(",", ":")))

    def take_back(self) -> list[str]:
        """Undoes what was written down, the last first; what is left to say about it."""
        said = []
        for change in reversed(self._record):
            path = self._absolute(change.get("add") or change["change"])
            if not self.document.has(path):
                continue
            if "add" in change:
                if change.get("made") and self.document.get(path):
                    said.append(f"{_dotted(path)} has other entries by now, and stays")
                    continue
                self.document.delete(path)
            elif change["column"] is None:
                self.document.replace_value(path, change["raw"])
            else:
                self.document.restore(path, change["raw"], change["column"])
        return said

    def _note_added(self, path: Path) -> None:
        """Writes down the entry at `path`, and before it the outermost collection that is made for it."""
        for length in range(len(self.workload.path) + 1, len(path)):
            holder = path[:length]
            if not self.document.has(holder):
                self._note({"add": self._relative(holder), "made": True})
                for inner in range(length + 1, len(path)):
                    self._note({"add": self._relative(path[:inner]), "made": True})
                break
            if self.document.get(holder) is None or self.document.get(holder) in ([], {}):
                self._note(
                    {
                        "change": self._relative(holder),
                        "raw": self.document.raw(holder),
                        "column": self.document.column_of(holder),
                    }
                )
                for inner in range(length + 1, len(path)):
                    self._note({"add": self._relative(path[:inner]), "made": True})
                break
        self._note({"add": self._relative(path)})

    def _note(self, change: _Change) -> None:
        if change not in self._record:
            self._record.append(change)

    def _relative(self, path: Path) -> list[Any]:
        return [list(step) if isinstance(step, tuple) else step for step in path[len(self.workload.path) :]]

    def _absolute(self, steps: list[Any]) -> Path:
        return (*self.workload.path, *(tuple(step) if isinstance(step, list) else step for step in steps))


def _dotted(path: Path) -> str:
    return ".".join(str(step[1] if isinstance(step, tuple) else step) for step in path)


def _read(written: Any, line: int) -> list[_Change]:
    try:
        record = json.loads(written)
        for change in record:
            steps = change.get("add") or change["change"]
            if not isinstance(steps, list) or ("add" not in change and not isinstance(change["raw"], str)):
                raise TypeError
            change.setdefault("column", None)
            if "add" in change:
                del change["column"]
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ManifestError(
            f"the annotation {ANNOTATION} is not as dsobs writes it; take it out, or restore it", line
        ) from None
    return list(record)
