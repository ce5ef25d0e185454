"""NVIDIA GPU readings through NVML.

`Nvml` reads the cards of this machine, `RecordedNvml` a recording; both are an `NvmlSource`. `CardSeries` makes series
of what they give. pynvml is imported when `Nvml` starts and a driver is there, never before; prometheus-client and grpc
only by the exporter (`dsobs-nvml`).
"""

from dsobs_nvml.driver import Nvml
from dsobs_nvml.families import FAMILIES, Family
from dsobs_nvml.questions import QUESTIONS, Question
from dsobs_nvml.reading import Measure, Process, Reading
from dsobs_nvml.record import readings_of_record, record_of_readings
from dsobs_nvml.recorded import RecordedNvml
from dsobs_nvml.series import CardSeries, Row
from dsobs_nvml.source import NvmlSource, NvmlUnavailable
from dsobs_nvml.tables import CLOCK_EVENT_REASONS, XIDS, ClockEventReason, Xid, XidAction

__all__ = [
    "CLOCK_EVENT_REASONS",
    "FAMILIES",
    "QUESTIONS",
    "XIDS",
    "CardSeries",
    "ClockEventReason",
    "Family",
    "Measure",
    "Nvml",
    "NvmlSource",
    "NvmlUnavailable",
    "Process",
    "Question",
    "Reading",
    "RecordedNvml",
    "Row",
    "Xid",
    "XidAction",
    "readings_of_record",
    "record_of_readings",
]
