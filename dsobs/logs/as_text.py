"""Records whose own fields Elasticsearch can't take, whatever the template: sent once more, as text with a note.

JSON lines go on as their own bytes, and a program may write what is JSON to some and not to others: a key twice, an
empty key, objects inside objects without end. That is told by the refusal, so that it costs nothing otherwise.
"""

import orjson

from dsobs.logs.metrics import FAILED
from dsobs.logs.sinks import Refusal

_REASONS = (
    "Duplicate field",
    "Limit of mapping depth",
    "Document nesting depth",
    "field name cannot be an empty",
    "ield name cannot contain only",
    "ield name cannot be only",
    "ield name [",
)
"""In what Elasticsearch 8.19 and 9.2 say. A field of another type is no such thing: its template may be mended."""
_KEPT = (
    "@timestamp",
    "message",
    "ecs.version",
    "host.name",
    "log.file.path",
    "log.level",
    "log.logger",
    "log.offset",
    "service.name",
    "trace.id",
)
"""Fields that stay fields, if they are texts or numbers; so do those of `labels.`. The rest is in the text."""
TEXT = "event.original"
"""Where the document is, as it would have been sent."""
_NOTE = "its fields can't be indexed, and are kept in event.original: "
_NOTE_CHARACTERS = 200


def as_text(record: bytes, refusal: Refusal) -> bytes | None:
    """The two lines to send instead, under the same id; None where that would help nothing."""
    if refusal.status != 400 or not any(reason in refusal.reason for reason in _REASONS):
        return None
    action, document, _ = record.split(b"\n")
    fields = orjson.loads(document)
    if TEXT in fields:
        return None
    made = {
        name: value
        for name, value in fields.items()
        if (name in _KEPT or name.startswith("labels.")) and isinstance(value, str | int | float)
    }
    made["error.message"] = _NOTE + refusal.reason.partition(" at [Source")[0][:_NOTE_CHARACTERS]
    made[TEXT] = document.decode()
    FAILED.labels("fields").inc()
    return b"%b\n%b\n" % (action, orjson.dumps(made))
