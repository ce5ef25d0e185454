"""Where records go. A sink is found by entry point (`dsobs.log_sinks`): name → a `Sink`, made from `SinkSettings`.

A sink makes single attempts and says what came of them; what follows from that is decided in `dsobs.logs.retry` and
done in `dsobs.logs.delivery`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dsobs import plugins
from dsobs.config.logs import Logs

GROUP = "dsobs.log_sinks"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What became of one record that was not simply taken."""

    status: int
    """As in HTTP; 409: it is there already."""
    type: str = ""
    """Elasticsearch's name for it, such as `document_parsing_exception`."""
    reason: str = ""
    """For people; cut short."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt."""

    status: int | None
    """Of the whole request, as in HTTP. None: no connection, no answer in time, or one that can't be read; whether the
    records were taken is then unknown."""
    refused: Mapping[int, Refusal] = field(default_factory=dict)
    """Where `status` is 200: index in the batch → what became of that record; all others were taken."""
    quarantined: int = 0
    """Of those taken, how many went to the failure store."""
    rejected: int = 0
    """How many were refused for good by a receiver that does not say which, so that none may be sent again."""
    type: str = ""
    """Where `status` is not 200: Elasticsearch's name for it."""
    detail: str = ""
    """For people: what failed, without secrets."""
    retry_after: float | None = None
    """Seconds, where the server gave them."""


class Sink(Protocol):
    """Takes the bodies of batches."""

    async def send(self, index: str, body: Sequence[bytes], count: int) -> Answer:
        """One attempt to have `count` records taken by `index` (a data stream or index).

        `body` are pieces of NDJSON: for each record `{"create":{"_id":"…"}}` and its document, a line each. Never
        raises but for cancellation.
        """

    async def close(self) -> None:
        """Gives everything back; legal twice."""


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """What a sink is made from."""

    logs: Logs
    directory: Path
    """The state directory's `logs`, which is there."""


def records_path(logs: Logs, directory: Path) -> Path:
    """The file of the file sink; `directory` is the state directory's `logs`."""
    return logs.file.path or directory / "records.ndjson"


def open_sink(name: str, settings: SinkSettings) -> Sink:
    """Sink plugin `name` (`elasticsearch`, `file`); LookupError names those there are."""
    made: Sink = plugins.load(GROUP, name)(settings)
    return made
