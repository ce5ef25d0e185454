"""`dsobs k8s inject`: a manifest with the sidecar, and without it again."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from dsobs.manifests.changes import Changes
from dsobs.manifests.engine import container_names
from dsobs.manifests.nodes import Path, twice
from dsobs.manifests.options import Options
from dsobs.manifests.pod import PodInjection
from dsobs.manifests.problem import Finding, ManifestError
from dsobs.manifests.text import Document, document_of
from dsobs.manifests.workloads import KINDS, Scaler, Workload, malformed, objects, scaler, workload

_START = re.compile(r"(?m)^---(?=[ \t\r\n]|\Z)")
_MARK = "\ufeff"
"""The byte order mark, with which editors of Windows begin a file."""
_UNREADABLE = (
    (
        re.compile(r"\r(?!\n)"),
        "has carriage returns that end no line (CR without LF); save it with LF or CRLF as line ends",
    ),
    (
        re.compile(rf"(?m)^{_MARK}"),
        "has a byte order mark in the middle, as files have that were put together; take it out",
    ),
)
"""What YAML takes for something else than people do, or than kubectl does."""
MAX_BYTES = 16 * 1024 * 1024
_SERVES = re.compile(r"\bvllm\b.{0,200}\bserve\b|vllm\.entrypoints|[/\"' ]vllm[\w.-]*:[\w.-]+", re.DOTALL)


@dataclass
class Outcome:
    """What became of a manifest."""

    text: str
    """The result; the text that was given where there are problems."""
    remarks: list[Finding] = field(default_factory=list)
    problems: list[Finding] = field(default_factory=list)
    """What keeps it from being done. With one of them nothing is done."""
    workloads: list[str] = field(default_factory=list)
    """Those that have the sidecar, or had it, as `Kind/name`."""


def inject(text: str, file: str, options: Options) -> Outcome:
    """Puts the sidecar into every vLLM workload of the manifest `text`. Done twice, it changes nothing."""
    stream = _Stream(text, file)
    stream.each_workload(lambda document, one: _inject_one(stream, document, one, options))
    if not stream.problems and not stream.done:
        stream.problems.append(_nothing_found(stream, options))
    return stream.outcome()


def remove(text: str, file: str) -> Outcome:
    """Takes out of the manifest `text` what `inject` put there, by the record that it left."""
    stream = _Stream(text, file)

    def one_of(document: Document, one: Workload) -> None:
        changes = Changes(document, one)
        if changes.injected:
            line = document.line(one.path)
            stream.done.append(str(one))
            stream.remarks += [Finding(line, file, str(one), message) for message in changes.take_back()]

    stream.each_workload(one_of)
    if not stream.problems and not stream.done:
        stream.remarks.append(Finding(0, file, "", "nothing was injected here; it stays as it is"))
    return stream.outcome()


def _inject_one(stream: "_Stream", document: Document, one: Workload, options: Options) -> None:
    pod = PodInjection(document, one, options, stream.scalers)
    if pod.run():
        stream.done.append(str(one))
    stream.remarks += [
        Finding(document.line(path or one.path), stream.file, str(one), message) for path, message in pod.remarks
    ]


def _nothing_found(stream: "_Stream", options: Options) -> Finding:
    if not stream.seen:
        foreign = stream.foreign
        if foreign:
            line, kind = foreign[0]
            return Finding(line, stream.file, "", f"{kind} is no kind that dsobs knows; it knows {', '.join(KINDS)}")
        return Finding(0, stream.file, "", f"has no workload; dsobs looks for {', '.join(KINDS)}")
    listed = "; ".join(f"{name} has {', '.join(names) or 'none'}" for name, names in stream.seen)
    if options.container:
        return Finding(0, stream.file, "", f"no workload has a container {options.container} ({listed})")
    return Finding(
        0, stream.file, "", f"no container runs vLLM as far as can be told ({listed}); name it with --container"
    )


class _Stream:
    """The documents of a manifest, each edited by itself."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.given = text
        self.remarks: list[Finding] = []
        self.problems: list[Finding] = []
        self.done: list[str] = []
        self.seen: list[tuple[str, list[str]]] = []
        """Workloads and the names of their containers."""
        self.foreign: list[tuple[int, str]] = []
        """Objects of other kinds that seem to run vLLM: line and kind."""
        self.pieces: list[str | Document] = []
        self.scalers: list[Scaler] = []
        self._usable: dict[int, list[Path]] = {}
        """The objects of each document, by its identity."""
        self._read(text)

    def _read(self, text: str) -> None:
        if text.startswith(_MARK):
            self.pieces.append(_MARK)
            text = text.removeprefix(_MARK)
        for unreadable, why in _UNREADABLE:
            if found := unreadable.search(text):
                self.problems.append(Finding(text.count("\n", 0, found.start()) + 1, self.file, "", why))
        if self.problems:
            return
        starts = [match.start() for match in _START.finditer(text)]
        edges = [0, *(start for start in starts if start), len(text)]
        line = 1
        for start, end in itertools.pairwise(edges):
            piece = text[start:end]
            document = None
            try:
                document = document_of(piece, line)
            except (yaml.YAMLError, RecursionError) as error:
                self.problems.append(_no_yaml(error, piece, line, self.file))
            if document is not None:
                self._check(document)
            self.pieces.append(piece if document is None else document)
            line += piece.count("\n")
        if not any(isinstance(piece, Document) for piece in self.pieces) and not self.problems:
            self.problems.append(Finding(0, self.file, "", "holds nothing; give it a manifest"))

    def _check(self, document: Document) -> None:
        usable = self._usable[id(document)] = []
        for name, line, first in twice(document.root):
            self.problems.append(
                Finding(
                    line + document.first_line,
                    self.file,
                    "",
                    f"{name} stands there twice, first in line {first + document.first_line}; take one of them out",
                )
            )
        for path in objects(document):
            problem = malformed(document, path, self.file)
            if problem is not None:
                self.problems.append(problem)
                continue
            usable.append(path)
            if found := scaler(document, path):
                self.scalers.append(found)

    def each_workload(self, act: Callable[[Document, Workload], None]) -> None:
        """Calls `act` for each; what it can't use is a problem, and the others follow all the same."""
        for document in self.pieces:
            if isinstance(document, Document):
                for path in self._usable[id(document)]:
                    self._one(document, path, act)

    def _one(self, document: Document, path: Path, act: Callable[[Document, Workload], None]) -> None:
        name = ""
        try:
            one = workload(document, path)
            if one is None:
                tree = document.get(path)
                if any(_SERVES.search(word) for word in _texts(tree)) and tree["kind"] != "ConfigMap":
                    self.foreign.append((document.line(path), tree["kind"]))
                    self.remarks.append(
                        Finding(
                            document.line(path),
                            self.file,
                            f"{tree['kind']}/{_name(tree)}",
                            "seems to run vLLM, but is of a kind that dsobs does not know; left as it is",
                        )
                    )
                return
            name = str(one)
            self.seen.append((name, container_names(document, one)))
            act(document, one)
        except ManifestError as error:
            self.problems.append(Finding(error.line, self.file, name, str(error)))

    def outcome(self) -> Outcome:
        """The result."""
        text = "".join(piece.text if isinstance(piece, Document) else piece for piece in self.pieces)
        return Outcome(self.given if self.problems else text, sorted(self.remarks), sorted(self.problems), self.done)


def _name(tree: Mapping[str, Any]) -> str:
    metadata = tree.get("metadata")
    return str(metadata.get("name", "?")) if isinstance(metadata, dict) else "?"


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            if name in ("command", "args", "image"):
                yield " ".join(map(str, value)) if isinstance(value, list) else str(value)
            else:
                yield from _texts(value) if isinstance(value, (dict, list)) else ()
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value) if isinstance(value, (dict, list)) else ()


def _no_yaml(error: Exception, piece: str, first_line: int, file: str) -> Finding:
    line, what = first_line, "it is nested too deeply"
    if isinstance(error, yaml.reader.ReaderError):
        line += piece.count("\n", 0, error.position)
        what = "it holds a character that YAML does not allow"
    elif isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line += mark.line if mark else 0
        what = ", ".join(filter(None, (error.context, error.problem)))
    lines = piece.splitlines()
    written = lines[min(line - first_line, len(lines) - 1)] if lines else ""
    if "{{" in piece:
        what += "; it looks like a template of Helm: render it first, `helm template … | dsobs k8s inject -`"
        at = next(index for index, one in enumerate(lines) if "{{" in one)
        line = first_line + at
    elif "\t" in written:
        what += "; YAML is indented with spaces, never with tabs"
    return Finding(line, file, "", f"is no YAML ({what})")
