"""NVIDIA GPU readings through NVML.

`Nvml` reads the cards of this machine, `RecordedNvml` a recording; both are an `NvmlSource`. pynvml is imported when
`Nvml` starts and a driver is there, never before.
"""

from dsobs_nvml.driver import Nvml
from dsobs_nvml.reading import Process, Reading
from dsobs_nvml.record import readings_of_record, record_of_readings
from dsobs_nvml.recorded import RecordedNvml
from dsobs_nvml.source import NvmlSource, NvmlUnavailable
from dsobs_nvml.tables import CLOCK_EVENT_REASONS, XIDS, ClockEventReason, Xid, XidAction

__all__ = [
    "CLOCK_EVENT_REASONS",
    "XIDS",
    "ClockEventReason",
    "Nvml",
    "NvmlSource",
    "NvmlUnavailable",
    "Process",
    "Reading",
    "RecordedNvml",
    "Xid",
    "XidAction",
    "readings_of_record",
    "record_of_readings",
]
