"""What the driver's code does when cards refuse, vanish and fail, over a pretended library."""

import ctypes
import itertools
import logging
from pathlib import Path
from typing import Any

import pynvml
import pytest
from dsobs_nvml import FAMILIES, QUESTIONS, Nvml, NvmlUnavailable
from dsobs_nvml.driver import ASK_AGAIN_SECONDS, BUS_SECONDS, MAX_EVENTS


class Monotonic:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def started(library: Any, *devices: str, clock: Any = None) -> Nvml:
    nvml = Nvml(devices, library, clock or Monotonic())
    nvml.init()
    return nvml


def test_values_come_in_base_units(library: Any) -> None:
    reading = started(library).read()[0]
    assert reading.name == "NVIDIA Pretended"
    assert reading.utilization_ratio == 0.58
    assert reading.memory_utilization_ratio == 0.4
    assert reading.power_watts == 416.267
    assert reading.power_limit_watts == 700.0
    assert reading.temperature_celsius == 49.0
    assert reading.sm_clock_hertz == 1_965_000_000.0
    assert reading.memory_clock_hertz == 2_619_000_000.0
    assert reading.clock_event_reasons == 4
    assert reading.energy_joules == 1000.7
    assert reading.processes is not None
    assert [(process.pid, process.memory_bytes) for process in reading.processes] == [(776, 79037464576), (777, None)]
    assert reading.xids == ()


def test_memory_in_use_is_without_the_drivers_own(library: Any) -> None:
    assert started(library).read()[0].memory_used_bytes == 79042510848


def test_an_old_driver_gives_memory_with_its_own(library: Any) -> None:
    library.fails["nvmlDeviceGetMemoryInfo_v2", None] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert started(library).read()[0].memory_used_bytes == 79042510848 + 503316480


def test_an_old_driver_gives_clock_event_reasons_by_their_old_name(library: Any) -> None:
    library.fails["nvmlDeviceGetCurrentClocksEventReasons", None] = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert started(library).read()[0].clock_event_reasons == 4


def test_what_a_card_refuses_is_none_and_asked_again_after_ten_minutes(
    library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    library.fails["nvmlDeviceGetPowerUsage", 1] = pynvml.NVML_ERROR_NOT_SUPPORTED
    clock = Monotonic()
    nvml = started(library, "1", clock=clock)
    for _ in range(3):
        reading = nvml.read()[0]
        assert reading.power_watts is None
        assert reading.power_limit_watts == 700.0
    assert library.calls.count("nvmlDeviceGetPowerUsage") == 1
    del library.fails["nvmlDeviceGetPowerUsage", 1]
    clock.now += ASK_AGAIN_SECONDS
    assert nvml.read()[0].power_watts == 416.267
    assert [record.message for record in caplog.records] == [
        f"card {library.uuids[1]} does not give its power: Not Supported"
    ]


def test_energy_is_asked_each_ten_seconds_and_never_of_all_cards_at_once_again(library: Any) -> None:
    clock = Monotonic()
    nvml = started(library, clock=clock)
    asked = []
    for _ in range(31):
        calls = len(library.calls)
        readings = nvml.read()
        assert None not in [reading.energy_joules for reading in readings]
        asked.append(library.calls[calls:].count("nvmlDeviceGetTotalEnergyConsumption"))
        clock.now += 1.0
    assert asked[0] == 2
    assert [second for second, cards in enumerate(asked) if cards] == [0, 5, 10, 15, 20, 25, 30]
    assert max(asked[1:]) == 1


def test_what_an_xid_changes_is_asked_at_once(library: Any) -> None:
    clock = Monotonic()
    nvml = started(library, clock=clock)
    asked = []
    for second in range(30):
        if second == 23:
            library.events.append((1, 119))
        calls = len(library.calls)
        nvml.read()
        asked.append(library.calls[calls:].count("nvmlDeviceGetRemappedRows"))
        clock.now += 1.0
    assert asked[0] == 2
    assert [second for second, cards in enumerate(asked) if cards] == [0, 5, 10, 15, 20, 23, 25]


def test_energy_of_a_card_that_was_lost_is_unknown(library: Any) -> None:
    nvml = started(library)
    nvml.read()
    library.fails["*", 0] = pynvml.NVML_ERROR_GPU_IS_LOST
    assert nvml.read()[0].energy_joules is None


def test_a_passing_refusal_is_asked_again_at_once(library: Any) -> None:
    nvml = started(library)
    library.fails["nvmlDeviceGetUtilizationRates", None] = pynvml.NVML_ERROR_NOT_READY
    assert nvml.read()[0].utilization_ratio is None
    library.fails.clear()
    assert nvml.read()[0].utilization_ratio == 0.58


def test_an_unknown_error_in_one_reading_leaves_the_others(library: Any) -> None:
    nvml = started(library)
    library.fails["nvmlDeviceGetTotalEnergyConsumption", None] = pynvml.NVML_ERROR_UNKNOWN
    reading = nvml.read()[0]
    assert reading.energy_joules is None
    assert reading.power_watts == 416.267


def test_a_mig_device_gives_memory_and_processes(library: Any) -> None:
    library.uuids[1] = "MIG-00000000-0000-0000-0000-0000000000c1"
    for name in ("Utilization", "Clock", "Temperature", "Power", "Total", "Current", "Enforced", "Register"):
        for function in dir(library):
            if function.startswith("nvmlDevice") and name in function:
                library.fails[function, 1] = pynvml.NVML_ERROR_INVALID_ARGUMENT
    reading = started(library, library.uuids[1]).read()[0]
    assert reading.uuid == library.uuids[1]
    assert reading.memory_total_bytes == 85520809984
    assert reading.processes
    assert reading.utilization_ratio is None
    assert reading.clock_event_reasons is None
    assert reading.xids is None


def test_a_lost_card_is_unknown_while_the_other_is_read(library: Any) -> None:
    nvml = started(library)
    library.fails["*", 0] = pynvml.NVML_ERROR_GPU_IS_LOST
    calls = len(library.calls)
    lost, alive = nvml.read()
    assert (lost.index, lost.uuid) == (0, library.uuids[0])
    assert lost.memory_used_bytes is None
    assert alive.memory_used_bytes == 79042510848
    assert library.calls[calls:].count("nvmlDeviceGetMemoryInfo_v2") == 2
    assert library.calls[calls:].count("nvmlDeviceGetPowerUsage") == 1


def test_the_only_card_lost_is_unavailable_but_its_xid_is_told_first(library_of: Any) -> None:
    library = library_of(cards=1)
    nvml = started(library)
    library.fails["*", 0] = pynvml.NVML_ERROR_GPU_IS_LOST
    library.events = [(0, 79)]
    reading = nvml.read()[0]
    assert reading.xids == (79,)
    assert reading.memory_used_bytes is None
    with pytest.raises(NvmlUnavailable, match="GPU is lost"):
        nvml.read()


def test_a_card_that_went_away_is_told_as_unknown_and_looked_for_with_back_off(library: Any) -> None:
    clock = Monotonic()
    nvml = started(library, clock=clock)
    library.fails["*", 0] = pynvml.NVML_ERROR_GPU_IS_LOST
    looked: list[float] = []
    for _ in range(1300):
        before = library.calls.count("nvmlInit")
        lost, alive = nvml.read()
        assert (lost.uuid, lost.memory_used_bytes, lost.unknown) == (library.uuids[0], None, "GPU is lost")
        assert (alive.uuid, alive.memory_used_bytes, alive.unknown) == (library.uuids[1], 79042510848, "")
        if library.calls.count("nvmlInit") > before:
            looked.append(clock.now)
        clock.now += 1.0
    waits = [round(later - earlier) for earlier, later in itertools.pairwise([1000.0, *looked])]
    assert waits[:6] == [15, 31, 61, 121, 241, 481]
    library.fails.clear()
    clock.now += ASK_AGAIN_SECONDS
    nvml.read()
    back = nvml.read()
    assert [(reading.index, reading.unknown) for reading in back] == [(0, ""), (1, "")]
    assert library.inits == 1


def test_a_card_that_is_plugged_in_or_out_is_seen_by_the_kernels_word(library: Any, tmp_path: Path) -> None:
    clock = Monotonic()
    for address in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / address).mkdir()
    nvml = Nvml((), library, clock, bus=tmp_path)
    nvml.init()
    assert len(nvml.read()) == 2
    (tmp_path / "0000:02:00.0").rmdir()
    library.handles.pop()
    clock.now += BUS_SECONDS
    nvml.read()
    assert [reading.unknown for reading in nvml.read()] == ["", "GPU is lost"]
    (tmp_path / "0000:02:00.0").mkdir()
    library.handles.append(ctypes.pointer(pynvml.struct_c_nvmlDevice_t()))
    clock.now += BUS_SECONDS
    nvml.read()
    assert [reading.unknown for reading in nvml.read()] == ["", ""]


def test_a_driver_that_was_away_leaves_no_ghost_of_a_card_that_is_back(library: Any) -> None:
    nvml = started(library)
    library.fails["nvmlDeviceGetMemoryInfo_v2", None] = pynvml.NVML_ERROR_UNINITIALIZED
    with pytest.raises(NvmlUnavailable):
        nvml.read()
    library.fails.clear()
    nvml.init()
    assert [reading.index for reading in nvml.read()] == [0, 1]


def values_of(reading: Any) -> dict[str, float]:
    return {
        measure.name.removeprefix("dsobs_gpu_") + "".join(f" {value}" for _, value in measure.labels): measure.value
        for measure in reading.more
    }


def test_what_is_asked_rarely_comes_in_base_units(library: Any) -> None:
    library.mig_parts = [(0, "MIG-00000000-0000-0000-0000-0000000000c1")]
    clock = Monotonic()
    nvml = started(library, "0", clock=clock)
    nvml.read()
    clock.now += 31.0
    nvml.read()
    clock.now += 1.0
    values = values_of(nvml.read()[0])
    info = values.pop("info NVIDIA Pretended 580.159.04 13.0 00000000:00:00.0 0 default")
    assert info == 1.0
    part = "MIG-00000000-0000-0000-0000-0000000000c1 7 0"
    assert values == {
        "memory_reserved_bytes": 503316480,
        "clock_event_seconds_total sw_power_cap": 1.5,
        "clock_event_seconds_total thermal": 0,
        "clock_event_seconds_total sync_boost": 0,
        "clock_event_seconds_total reliability": 0,
        "clock_event_seconds_total sw_thermal_slowdown": 0.002,
        "clock_event_seconds_total hw_thermal_slowdown": 0,
        "clock_event_seconds_total hw_power_brake_slowdown": 0,
        "memory_temperature_celsius": 36,
        "temperature_margin_celsius": 55,
        "performance_state": 0,
        "fan_speed_ratio": 0.3,
        "ecc_errors_total corrected": 0,
        "ecc_errors_total uncorrected": 1,
        "ecc_errors_lifetime_total corrected": 10,
        "ecc_errors_lifetime_total uncorrected": 11,
        "remapped_rows correctable": 2,
        "remapped_rows uncorrectable": 1,
        "row_remap_pending": 1,
        "row_remap_failed": 0,
        "recovery_action none": 1,
        "nvlink_active 0": 1,
        "nvlink_active 1": 0,
        "nvlink_active 2": 1,
        "nvlink_active 3": 1,
        "nvlink_errors_total crc_flit": 0,
        "nvlink_errors_total crc_data": 0,
        "nvlink_errors_total replay": 1,
        "nvlink_errors_total recovery": 0,
        "nvlink_bytes_total transmit": 1048576,
        "nvlink_bytes_total receive": 2097152,
        "pcie_replays_total": 3,
        "pcie_link_generation": 4,
        "pcie_link_width": 16,
        "mig_enabled": 1,
        f"mig_memory_total_bytes {part}": 10737418240,
        f"mig_memory_used_bytes {part}": 1073741824,
        "pcie_throughput_bytes_per_second transmit": 1026 * 1024,
        "pcie_throughput_bytes_per_second receive": 617 * 1024,
        "power_limit_setting_watts requested": 700,
        "power_limit_setting_watts default": 700,
        "power_limit_setting_watts min": 200,
        "power_limit_setting_watts max": 700,
        "max_clock_hertz sm": 1.98e9,
        "max_clock_hertz memory": 2.619e9,
        "application_clock_hertz sm": 1.98e9,
        "application_clock_hertz memory": 2.619e9,
        "temperature_threshold_celsius shutdown": 95,
        "temperature_threshold_celsius slowdown": 94,
        "temperature_threshold_celsius memory_max": 93,
        "temperature_threshold_celsius gpu_max": 92,
        "pcie_link_max_generation": 5,
        "pcie_link_max_width": 16,
        "persistence_mode": 1,
        "ecc_enabled": 1,
    }


def test_every_measure_and_label_is_in_the_table_of_families(library: Any) -> None:
    library.mig_parts = [(0, "MIG-00000000-0000-0000-0000-0000000000c1")]
    for measure in started(library, "0").read()[0].more:
        family = FAMILIES[measure.name]
        assert tuple(label for label, _ in measure.labels) == family.labels
        assert family.question in {question.name for question in QUESTIONS}


def test_what_is_dear_is_asked_of_one_card_in_one_reading_and_never_at_the_start(library: Any) -> None:
    clock = Monotonic()
    nvml = started(library, clock=clock)
    asked = []
    for _ in range(121):
        calls = len(library.calls)
        nvml.read()
        asked.append(sum(call.startswith("nvmlDeviceGetPcieThroughput") for call in library.calls[calls:]))
        clock.now += 1.0
    assert asked[0] == 0
    assert max(asked) == 1
    # Two cards, two counters, each 30 s from 15 s or 30 s on.
    assert 14 <= sum(asked) <= 16


def test_a_card_without_nvlink_is_not_asked_for_it_again_at_once(
    library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    library.links = 0
    clock = Monotonic()
    nvml = started(library, "0", clock=clock)
    for _ in range(30):
        assert not any(name.startswith("nvlink_active") for name in values_of(nvml.read()[0]))
        clock.now += 1.0
    assert library.calls.count("nvmlDeviceGetNvLinkState") == 1
    assert not caplog.records


def test_one_refused_part_of_a_question_leaves_its_others(library: Any) -> None:
    library.fails["nvmlDeviceGetPowerManagementDefaultLimit", None] = pynvml.NVML_ERROR_NOT_SUPPORTED
    values = values_of(started(library, "0").read()[0])
    assert "power_limit_setting_watts default" not in values
    assert values["power_limit_setting_watts min"] == 200


def test_a_card_lost_in_a_rare_question_gives_nothing(library: Any) -> None:
    nvml = started(library)
    library.fails["nvmlDeviceGetTotalEccErrors", 0] = pynvml.NVML_ERROR_GPU_IS_LOST
    lost = nvml.read()[0]
    assert (lost.memory_used_bytes, lost.more, lost.unknown) == (None, (), "GPU is lost")


def test_what_each_question_cost_is_counted(library: Any) -> None:
    nvml = started(library)
    nvml.read()
    nvml.read()
    times, seconds = nvml.costs["memory"]
    assert times == 4
    assert 0 < seconds < 1
    assert nvml.costs["limits"][0] == 2


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_driver_that_goes_is_unavailable_and_comes_back_with_init(library: Any, error: int) -> None:
    nvml = started(library)
    library.fails["nvmlDeviceGetPowerUsage", None] = error
    with pytest.raises(NvmlUnavailable, match=str(pynvml.NVMLError(error))):
        nvml.read()
    library.fails.clear()
    nvml.init()
    assert len(nvml.read()) == 2


def test_no_driver_is_unavailable_with_the_reason(library: Any) -> None:
    library.fails["nvmlInit", None] = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    with pytest.raises(NvmlUnavailable, match="no NVIDIA driver: Driver Not Loaded"):
        Nvml(library=library).init()


def test_a_driver_changed_under_the_process_says_restart(library: Any) -> None:
    library.fails["nvmlInit", None] = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    with pytest.raises(NvmlUnavailable, match="restart it") as told:
        Nvml(library=library).init()
    assert told.value.restart


def test_no_library_is_unavailable_before_pynvml_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsobs_nvml.driver.LIBRARY", "libnot-there-ml.so.1")
    monkeypatch.setattr("dsobs_nvml.driver.importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(NvmlUnavailable, match=r"no NVIDIA driver: libnot-there-ml\.so\.1"):
        Nvml().init()


def test_a_driver_without_cards_is_unavailable_and_given_back(library_of: Any) -> None:
    library = library_of(cards=0)
    with pytest.raises(NvmlUnavailable, match="shows no card"):
        Nvml(library=library).init()
    assert library.inits == 0


def test_one_missing_card_leaves_the_others(library: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert [reading.index for reading in started(library, "0", "7").read()] == [0]
    assert "7 (Invalid Argument)" in caplog.text


def test_xids_go_to_their_card_once(library: Any) -> None:
    nvml = started(library)
    library.events = [(1, 31), (1, 31), (0, 13)]
    assert [reading.xids for reading in nvml.read()] == [(13,), (31, 31)]
    assert [reading.xids for reading in nvml.read()] == [(), ()]


def test_a_flood_of_xids_is_taken_in_slices(library: Any) -> None:
    nvml = started(library)
    library.events = [(0, 13)] * (MAX_EVENTS + 6)
    assert [len(nvml.read()[0].xids or ()) for _ in range(3)] == [MAX_EVENTS, 6, 0]


def test_unsupported_xids_are_none_and_said_once(library: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    library.fails["nvmlDeviceRegisterEvents", 0] = pynvml.NVML_ERROR_NOT_SUPPORTED
    nvml = started(library)
    assert [nvml.read() and reading.xids for reading in nvml.read()] == [None, ()]
    nvml.init()
    assert caplog.text.count("XID errors can't be watched") == 1


def test_an_event_set_that_fails_makes_xids_unknown(library: Any) -> None:
    nvml = started(library)
    library.fails["nvmlEventSetWait_v2", None] = pynvml.NVML_ERROR_UNKNOWN
    assert nvml.read()[0].xids is None


def test_shutdown_gives_back_the_event_set_and_the_library(library: Any) -> None:
    nvml = started(library)
    nvml.shutdown()
    assert library.calls[-2:] == ["nvmlEventSetFree", "nvmlShutdown"]
    assert library.inits == 0
