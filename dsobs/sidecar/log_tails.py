"""The last lines of the engine's log and of dsobs's own, for the status page: read only while somebody looks."""

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from dsobs.config.logs import Logs
from dsobs.model.clock import Clock
from dsobs.model.observation import Unknown
from dsobs.model.runtime import Runtime
from dsobs.model.status import LogTail
from dsobs.sidecar.latest import Latest

ASK_SECONDS = 5.0
"""Between two questions for the engine's log."""
MAX_LINE = 500
"""Characters of a line that are shown."""
MAX_BYTES = 256 * 1024
"""Of a file's end that are read."""
OFF = "not shown (api.log_lines)"
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def shown(line: str) -> str:
    """A line without colours, secrets and prompts, cut to size."""
    from dsobs.logs.transforms.redact import redacted

    line = _COLOURS.sub("", line)
    # Cut before too: what takes long is bounded, and a key that is cut in two is still found in its first part.
    line = redacted(line[: 4 * MAX_LINE])
    return line if len(line) <= MAX_LINE else line[: MAX_LINE - 1] + "…"


class OwnLog(logging.Handler):
    """Keeps the last lines of dsobs's log."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self._new: deque[str] = deque(maxlen=lines)
        self._shown: deque[str] = deque(maxlen=lines)

    def emit(self, record: logging.LogRecord) -> None:
        """One more."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        try:
            self._new.append(f"{at} {record.levelname:<7} {record.getMessage()}")
        except (TypeError, ValueError):
            self.handleError(record)

    def lines(self) -> tuple[str, ...]:
        """Oldest first."""
        while self._new:
            self._shown.append(shown(self._new.popleft()))
        return tuple(self._shown)


class EngineTail(NamedTuple):
    """The last lines of the engine's log."""

    lines: tuple[str, ...]
    """Oldest first, as they were written."""
    file: str
    """Where they stand, if it is in a file of `logs.files`; else its runtime keeps them."""


async def engine_tail(runtime: Runtime | Unknown, logs: Logs, lines: int) -> EngineTail | Unknown:
    """At most `lines`, from the runtime; from the newest file of `logs.files` where that keeps none."""
    told = runtime if isinstance(runtime, Unknown) else await runtime.log_tail(lines)
    if not isinstance(told, Unknown):
        return EngineTail(tuple(told[-lines:]), "")
    if not logs.files:
        return told
    found = await asyncio.to_thread(_of_newest_file, logs, lines)
    return found if found is not None else Unknown(f"{told.reason}; no file of logs.files can be read either")


def _of_newest_file(logs: Logs, lines: int) -> EngineTail | None:
    from dsobs.logs.patterns import found_by, patterns

    wanted = patterns(logs)
    for pattern in wanted:
        pattern.look_up(0.0)
    found, _ = found_by(wanted, logs.exclude)
    written: list[tuple[float, str]] = []
    for path, _pattern in found.values():
        try:
            status = Path(path).stat()
        except OSError:
            continue
        if S_ISREG(status.st_mode):
            written.append((status.st_mtime, path))
    for _, path in sorted(written, reverse=True):
        try:
            with Path(path).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(size - MAX_BYTES, 0))
                text = file.read(MAX_BYTES).decode(errors="replace")
        except OSError:
            continue
        return EngineTail(tuple(text.splitlines()[-lines:]), path)
    return None


class LogTails:
    """Both logs."""

    def __init__(self, runtime: Callable[[], Runtime | Unknown], clock: Clock, lines: int, logs: Logs) -> None:
        """`lines`: of each; 0 for none."""
        self._runtime = runtime
        self._clock = clock
        self._asked_at = float("-inf")
        self._engine: Latest[EngineTail | Unknown] = Latest(self._ask, Unknown)
        self._own = OwnLog(lines)
        self.lines = lines
        self._logs = logs

    def configure(self, lines: int, logs: Logs) -> None:
        """So many, and of these files, from now on."""
        self._logs = logs
        if lines != self.lines:
            self.end()
            self.lines, self._own, self._asked_at = lines, OwnLog(lines), float("-inf")
            self.begin()

    def begin(self) -> None:
        """Keeps dsobs's log from now on."""
        if self.lines:
            logging.getLogger("dsobs").addHandler(self._own)

    def end(self) -> None:
        """Keeps no more; legal twice."""
        logging.getLogger("dsobs").removeHandler(self._own)

    async def close(self) -> None:
        """Gives up what is asked."""
        self.end()
        await self._engine.cancel()

    async def _ask(self) -> EngineTail | Unknown:
        tail = await engine_tail(self._runtime(), self._logs, self.lines)
        return tail if isinstance(tail, Unknown) else EngineTail(tuple(map(shown, tail.lines)), tail.file)

    def read(self) -> tuple[LogTail, ...]:
        """As they are known; what is older is asked for anew meanwhile. To be called in the event loop."""
        if not self.lines:
            return (LogTail("engine", (), OFF), LogTail("dsobs", (), OFF))
        self._engine.take()
        now = self._clock.now()
        if now - self._asked_at >= ASK_SECONDS:
            self._asked_at = now
            self._engine.start()
        engine = Unknown("not read yet") if self._engine.value is None else self._engine.value
        if isinstance(engine, Unknown):
            told = LogTail("engine", (), engine.reason)
        else:
            told = LogTail("engine", engine.lines, "" if engine.lines else "it has written nothing", engine.file)
        own = self._own.lines()
        return told, LogTail("dsobs", own, "" if own else "nothing was logged yet")
