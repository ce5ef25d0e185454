"""A broken card beside an engine that hangs or is gone: nothing is restarted, and the right card is blamed."""

import pytest

from dsobs.model.observation import Failure, Gpu, GpuProcess
from tests.pipeline.world import World


def card(index: int, *pids: int, xids: tuple[int, ...] = ()) -> Gpu:
    processes = tuple(GpuProcess(pid, 70 * 2**30) for pid in pids)
    return Gpu(
        index,
        f"GPU-{index}",
        memory_total_bytes=80 * 2**30,
        memory_used_bytes=75 * 2**30,
        utilization_ratio=0.0,
        power_watts=126.0,
        processes=processes,
        xids=xids,
    )


def breaks(world: World, kind: str) -> None:
    if kind == "hang":
        world.server.frozen = True
    else:
        world.server.failure, world.server.health, world.server.running = Failure.REFUSED, None, False


@pytest.mark.parametrize("kind", ["hang", "down"])
@pytest.mark.parametrize(("at", "xid"), [(0, 79), (60, 79), (60, 95), (60, 119), (60, 48), (200, 79)])
def test_no_restart_onto_a_card_that_broke_soon_after_dsobs_began(kind: str, at: int, xid: int) -> None:
    world = World(gpus=(card(0),))
    if at:
        world.run(at)
        world.gpus = (card(0, xids=(xid,)),)
    else:
        world.gpus = (card(0, xids=(xid,)),)
        world.run(10)
    breaks(world, kind)
    world.run(900, until=lambda: world.restarts)
    assert world.restarts == []
    assert all(refused.startswith("gpu_well: GPU 0 (GPU-0) reported XID") for refused in world.refused)
    assert world.refused
    assert [name for name in world.firing() if name.startswith("GPU")]


def test_an_xid_is_told_within_one_interval_of_its_rule() -> None:
    world = World(gpus=(card(0),))
    world.run(20)
    world.gpus = (card(0, xids=(79,)),)
    world.run(20, until=lambda: "GPUFellOffBus" in world.firing())
    assert world.at <= 37


@pytest.mark.parametrize("xid", [13, 31, 94])
def test_a_fault_of_the_application_does_not_hold_a_restart_back(xid: int) -> None:
    world = World(gpus=(card(0),))
    world.run(60)
    world.gpus = (card(0, xids=(xid,)),)
    breaks(world, "hang")
    world.run(300, until=lambda: world.restarts)
    assert len(world.restarts) == 1


def test_a_card_that_nobody_reset_is_as_broken_two_hours_later_and_after_a_restart_of_dsobs() -> None:
    world = World(gpus=(card(0),), boot_id="one")
    world.run(60)
    world.gpus = (card(0, xids=(79,)),)
    breaks(world, "down")
    world.run(7200, until=lambda: world.restarts, every=5)
    assert world.restarts == []
    assert "GPUFellOffBus" not in world.firing()
    again = world.again()
    again.run(600, until=lambda: again.restarts)
    assert again.restarts == []


@pytest.mark.parametrize("how", ["boot", "cleared"])
def test_a_card_that_is_well_again_holds_nothing_back(how: str) -> None:
    world = World(gpus=(card(0),), boot_id="one")
    world.run(60)
    world.gpus = (card(0, xids=(79,)),)
    breaks(world, "hang")
    world.run(300)
    if how == "boot":
        world.boot_id = "two"
        world = world.again()
    else:
        # At once, though the alert fires for an hour yet.
        assert world.pipeline.cards.clear("GPU-0") == 1
    assert "GPUFellOffBus" in world.firing()
    world.run(300, until=lambda: world.restarts)
    assert len(world.restarts) == 1


def test_two_engines_on_two_cards_are_a_healthy_host() -> None:
    world = World(gpus=(card(0, 7), card(1, 8)), pids=(7,))
    world.run(900)
    assert world.told == []
    samples = world.pipeline.samples()
    foreign = [dict(s.labels)["uuid"] for s in samples if ("__name__", "dsobs_gpu_foreign_memory_bytes") in s.labels]
    assert foreign == ["GPU-0"]


def test_memory_that_outlives_the_engine_on_its_own_card_is_told() -> None:
    world = World(gpus=(card(0, 7), card(1, 8)), pids=(7,))
    world.run(60)
    world.gpus = (card(0, 7, 9), card(1, 8))
    world.run(180)
    assert world.states("GPUOrphanMemory") == ["pending", "firing"]


def test_another_engines_broken_card_pages_nobody_here_and_holds_nothing_back() -> None:
    world = World(gpus=(card(0, 7), card(1, 8)), pids=(7,))
    world.run(60)
    world.gpus = (card(0, 7), card(1, 8, xids=(79,)))
    breaks(world, "hang")
    world.run(300, until=lambda: world.restarts)
    assert len(world.restarts) == 1
    assert [name for _, name, _ in world.told if name.startswith("GPU")] == []


def test_where_the_engines_cards_can_not_be_told_each_of_them_counts() -> None:
    world = World(gpus=(card(0, 7), card(1, 8)))
    world.run(60)
    world.gpus = (card(0, 7), card(1, 8, xids=(79,)))
    breaks(world, "hang")
    world.run(300, until=lambda: world.restarts)
    assert world.restarts == []
    assert "GPUFellOffBus" in world.firing()
