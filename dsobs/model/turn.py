"""Whose turn it is to act on a workload that several sidecars watch."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the other replicas of the workload have to say to an action on this one, as it was last looked at."""

    acting: str | None = None
    """Who acts on the workload now, or why that is not known; it passes by itself."""
    unready: str | None = None
    """Why too few replicas would be left ready; it passes once they are."""
    budget: str | None = None
    """Why the workload has had enough of it; this is for a person."""


class Turn(Protocol):
    """One way of having it."""

    def refusal(self) -> str | None:
        """Why this process may not act, and what to do about it; None: it may try. Asked by a guard in each turn of
        the loop, so it waits for nothing."""
        ...

    def fleet(self) -> Fleet:
        """What stands in the way now; waits for nothing."""
        ...

    def wanted(self) -> None:
        """Told in each turn in which an action is wanted, so that `fleet` is looked at anew meanwhile."""
        ...

    def taken(self, incident: str, what: str = "restart") -> AbstractAsyncContextManager[None]:
        """Waits for the turn to do `what` (restart, replace or scale) and has it while the context lasts; `RuntimeHeld`
        if it can't be had. One that is lost meanwhile cancels what is done in it, and ends in a `TimeoutError`."""
        ...
