"""What eight cards cost once they are read: series of them, the exporter's page, and that page read by a sidecar.

`python -m tests.benchmarks.gpus` prints one JSON object: milliseconds of CPU, in this process. Needs no driver: the
cards have every family of the table.
"""

import asyncio
import json
import time
from collections.abc import Callable

from dsobs_nvml import FAMILIES, Measure, Process, Reading
from dsobs_nvml.exporter import Exporter
from dsobs_nvml.settings import settings_of
from prometheus_client.exposition import generate_latest

from dsobs.collectors.gpu_exporter import GpuExporterCollector
from dsobs.collectors.nvml import GpuSignals
from dsobs.config.models import Gpu as GpuSettings
from dsobs.model.clock import SteadyClock

CARDS = 8
SERIES = {"nvlink_active": 18, "clock_event_seconds_total": 9, "nvlink_errors_total": 4}
"""Of one card, where there are several."""
COUNTED = ("up", "unknown", "process_memory_bytes", "clock_event_active", "xid_errors_total", "xid_last_time_seconds")


def card(index: int) -> Reading:
    """One card of which everything is known."""
    more = [
        Measure(family.name, tuple((label, f"{label}-{number}") for label in family.labels), 1.0)
        for family in FAMILIES.values()
        if not family.field and family.name.removeprefix("dsobs_gpu_") not in COUNTED
        for number in range(SERIES.get(family.name.removeprefix("dsobs_gpu_"), 2) if family.labels else 1)
    ]
    fields = {family.field: 1.0 for family in FAMILIES.values() if family.field}
    return Reading(
        index,
        f"GPU-00000000-0000-0000-0000-00000000000{index}",
        clock_event_reasons=4,
        processes=(Process(1000 + index, 1 << 30),),
        xids=(),
        more=tuple(more),
        **fields,  # type: ignore[arg-type]
    )


class Cards:
    """A source of them."""

    def init(self) -> None:
        """Nothing to begin."""

    def read(self) -> list[Reading]:
        """All of them."""
        return [card(index) for index in range(CARDS)]

    def shutdown(self) -> None:
        """Nothing to end."""


def milliseconds(work: Callable[[], object], times: int) -> float:
    """CPU of one of several."""
    work()
    began = time.thread_time()
    for _ in range(times):
        work()
    return round((time.thread_time() - began) / times * 1000, 2)


async def read_pages(url: str, times: int) -> float:
    """CPU of one page read by a sidecar."""
    collector = GpuExporterCollector(GpuSettings(source=url, devices=("all",)), SteadyClock(), {})
    gpus = await collector.read()
    assert isinstance(gpus, tuple), gpus
    began = time.thread_time()
    for _ in range(times):
        await collector.read()
    took = time.thread_time() - began
    await collector.close()
    return round(took / times * 1000, 2)


def main() -> None:
    """Measures and prints."""
    cards, signals = tuple(Cards().read()), GpuSignals()
    result: dict[str, object] = {
        "cards": CARDS,
        "samples": len(signals.samples(cards, 1.0)),
        "signals_ms": milliseconds(lambda: signals.samples(cards, 1.0), 200),
    }
    for name, flags in (("page", []), ("page_with_dcgm_names", ["--dcgm-names"])):
        exporter = Exporter(settings_of(["--listen", "127.0.0.1:0", "--pod-resources", "off", *flags], {}), Cards())
        exporter.start()
        assert exporter.reader.wait_for_first(10)
        assert exporter.server is not None
        registry = exporter.server.registry
        result[name] = {
            "bytes": len(generate_latest(registry)),
            "written_ms": milliseconds(lambda registry=registry: generate_latest(registry), 20),  # type: ignore[misc]
            "read_by_a_sidecar_ms": asyncio.run(read_pages(f"http://{exporter.server.address}", 50)),
        }
        exporter.stop()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
