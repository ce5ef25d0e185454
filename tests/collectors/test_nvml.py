"""GPU readings: the thread, its deadline, what is said of a driver that is not there, and the samples."""

import asyncio
import gzip
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dsobs_nvml import FAMILIES, Measure, NvmlUnavailable, Process, Reading, RecordedNvml
from hypothesis import given
from hypothesis import strategies as st

from dsobs.collectors.nvml import GpuSignals, NvmlCollector, engine_pids, gpus_of_record, record_of_gpus
from dsobs.config.models import Gpu as GpuSettings
from dsobs.model.clock import ManualClock
from dsobs.model.observation import Gpu, GpuProcess, RuntimeView, Unknown
from dsobs.model.samples import Sample, labels
from dsobs.model.signals import SIGNALS

RECORDING = Path(__file__).parents[1] / "data/h100-vllm-0.23/scenario.jsonl.gz"
H200 = Path(__file__).parents[1] / "data/h200/nvml.json"


class Source:
    """A source whose next answer the test sets, and which may hang."""

    def __init__(self, *answers: list[Reading] | Exception) -> None:
        self.answers = list(answers)
        self.inits = 0
        self.shutdowns = 0
        self.reads = 0
        self.threads: set[int] = set()
        self.ended = threading.Event()
        self.free = threading.Event()
        self.free.set()

    def init(self) -> None:
        self.inits += 1

    def read(self) -> list[Reading]:
        self.reads += 1
        self.threads.add(threading.get_ident())
        assert self.free.wait(10)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def shutdown(self) -> None:
        self.shutdowns += 1
        self.ended.set()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


Make = Callable[..., NvmlCollector]


@pytest.fixture
async def make(clock: ManualClock) -> AsyncIterator[Make]:
    made: list[NvmlCollector] = []

    def collector(source: Any, deadline: float = 10.0, settings: GpuSettings | None = None) -> NvmlCollector:
        made.append(NvmlCollector(settings or GpuSettings(), clock, source, deadline))
        return made[-1]

    yield collector
    for one in made:
        await one.close()


async def test_readings_become_gpus(make: Make) -> None:
    collector = make(Source([Reading(0, "GPU-a", power_watts=71.5, processes=(Process(7, None),), xids=(31,))]))
    gpus = await collector.read()
    assert gpus == (Gpu(0, "GPU-a", power_watts=71.5, processes=(GpuProcess(7, None),), xids=(31,)),)


async def test_every_reading_is_made_in_one_thread(make: Make) -> None:
    source = Source([Reading(0)])
    collector = make(source)
    for _ in range(5):
        await collector.read()
    assert source.inits == 1
    assert len(source.threads) == 1
    assert source.threads != {threading.get_ident()}


async def test_the_recording_is_collected(make: Make) -> None:
    with gzip.open(RECORDING, "rt", encoding="utf-8") as lines:
        records = [json.loads(line)["nvml"] for line in lines]
    collector = make(RecordedNvml(records))
    assert [await collector.read() for _ in records] == [gpus_of_record(record) for record in records]


def test_readings_of_a_real_h200_are_whole_and_survive_the_recorder() -> None:
    result = json.loads(H200.read_text(encoding="utf-8"))
    for record in [result["idle"]["record"], *result["load"]["records"]]:
        gpus = gpus_of_record(record)
        assert record_of_gpus(gpus) == record
        assert not isinstance(gpus, Unknown)
        names = {dict(sample.labels)["__name__"] for sample in GpuSignals().samples(gpus, 1.0)}
        assert {"dsobs_gpu_energy_joules_total", "dsobs_gpu_xid_errors_total", "dsobs_gpu_power_watts"} < names
    busy = gpus_of_record(result["load"]["records"][-1])
    assert not isinstance(busy, Unknown)
    assert (busy[0].utilization_ratio or 0.0) > 0.9


async def test_no_driver_is_said_once_and_tried_again_each_minute(
    make: Make, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dsobs")
    source = Source(NvmlUnavailable("no NVIDIA driver: not loaded"))
    collector = make(source)
    for _ in range(60):
        assert await collector.read() == Unknown("no NVIDIA driver: not loaded")
        clock.advance(1.0)
    assert source.inits == 1
    await collector.read()
    assert source.inits == 2
    source.answers = [[Reading(0)]]
    clock.advance(60.0)
    assert await collector.read() == (Gpu(0),)
    assert [record.message for record in caplog.records] == [
        "GPU signals are unknown: no NVIDIA driver: not loaded; tried again every 60 s",
        "GPU signals are known again",
    ]


async def test_a_real_machine_without_the_library_says_no_driver(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsobs_nvml.driver.LIBRARY", "libnot-there-ml.so.1")
    gpus = await make(None).read()
    assert isinstance(gpus, Unknown)
    assert gpus.reason.startswith("no NVIDIA driver: ")


async def test_a_driver_that_hangs_is_unknown_and_not_asked_again(
    make: Make, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dsobs")
    source = Source([Reading(0, "GPU-a")])
    collector = make(source)
    await collector.read()
    source.free.clear()
    collector._deadline = 0.05
    assert await collector.read() == Unknown("NVML has not answered for 0 s")
    clock.advance(30.0)
    assert await collector.read() == Unknown("NVML has not answered for 30 s")
    assert source.reads <= 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    source.free.set()


async def test_an_answer_past_its_deadline_is_not_used_but_its_xids_are(make: Make, clock: ManualClock) -> None:
    source = Source(
        [Reading(0, "GPU-a", power_watts=1.0)],
        [Reading(0, "GPU-a", power_watts=2.0, xids=(119,))],
        [Reading(0, "GPU-a", power_watts=3.0, xids=(31,))],
    )
    collector = make(source)
    await collector.read()
    source.free.clear()
    collector._deadline = 0.05
    assert isinstance(await collector.read(), Unknown)
    clock.advance(5.0)
    assert isinstance(await collector.read(), Unknown)
    source.free.set()
    collector._deadline = 30.0
    assert collector._pending is not None
    await asyncio.wait_for(collector._pending[1], 60)
    assert await collector.read() == (Gpu(0, "GPU-a", power_watts=3.0, xids=(119, 31)),)
    assert await collector.read() == (Gpu(0, "GPU-a", power_watts=3.0, xids=(31,)),)
    assert len(source.threads) == 1


async def test_closing_does_not_wait_for_a_driver_that_hangs(make: Make) -> None:
    source = Source([Reading(0)])
    source.free.clear()
    collector = make(source, deadline=0.05)
    await collector.read()
    await asyncio.wait_for(collector.close(), 60)
    assert await collector.read() == Unknown("closed")
    source.free.set()
    assert await asyncio.to_thread(source.ended.wait, 10)


async def test_close_gives_the_source_back_and_is_legal_before_reading_and_twice(make: Make) -> None:
    source = Source([Reading(0)])
    collector = make(source)
    await collector.read()
    await collector.close()
    await collector.close()
    assert source.shutdowns == 1
    await make(Source([Reading(0)])).close()


async def test_an_unexpected_error_is_unknown_and_logged_with_its_trace(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    assert await make(Source(TypeError("odd"))).read() == Unknown("NVML: TypeError: odd")
    assert "Traceback" in caplog.text


async def test_switched_off_reads_nothing(make: Make) -> None:
    source = Source([Reading(0)])
    assert await make(source, settings=GpuSettings(enabled=False)).read() == Unknown("gpu.enabled is false")
    assert source.inits == 0


FULL = Gpu(
    1,
    "GPU-a",
    "NVIDIA H100",
    memory_total_bytes=100,
    memory_used_bytes=40,
    utilization_ratio=0.58,
    memory_utilization_ratio=0.4,
    power_watts=416.267,
    power_limit_watts=700.0,
    temperature_celsius=49.0,
    sm_clock_hertz=1.965e9,
    memory_clock_hertz=2.619e9,
    clock_event_reasons=0x1004,
    energy_joules=42845.551,
    processes=(GpuProcess(776, 30), GpuProcess(777, None)),
    xids=(31, 31, 999),
)


def by_name(samples: list[Sample], name: str) -> list[Sample]:
    return [sample for sample in samples if dict(sample.labels)["__name__"] == name]


RARE = tuple(
    Measure(family.name, tuple((label, "x") for label in family.labels), 1.0)
    for family in FAMILIES.values()
    if not family.field
    and family.name.removeprefix("dsobs_gpu_")
    not in ("up", "unknown", "process_memory_bytes", "clock_event_active", "xid_errors_total", "xid_last_time_seconds")
)


def names_of(samples: list[Sample]) -> set[str]:
    return {dict(sample.labels)["__name__"] for sample in samples}


def test_samples_are_the_canonical_signals_with_their_labels() -> None:
    samples = GpuSignals().samples((FULL,), 1.0)
    for sample in samples:
        values = dict(sample.labels)
        assert set(values) - {"__name__"} == set(SIGNALS[values["__name__"]].labels)
        assert (values["gpu"], values["uuid"]) == ("1", "GPU-a")
    assert Sample(labels("dsobs_gpu_power_watts", gpu="1", uuid="GPU-a"), 416.267) in samples
    rare = {family.name for family in FAMILIES.values() if family.name not in names_of(samples)}
    assert rare == {measure.name for measure in RARE} | {"dsobs_gpu_unknown"}
    more = GpuSignals().samples((replace(FULL, more=RARE),), 1.0)
    assert {measure.name for measure in RARE} < names_of(more)
    made_elsewhere = {"dsobs_gpu_memory_used_ratio", "dsobs_gpu_memory_effective_ratio"}
    elsewhere = made_elsewhere | {"dsobs_gpu_foreign_memory_bytes", "dsobs_gpu_unknown", "dsobs_gpu_signals_up"}
    assert names_of(more) | elsewhere == {name for name in SIGNALS if name.startswith("dsobs_gpu_")}
    assert len({sample.labels for sample in samples}) == len(samples)


def test_what_is_unknown_has_no_sample() -> None:
    lost = GpuSignals().samples((Gpu(0, "GPU-a", unknown="GPU is lost"),), 1.0)
    assert lost == [
        Sample(labels("dsobs_gpu_up", gpu="0", uuid="GPU-a"), 0.0),
        Sample(labels("dsobs_gpu_unknown", gpu="0", uuid="GPU-a", reason="GPU is lost"), 1.0),
    ]
    assert GpuSignals().samples(Unknown("no driver"), 1.0) == []


def test_reasons_that_slow_have_a_series_and_others_only_while_active() -> None:
    def active(mask: int) -> dict[str, float]:
        samples = by_name(
            GpuSignals().samples((Gpu(0, clock_event_reasons=mask),), 1.0), "dsobs_gpu_clock_event_active"
        )
        return {dict(sample.labels)["reason"]: sample.value for sample in samples}

    idle = active(0x1)
    assert idle.pop("gpu_idle") == 1
    assert idle == active(0)
    assert set(active(0).values()) == {0.0}
    assert {"sw_power_cap", "hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown"} < set(active(0))
    assert active(0x1004) == {**active(0), "sw_power_cap": 1.0, "bit_12": 1.0}


def test_xids_are_counted_over_readings_and_known_ones_start_at_zero() -> None:
    signals = GpuSignals()

    def counts(gpu: Gpu) -> dict[str, float]:
        found = by_name(signals.samples((gpu,), 1.0), "dsobs_gpu_xid_errors_total")
        return {dict(sample.labels)["xid"]: sample.value for sample in found}

    assert set(counts(Gpu(0, "GPU-a", xids=())).values()) == {0.0}
    first = counts(Gpu(0, "GPU-a", xids=(31, 31, 999)))
    assert (first["31"], first["999"], first["79"]) == (2, 0, 0)
    second = counts(Gpu(0, "GPU-a", xids=(31,)))
    assert (second["31"], second["999"]) == (3, 1)
    assert counts(Gpu(1, "GPU-b", xids=()))["31"] == 0
    assert counts(Gpu(2, "GPU-c", xids=None)) == {}


def test_a_count_begins_at_zero_though_the_first_reading_has_an_xid() -> None:
    signals = GpuSignals()

    def count(*xids: int) -> float:
        found = by_name(signals.samples((Gpu(0, "GPU-a", xids=xids),), 1.0), "dsobs_gpu_xid_errors_total")
        return next(sample.value for sample in found if ("xid", "79") in sample.labels)

    assert [count(79), count(), count(79)] == [0, 1, 2]


def test_a_card_that_is_unknown_for_a_moment_keeps_its_xid_counts() -> None:
    signals = GpuSignals()
    signals.samples((Gpu(0, "GPU-a", xids=(31,)),), 1.0)
    found = by_name(signals.samples((Gpu(0, "GPU-a"),), 1.0), "dsobs_gpu_xid_errors_total")
    assert {dict(sample.labels)["xid"]: sample.value for sample in found}["31"] == 1


def test_pids_are_unknown_while_the_runtime_shows_none_of_a_running_engine() -> None:
    assert engine_pids(RuntimeView("docker", "vllm", running=True)) is None
    assert engine_pids(RuntimeView("docker", "vllm", running=True, pids=(7,))) == (7,)
    assert engine_pids(Unknown("no runtime")) is None


def test_the_time_of_an_xid_is_told() -> None:
    signals = GpuSignals()
    signals.samples((Gpu(0, "GPU-a", xids=(31,)),), 17.0)
    (last,) = by_name(signals.samples((Gpu(0, "GPU-a", xids=()),), 18.0), "dsobs_gpu_xid_last_time_seconds")
    assert (dict(last.labels)["xid"], last.value) == ("31", 17.0)
    assert dict(last.labels)["reason"] == "GPU memory page fault"


NUMBERS = st.floats(allow_nan=False, allow_infinity=False).map(lambda number: number or 0.0)
GPUS = st.builds(
    Gpu,
    index=st.integers(0, 15),
    uuid=st.text(max_size=6),
    memory_used_bytes=st.none() | st.integers(0, 2**50),
    utilization_ratio=st.none() | st.integers(0, 100).map(lambda percent: percent / 100),
    power_watts=st.none() | st.integers(0, 10**7).map(lambda milliwatts: milliwatts / 1000),
    sm_clock_hertz=st.none() | st.integers(0, 10**5).map(lambda megahertz: megahertz * 1e6),
    energy_joules=st.none() | st.integers(0, 10**14).map(lambda millijoules: millijoules / 1000),
    processes=st.none() | st.tuples(st.builds(GpuProcess, st.integers(1, 2**22), st.none() | st.integers(0, 2**50))),
    xids=st.none() | st.tuples(st.integers(0, 500)),
    more=st.lists(
        st.builds(Measure, st.text(max_size=6), st.tuples(st.tuples(st.text(max_size=3), st.text(max_size=3))), NUMBERS)
    ).map(tuple),
    unknown=st.text(max_size=6),
)


@given(st.lists(GPUS, min_size=1, max_size=4).map(tuple))
def test_gpus_survive_the_flight_recorder(gpus: tuple[Gpu, ...]) -> None:
    record = record_of_gpus(gpus)
    assert isinstance(record, dict) == (len(gpus) == 1)
    assert gpus_of_record(json.loads(json.dumps(record))) == gpus


def test_unknown_is_recorded_as_null_and_read_as_unknown() -> None:
    assert record_of_gpus(Unknown("no driver")) is None
    assert gpus_of_record(None) == Unknown("not recorded")
    assert gpus_of_record("?") == Unknown("no NVML record: neither an object nor a list of objects")
