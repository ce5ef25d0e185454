"""What is changed or left out between parser and sink. Nothing unless configured; each record left out is counted."""

from typing import Protocol

from dsobs.config.logs import Logs
from dsobs.logs.record import Record


class Transform(Protocol):
    """One step; they are applied in order."""

    @property
    def needs_fields(self) -> bool:
        """Whether it wants documents as `dict`; False: it can do with the text of JSON objects too."""

    def apply(self, records: list[Record]) -> list[Record]:
        """The records that are sent, changed or as they were; in place is fine, the offsets and bytes stay.

        What is left out is counted (`metrics.LEFT_OUT`, by reason). Never raises.
        """


def open_transforms(settings: Logs) -> list[Transform]:
    """Those that the settings ask for, in order."""
    del settings
    return []
