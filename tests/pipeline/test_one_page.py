"""One fault, one page: what cards, logs, runtime and shipping tell of a fault, and of what somebody is told."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from dsobs_nvml import Measure

from dsobs.config import Config
from dsobs.model.observation import Gpu, GpuProcess, Unknown
from dsobs.model.samples import Sample, labels
from tests.pipeline.test_pages import Paged
from tests.pipeline.world import World

HEALTHY = {
    "dsobs_gpu_recovery_action": 1.0,
    "dsobs_gpu_row_remap_pending": 0.0,
    "dsobs_gpu_row_remap_failed": 0.0,
    "dsobs_gpu_ecc_errors_total": 0.0,
}
_LABELS = {
    "dsobs_gpu_recovery_action": (("action", "none"),),
    "dsobs_gpu_ecc_errors_total": (("type", "uncorrected"),),
}


def measures(advice: str = "none", **changed: float) -> tuple[Measure, ...]:
    told = HEALTHY | {f"dsobs_gpu_{name}": value for name, value in changed.items()}
    names = _LABELS | {"dsobs_gpu_recovery_action": (("action", advice),)}
    return tuple(Measure(name, names.get(name, ()), value) for name, value in told.items())


def cards(count: int = 8) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(
            index,
            f"GPU-{index}",
            memory_total_bytes=80 * 2**30,
            memory_used_bytes=75 * 2**30,
            utilization_ratio=0.9,
            power_watts=500.0,
            processes=(GpuProcess(100 + index, 70 * 2**30),),
            xids=(),
            more=measures(),
        )
        for index in range(count)
    )


class Scene(Paged):
    """A server on eight cards, with log shipping beside it."""

    def __init__(self) -> None:
        super().__init__(World(config=Config(), gpus=cards(), pids=tuple(range(100, 108))))
        self.own: dict[str, float] = {"up": 1.0, "restarts": 0.0, "held": 0.0, "behind": 0.0, "records": 0.0}
        self.records_a_second = 10.0
        self.matches: dict[str, float] = dict.fromkeys(
            ("engine_dead", "engine_core_failed", "cuda_error", "gpu_off_the_bus"), 0.0
        )
        self.run(120)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.own["records"] += self.records_a_second
            samples = [
                Sample(labels("dsobs_log_shipper_up"), self.own["up"]),
                Sample(labels("dsobs_log_shipper_restarts_total"), self.own["restarts"]),
                Sample(labels("dsobs_log_held", reason="security_exception"), self.own["held"]),
                Sample(labels("dsobs_log_behind_seconds", source="a.log"), self.own["behind"]),
                Sample(labels("dsobs_log_records_total", outcome="sent"), self.own["records"]),
                *(Sample(labels("dsobs_log_matches_total", pattern=p), n) for p, n in self.matches.items()),
            ]
            self.world.store.append_samples(samples, self.world.now + 1.0, source="own")
            super().run(1)

    def xid(self, *numbers: int, card: int = 0, advice: str = "none", **changed: float) -> None:
        assert not isinstance(self.world.gpus, Unknown)
        self.world.gpus = tuple(
            replace(gpu, xids=numbers, more=measures(advice, **changed)) if gpu.index == card else gpu
            for gpu in self.world.gpus
        )

    def logs(self, *patterns: str) -> None:
        for pattern in patterns:
            self.matches[pattern] += 1

    def ends(self) -> None:
        """Its process is gone; its cards are idle."""
        self.stop(None)
        assert not isinstance(self.world.gpus, Unknown)
        self.world.gpus = tuple(replace(gpu, processes=()) for gpu in self.world.gpus)

    def comes_back(self) -> None:
        """The runtime starts it again, and a minute later it serves."""
        self.run(20)
        self.load()
        self.run(60)
        self.ready()
        self.run(700)

    def outage(self, seconds: int, ended: Callable[[], None]) -> None:
        """No record is taken for so long; then shipping catches up, ten times as fast as lines come."""
        self.records_a_second = 0.0
        for _ in range(seconds):
            self.own["behind"] += 1
            self.run(1)
        ended()
        # The first acknowledgement takes its time.
        self.run(20)
        self.records_a_second = 100.0
        while self.own["behind"] > 0:
            self.own["behind"] = max(0.0, self.own["behind"] - 9)
            self.run(1)
        self.records_a_second = 10.0
        self.run(200)


def crash_by_xid_31(scene: Scene) -> None:
    scene.xid(31)
    scene.logs("cuda_error")
    scene.run(2)
    scene.logs("engine_dead", "engine_core_failed")
    scene.ends()
    scene.xid(45)
    scene.comes_back()


def crash_by_xid_94(scene: Scene) -> None:
    scene.xid(94, ecc_errors_total=1.0)
    scene.run(1)
    scene.logs("cuda_error", "engine_dead")
    scene.ends()
    scene.comes_back()


def crash_by_an_unknown_xid(scene: Scene) -> None:
    scene.xid(31337)
    scene.run(1)
    scene.logs("engine_dead")
    scene.ends()
    scene.comes_back()


def crash_without_a_word_of_the_cards(scene: Scene) -> None:
    scene.logs("engine_dead", "engine_core_failed")
    scene.run(3)
    scene.ends()
    scene.comes_back()


def killed_by_somebody(scene: Scene) -> None:
    for card in range(8):
        scene.xid(45, card=card)
    scene.ends()
    scene.comes_back()


def page_fault_of_another_process(scene: Scene) -> None:
    scene.xid(31, card=0)
    scene.xid(31, card=1)
    scene.run(300)


def gsp_fault(scene: Scene) -> None:
    scene.xid(119, 120, 154, advice="gpu_reset")
    scene.run(5)
    scene.ends()
    scene.logs("engine_dead")
    scene.run(300)


def gsp_fault_that_needs_a_reboot(scene: Scene) -> None:
    scene.xid(119, 154, advice="node_reboot")
    scene.run(5)
    scene.ends()
    scene.run(300)


def advice_without_a_known_xid(scene: Scene) -> None:
    scene.xid(31337, 154, advice="drain_and_reset")
    scene.run(300)


def double_bit_error(scene: Scene) -> None:
    scene.xid(48, 63, 154, advice="drain_and_reset", row_remap_pending=1.0, ecc_errors_total=2.0)
    scene.run(2)
    scene.ends()
    scene.run(300)


def failed_remapping(scene: Scene) -> None:
    scene.xid(48, 64, row_remap_failed=1.0, ecc_errors_total=2.0)
    scene.run(300)


def nvlink_error_on_all_cards(scene: Scene) -> None:
    for card in range(8):
        scene.xid(74, card=card)
        scene.run(1)
    scene.ends()
    scene.logs("engine_dead")
    scene.run(300)


def off_the_bus(scene: Scene) -> None:
    scene.xid(79, 154, advice="node_reboot")
    scene.logs("gpu_off_the_bus")
    scene.run(1)
    gpus = scene.world.gpus
    assert not isinstance(gpus, Unknown)
    scene.world.gpus = (Gpu(0, "GPU-0", unknown="GPU is lost"), *gpus[1:])
    scene.run(2)
    scene.stop(None)
    scene.logs("engine_dead", "cuda_error")
    scene.run(400)


def driver_that_hangs(scene: Scene) -> None:
    scene.world.gpus = Unknown("NVML has not answered")
    scene.run(300)


def shipper_that_does_not_come_back(scene: Scene) -> None:
    scene.own["up"] = 0.0
    scene.own["restarts"] += 1

    def back() -> None:
        scene.own["up"] = 1.0

    def crash_loop(seconds: float) -> None:
        if int(scene.world.at) % 60 == 0:
            scene.own["restarts"] += not scene.own["up"]
        Scene.run(scene, seconds)

    scene.run = crash_loop  # type: ignore[method-assign]
    scene.outage(1400, back)


def shipping_that_is_held(scene: Scene) -> None:
    scene.own["held"] = 1.0

    def let_go() -> None:
        scene.own["held"] = 0.0

    scene.outage(1400, let_go)


def sink_that_is_away(scene: Scene) -> None:
    scene.outage(1400, lambda: None)


@pytest.mark.parametrize(
    ("fault", "page"),
    [
        (crash_by_xid_31, "EngineDown"),
        (crash_by_xid_94, "EngineDown"),
        (crash_by_an_unknown_xid, "EngineDown"),
        (crash_without_a_word_of_the_cards, "EngineDown"),
        (killed_by_somebody, "EngineDown"),
        (page_fault_of_another_process, "GPUApplicationFault"),
        (gsp_fault, "GPUResetNeeded"),
        (gsp_fault_that_needs_a_reboot, "GPURecoveryNeeded"),
        (advice_without_a_known_xid, "GPURecoveryNeeded"),
        (double_bit_error, "GPUFaultEscalate"),
        (failed_remapping, "GPUResetNeeded"),
        (nvlink_error_on_all_cards, "GPUNVLinkFault"),
        (off_the_bus, "GPUFellOffBus"),
        (driver_that_hangs, "GPUSignalsLost"),
        (shipper_that_does_not_come_back, "LogShipperDown"),
        (shipping_that_is_held, "LogShippingHeld"),
        (sink_that_is_away, "LogShippingStalled"),
    ],
    ids=lambda value: value.__name__ if callable(value) else value,
)
def test_one_fault_is_one_page(fault: Callable[[Scene], None], page: str) -> None:
    scene = Scene()
    fault(scene)
    assert [name for _, event, name in scene.told if event == "trigger"] == [page]


def test_a_kill_by_dsobs_or_a_planned_stop_is_no_fault_of_a_card() -> None:
    scene = Scene()
    scene.logs("engine_dead")
    for card in range(8):
        scene.xid(45, card=card)
    scene.stop("docker stop")
    scene.comes_back()
    assert scene.told == []
