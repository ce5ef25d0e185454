"""What every format does with a line that it can't use: the text as it is, with the reason."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from dsobs.logs.metrics import FAULTY_LINES

_FAULTS = {
    "cut": "the line is longer than logs.max_line_bytes; the rest is left out",
    "unfinished": "the file ended without a line feed",
    "not_utf8": "the line is not UTF-8; what is not is replaced by U+FFFD",
    "not_json": "the line is not a JSON object",
    "no_time": "its time can't be read; it is that of reading",
    "format_failed": "its format failed on it, so that it is sent as it stands",
    "not_cri": "the line is not of a container runtime's format",
}


@lru_cache(maxsize=64)
def iso_time(at: float) -> str:
    """Unix seconds as `2026-11-24T08:00:00.123Z`; for what is no time of the years 1 to 9999, 1970 began."""
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01T00:00:00.000Z"


def raw_document(line: bytes, at: float, *faults: str) -> dict[str, Any]:
    """`line` as `message`, at `at` Unix seconds; `faults` (empty ones too) are counted and said in `error.message`."""
    text, fault = text_of(line)
    document: dict[str, Any] = {"@timestamp": iso_time(at), "message": text}
    note_faults(document, *faults, fault)
    return document


def note_faults(document: dict[str, Any], *faults: str) -> None:
    """Says `faults` (empty ones are none) in `error.message`, and counts them."""
    named = [fault for fault in faults if fault]
    if named:
        said = document.get("error.message")
        document["error.message"] = "; ".join([*([str(said)] if said else []), *(_FAULTS[fault] for fault in named)])
        for fault in named:
            FAULTY_LINES.labels(fault).inc()


def text_of(line: bytes) -> tuple[str, str]:
    """`line` as text, and the fault that it has: `not_utf8`, or none."""
    try:
        return line.decode(), ""
    except UnicodeDecodeError:
        return line.decode("utf-8", "replace"), "not_utf8"
