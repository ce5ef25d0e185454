"""Records that a transform or the encoder fails on: each goes to the dead letters, and none of the others with it."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from dsobs.logs.formats.raw import iso_time, text_of
from dsobs.logs.metrics import FAILED
from dsobs.logs.record import Record
from dsobs.logs.sinks import Refusal
from dsobs.logs.transforms import Transform

log = logging.getLogger(__name__)

TRANSFORM_FAILED = "transform_failed"
ENCODER_FAILED = "encoder_failed"
"""As `Refusal.type`: dsobs's own."""


TELL_SECONDS = 60.0
"""Of what fails with every record, so often is one told; all are counted."""


class Seldom:
    """Says when to tell of something that may happen a thousand times a second."""

    def __init__(self) -> None:
        self._at = float("-inf")

    def now(self) -> bool:
        """Whether it was long ago that it said so."""
        now = time.monotonic()
        due = now - self._at >= TELL_SECONDS
        if due:
            self._at = now
        return due


class Failed(NamedTuple):
    """One record that can't be sent."""

    record: Record
    why: Refusal


def transformed(
    transforms: Sequence[Transform], records: list[Record], tell: Seldom
) -> tuple[list[Record], list[Failed]]:
    """What the transforms leave of `records`, and those that one of them failed on."""
    failed: list[Failed] = []
    for transform in transforms:
        try:
            records = transform.apply(records)
        except Exception:
            if tell.now():
                log.exception("%s failed; records that it fails on go to the dead letters", type(transform).__name__)
            left: list[Record] = []
            for record in records:
                try:
                    left += transform.apply([record])
                except Exception as error:  # noqa: BLE001 - it may be anything, and is told with the record
                    failed.append(_failed(record, TRANSFORM_FAILED, type(transform).__name__, error))
            records = left
    return records, failed


def encoded(
    encode: Callable[[list[Record]], bytes], records: list[Record], tell: Seldom
) -> tuple[bytes, int, list[Failed]]:
    """The body of `records`, how many are in it, and those that could not be encoded."""
    try:
        return encode(records), len(records), []
    except Exception:
        if tell.now():
            log.exception("records that can't be encoded go to the dead letters")
    pieces: list[bytes] = []
    failed: list[Failed] = []
    for record in records:
        try:
            pieces.append(encode([record]))
        except Exception as error:  # noqa: BLE001 - as above
            failed.append(_failed(record, ENCODER_FAILED, "the encoder", error))
    return b"".join(pieces), len(pieces), failed


def letter(encode: Callable[[list[Record]], bytes], record: Record, now: float) -> bytes:
    """The two lines that are kept of a record that failed: its document as it stands, else its bytes as text."""
    try:
        return encode([record])
    except Exception:  # noqa: BLE001 - it is known already why
        start, raw, _ = record
        return encode([(start, raw, {"@timestamp": iso_time(now), "message": text_of(raw)[0]})])


def _failed(record: Record, type_: str, what: str, error: Exception) -> Failed:
    FAILED.labels(type_.removesuffix("_failed")).inc()
    reason = f"{what}: {type(error).__name__}: {error}"
    return Failed(record, Refusal(0, type_, " ".join(reason.split())[:500]))
