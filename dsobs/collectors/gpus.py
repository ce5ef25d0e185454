"""Where GPU readings come from, by the settings: NVML here, or an exporter."""

from typing import Protocol

from dsobs.collectors.gpu_exporter import GpuExporterCollector
from dsobs.collectors.nvml import NvmlCollector
from dsobs.config.models import Gpu as GpuSettings
from dsobs.model.clock import Clock
from dsobs.model.observation import Gpu, Unknown


class GpuCollector(Protocol):
    """Either of them."""

    async def read(self) -> tuple[Gpu, ...] | Unknown:
        """One reading of each card, or why there is none. Never raises; bounded in time."""
        ...

    async def close(self) -> None:
        """Gives back what it holds; legal twice."""
        ...


def open_gpus(settings: GpuSettings, clock: Clock) -> GpuCollector:
    """The collector that `gpu.source` names."""
    return NvmlCollector(settings, clock) if settings.source == "local" else GpuExporterCollector(settings, clock)
