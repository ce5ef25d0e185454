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
}


@lru_cache(maxsize=64)
def iso_time(at: float) -> str:
    """Unix seconds as `2026-11-24T08:00:00.123Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def raw_document(line: bytes, at: float, *faults: str) -> dict[str, Any]:
    """`line` as `message`, at `at` Unix seconds; `faults` (empty ones too) are counted and said in `error.message`."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = line.decode("utf-8", "replace")
        faults = (*faults, "not_utf8")
    document: dict[str, Any] = {"@timestamp": iso_time(at), "message": text}
    named = [fault for fault in faults if fault]
    if named:
        document["error.message"] = "; ".join(_FAULTS[fault] for fault in named)
        for fault in named:
            FAULTY_LINES.labels(fault).inc()
    return document
