"""What tells a person. Found by the entry point group `dsobs.notifiers`, built as `factory(settings, session)`."""

from dataclasses import dataclass
from typing import Protocol

from dsobs.model.notification import Notification


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one try to send; nothing in it is secret."""

    status: int | None = None
    """HTTP status; None if there was no answer."""
    retry_after: str = ""
    """The header of that name as it came: seconds or an HTTP date."""
    detail: str = ""
    """The failure or the start of the answer's body, in words, short."""
    arrived: bool = True
    """The receiver may have taken it. False only where surely nothing reached it (no connection)."""

    @property
    def surely_refused(self) -> bool:
        """The receiver has certainly not acted on it."""
        return not self.arrived or (self.status is not None and 300 <= self.status < 500 and self.status != 408)


class Notifier(Protocol):
    """One way to tell a person."""

    name: str
    """pagerduty, webhook, …; also the label value in dsobs's own metrics."""

    def accepts(self, notification: Notification) -> bool:
        """Whether it wants this one, by severity; the same for a trigger and its resolve."""
        ...

    async def send(self, notification: Notification) -> Answer:
        """Tries once, bounded in time (10 s). Follows no redirect and raises nothing: what goes wrong is in the answer.

        Sending the same event of the same dedup key twice must do no harm.
        """
        ...
