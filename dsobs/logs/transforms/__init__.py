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
    """Those that the settings ask for, in order: counting of known lines, then what is left out, then changes, then
    redaction, which so sees renamed and added fields too, then cutting."""
    from dsobs.logs.transforms.change import Change, Cut
    from dsobs.logs.transforms.choose import Choose
    from dsobs.logs.transforms.matches import Matches, table
    from dsobs.logs.transforms.redact import Redaction

    transform = settings.transform_in_force
    steps: list[Transform] = []
    if patterns := table(settings.patterns):
        steps.append(Matches(patterns))
    chosen = transform.min_level or transform.keep or transform.drop or transform.max_record_bytes
    if chosen or transform.sample or transform.rate_limit:
        steps.append(Choose(transform))
    if transform.remove or transform.rename or transform.add:
        steps.append(Change(transform))
    if transform.redact.kinds:
        steps.append(Redaction(transform.redact))
    if transform.max_field_bytes:
        steps.append(Cut(transform.max_field_bytes))
    return steps
