"""A source that replays a recording: for tests, demonstrations and machines without a card."""

from collections.abc import Sequence
from dataclasses import replace

from dsobs_nvml.reading import Reading
from dsobs_nvml.record import readings_of_record
from dsobs_nvml.source import NvmlUnavailable


class RecordedNvml:
    """Gives one record after the other, then the last one again and again without its XIDs.

    `records`: `nvml` values of a flight recorder's file; null is a moment at which nothing could be read. `devices` as
    for `Nvml`.
    """

    def __init__(self, records: Sequence[object], devices: Sequence[str] = ()) -> None:
        self._records = records
        self._devices = tuple(devices)
        self._next = 0
        self._open = False

    def init(self) -> None:
        """Goes on where it was; NvmlUnavailable for an empty recording."""
        if not self._records:
            raise NvmlUnavailable("the recording is empty")
        self._open = True

    def read(self) -> list[Reading]:
        """The next record's readings; NvmlUnavailable before `init`, for null and where no card is wanted."""
        if not self._open:
            raise NvmlUnavailable("not started")
        over = self._next >= len(self._records)
        record = self._records[-1 if over else self._next]
        self._next += not over
        if record is None:
            raise NvmlUnavailable("not recorded")
        readings = [
            reading
            for reading in readings_of_record(record)
            if not self._devices or str(reading.index) in self._devices or reading.uuid in self._devices
        ]
        if not readings:
            raise NvmlUnavailable(f"no card {', '.join(self._devices)} in the recording")
        return [replace(reading, xids=reading.xids and ()) for reading in readings] if over else readings

    def shutdown(self) -> None:
        """Reading needs `init` again; legal twice."""
        self._open = False
