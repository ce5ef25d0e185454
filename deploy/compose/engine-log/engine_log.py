"""vLLM's log as a file of JSON lines beside its stdout, which stays as it is. The manifest carries this text, and the
engine runs it: the standard library of any Python from 3.8 on, nothing of dsobs.

Several processes write one file. A line is one write and waits for nobody; who finds the file full renames it, under a
lock that is only tried, so that a stopped process stops no other. All files together stay below `files * max_bytes *
5/4`: what can't be rotated away is left out, and counted in a later line. Nothing is raised into the engine.
"""

from __future__ import annotations

import fcntl
import json
import logging
import logging.config
import os
import sys
import time
import traceback
from typing import Any

LEVEL = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()


class RotatingFile(logging.Handler):
    """Keeps `files` files of `max_bytes` each: `filename`, and the older ones behind a number."""

    def __init__(self, filename: str, max_bytes: int, files: int) -> None:
        super().__init__()
        self.filename, self.max_bytes, self.files = filename, max_bytes, files
        self._file, self._identity, self._left_out = -1, (0, 0), 0

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record, or counts it as left out."""
        try:
            line = as_json(record)
            if len(line) > self.max_bytes // 16:
                line = as_json(record, self.max_bytes // 64)
            size = self._size()
            if size + len(line) > self.max_bytes:
                self._rotate()
                size = self._size()
            if self._left_out and size + len(line) < self.max_bytes:
                text, self._left_out = f"dsobs: {self._left_out} lines are missing here", 0
                line = as_json(logging.LogRecord("dsobs", logging.WARNING, "", 0, text, (), None)) + line
            if size + len(line) > self.max_bytes * 5 // 4:
                self._left_out += 1
            else:
                os.write(self._file, line)
        except Exception:
            self._left_out += 1

    def _size(self) -> int:
        """Bytes in the file that `filename` names now; it is opened if that is another one than before."""
        try:
            now = os.stat(self.filename)
        except FileNotFoundError:
            now = None
        if now is None or self._file < 0 or self._identity != (now.st_dev, now.st_ino):
            self.close_file()
            self._file = os.open(self.filename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            now = os.fstat(self._file)
            self._identity = (now.st_dev, now.st_ino)
            if now.st_uid == os.geteuid():
                os.fchmod(self._file, 0o644)  # whatever the umask is: the reader is another user
        return now.st_size

    def _rotate(self) -> None:
        lock = os.open(self.filename + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(self.filename).st_size > self.max_bytes * 15 // 16 - 1:  # else another process has done it
                names = [self.filename] + [f"{self.filename}.{number}" for number in range(1, self.files)]
                for older, newer in reversed(list(zip(names[1:], names))):
                    if os.path.exists(newer):
                        os.replace(newer, older)
        except BlockingIOError:
            pass  # another process is at it
        finally:
            os.close(lock)

    def close_file(self) -> None:
        """Closes the file; the next record opens it again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def close(self) -> None:
        """Ends the handler."""
        self.close_file()
        super().close()


def as_json(record: logging.LogRecord, cut: int | None = None) -> bytes:
    """The record as a line; with `cut`, its texts are so many characters long at most."""
    fields: dict[str, Any] = {
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
        "levelname": record.levelname,
        "name": record.name,
        "message": record.getMessage()[:cut],
        "pid": record.process,
        "process_name": getattr(record, "vllm_process_name", None) or record.processName,
        "filename": record.filename,
        "lineno": record.lineno,
    }
    if record.exc_info and record.exc_info[0] is not None:
        fields["exc_info"] = "".join(traceback.format_exception(*record.exc_info))[:cut]
    if cut is not None:
        fields["cut"] = True
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def console(level: str | None = None) -> logging.Handler:
    """The handler of stdout that this version of vLLM would make itself."""
    try:
        own = logging.config.DictConfigurator(json.loads(json.dumps(sys.modules["vllm.logger"].DEFAULT_LOGGING_CONFIG)))
        formatters = own.config["formatters"]
        for name in formatters:
            formatters[name] = own.configure_formatter(formatters[name])
        handler = own.configure_handler(own.config["handlers"]["vllm"])
    except Exception:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s [%(filename)s:%(lineno)d] %(message)s"))
    if level:
        handler.setLevel(level)
    return handler
