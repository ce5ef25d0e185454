"""What the real driver and a recording have in common."""

from typing import Protocol

from dsobs_nvml.reading import Reading


class NvmlUnavailable(Exception):
    """No card can be read now; the message says why. Try `init` again later, once a minute at most.

    `restart`: this process can't ever read again, since the driver was changed under it; another one can.
    """

    def __init__(self, reason: str, *, restart: bool = False) -> None:
        super().__init__(reason)
        self.restart = restart


class NvmlSource(Protocol):
    """Where readings come from. One thread at a time."""

    def init(self) -> None:
        """Connects, anew if it was connected; NvmlUnavailable if that can't be."""
        ...

    def read(self) -> list[Reading]:
        """One reading of each card, never none; NvmlUnavailable before `init` and when no card answers."""
        ...

    def shutdown(self) -> None:
        """Gives back what it holds; legal before `init` and twice."""
        ...
