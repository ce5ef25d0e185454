"""NVIDIA GPU readings through NVML, in base units, with what a card does not give left unknown."""

from dsobs_nvml.reading import CLOCK_EVENT_REASONS, Reading
from dsobs_nvml.source import Nvml, NvmlUnavailable

__all__ = ["CLOCK_EVENT_REASONS", "Nvml", "NvmlUnavailable", "Reading"]
