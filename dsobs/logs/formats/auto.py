"""The format of a file by what stands in it: the runtime's outside, and the server's log inside.

The first line that says something decides; a line that could stand in any log does not. Where a file's first bytes are
given they decide, so that it is the same after a restart, which begins in the middle. Where nothing decides in time,
the file's name may say whose it is; its lines are read for what they are all the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from dsobs.logs.formats.containers import (
    CRI,
    ContainerParser,
    TakeOff,
    is_docker,
    pieces_of,
    take_off_cri,
    take_off_docker,
)
from dsobs.logs.formats.json_lines import JsonBody, JsonParser, MixedBody, mixed_parser
from dsobs.logs.formats.pieces import Body, BodyParser, Held, Piece
from dsobs.logs.formats.text import HEAD, UVICORN, text_body
from dsobs.logs.metrics import BLANK_LINES
from dsobs.logs.record import Common, Lines, LogFile, Record

MOST_UNDECIDED = 200
"""Lines that are held while none of them decides; then the file is plain text."""

_OBJECTS = {"json": "json", "vllm-json": "vllm"}
"""What is JSON → its dataset."""


_MAYBE_UVICORN = "maybe-uvicorn"


def inside_of(lines: Iterable[bytes]) -> str:
    """`vllm`, `vllm-json`, `json`, `maybe-uvicorn`, or empty while no line decides."""
    maybe = ""
    for line in lines:
        if line[:1] == b"{":
            try:
                entry = orjson.loads(line)
            except ValueError:
                continue
            name = str(entry.get("name", ""))
            return "vllm-json" if name.startswith(("vllm.", "uvicorn")) or "vllm_process_name" in entry else "json"
        if HEAD.match(line):
            return "vllm"
        if UVICORN.match(line):
            # vLLM prints such lines too, so one alone is no proof of another server.
            maybe = _MAYBE_UVICORN
    return maybe


def outside_of(line: bytes) -> str:
    """`cri`, `docker`, or empty for a file that no container runtime wrote."""
    if CRI.match(line):
        return "cri"
    if line[:1] == b"{":
        try:
            return "docker" if is_docker(orjson.loads(line)) else ""
        except ValueError:
            return ""
    return ""


class InsideBody:
    """A body that finds out which one it is."""

    def __init__(self, file: LogFile, common: Common, held: Held, *, as_fields: bool, head: list[bytes]) -> None:
        self._file = file
        self._common = common
        self._held = held
        self._as_fields = as_fields
        self._undecided: list[tuple[Piece, float, str] | Record] = []
        """Pieces as they came, and between them records of others."""
        self._first = 0
        """Offset of the first of them."""
        self._body: Body | None = None
        self._found = ""
        if file.decided:
            inside, dataset, ends = file.decided.split("/")
            self._file = replace(file, decided=ends)
            self._body = self._made(inside, dataset)
            return
        head = head[:MOST_UNDECIDED]
        inside = inside_of(head)
        if (inside and inside != _MAYBE_UVICORN) or len(head) == MOST_UNDECIDED:
            self._body = self._made(inside)

    @property
    def dataset(self) -> str:
        """That of the body, `plain` while it is not known."""
        return self._body.dataset if self._body is not None else "plain"

    @property
    def decided(self) -> str:
        """`INSIDE/DATASET/ENDS`."""
        return f"{self._found}/{self._body.decided}" if self._body is not None else ""

    def take(self, pieces: Iterable[Piece], read_at: float, fault: str = "") -> list[Record]:
        """Records that `pieces` finish."""
        if self._body is not None:
            return self._body.take(pieces, read_at, fault)
        for piece in pieces:
            self._hold(piece[0], (piece, read_at, fault))
        return self._decide_if_due()

    def pass_on(self, record: Record) -> list[Record]:
        """Records that go out now, one that is not of this body among those that go to its stream."""
        if self._body is not None:
            return [record]
        self._hold(record[0], record)
        return self._decide_if_due()

    def _hold(self, start: int, what: tuple[Piece, float, str] | Record) -> None:
        if not self._undecided:
            self._first = start
            self._held.begin("undecided", start)
        self._undecided.append(what)

    def _decide_if_due(self) -> list[Record]:
        inside = self._inside()
        if (inside and inside != _MAYBE_UVICORN) or len(self._undecided) >= MOST_UNDECIDED:
            return self._decide(inside)
        return []

    def _inside(self) -> str:
        texts = (one[0][2] for one in self._undecided[:MOST_UNDECIDED] if not isinstance(one[0], int))
        return inside_of(texts)

    def flush(self) -> list[Record]:
        """What is not finished, as it stands."""
        out: list[Record] = []
        if self._body is None and self._undecided:
            out = self._decide(self._inside())
        return out + self._body.flush() if self._body is not None else out

    def _decide(self, inside: str) -> list[Record]:
        body = self._body = self._made(inside)
        undecided, self._undecided = self._undecided, []
        self._held.end("undecided", self._first)
        out: list[Record] = []
        for one in undecided:
            if isinstance(one[0], int):
                out.append(one)
            else:
                out += body.take((one[0],), one[1], one[2])
        return out

    def _made(self, inside: str, dataset: str = "") -> Body:
        if not dataset:
            guess = "vllm" if "vllm" in str(self._file.path).lower() else inside.removeprefix("maybe-") or "plain"
            unclear = inside in ("", _MAYBE_UVICORN)
            dataset = guess if unclear else _OBJECTS.get(inside, inside)
        self._found = f"{inside}/{dataset}"
        text = text_body(dataset, self._file, self._held, None if self._as_fields else self._common)
        if inside in ("", _MAYBE_UVICORN) or inside in _OBJECTS:
            return MixedBody(JsonBody(dataset, self._file, self._common, as_fields=self._as_fields), text)
        return text


class AutoParser:
    """Finds out who wrote the file by its first line, and leaves the rest to that one's parser."""

    def __init__(self, file: LogFile, common: Common, *, as_fields: bool) -> None:
        self._file = file
        self._common = common
        self._as_fields = as_fields
        self._head = file.head.split(b"\n")[:-1]
        self._outside = self._inside = ""
        self._parser: BodyParser | ContainerParser | JsonParser | None = None
        self._blank: list[Lines] = []
        """Lines with nothing in them, before the first that has something."""
        first = next((line for line in self._head if line.strip()), None)
        if file.decided:
            self._outside, _, decided = file.decided.partition(":")
            inside, dataset, ends = decided.split("/")
            objects = inside in _OBJECTS and not self._outside
            self._inside = f"{inside}/{dataset}" if objects else ""
            self._file = replace(file, decided=ends if objects else decided)
            self._parser = self._opened()
        elif first is not None:
            self._parser = self._made(first)

    @property
    def dataset(self) -> str:
        """The parser's; `plain` before the first line."""
        return self._parser.dataset if self._parser is not None else "plain"

    @property
    def fields(self) -> Mapping[str, Any]:
        """The parser's."""
        return self._parser.fields if self._parser is not None else {}

    @property
    def decided(self) -> str:
        """`OUTSIDE:INSIDE/DATASET/ENDS`."""
        if self._parser is None:
            return ""
        inside = f"{self._inside}/{self._parser.decided}" if self._inside else self._parser.decided
        return f"{self._outside}:{inside}" if inside else ""

    @property
    def held_from(self) -> int | None:
        """The parser's, or that of the blank lines before the first that says something."""
        if self._parser is not None:
            return self._parser.held_from
        return self._blank[0].start if self._blank else None

    def parse(self, lines: Lines) -> list[Record]:
        """What the parser makes of `lines`."""
        if self._parser is None:
            first = next((line for line in lines.lines if line.strip()), None)
            self._blank.append(lines)
            if first is None and sum(len(each.lines) for each in self._blank) < MOST_UNDECIDED:
                return []
            # How they end may tell the parser something, so it gets them too.
            self._parser = self._made(first or b"")
            blank, self._blank = self._blank, []
            return [record for each in blank for record in self._parser.parse(each)]
        return self._parser.parse(lines)

    def flush(self) -> list[Record]:
        """What the parser holds."""
        if self._parser is not None:
            return self._parser.flush()
        BLANK_LINES.inc(sum(len(each.lines) for each in self._blank))
        self._blank.clear()
        return []

    def _made(self, first: bytes) -> BodyParser | ContainerParser | JsonParser:
        self._outside = outside_of(first)
        if not self._outside:
            inside = inside_of((self._head or [first])[:MOST_UNDECIDED])
            if inside in _OBJECTS:
                self._inside = f"{inside}/{_OBJECTS[inside]}"
        return self._opened()

    def _opened(self) -> BodyParser | ContainerParser | JsonParser:
        file, common, as_fields = self._file, self._common, self._as_fields
        if self._outside:
            return container_parser(self._outside, file, common, as_fields=as_fields, head=self._head)
        inside, _, dataset = self._inside.partition("/")
        if inside in _OBJECTS:
            return mixed_parser(dataset, file, common, as_fields=as_fields)
        held = Held()
        return BodyParser(InsideBody(file, common, held, as_fields=as_fields, head=self._head), held)


def container_parser(
    outside: str, file: LogFile, common: Common, *, as_fields: bool, head: list[bytes]
) -> ContainerParser:
    """A parser for files of a runtime (`cri`, `docker`) with any log inside."""
    take_off: TakeOff = take_off_cri if outside == "cri" else take_off_docker
    held = Held()
    body = InsideBody(file, common, held, as_fields=as_fields, head=pieces_of(head, take_off))
    return ContainerParser(body, held, file, take_off)


class Auto:
    """Whatever it is."""

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> AutoParser:
        """A parser."""
        return AutoParser(file, common, as_fields=as_fields)


class Cri:
    """Kubernetes container log files."""

    outside = "cri"

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> ContainerParser:
        """A parser."""
        head = file.head.split(b"\n")[:-1]
        return container_parser(self.outside, file, common, as_fields=as_fields, head=head)


class Docker(Cri):
    """Docker's json-file."""

    outside = "docker"
