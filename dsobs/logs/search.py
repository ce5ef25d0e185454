"""Records of the file sink, found by time, level, text, fields and incident.

Only lines that hold a literal of the question are decoded, so that a rare word is found at the speed of reading.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

BLOCK_BYTES = 4 * 1024 * 1024
LEVELS = ("trace", "debug", "info", "warning", "error", "critical")
"""By weight; a question for one means it and those behind it."""
_LEVEL_NAMES = {
    "notset": "trace",
    "notice": "info",
    "information": "info",
    "warn": "warning",
    "err": "error",
    "fatal": "critical",
    "alert": "critical",
    "emergency": "critical",
}
_PLAIN = re.compile(r"[A-Za-z0-9 _.,:;=+*@#%()\[\]{}!?'-]+")
_ESCAPED = b"\\u00"
"""A line with it may write a letter in a way that a literal does not find."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is looked for; all of it must hold."""

    since: float | None = None
    """Unix seconds; a record without a time that can be read is in no range."""
    until: float | None = None
    level: str = ""
    """The least of LEVELS."""
    texts: tuple[str, ...] = ()
    """Each stands in some value of the record."""
    ignore_case: bool = False
    fields: tuple[tuple[str, str], ...] = ()
    """(dotted name, value as text)."""

    def literals(self) -> list[bytes]:
        """What a line must hold, longest first; not case-sensitive where the question is not."""
        wanted = [*self.texts, *(value for _, value in self.fields)]
        runs = (max(_PLAIN.findall(text), key=len, default="") for text in wanted)
        found = {run.lower() if self.ignore_case else run for run in runs if len(run) > 1}
        return sorted((run.encode() for run in found), key=len, reverse=True)

    def accepts(self, document: Mapping[str, Any]) -> bool:
        """Whether the record is one of those."""
        if self.level and weight(level_of(document)) < LEVELS.index(self.level):
            return False
        if self.since is not None or self.until is not None:
            at = time_of(document)
            if at is None or (self.since is not None and at < self.since):
                return False
            if self.until is not None and at > self.until:
                return False
        if not all(_same(value_of(document, name), value, self.ignore_case) for name, value in self.fields):
            return False
        if not self.texts:
            return True
        found = list(_texts({name: value for name, value in document.items() if name not in ("_id", "_index")}))
        if self.ignore_case:
            found = [text.lower() for text in found]
        return all(any(_folded(text, self.ignore_case) in one for one in found) for text in self.texts)


def about_incident(files: Iterable[Path], incident: str, before: float) -> tuple[float, float] | None:
    """Unix seconds from `before` seconds before the first record of an incident to its last; None: there is none.

    `incident` is an id or its beginning.
    """
    times = []
    question = Question(texts=(incident,))
    for _, document in find(files, question):
        if str(value_of(document, INCIDENT)).startswith(incident) and (at := time_of(document)) is not None:
            times.append(at)
    return (min(times) - before, max(times)) if times else None


INCIDENT = "labels.incident_id"
"""Field with the incident that a record belongs to."""


def sink_files(path: Path) -> list[Path]:
    """The file sink's files, oldest first."""
    numbered = []
    for other in path.parent.glob(f"{path.name}.*"):
        number = other.name.removeprefix(f"{path.name}.")
        if number.isdigit():
            numbered.append((int(number), other))
    return [other for _, other in sorted(numbered, reverse=True)] + [path] * path.exists()


def find(files: Iterable[Path], question: Question) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line, document) of records that fit, each id once, in the order in which they were written.

    Lines that are no JSON objects are passed over. OSError.
    """
    literals = question.literals()
    seen: set[str] = set()
    for path in files:
        for block in _blocks(path):
            for line in _candidates(block, literals, question.ignore_case):
                try:
                    document = orjson.loads(line)
                except ValueError:
                    continue
                if type(document) is not dict or not question.accepts(document):
                    continue
                id_ = document.get("_id")
                if id_ is not None:
                    if id_ in seen:
                        continue
                    seen.add(id_)
                yield line, document


def _blocks(path: Path) -> Iterator[bytes]:
    """Whole lines; a last one without line feed too."""
    rest = b""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            block = rest + block
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            if end:
                yield block[:end]
    if rest:
        yield rest


def _candidates(block: bytes, literals: list[bytes], ignore_case: bool) -> Iterator[bytes]:
    """Lines that may fit: those with all literals."""
    # Some letters beyond ASCII have small forms within it (the Kelvin sign).
    if not literals or _ESCAPED in block or (ignore_case and not block.isascii()):
        yield from block.split(b"\n")
        return
    searched = block.lower() if ignore_case else block
    first, others = literals[0], literals[1:]
    at = searched.find(first)
    while at >= 0:
        begin = searched.rfind(b"\n", 0, at) + 1
        end = searched.find(b"\n", at)
        end = len(searched) if end < 0 else end
        if all(searched.find(other, begin, end) >= 0 for other in others):
            yield block[begin:end]
        at = searched.find(first, end)


# What a record says.


def value_of(document: Mapping[str, Any], name: str) -> Any:
    """The value of a field, written dotted, nested or in part both; None if there is none."""
    if name in document:
        return document[name]
    head, dot, rest = name.partition(".")
    while dot:
        inner = document.get(head)
        if isinstance(inner, dict) and (found := value_of(inner, rest)) is not None:
            return found
        more, dot, rest = rest.partition(".")
        head = f"{head}.{more}"
    return None


def level_of(document: Mapping[str, Any]) -> str:
    """One of LEVELS; empty if it says none that is known."""
    for name in ("log.level", "level", "levelname", "severity"):
        said = value_of(document, name)
        if isinstance(said, str):
            lowered = said.lower()
            lowered = _LEVEL_NAMES.get(lowered, lowered)
            return lowered if lowered in LEVELS else ""
    return ""


def weight(level: str) -> int:
    """Place in LEVELS; unknown is below all."""
    return LEVELS.index(level) if level in LEVELS else -1


def time_of(document: Mapping[str, Any]) -> float | None:
    """Unix seconds of `@timestamp` (ISO 8601, or a number of milliseconds as Elasticsearch takes it)."""
    said = document.get("@timestamp")
    if isinstance(said, int | float):
        return said / 1000
    try:
        at = datetime.fromisoformat(said)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _folded(text: str, ignore_case: bool) -> str:
    return text.lower() if ignore_case else text


def _same(found: Any, wanted: str, ignore_case: bool) -> bool:
    if isinstance(found, list):
        return any(_same(one, wanted, ignore_case) for one in found)
    if found is None or isinstance(found, dict):
        return False
    text = str(found).lower() if isinstance(found, bool) else str(found)
    return _folded(text, ignore_case) == _folded(wanted, ignore_case)


def in_range(question: Question, span: tuple[float, float]) -> Question:
    """The question for this range of time only."""
    since = span[0] if question.since is None else max(question.since, span[0])
    until = span[1] if question.until is None else min(question.until, span[1])
    return replace(question, since=since, until=until)
