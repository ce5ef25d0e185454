"""What the real driver and a recording have in common."""

from typing import Protocol

from dsobs_nvml.reading import Reading


class NvmlUnavailable(Exception):
    """No card can be read now; the message says why. Try `init` again later, once a minute at most."""


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
