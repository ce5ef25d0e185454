"""Text logs of Python servers: vLLM's lines, uvicorn's lines, tracebacks of several lines, and anything else as text.

vLLM (0.8 to 0.32) writes `(EngineCore pid=776) INFO 11-23 17:17:07 [core.py:313] message`; before 0.10 there is no
process in front. A message of several lines repeats all that before each, and ends all but the last with a carriage
return. uvicorn writes `INFO:     message`. What a process prints may have `(EngineCore pid=776) ` in front, or nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from dsobs.logs.formats.numbers import LITERALS, access_of, numbers_of, trace_of
from dsobs.logs.formats.pieces import BodyParser, Held, Piece
from dsobs.logs.formats.raw import note_faults, text_of
from dsobs.logs.formats.times import FileTimes, zone_named
from dsobs.logs.metrics import BLANK_LINES
from dsobs.logs.record import Common, LogFile, Record

MOST_LINES, MOST_BYTES = 2000, 256 * 1024
"""Of one record; what goes beyond is the next one."""
MOST_ALIKE = 20
"""Lines at a file's beginning that all end with a carriage return: then all do, and it is a terminal's."""
MOST_BETWEEN = 200
"""Lines that others may write before a record that is not finished is taken as it stands."""

_LEVEL = rb"DEBUG|INFO|WARNING|ERROR|CRITICAL|TRACE|WARN|FATAL"
_TAGS = rb"((?:\([^()\n]{0,100}?\bpid=\d+[^()\n]{0,100}\) )*)"
HEAD = re.compile(_TAGS + rb"(" + _LEVEL + rb") (\d\d-\d\d \d\d:\d\d:\d\d) \[([^\]\n]{1,300}?):(\d+)\](?: |$)")
UVICORN = re.compile(_TAGS + rb"(" + _LEVEL + rb"):(?: {2,}|\t)(.*)", re.DOTALL)
_TAGGED = re.compile(_TAGS)
_TAG = re.compile(rb"\(([^()]*?)\s*\bpid=(\d+)[^()]*\) \Z")
_RANK = re.compile(r"_DP(\d+)")
_COLOR = re.compile(rb"\x1b\[[0-9;]*m")

_TRACEBACK = re.compile(rb"\s*(?:\+ )?(?:Exception Group )?Traceback \(most recent call last\):")
_CHAIN = (
    b"During handling of the above exception, another exception occurred:",
    b"The above exception was the direct cause of the following exception:",
)
_EXCEPTION = re.compile(rb"[A-Za-z_][\w.]*(?:: |:?\s*$)")
_EXCEPTION_TEXT = re.compile(r"([A-Za-z_][\w.]*)(?:: ?(.*))?", re.DOTALL)
_INFERRED = "labels.time_inferred"
_QUIET = (b"DEBUG", b"INFO", b"TRACE")
_REMEMBERED = 4096


@dataclass(slots=True)
class _Head:
    """What stands before a message."""

    tags: bytes
    origin: tuple[bytes, ...]
    """What the lines of one message have in common: process, level, file, line."""
    level: bytes
    fields: dict[str, Any]
    timed: dict[str, Any]
    """The same where the time is known from elsewhere."""
    fault: str
    quiet: bool
    """Of a level at which no traceback follows, and nothing wrong with it."""
    text: bytes
    """JSON of a document up to its message; empty where documents are to be fields."""


@dataclass(slots=True)
class _Line:
    """One line, taken apart."""

    piece: Piece
    key: tuple[bytes, str]
    """Process and stream: whose lines belong together."""
    rest: bytes
    head: _Head | None
    level: bytes
    more: bool
    """Says itself that the next line belongs to it."""


@dataclass(slots=True)
class _Group:
    """Lines of one record that is not finished."""

    first: _Line
    state: str
    """lines (as each says), waiting (for a traceback), trace, raised (its last line was there), chained."""
    origin: tuple[bytes, ...]
    last: int
    seen: int
    """Number of its last line among those read while something was held."""
    raws: list[bytes] = field(default_factory=list)
    rests: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, line: _Line) -> None:
        self.last = line.piece[0]
        self.raws.append(line.piece[1])
        self.rests.append(line.rest)
        self.size += len(line.piece[1]) + 1


class TextBody:
    """Records of text lines."""

    def __init__(
        self,
        dataset: str,
        times: FileTimes,
        held: Held,
        *,
        head: bytes = b"",
        decided: str = "",
        common: Common | None = None,
    ) -> None:
        """`head`: of the file; `decided`: what was found out about it earlier; `common`: its fields, where documents
        may be text."""
        self.dataset = dataset
        self.decided = decided or ends_of(head.split(b"\n")[:-1])
        """`terminal` (each line ends with a carriage return, which means nothing then), or `lines`; empty: not yet."""
        self._undecided: list[tuple[Piece, float, str]] = []
        self._times = times
        self._held = held
        self._reserved = common.reserved if common is not None else None
        self._heads: dict[bytes, _Head] = {}
        self._places: dict[tuple[bytes, ...], dict[str, Any]] = {}
        self._texts: dict[tuple[bytes, ...], bytes] = {}
        self._groups: dict[tuple[bytes, str], _Group] = {}
        self._read_at = 0.0
        self._count = 0

    def take(self, pieces: Iterable[Piece], read_at: float, fault: str = "") -> list[Record]:
        """Records that `pieces` finish."""
        if not self.decided:
            return self._wait(pieces, read_at, fault)
        self._read_at = read_at
        out: list[Record] = []
        groups = self._groups
        slow = bool(fault or self.decided == "terminal")
        all_pieces = list(pieces)
        # Most blocks have none of these texts: one search for each in all lines is much less than one in each line.
        joined = b"\n".join([piece[2] for piece in all_pieces])
        literals = [literal for literal in LITERALS if literal in joined]
        traced, colored = b"trace" in joined, b"\x1b" in joined
        following: _Head | None = None
        for number, piece in enumerate(all_pieces, 1):
            start, raw, text, when, stream = piece
            cut = text.find(b"] ") + 2
            head, following = following or self._head_of(text, cut), None
            if head is None or slow or groups or head.fault or text[-1] == 13 or (colored and b"\x1b" in text):
                self._line(piece, fault, out)
                continue
            if not head.quiet:
                # It is a record by itself if the next line says that no traceback of it follows.
                behind = all_pieces[number] if number < len(all_pieces) else None
                if behind is not None and behind[4] == stream and b"Traceback" not in behind[2]:
                    following = self._head_of(behind[2], behind[2].find(b"] ") + 2)
                if following is None or following.tags != head.tags or _TRACEBACK.match(text, cut):
                    self._line(piece, fault, out)
                    continue
            try:
                message = text[cut:].decode()
            except UnicodeDecodeError:
                self._line(piece, fault, out)
                continue
            more: dict[str, Any] = {}
            for literal in literals:
                if literal in text:
                    more = numbers_of(message)
                    break
            if traced and b"trace" in text:
                more.update(trace_of(message))
            if head.text and not (when or stream or more):
                out.append((start, raw, b"%b%b}" % (head.text, orjson.dumps(message))))
                continue
            document = {"@timestamp": when, **head.timed} if when else dict(head.fields)
            document["message"] = message
            if stream:
                document["stream"] = stream
            document.update(more)
            out.append((start, raw, document))
        return out

    def _wait(self, pieces: Iterable[Piece], read_at: float, fault: str) -> list[Record]:
        """Holds what came until it is known what a carriage return means."""
        for piece in pieces:
            if not self._undecided:
                self._held.begin("ends", piece[0])
            self._undecided.append((piece, read_at, fault))
        ends = ends_of([piece[2] for piece, _, _ in self._undecided])
        return self._decide(ends) if ends else []

    def _decide(self, ends: str) -> list[Record]:
        self.decided = ends
        undecided, self._undecided = self._undecided, []
        self._held.end("ends", undecided[0][0][0])
        return [record for piece, read_at, fault in undecided for record in self.take((piece,), read_at, fault)]

    def _head_of(self, text: bytes, cut: int) -> _Head | None:
        """What stands before the message of a line that has all of it, which is `cut` bytes; None for any other."""
        head = self._heads.get(text[:cut])
        if head is None and (match := HEAD.match(text)) is not None and match.end() == cut:
            return self._head(match)
        return head

    def flush(self) -> list[Record]:
        """What is not finished, as it stands."""
        out: list[Record] = []
        if self._undecided:
            out += self._decide("terminal" if len(self._undecided) > 1 else "lines")
        for key in list(self._groups):
            self._close(key, "", out)
        return out

    def _line(self, piece: Piece, fault: str, out: list[Record]) -> None:
        """One line with all that may be special about it, and the end of what has waited for too many lines."""
        self._count += 1
        self._one(piece, fault, out)
        for key in [key for key, group in self._groups.items() if self._count - group.seen >= MOST_BETWEEN]:
            self._close(key, "", out)

    def _one(self, piece: Piece, fault: str, out: list[Record]) -> None:
        line = self._taken_apart(piece)
        group = self._groups.get(line.key)
        if group is not None:
            if len(group.raws) < MOST_LINES and group.size < MOST_BYTES and self._continues(group, line):
                group.add(line)
                group.seen = self._count
                if fault or (group.state == "lines" and not line.more):
                    self._close(line.key, fault, out)
                return
            self._close(line.key, "", out)
        if not line.rest.strip() and line.head is None and not line.level:
            BLANK_LINES.inc()
            return
        state = self._begins(line)
        if state and not fault:
            origin = line.head.origin if line.head is not None else (b"",)
            group = _Group(line, state, origin, piece[0], self._count)
            group.add(line)
            self._groups[line.key] = group
            self._held.begin(line.key, piece[0])
            return
        out.append((piece[0], piece[1], self._single(line, fault)))

    def _taken_apart(self, piece: Piece) -> _Line:
        text = piece[2]
        if b"\x1b" in text:
            text = _COLOR.sub(b"", text)
        if text.endswith(b"\r") and self.decided == "terminal":
            text = text[:-1]
        match = HEAD.match(text)
        if match is not None:
            head = self._head(match)
            rest = text[match.end() :]
            more = rest.endswith(b"\r") or text.endswith(b"]\r")
            return _Line(piece, (head.tags, piece[4]), rest.removesuffix(b"\r"), head, head.level, more)
        text = text.removesuffix(b"\r")
        match = UVICORN.match(text)
        if match is not None:
            return _Line(piece, (match[1], piece[4]), match[3], None, match[2], more=False)
        match = _TAGGED.match(text)
        tags = match[1] if match is not None else b""
        return _Line(piece, (tags, piece[4]), text[len(tags) :], None, b"", more=False)

    def _head(self, match: re.Match[bytes]) -> _Head:
        if (head := self._heads.get(match[0])) is not None:
            return head
        tags, level, stamp, file, number = match.groups()
        time, zone = self._times.stamp(stamp, self._read_at)
        origin = (tags, level, file, number)
        rest = self._places.get(origin)
        if rest is None:
            rest = {"log.level": level.decode(), **_process(tags)}
            rest["log.origin.file.name"] = text_of(file)[0]
            rest["log.origin.file.line"] = int(number)
            if len(self._places) >= _REMEMBERED:
                self._places.clear()
                self._texts.clear()
            self._places[origin] = rest
            self._texts[origin] = self._text_of(rest)
        if not time:
            fields = {"@timestamp": self._times.without_stamp(self._read_at), **rest}
            return _Head(tags, origin, level, fields, rest, "no_time", quiet=False, text=b"")
        fields = {"@timestamp": time, **rest, "event.timezone": zone, _INFERRED: "year, zone"}
        text = self._texts[origin]
        if text:
            text = b'{"@timestamp":"%b","event.timezone":"%b",%b,"message":' % (time.encode(), zone.encode(), text)
        head = _Head(tags, origin, level, fields, rest, "", level in _QUIET, text)
        if len(self._heads) >= _REMEMBERED:
            self._heads.clear()
        self._heads[match[0]] = head
        return head

    def _text_of(self, rest: dict[str, Any]) -> bytes:
        """JSON of what lines of one place have in common, without braces; empty where documents are to be fields."""
        if self._reserved is None or not self._reserved.isdisjoint({"@timestamp", "event.timezone", _INFERRED, *rest}):
            return b""
        return orjson.dumps({_INFERRED: "year, zone", **rest})[1:-1]

    def _begins(self, line: _Line) -> str:
        """The state of the record that `line` begins; empty where it is one by itself."""
        if line.more:
            return "lines"
        if _TRACEBACK.match(line.rest):
            return "trace"
        return "waiting" if line.level and line.level not in _QUIET else ""

    def _continues(self, group: _Group, line: _Line) -> bool:
        """Whether `line` is the next of `group`, whose state it moves on."""
        rest, state = line.rest, group.state
        same = line.head is not None and line.head.origin == group.origin
        if state == "lines":
            return same and line.head is not None and line.head.fields == (group.first.head or line.head).fields
        if line.level and not same:
            return False
        if state == "waiting" or (state == "chained" and rest.strip()):
            if not _TRACEBACK.match(rest) or (line.head is None) == same:
                return False
            group.state = "trace"
            group.origin = line.head.origin if line.head is not None else (b"",)
            return True
        if (line.head is not None) != (group.origin != (b"",)):
            return False
        if rest.startswith(_CHAIN):
            group.state = "chained"
            return True
        if not rest.strip() or rest[:1] in (b" ", b"\t"):
            return True
        if state == "trace" and _EXCEPTION.match(rest):
            group.state = "raised"
            return True
        return False

    def _close(self, key: tuple[bytes, str], fault: str, out: list[Record]) -> None:
        group = self._groups.pop(key)
        self._held.end(key, group.last)
        first = group.first
        if len(group.raws) == 1 and group.state != "trace":
            out.append((first.piece[0], first.piece[1], self._single(first, fault)))
            return
        texts, bad = text_of(b"\n".join(group.rests))
        document = self._start(first)
        lines = texts.split("\n")
        begin = next((n for n, line in enumerate(group.rests) if _TRACEBACK.match(line)), None)
        if begin is None:
            document["message"] = texts.strip("\n")
        else:
            _explain(document, lines, begin)
        note_faults(document, fault, bad, first.head.fault if first.head is not None else "")
        out.append((first.piece[0], b"\n".join(group.raws), document))

    def _start(self, line: _Line) -> dict[str, Any]:
        """The fields before the message."""
        _, _, _, when, stream = line.piece
        head = line.head
        if head is None:
            document = {"@timestamp": when or self._times.without_stamp(self._read_at)}
            if line.level:
                document["log.level"] = line.level.decode()
            if line.key[0]:
                document.update(_process(line.key[0]))
        elif when:
            document = {"@timestamp": when, **head.timed}
        else:
            document = dict(head.fields)
        if stream:
            document["stream"] = stream
        return document

    def _single(self, line: _Line, fault: str) -> dict[str, Any]:
        document = self._start(line)
        message, bad = text_of(line.rest)
        document["message"] = message
        if line.head is None and line.level:
            document.update(access_of(message))
        elif any(literal in line.rest for literal in LITERALS):
            document.update(numbers_of(message))
        if b"trace" in line.rest:
            document.update(trace_of(message))
        if _TRACEBACK.match(line.rest):
            _explain(document, [message], 0)
        note_faults(document, fault, bad, line.head.fault if line.head is not None else "")
        return document


def _process(tags: bytes) -> dict[str, Any]:
    """`process.name` and `process.pid` of `(EngineCore_DP1 pid=776) `; the last of several."""
    match = _TAG.search(tags)
    if match is None:
        return {}
    name = text_of(match[1])[0]
    found: dict[str, Any] = {"process.pid": min(int(match[2]), 2**53)}
    if name:
        found["process.name"] = name
    if (rank := _RANK.search(name)) is not None:
        found["vllm.engine"] = int(rank[1][:9])
    return found


def _explain(document: dict[str, Any], lines: list[str], begin: int) -> None:
    """Puts the traceback that begins at line `begin` into the fields for it."""
    document.setdefault("log.level", "ERROR")
    trace = "\n".join(lines[begin:]).rstrip()
    document["error.stack_trace"] = trace
    raised = error_of(trace)
    document.update(raised)
    message = "\n".join(lines[:begin]).strip("\n")
    said = ": ".join(part for part in (raised.get("error.type"), raised.get("error.message")) if part)
    document["message"] = message or said or lines[begin]


def error_of(trace: str) -> dict[str, str]:
    """`error.type` and `error.message` of a traceback as Python prints it: of the last exception in it."""
    last = trace.rfind("Traceback (most recent call last):")
    lines = trace[last:].split("\n")[1:]
    at = next((n for n, line in enumerate(lines) if line and line[0] not in " \t"), None)
    match = _EXCEPTION_TEXT.match("\n".join(lines[at:])) if at is not None else None
    if match is None:
        return {}
    found = {"error.type": match[1]}
    if match[2]:
        found["error.message"] = match[2].rstrip()
    return found


def ends_of(lines: list[bytes]) -> str:
    """`terminal` where each of the first lines of a file ends with a carriage return, else `lines`; empty: not known
    yet. What is known of the first few never changes with those that come."""
    lines = lines[:MOST_ALIKE]
    if not all(line.endswith(b"\r") for line in lines):
        return "lines"
    return "terminal" if len(lines) == MOST_ALIKE else ""


def text_body(dataset: str, file: LogFile, held: Held, common: Common | None = None) -> TextBody:
    """For `file`. `common`: its fields, where documents may be text."""
    times = FileTimes(file.modified_at, zone_named(file.timezone))
    return TextBody(dataset, times, held, head=file.head, decided=file.decided, common=common)


class Vllm:
    """vLLM's text log."""

    dataset = "vllm"

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> BodyParser:
        """A parser."""
        held = Held()
        return BodyParser(text_body(self.dataset, file, held, None if as_fields else common), held)


class Uvicorn(Vllm):
    """uvicorn's log, of the server and of accesses."""

    dataset = "uvicorn"
