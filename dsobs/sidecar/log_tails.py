"""The last lines of the engine's log and of dsobs's own, for the status page: read only while somebody looks."""

import logging
import re
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from dsobs.model.clock import Clock
from dsobs.model.observation import Unknown
from dsobs.model.runtime import Runtime
from dsobs.model.status import LogTail
from dsobs.sidecar.latest import Latest

ASK_SECONDS = 5.0
"""Between two questions for the engine's log."""
MAX_LINE = 500
"""Characters of a line that are shown."""
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


class LogTails:
    """Both logs."""

    def __init__(self, runtime: Callable[[], Runtime | Unknown], clock: Clock, lines: int) -> None:
        """`lines`: of each; 0 for none."""
        self._runtime = runtime
        self._clock = clock
        self._asked_at = float("-inf")
        self._engine: Latest[tuple[str, ...] | Unknown] = Latest(self._ask, Unknown)
        self._own = OwnLog(lines)
        self.lines = lines

    def configure(self, lines: int) -> None:
        """So many from now on."""
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

    async def _ask(self) -> tuple[str, ...] | Unknown:
        runtime = self._runtime()
        if isinstance(runtime, Unknown):
            return runtime
        tail = await runtime.log_tail(self.lines)
        return tail if isinstance(tail, Unknown) else tuple(shown(line) for line in tail[-self.lines :])

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
            told = LogTail("engine", engine, "" if engine else "it has written nothing")
        own = self._own.lines()
        return told, LogTail("dsobs", own, "" if own else "nothing was logged yet")
