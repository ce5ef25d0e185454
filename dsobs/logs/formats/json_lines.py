"""JSON lines: objects whose keys are kept but for those with an ECS name; what is no object is sent as text."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from dsobs.logs.formats.json_fields import MOST_DEPTH, SPECIAL, can_be_sent, map_fields
from dsobs.logs.formats.json_splice import Splicer
from dsobs.logs.formats.pieces import Held, Piece
from dsobs.logs.formats.raw import note_faults, raw_document
from dsobs.logs.formats.text import TextBody, text_body
from dsobs.logs.formats.times import zone_named
from dsobs.logs.metrics import BLANK_LINES
from dsobs.logs.record import Common, Document, Lines, LogFile, Record


class JsonLines:
    """One JSON object a line."""

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> "JsonParser":
        """A parser."""
        return JsonParser(JsonBody("json", file, common, as_fields=as_fields))


class VllmJson:
    """JSON lines of vLLM and uvicorn, set up by VLLM_LOGGING_CONFIG_PATH, and what else they print as text."""

    def open(self, file: LogFile, common: Common, *, as_fields: bool) -> "JsonParser":
        """A parser."""
        return mixed_parser("vllm", file, common, as_fields=as_fields)


class JsonBody:
    """Records of JSON objects. Keeps nothing between lines."""

    decided = ""

    def __init__(self, dataset: str, file: LogFile, common: Common, *, as_fields: bool) -> None:
        self.dataset = dataset
        self.special = SPECIAL | common.reserved
        """Keys with which a document is made anew."""
        self.as_fields = as_fields
        self._reserved = common.reserved
        self._zone = zone_named(file.timezone)
        self.splice = Splicer(self._reserved, self._zone).splice

    def take(self, pieces: Iterable[Piece], read_at: float, fault: str = "") -> list[Record]:
        """One record a piece; blank ones are none."""
        out: list[Record] = []
        for start, raw, text, when, stream in pieces:
            try:
                fields = orjson.loads(text)
            except ValueError:
                fields = None
            document = self.document(text, fields, read_at, fault, when)
            if document is None:
                BLANK_LINES.inc()
                continue
            if stream:
                document.setdefault("stream", stream)
            out.append((start, raw, document))
        return out

    def document(self, text: bytes, fields: Any, read_at: float, fault: str, when: str = "") -> dict[str, Any] | None:
        """What is sent of one line, which is the JSON of `fields` (None: it is no JSON); None for a blank one."""
        if type(fields) is dict and text.count(b"{") + text.count(b"[") <= MOST_DEPTH:
            if self.special.isdisjoint(fields) and can_be_sent(fields):
                mapped = fields
            else:
                mapped = map_fields(fields, self._reserved, read_at, when, self._zone)
            if fault:
                note_faults(mapped, fault)
            return mapped
        if not text.strip():
            return None
        return self._raw(text, read_at, fault, when)

    def _raw(self, text: bytes, read_at: float, fault: str, when: str) -> dict[str, Any]:
        document = raw_document(text, read_at, fault, "not_json")
        if when:
            document["@timestamp"] = when
        return document

    def flush(self) -> list[Record]:
        """Nothing: no line waits for another."""
        return []


class JsonParser:
    """A file of JSON lines: the fast way for lines that are sent as they are."""

    fields: Mapping[str, Any] = {}

    def __init__(self, body: JsonBody, text: TextBody | None = None, held: Held | None = None) -> None:
        """`text`: takes the lines that don't begin with `{`, and holds what is not finished in `held`; without it they
        are faulty."""
        self._body = body
        self._text = text
        self._held = held or Held()
        self.dataset = body.dataset

    @property
    def decided(self) -> str:
        """The text's."""
        return self._text.decided if self._text is not None else ""

    @property
    def held_from(self) -> int | None:
        """Offset of the first line of text that is not in a record yet."""
        return self._held.offset

    def parse(self, lines: Lines) -> list[Record]:
        """One record a line; empty lines are none."""
        start = lines.start
        records: list[Record] = []
        add = records.append
        body, read_at, fault, text = self._body, lines.read_at, lines.fault, self._text
        values = _values(lines.lines)
        for line, fields, spliced in zip(lines.lines, values, self._spliced(lines, values), strict=True):
            document: Document | None = spliced
            if text is not None and line[:1] != b"{":
                records += text.take(((start, line, line, "", ""),), read_at, fault)
                start += len(line) + 1
                continue
            if document is None:
                document = body.document(line, fields, read_at, fault)
            if document is None:
                BLANK_LINES.inc()
            else:
                add((start, line, document))
            start += len(line) + 1
        return records

    def _spliced(self, lines: Lines, values: list[Any]) -> list[bytes | None]:
        """Of each line that is an object its text, where that can go on as it is but for names."""
        texts: list[bytes | None] = [None] * len(values)
        if self._body.as_fields or lines.fault:
            return texts
        numbers = [number for number, line in enumerate(lines.lines) if line[:1] == b"{" and values[number] is not None]
        if len(numbers) == len(values):
            return self._body.splice(lines.lines, values)
        made = self._body.splice([lines.lines[number] for number in numbers], [values[number] for number in numbers])
        for number, text in zip(numbers, made, strict=True):
            texts[number] = text
        return texts

    def flush(self) -> list[Record]:
        """What text is not finished, as it stands."""
        return self._text.flush() if self._text is not None else []


def _values(lines: list[bytes]) -> list[Any]:
    """What each line is as JSON; None where it is none."""
    loads = orjson.loads
    values: list[Any] = []
    add = values.append
    for line in lines:
        try:
            add(loads(line))
        except ValueError:
            add(None)
    return values


class MixedBody:
    """JSON objects, and text between them: warnings and tracebacks that no formatter made."""

    def __init__(self, objects: JsonBody, text: TextBody) -> None:
        self.dataset = objects.dataset
        self._objects = objects
        self._text = text

    @property
    def decided(self) -> str:
        """The text's."""
        return self._text.decided

    def take(self, pieces: Iterable[Piece], read_at: float, fault: str = "") -> list[Record]:
        """Records that `pieces` finish."""
        out: list[Record] = []
        for piece in pieces:
            body = self._objects if piece[2][:1] == b"{" else self._text
            out += body.take((piece,), read_at, fault)
        return out

    def flush(self) -> list[Record]:
        """What text is not finished, as it stands."""
        return self._text.flush()


def mixed_parser(dataset: str, file: LogFile, common: Common, *, as_fields: bool) -> JsonParser:
    """A parser of files that have JSON objects and text in them."""
    held = Held()
    text = text_body(dataset, file, held, None if as_fields else common)
    return JsonParser(JsonBody(dataset, file, common, as_fields=as_fields), text, held)
