"""The kill switch that is a file."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)


class KillFile:
    """Looks for the file; one that can't be looked for counts as there, and that is said once."""

    def __init__(self) -> None:
        self._error = ""

    def on(self, path: Path) -> str | None:
        """Why nothing may be done; None where the file is surely not there."""
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._error = ""
            return None
        except (OSError, ValueError) as error:
            reason = f"file {path} can't be looked for: {error}"
            if reason != self._error:
                log.error("nothing is repaired, the kill switch counts as on: %s", reason)
            self._error = reason
            return reason
        self._error = ""
        return f"file {path}"
