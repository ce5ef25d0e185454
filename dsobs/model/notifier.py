"""What tells a person. Found by the entry point group `dsobs.notifiers`, built as `factory(settings, session)`.

The factory gives one notifier or a list of them, each with its own name and its own way out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dsobs.model.notification import Notification
from dsobs.model.samples import Labels, labels_of


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


@dataclass(frozen=True, slots=True)
class Standing:
    """An alert as it stands, for receivers that forget what is not said again."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    severity: str
    """critical, error, warning, info; `none` for what is no fault (Watchdog)."""
    started_at: float
    seen_at: float
    """Its rule's last evaluation that gave a result, seconds since the Unix epoch."""
    interval: float
    """Seconds between two evaluations."""
    ended_at: float | None = None
    link: str = ""

    @property
    def key(self) -> Labels:
        """What names it at the receiver."""
        return labels_of(self.labels)


@runtime_checkable
class StandingNotifier(Notifier, Protocol):
    """One that is told the whole state again and again instead of each event once; `send` is for tests of it."""

    resend_delay: float
    """Seconds after which a firing alert is sent again."""

    def wants(self, alert: Standing) -> bool:
        """Whether it is told of this one, by severity."""
        ...

    async def send_standing(self, alerts: Sequence[Standing]) -> Answer:
        """Tries once. 400: at least one of them was refused, the others may have been taken."""
        ...
