"""Files that container runtimes write: Kubernetes' CRI format and Docker's json-file, with the server's log inside.

CRI: `2026-11-24T08:00:00.123456789Z stdout F text`; a long line comes in parts, `P` for all but the last
(https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md). Docker:
`{"log":"text\\n","stream":"stdout","time":"…"}`; in parts, of which the last ends with the line feed.
The time is the runtime's, which has a zone; what the text says of its own, in JSON, goes before it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import orjson

from dsobs.logs.formats.json_fields import is_time
from dsobs.logs.formats.pieces import Body, Held, Piece
from dsobs.logs.formats.raw import raw_document
from dsobs.logs.metrics import BLANK_LINES
from dsobs.logs.record import Lines, LogFile, Record

CRI = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)) (stdout|stderr) ([PF])(?::[^ ]*)?(?: |$)"
)
DOCKER_KEYS = frozenset({"log", "stream", "time"})
MOST_BYTES = 4 * 1024 * 1024
"""Of a line in parts; what goes beyond is the next record."""

_POD_LOG = re.compile(r"/pods/([^/_]+)_([^/_]+)_([^/_]+)/([^/]+)/[^/]+$")
_CONTAINER_LOG = re.compile(r"/containers/([^/_]+)_([^/_]+)_(.+)-([0-9a-f]{64})\.log")
_DOCKER_LOG = re.compile(r"/containers/([0-9a-f]{64})/")


def fields_of(path: Path) -> dict[str, Any]:
    """What a file's name says of its container, as kubelet and Docker name them: `/var/log/pods/NS_POD_UID/NAME/0.log`,
    `/var/log/containers/POD_NS_NAME-ID.log`, `/var/lib/docker/containers/ID/ID-json.log`."""
    text = str(path)
    if (match := _POD_LOG.search(text)) is not None:
        namespace, pod, uid, container = match.groups()
        return {**_pod(namespace, pod, container), "orchestrator.resource.id": uid}
    if (match := _CONTAINER_LOG.search(text)) is not None:
        pod, namespace, container, identity = match.groups()
        return {**_pod(namespace, pod, container), "container.id": identity}
    if (match := _DOCKER_LOG.search(text)) is not None:
        return {"container.id": match[1], "container.runtime": "docker"}
    return {}


def _pod(namespace: str, pod: str, container: str) -> dict[str, Any]:
    return {
        "orchestrator.type": "kubernetes",
        "orchestrator.namespace": namespace,
        "orchestrator.resource.type": "pod",
        "orchestrator.resource.name": pod,
        "container.name": container,
    }


class Inside(Body, Protocol):
    """A body that may not know yet which stream its records go to."""

    def pass_on(self, record: Record) -> list[Record]:
        """Records that go out now, one that is not of this body among those that go to its stream."""


class ContainerParser:
    """Takes off what the runtime put around lines, joins parts, and hands the text to a body."""

    def __init__(self, body: Inside, held: Held, file: LogFile, take_off: "TakeOff") -> None:
        self.fields: Mapping[str, Any] = fields_of(file.path)
        self._body = body
        self._held = held
        self._take_off = take_off
        self._parts: dict[str, list[Piece]] = {}
        self._read_at = 0.0

    @property
    def dataset(self) -> str:
        """That of the text."""
        return self._body.dataset

    @property
    def decided(self) -> str:
        """That of the text."""
        return self._body.decided

    @property
    def held_from(self) -> int | None:
        """Offset of the first line that is not in a record yet."""
        return self._held.offset

    def parse(self, lines: Lines) -> list[Record]:
        """Records that `lines` finish."""
        start, read_at, fault = lines.start, lines.read_at, lines.fault
        self._read_at = read_at
        out: list[Record] = []
        pieces: list[Piece] = []
        take_off, parts = self._take_off, self._parts
        for line in lines.lines:
            taken = take_off(line)
            if taken is not None:
                text, when, stream, whole = taken
                whole = whole or bool(fault)
                if whole and not parts:
                    pieces.append((start, line, text, when, stream))
                else:
                    self._part((start, line, text, when, stream), whole, pieces)
            elif line.strip():
                out += self._body.take(pieces, read_at)
                pieces = []
                out += self._body.pass_on((start, line, raw_document(line, read_at, fault, "not_cri")))
            else:
                BLANK_LINES.inc()
            start += len(line) + 1
        out += self._body.take(pieces, read_at, fault)
        return out

    def _part(self, piece: Piece, whole: bool, pieces: list[Piece]) -> None:
        stream = piece[4]
        waiting = self._parts.get(stream)
        if waiting is None:
            if whole:
                pieces.append(piece)
            else:
                self._parts[stream] = [piece]
                self._held.begin(("parts", stream), piece[0])
            return
        waiting.append(piece)
        if whole or sum(len(part[2]) for part in waiting) > MOST_BYTES:
            pieces.append(self._joined(stream))

    def _joined(self, stream: str) -> Piece:
        parts = self._parts.pop(stream)
        self._held.end(("parts", stream), parts[-1][0])
        raw = b"\n".join(part[1] for part in parts)
        return parts[0][0], raw, b"".join(part[2] for part in parts), parts[0][3], stream

    def flush(self) -> list[Record]:
        """Parts whose last has not come, as they stand, and what the body holds."""
        out = self._body.take([self._joined(stream) for stream in list(self._parts)], self._read_at)
        return out + self._body.flush()


TakeOff = Callable[[bytes], "tuple[bytes, str, str, bool] | None"]
"""A line → (text, time, stream, the text is whole), or None where the line is not of the runtime's format."""


def take_off_cri(line: bytes) -> tuple[bytes, str, str, bool] | None:
    """Of a CRI line."""
    match = CRI.match(line)
    if match is None:
        return None
    when, stream, flag = match.groups()
    text = when.decode()
    return (line[match.end() :], text, stream.decode(), flag == b"F") if is_time(text) else None


def take_off_docker(line: bytes) -> tuple[bytes, str, str, bool] | None:
    """Of a line of Docker's json-file."""
    try:
        entry = orjson.loads(line)
        text, when, stream = entry["log"], entry["time"], entry.get("stream", "")
        if type(text) is not str or type(stream) is not str or not is_time(when):
            return None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return text.encode().removesuffix(b"\n"), when, stream, text.endswith("\n")


def is_docker(entry: Any) -> bool:
    """Whether a JSON value is a line of Docker's json-file."""
    return type(entry) is dict and {"log", "time"} <= entry.keys() <= DOCKER_KEYS | {"attrs"}


def pieces_of(lines: Iterable[bytes], take_off: TakeOff) -> list[bytes]:
    """The texts in `lines`, for those who look what is in them."""
    return [taken[0] for line in lines if (taken := take_off(line)) is not None]
