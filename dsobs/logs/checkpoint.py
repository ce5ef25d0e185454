"""What the sink has acknowledged, by file generation: in memory as it comes, on disk one transaction a tick.

A position moves only over what is acknowledged without a gap, so that after any crash reading begins at or before the
first record that the sink may not have.
"""

from collections import deque


class Progress:
    """How far one file generation was read, and how far acknowledged."""

    def __init__(self, acknowledged: int = 0) -> None:
        self.acknowledged = acknowledged
        """Offset: everything before it is done with."""
        self._first = 0
        self._ends: deque[int] = deque()
        self._done: set[int] = set()

    @property
    def outstanding(self) -> bool:
        """Something was begun and is not done."""
        return bool(self._ends)

    def begin(self, end: int) -> int:
        """A ticket for what ends at offset `end`, begun in the order of the file."""
        self._ends.append(end)
        return self._first + len(self._ends) - 1

    def done(self, ticket: int) -> None:
        """The sink is done with what `ticket` stands for: taken, there already, or put to the dead letters."""
        self._done.add(ticket)
        while self._ends and self._first in self._done:
            self._done.remove(self._first)
            self.acknowledged = max(self.acknowledged, self._ends.popleft())
            self._first += 1
