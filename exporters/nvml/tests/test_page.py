"""The page where cards and drivers come and go, and where pods hold them."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from dsobs_nvml import Measure, NvmlUnavailable, Process, Reading
from dsobs_nvml.exporter import Exporter
from dsobs_nvml.page import CardCollector
from dsobs_nvml.pods import Holder
from dsobs_nvml.reader import STALE_SECONDS, Reader
from dsobs_nvml.settings import settings_of

CARD = "GPU-00000000-0000-0000-0000-00000000000a"
PART = "MIG-00000000-0000-0000-0000-0000000000c1"
INFO = (("name", "H"), ("driver_version", "580"), ("cuda_version", ""), ("pci_bus_id", "0:1"), ("minor", "3"))


class Source:
    """Answers as the test says; holds the thread while `free` is not set."""

    def __init__(self, *readings: Reading) -> None:
        self.readings: list[Reading] = list(readings)
        self.error: Exception | None = None
        self.free = threading.Event()
        self.free.set()
        self.reads = 0
        self.inits = 0
        self.shutdowns = 0
        self.threads: set[int] = set()

    def init(self) -> None:
        self.inits += 1
        if self.error is not None:
            raise self.error

    def read(self) -> list[Reading]:
        assert self.free.wait(30)
        self.reads += 1
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        return self.readings

    def shutdown(self) -> None:
        self.shutdowns += 1


class Pods:
    """A `PodWatch` whose answer the test sets."""

    failures = 0

    def __init__(self, **holders: Any) -> None:
        self.answer: Any = holders

    def holders(self) -> Any:
        return self.answer


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def make_reader() -> Any:
    made: list[Reader] = []

    def reader(source: Any, monotonic: Callable[[], float] = time.monotonic) -> Reader:
        made.append(Reader(source, 0.01, monotonic=monotonic))
        made[-1].start()
        assert made[-1].wait_for_first(30)
        return made[-1]

    yield reader
    for one in made:
        one.stop()


def values(reader: Reader, **more: Any) -> dict[str, float]:
    """Name and label values, sorted by label → value."""
    return {
        " ".join([sample.name, *(value for _, value in sorted(sample.labels.items()))]): sample.value
        for family in CardCollector(reader, **more).collect()
        for sample in family.samples
    }


def test_all_readings_are_made_in_one_thread(make_reader: Any) -> None:
    source = Source(Reading(0, CARD))
    reader = make_reader(source)
    until(lambda: source.reads > 5)
    assert values(reader)["dsobs_nvml_readings_total"] >= 5
    assert len(source.threads) == 1
    assert source.threads != {threading.get_ident()}
    reader.stop()
    assert source.shutdowns == 1


def test_a_card_that_is_lost_is_0_up_with_its_reason_and_no_other_value_but_counts(make_reader: Any) -> None:
    source = Source(Reading(0, CARD, power_watts=70.0, xids=(79,)))
    reader = make_reader(source)
    source.readings = [Reading(0, CARD, unknown="GPU is lost", xids=())]
    until(lambda: f"dsobs_gpu_up 0 {CARD}" in values(reader) and values(reader)[f"dsobs_gpu_up 0 {CARD}"] == 0)
    found = values(reader, hostname="node-1")
    assert found[f"dsobs_gpu_unknown 0 GPU is lost {CARD}"] == 1
    assert found[f"dsobs_gpu_xid_errors_total 0 GPU has fallen off the bus {CARD} 79"] >= 1
    assert f"dsobs_gpu_power_watts 0 {CARD}" not in found
    assert not any(name.startswith("DCGM_FI_DEV_POWER") for name in found)


def test_no_driver_is_told_with_the_reason_and_tried_again(make_reader: Any) -> None:
    source = Source(Reading(0, CARD))
    source.error = NvmlUnavailable("no NVIDIA driver: not loaded")
    reader = make_reader(source)
    found = values(reader)
    assert found["dsobs_nvml_up"] == 0
    assert found["dsobs_nvml_unknown no NVIDIA driver: not loaded"] == 1
    assert not any(name.startswith("dsobs_gpu_") for name in found)
    assert reader.dead() == ""
    source.error = None
    until(lambda: values(reader)["dsobs_nvml_up"] == 1)
    assert source.inits >= 2
    assert "dsobs_nvml_unknown no NVIDIA driver: not loaded" not in values(reader)


def test_cards_that_were_read_before_are_unknown_each_while_the_driver_is_away(make_reader: Any) -> None:
    source = Source(Reading(0, CARD, power_watts=70.0, xids=(79,)))
    reader = make_reader(source)
    source.error = NvmlUnavailable("NVML: GPU is lost")
    until(lambda: values(reader)["dsobs_nvml_up"] == 0)
    found = values(reader)
    assert found[f"dsobs_gpu_up 0 {CARD}"] == 0
    assert found[f"dsobs_gpu_unknown 0 NVML: GPU is lost {CARD}"] == 1
    assert found[f"dsobs_gpu_xid_errors_total 0 GPU has fallen off the bus {CARD} 79"] >= 1
    assert f"dsobs_gpu_power_watts 0 {CARD}" not in found


def test_a_driver_changed_under_the_process_needs_a_restart(make_reader: Any) -> None:
    source = Source()
    source.error = NvmlUnavailable("the driver was changed", restart=True)
    assert make_reader(source).dead() == "the driver was changed"


def test_an_unexpected_error_is_counted_and_the_thread_goes_on(make_reader: Any) -> None:
    source = Source(Reading(0, CARD))
    source.error = RuntimeError("odd")
    reader = make_reader(source)
    assert values(reader)["dsobs_nvml_unknown NVML: RuntimeError"] == 1
    source.error = None
    until(lambda: values(reader)["dsobs_nvml_up"] == 1)
    assert values(reader)["dsobs_nvml_reading_failures_total"] >= 1


def test_a_driver_that_does_not_answer_takes_its_values_with_it_and_not_the_exporter(make_reader: Any) -> None:
    late = [0.0]
    source = Source(Reading(0, CARD))
    reader = make_reader(source, lambda: time.monotonic() + late[0])
    assert values(reader)["dsobs_nvml_up"] == 1
    source.free.clear()
    late[0] = STALE_SECONDS + 1.0
    until(lambda: values(reader)["dsobs_nvml_up"] == 0)
    assert values(reader)["dsobs_nvml_unknown the driver does not answer"] == 1
    assert values(reader)[f"dsobs_gpu_up 0 {CARD}"] == 0
    assert reader.dead() == ""
    source.free.set()
    until(lambda: values(reader)["dsobs_nvml_up"] == 1)


def test_values_have_the_labels_of_the_one_container_that_holds_the_card(make_reader: Any) -> None:
    card = Reading(0, CARD, power_watts=70.0, processes=(Process(7, 5),))
    pods = Pods(**{CARD: [Holder("models", "vllm-0", "engine", "nvidia.com/gpu")]})
    found = values(make_reader(Source(card)), pods=pods, hostname="node-1")
    assert found[f"dsobs_gpu_power_watts engine 0 models vllm-0 {CARD}"] == 70
    assert found[f"dsobs_gpu_process_memory_bytes engine 0 models 7 vllm-0 {CARD}"] == 5
    assert found[f"dsobs_gpu_allocation engine 0 models vllm-0 nvidia.com/gpu {CARD}"] == 1
    assert found[f"DCGM_FI_DEV_POWER_USAGE node-1 {CARD} engine 0 models vllm-0"] == 70
    assert found["dsobs_nvml_pod_resources_up"] == 1


def test_a_card_that_several_hold_is_no_ones_but_each_has_its_allocation(make_reader: Any) -> None:
    holders = [Holder("models", pod, "engine", "nvidia.com/gpu.shared") for pod in ("one", "two")]
    found = values(make_reader(Source(Reading(0, CARD, power_watts=70.0))), pods=Pods(**{CARD: holders}))
    assert found[f"dsobs_gpu_power_watts 0 {CARD}"] == 70
    assert found[f"dsobs_gpu_allocation engine 0 models one nvidia.com/gpu.shared {CARD}"] == 1
    assert found[f"dsobs_gpu_allocation engine 0 models two nvidia.com/gpu.shared {CARD}"] == 1


def test_a_mig_device_has_the_labels_of_its_own_holder(make_reader: Any) -> None:
    part = (("mig_uuid", PART), ("gpu_instance", "7"), ("compute_instance", "0"))
    card = Reading(0, CARD, power_watts=70.0, more=(Measure("dsobs_gpu_mig_memory_used_bytes", part, 9.0),))
    pods = Pods(**{PART: [Holder("models", "small", "engine", "nvidia.com/mig-1g.10gb")]})
    found = values(make_reader(Source(card)), pods=pods)
    assert found[f"dsobs_gpu_mig_memory_used_bytes 0 engine 0 7 {PART} models small {CARD}"] == 9
    assert found[f"dsobs_gpu_power_watts 0 {CARD}"] == 70
    assert found[f"dsobs_gpu_allocation engine 0 {PART} models small nvidia.com/mig-1g.10gb {CARD}"] == 1


def test_a_card_by_the_name_of_its_device_is_found_by_its_minor_number(make_reader: Any) -> None:
    card = Reading(0, CARD, power_watts=70.0, more=(Measure("dsobs_gpu_info", INFO, 1.0),))
    pods = Pods(nvidia3=[Holder("models", "vllm-0", "engine", "nvidia.com/gpu")])
    found = values(make_reader(Source(card)), pods=pods)
    assert found[f"dsobs_gpu_power_watts engine 0 models vllm-0 {CARD}"] == 70


def test_while_kubelet_is_away_the_pods_are_unknown_and_the_cards_are_not(make_reader: Any) -> None:
    pods = Pods()
    pods.answer = None
    found = values(make_reader(Source(Reading(0, CARD, power_watts=70.0))), pods=pods)
    assert found["dsobs_nvml_pod_resources_up"] == 0
    assert found[f"dsobs_gpu_power_watts 0 {CARD}"] == 70


def test_dcgm_tells_the_last_xid_and_0_before_the_first(make_reader: Any) -> None:
    source = Source(Reading(0, CARD, xids=()))
    reader = make_reader(source)
    assert values(reader, hostname="n")[f"DCGM_FI_DEV_XID_ERRORS n {CARD} 0"] == 0
    source.readings = [Reading(0, CARD, xids=(31, 13, 31))]
    until(lambda: values(reader, hostname="n")[f"DCGM_FI_DEV_XID_ERRORS n {CARD} 0"] == 31)


def test_more_connections_than_may_be_are_turned_away_and_let_in_again() -> None:
    from dsobs_nvml import server

    exporter = Exporter(
        settings_of(["--listen", "127.0.0.1:0", "--pod-resources", "off"], {}), Source(Reading(0, CARD))
    )
    exporter.start()
    assert exporter.server is not None
    host, port = exporter.server.server_address[:2]
    held = [socket.create_connection((host, port), timeout=30) for _ in range(server.MAX_CONNECTIONS)]
    until(lambda: threading.active_count() >= server.MAX_CONNECTIONS)
    until(lambda: _answer(host, port) == b"")
    for one in held:
        one.close()
    until(lambda: b"alive" in _answer(host, port))
    exporter.stop()


def _answer(host: Any, port: Any) -> bytes:
    with socket.create_connection((host, port), timeout=30) as one:
        try:
            one.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: one.recv(4096), b""))
        except ConnectionError:
            return b""
