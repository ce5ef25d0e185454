"""dsobs's own log on stderr: text for people, JSON lines with Elastic Common Schema names for programs.

Whatever is passed as `extra` becomes a field. Secrets are kept out by never being logged.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from dsobs.cli.output import printable

if TYPE_CHECKING:
    from dsobs.config.models import Log

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_ECS_VERSION = "8.11.0"


def configure_logging(log: "Log", *, stream: TextIO | None = None) -> None:
    """Sends the log to `stream` (stderr), in place of what was set up before. Libraries are heard from warning up."""
    stream = sys.stderr if stream is None else stream
    as_json = log.format == "json" or (log.format == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("dsobs").setLevel(log.level.upper())


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE name=value …`, one line a record, tracebacks below it."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        fields = "".join(f" {name}={printable(str(value))}" for name, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {printable(record.getMessage())}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the field names of the Elastic Common Schema."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        import orjson

        fields: dict[str, Any] = {
            "@timestamp": _time(record),
            "log.level": record.levelname.lower(),
            "log.logger": record.name,
            "message": record.getMessage(),
            "ecs.version": _ECS_VERSION,
            "service.name": "dsobs",
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["error.type"] = type(record.exc_info[1]).__qualname__
            fields["error.message"] = str(record.exc_info[1])
            fields["error.stack_trace"] = self.formatException(record.exc_info)
        fields = {**_extra(record), **fields}
        try:
            return orjson.dumps(fields, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:
            # Text that is no UTF-8 (lone surrogates) or numbers beyond 64 bits: a poorer line rather than none.
            plain = {_utf8(name): _utf8(str(value)) for name, value in fields.items()}
            return orjson.dumps(plain).decode()


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
