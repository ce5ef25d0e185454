"""A pod's cards from a dsobs-nvml exporter, which is the real one, over HTTP."""

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dsobs_nvml import Measure, NvmlUnavailable, Process, Reading, readings_of_record
from dsobs_nvml.exporter import Exporter
from dsobs_nvml.pods import Holder
from dsobs_nvml.settings import settings_of

from dsobs.collectors.gpu_exporter import RETRY_SECONDS, Choice, GpuExporterCollector
from dsobs.collectors.gpus import open_gpus
from dsobs.collectors.nvml import GpuSignals, NvmlCollector
from dsobs.config.models import Gpu as GpuSettings
from dsobs.model.clock import ManualClock
from dsobs.model.observation import Gpu, Unknown

H200 = Path(__file__).parents[1] / "data/h200/nvml.json"
OURS, OTHERS = "GPU-00000000-0000-0000-0000-00000000000a", "GPU-00000000-0000-0000-0000-00000000000b"
PART = "MIG-00000000-0000-0000-0000-0000000000c1"


class Source:
    """What the exporter reads; the test sets it."""

    def __init__(self) -> None:
        self.readings = [Reading(0, OURS, "H", power_watts=70.0), Reading(1, OTHERS, "H", power_watts=80.0)]
        self.error: Exception | None = None

    def init(self) -> None:
        pass

    def read(self) -> list[Reading]:
        if self.error is not None:
            raise self.error
        return self.readings

    def shutdown(self) -> None:
        pass


class Pods:
    failures = 0

    def __init__(self) -> None:
        self.answer: dict[str, list[Holder]] = {}

    def holders(self) -> dict[str, list[Holder]]:
        return self.answer

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class Node:
    """An exporter on a node, and what it sees."""

    def __init__(self) -> None:
        self.source = Source()
        self.pods = Pods()
        flags = ["--listen", "127.0.0.1:0", "--pod-resources", "/nowhere/kubelet.sock", "--interval", "0.2"]
        self.exporter = Exporter(settings_of(flags, {}), self.source)
        self.exporter.pods = self.exporter.cards.pods = self.pods  # type: ignore[assignment]
        self.exporter.start()
        assert self.exporter.reader.wait_for_first(30)
        assert self.exporter.server is not None
        self.url = f"http://{self.exporter.server.address}"

    def sees(self, *readings: Reading) -> None:
        """Returns once the exporter has read it."""
        self.source.readings = list(readings)
        made = self.exporter.reader.snapshot().made + 2
        self._until(lambda: self.exporter.reader.snapshot().made >= made)

    def loses_its_driver(self, reason: str) -> None:
        """Returns once the exporter has seen it."""
        self.source.error = NvmlUnavailable(reason)
        self._until(lambda: self.exporter.reader.snapshot().reason == reason)

    def _until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.exporter.stop()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


Make = Callable[..., GpuExporterCollector]


@pytest.fixture
async def make(clock: ManualClock) -> AsyncIterator[Make]:
    made: list[GpuExporterCollector] = []

    def collector(url: str, environ: dict[str, str] | None = None, **settings: Any) -> GpuExporterCollector:
        made.append(GpuExporterCollector(GpuSettings(source=url, **settings), clock, environ or {}, deadline=30.0))
        return made[-1]

    yield collector
    for one in made:
        await one.close()


def uuids(gpus: tuple[Gpu, ...] | Unknown) -> list[str]:
    assert not isinstance(gpus, Unknown), gpus.reason
    return [gpu.uuid for gpu in gpus]


async def test_a_card_through_the_exporter_is_what_it_is_without_it(node: Node, make: Make) -> None:
    record = json.loads(H200.read_text(encoding="utf-8"))["load"]["records"][-1]
    (reading,) = readings_of_record({**record, "more": [["dsobs_gpu_ecc_errors_total", {"type": "corrected"}, 3]]})
    node.sees(reading)
    gpus = await make(node.url, devices=("0",)).read()
    assert isinstance(gpus, tuple)
    (gpu,) = gpus
    # A recording has no information on the card beside its name, which an exporter tells with that.
    assert gpu == Reading(**{**{name: getattr(reading, name) for name in Reading.__slots__}, "name": ""})
    at = 1.0
    assert set(GpuSignals().samples(gpus, at)) == set(GpuSignals().samples((reading,), at))


async def test_the_pods_own_cards_are_those_that_kubelet_gave_it(node: Node, make: Make) -> None:
    node.pods.answer = {
        OURS: [Holder("models", "vllm-0", "engine", "nvidia.com/gpu")],
        OTHERS: [Holder("models", "vllm-1", "engine", "nvidia.com/gpu")],
    }
    environ = {"POD_NAMESPACE": "models", "POD_NAME": "vllm-0"}
    assert uuids(await make(node.url, environ).read()) == [OURS]
    assert uuids(await make(node.url, environ, pod="models/vllm-1").read()) == [OTHERS]
    assert await make(node.url, pod="models/vllm-2").read() == Unknown(
        "the exporter names no card of pod models/vllm-2"
    )


async def test_cards_are_chosen_by_setting_then_by_the_variable_then_by_the_pod(node: Node, make: Make) -> None:
    visible = {"NVIDIA_VISIBLE_DEVICES": f"{OTHERS}", "POD_NAMESPACE": "models", "POD_NAME": "vllm-0"}
    assert uuids(await make(node.url, visible).read()) == [OTHERS]
    assert uuids(await make(node.url, {"NVIDIA_VISIBLE_DEVICES": "1"}).read()) == [OTHERS]
    assert uuids(await make(node.url, visible, devices=(OURS,)).read()) == [OURS]
    assert uuids(await make(node.url, visible, devices=("all",)).read()) == [OURS, OTHERS]


@pytest.mark.parametrize("visible", ["all", "none", "void", ""])
async def test_which_cards_are_ours_is_never_guessed(node: Node, make: Make, visible: str) -> None:
    gpus = await make(node.url, {"NVIDIA_VISIBLE_DEVICES": visible}).read()
    assert gpus == Unknown("which of the exporter's cards are ours is not known; set gpu.devices or gpu.pod")


async def test_a_card_that_is_not_there_makes_all_unknown_and_is_named(node: Node, make: Make) -> None:
    gpus = await make(node.url, devices=(OURS, "GPU-x")).read()
    assert gpus == Unknown(f"{node.url} (gpu.source) does not show GPU-x")


async def test_a_mig_device_has_its_memory_and_nothing_of_its_card(node: Node, make: Make) -> None:
    part = (("mig_uuid", PART), ("gpu_instance", "7"), ("compute_instance", "0"))
    measures = (
        Measure("dsobs_gpu_mig_memory_total_bytes", part, 10.0),
        Measure("dsobs_gpu_mig_memory_used_bytes", part, 4.0),
    )
    node.sees(Reading(0, OURS, power_watts=70.0, more=measures))
    node.pods.answer = {PART: [Holder("models", "small", "engine", "nvidia.com/mig-1g.10gb")]}
    gpus = await make(node.url, pod="models/small").read()
    assert gpus == (Gpu(0, PART, memory_total_bytes=10, memory_used_bytes=4),)


async def test_xids_are_told_once_and_not_those_of_before(node: Node, make: Make) -> None:
    node.sees(Reading(0, OURS, xids=(31, 31)))
    node.sees(Reading(0, OURS, xids=()))
    collector = make(node.url, devices=("0",))

    async def xids() -> tuple[int, ...] | None:
        gpus = await collector.read()
        assert isinstance(gpus, tuple)
        return gpus[0].xids

    assert await xids() == ()
    node.sees(Reading(0, OURS, xids=(999,)))
    node.sees(Reading(0, OURS, xids=()))
    new = await xids()
    assert new is not None
    assert set(new) == {999}
    assert await xids() == ()


async def test_an_exporter_that_was_started_again_counts_from_its_start(node: Node, make: Make) -> None:
    collector = make(node.url, devices=("0",))
    collector._xids[OURS] = {"31": 100.0, "79": 0.0}
    node.sees(Reading(0, OURS, xids=(31,)))
    node.sees(Reading(0, OURS, xids=()))
    gpus = await collector.read()
    assert isinstance(gpus, tuple)
    assert gpus[0].xids
    assert set(gpus[0].xids) == {31}
    assert len(gpus[0].xids) < 64


async def test_a_lost_card_is_unknown_with_the_exporters_reason(node: Node, make: Make) -> None:
    node.sees(Reading(0, OURS, unknown="GPU is lost"))
    gpus = await make(node.url, devices=("0",)).read()
    assert gpus == (Gpu(0, OURS, unknown="GPU is lost"),)


async def test_processes_are_told_with_their_memory(node: Node, make: Make) -> None:
    node.sees(Reading(0, OURS, processes=(Process(7, 5), Process(8, 6))))
    gpus = await make(node.url, devices=("0",)).read()
    assert isinstance(gpus, tuple)
    assert gpus[0].processes == (Process(7, 5), Process(8, 6))


async def test_an_exporter_without_a_driver_is_unknown_with_its_reason(node: Node, make: Make) -> None:
    node.loses_its_driver("no NVIDIA driver: not loaded")
    gpus = await make(node.url, devices=("0",)).read()
    assert gpus == Unknown(f"{node.url} (gpu.source): no NVIDIA driver: not loaded")


async def test_an_exporter_that_is_away_is_said_once_and_tried_again_after_ten_seconds(
    node: Node, make: Make, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dsobs")
    collector = make(node.url, devices=("0",))
    assert uuids(await collector.read()) == [OURS]
    node.exporter.stop()
    for _ in range(30):
        gpus = await collector.read()
        assert isinstance(gpus, Unknown)
        assert gpus.reason == f"{node.url} (gpu.source): connection refused"
        assert collector.latest == gpus
        clock.advance(RETRY_SECONDS / 5)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_page_that_is_no_exporters_is_unknown(node: Node, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(node.exporter.cards), "collect", lambda self: [])
    gpus = await make(node.url, devices=("0",)).read()
    assert gpus == Unknown(f"{node.url} (gpu.source) is no dsobs-nvml")


async def test_switched_off_or_closed_reads_nothing(node: Node, make: Make) -> None:
    assert await make(node.url, enabled=False).read() == Unknown("gpu.enabled is false")
    collector = make(node.url, devices=("0",))
    await collector.close()
    await collector.close()
    assert await collector.read() == Unknown("closed")


def test_the_setting_says_which_collector_it_is(clock: ManualClock) -> None:
    assert isinstance(open_gpus(GpuSettings(), clock), NvmlCollector)
    assert isinstance(open_gpus(GpuSettings(source="http://127.0.0.1:9941"), clock), GpuExporterCollector)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("somewhere", "is no http:// or https:// address"),
        ("http://a:1/metrics", "has a path; write http://a:1"),
        ("http://user:pass@a:1", "holds a user name or password"),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GpuSettings(source=source)


def test_a_pod_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="write NAMESPACE/NAME"):
        GpuSettings(pod="vllm-0")


def test_the_choice_takes_nothing_from_half_a_pod() -> None:
    assert Choice(GpuSettings(), {"POD_NAME": "vllm-0"}).pod == ""
