"""Since when a file has had bytes that are not acknowledged."""

from collections import deque

_MOST = 64


class Lag:
    """Remembers when a file had which size, coarsely and in bounded room; never says less than it is."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque()
        """(size, when it was no longer smaller), rising."""

    def saw(self, size: int, at: float) -> None:
        """The file has grown to `size`."""
        if len(self._marks) >= _MOST:
            marks = list(self._marks)
            # Two become one: of the later size, and of the earlier time.
            self._marks = deque((later[0], earlier[1]) for earlier, later in zip(marks[::2], marks[1::2], strict=True))
        self._marks.append((size, at))

    def since(self, acknowledged: int) -> float | None:
        """When the first byte behind that offset was there; None where there is none."""
        while self._marks and self._marks[0][0] <= acknowledged:
            self._marks.popleft()
        return self._marks[0][1] if self._marks else None
