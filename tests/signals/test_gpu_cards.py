"""Which cards are the engine's, whose memory is whose, and which faults stand."""

import json
from typing import Any

import pytest
from dsobs_nvml import Measure

from dsobs.collectors.nvml import engine_pids
from dsobs.model.observation import Gpu, GpuProcess, RuntimeView, Unknown
from dsobs.model.samples import Sample, labels
from dsobs.signals.gpu_cards import GpuCards


def card(uuid: str, *pids: int, xids: tuple[int, ...] = (), known: bool = True) -> Gpu:
    index = ord(uuid[-1]) - ord("a")
    return Gpu(index, uuid, processes=tuple(GpuProcess(pid, 10) for pid in pids) if known else None, xids=xids)


A, B = "GPU-a", "GPU-b"


def standing(cards: GpuCards) -> list[tuple[str, int]]:
    return [(fault.card, fault.xid) for fault in cards.faults()]


def foreign(cards: GpuCards, gpu: Gpu, pids: tuple[int, ...] | None) -> float | None:
    cards.observe((gpu,), 1.0, pids, ready=True)
    found = cards.foreign_memory((gpu,), pids)
    return found[0].value if found else None


def test_memory_of_strangers_is_told_once_the_engines_pids_are_seen_to_match() -> None:
    gpu = Gpu(0, A, processes=(GpuProcess(776, 30), GpuProcess(901, 12)))
    cards = GpuCards()
    assert foreign(cards, gpu, (5, 6)) is None
    assert foreign(cards, gpu, None) is None
    assert foreign(cards, gpu, (775, 776)) == 12
    assert foreign(cards, gpu, (901, 776)) == 0
    assert foreign(cards, gpu, None) is None


def test_once_the_engine_has_ended_all_that_is_left_is_a_strangers() -> None:
    cards = GpuCards()
    assert foreign(cards, Gpu(0, A, processes=(GpuProcess(776, 30),)), (776,)) == 0
    ended = RuntimeView("process", "vllm", running=False)
    assert foreign(cards, Gpu(0, A, processes=(GpuProcess(777, 30),)), engine_pids(ended)) == 30


def test_a_strangers_memory_that_the_driver_does_not_tell_makes_the_sum_unknown() -> None:
    gpu = Gpu(0, A, processes=(GpuProcess(776, 30), GpuProcess(901, None)))
    assert foreign(GpuCards(), gpu, (776,)) is None


def test_memory_on_another_engines_card_is_nobodys_orphan() -> None:
    cards, gpus = GpuCards(), (card(A, 7), card(B, 8))
    cards.observe(gpus, 1.0, (7,), ready=True)
    assert [dict(sample.labels)["uuid"] for sample in cards.foreign_memory(gpus, (7,))] == [A]
    assert cards.others == {B}


@pytest.mark.parametrize("xid", [46, 48, 62, 64, 74, 79, 95, 109, 119, 120, 140])
def test_a_fault_that_no_restart_mends_stands_until_it_is_cleared(xid: int) -> None:
    cards = GpuCards()
    cards.observe((card(A, xids=(xid,)),), 1.0, None, ready=False)
    assert cards.unsaved
    cards.observe((card(A),), 1e9, None, ready=True)
    assert standing(cards) == [(A, xid)]
    assert cards.clear(B) == 0
    assert cards.clear(A) == 1
    assert standing(cards) == []


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 63, 92, 94, 154, 31337])
def test_a_fault_of_the_application_does_not_stand(xid: int) -> None:
    cards = GpuCards()
    cards.observe((card(A, xids=(xid,)),), 1.0, None, ready=False)
    assert standing(cards) == []


def test_a_fault_of_a_card_that_is_not_the_engines_does_not_count() -> None:
    cards = GpuCards()
    cards.observe((card(A, 7), card(B, 8, xids=(79,))), 1.0, (7,), ready=False)
    assert standing(cards) == [(B, 79)], "the engine starts: its second process may be on its way"
    cards.observe((card(A, 7), card(B, 8)), 2.0, (7,), ready=True)
    assert standing(cards) == []
    cards.observe((card(A, 7), card(B, 9)), 3.0, (7, 9), ready=True)
    assert standing(cards) == [(B, 79)]


@pytest.mark.parametrize("pids", [None, (), (5,)])
def test_where_no_process_matches_every_card_is_judged(pids: tuple[int, ...] | None) -> None:
    cards = GpuCards()
    cards.observe((card(A, 7), card(B, 8, xids=(79,))), 1.0, pids, ready=True)
    assert (standing(cards), cards.others) == ([(B, 79)], frozenset())


def test_a_card_whose_processes_can_not_be_read_may_be_the_engines() -> None:
    cards = GpuCards()
    cards.observe((card(A, 7), card(B, known=False, xids=(79,))), 1.0, (7,), ready=True)
    assert standing(cards) == [(B, 79)]


def test_a_card_that_lost_its_process_is_still_the_engines() -> None:
    cards = GpuCards()
    cards.observe((card(A, 7), card(B, 8)), 1.0, (7, 8), ready=True)
    cards.observe((card(A, 7), card(B, xids=(95,))), 2.0, (7,), ready=True)
    assert standing(cards) == [(B, 95)]
    again = GpuCards()
    again.load(json.loads(json.dumps(cards.dump())))
    again.observe((card(A, 7), card(B)), 3.0, (7,), ready=True)
    assert standing(again) == [(B, 95)]


def test_an_engine_that_is_ready_on_other_cards_has_left_its_old_ones() -> None:
    cards = GpuCards()
    cards.observe((card(A, 7), card(B)), 1.0, (7,), ready=True)
    cards.observe((card(A, 7, xids=(79,)), card(B)), 2.0, (7,), ready=True)
    cards.new_instance()
    cards.observe((card(A), card(B, 9)), 3.0, (9,), ready=False)
    assert standing(cards) == [(A, 79)]
    cards.observe((card(A), card(B, 9)), 4.0, (9,), ready=True)
    assert standing(cards) == []
    assert cards.others == {A}


@pytest.mark.parametrize(
    ("then", "now", "stands"), [("one", "one", True), ("one", "two", False), ("", "two", True), ("one", "", True)]
)
def test_only_another_boot_of_the_node_ends_a_fault_by_itself(then: str, now: str, stands: bool) -> None:
    before, after = GpuCards(then), GpuCards(now)
    before.observe((card(A, xids=(79,)),), 1.0, None, ready=False)
    after.load(json.loads(json.dumps(before.dump())))
    assert bool(after.faults()) is stands


def told(
    energy: float | None,
    *xids: int,
    recovery: str | None = "none",
    pending: float | None = 0.0,
    failed: float | None = 0.0,
    uncorrected: float | None = 0.0,
    corrected: float | None = 3.0,
    persistence: float | None = 1.0,
    unknown: str = "",
) -> tuple[Gpu, ...]:
    """A card as a driver tells it."""
    values = (
        ("row_remap_pending", (), pending),
        ("row_remap_failed", (), failed),
        ("ecc_errors_total", (("type", "uncorrected"),), uncorrected),
        ("ecc_errors_total", (("type", "corrected"),), corrected),
        ("persistence_mode", (), persistence),
    )
    more = [Measure(f"dsobs_gpu_{name}", names, value) for name, names, value in values if value is not None]
    if recovery is not None:
        more.append(Measure("dsobs_gpu_recovery_action", (("action", recovery),), 1.0))
    return (Gpu(0, A, energy_joules=energy, xids=xids, more=tuple(more), unknown=unknown),)


def after(*readings: tuple[float, tuple[Gpu, ...]], restart_before: int = -1) -> list[tuple[str, int]]:
    """The faults that stand after these readings; dsobs is started anew before one of them."""
    cards = GpuCards("boot")
    for number, (at, gpus) in enumerate(readings):
        if number == restart_before:
            before, cards = cards, GpuCards("boot")
            cards.load(json.loads(json.dumps(before.dump())))
        cards.observe(gpus, at, None, ready=True)
    return standing(cards)


BROKEN = (
    (1.0, told(5000.0)),
    (2.0, told(5001.0, 95, uncorrected=1.0, recovery="gpu_reset")),
    (3.0, told(5002.0, uncorrected=1.0, recovery="gpu_reset")),
)


@pytest.mark.parametrize("restart_before", [-1, 3, 4, 5])
def test_a_reset_that_the_driver_shows_ends_a_fault_once_the_card_was_well_for_a_minute(restart_before: int) -> None:
    reset = (*BROKEN, (100.0, told(4.0)), (159.0, told(5.0)))
    assert after(*reset, restart_before=restart_before) == [(A, 95)]
    assert after(*reset, (160.0, told(6.0)), restart_before=restart_before) == []


def test_the_end_of_a_fault_is_told_once_and_kept() -> None:
    cards = GpuCards()
    for at, gpus in (*BROKEN, (100.0, told(4.0))):
        assert cards.observe(gpus, at, None, ready=True) == []
    cards.unsaved = False
    assert [fault.xid for fault in cards.observe(told(5.0), 200.0, None, ready=True)] == [95]
    assert cards.unsaved
    assert cards.observe(told(6.0), 201.0, None, ready=True) == []


def test_volatile_errors_that_are_fewer_show_a_reset_where_energy_is_not_told() -> None:
    broken = tuple((at, told(None, *gpus[0].xids or (), uncorrected=1.0, recovery="gpu_reset")) for at, gpus in BROKEN)
    assert after(*broken, (100.0, told(None)), (160.0, told(None))) == []


def test_a_card_that_was_never_initialised_anew_is_not_well_whatever_it_says() -> None:
    """As after a restart of dsobs, of its exporter, or of the engine."""
    assert after(*BROKEN, (100.0, told(6000.0, uncorrected=1.0)), (1e6, told(9000.0, uncorrected=1.0))) == [(A, 95)]
    assert after((1.0, told(5000.0)), (2.0, told(5001.0, 119)), (100.0, told(6000.0)), (1e6, told(9e9))) == [(A, 119)]


def test_an_initialisation_before_the_fault_or_with_it_ends_nothing() -> None:
    assert after((1.0, told(5000.0)), (2.0, told(3.0)), (3.0, told(4.0, 119)), (100.0, told(5.0))) == [(A, 119)]
    assert after((1.0, told(5000.0)), (2.0, told(3.0, 119)), (100.0, told(5.0))) == [(A, 119)]


def test_a_fault_after_the_reset_stands_though_the_one_before_is_over() -> None:
    readings = (*BROKEN, (100.0, told(4.0)), (110.0, told(5.0, 79)), (170.0, told(6.0)), (1e6, told(7.0)))
    assert after(*readings) == [(A, 79)]


@pytest.mark.parametrize(
    "doubt",
    [
        {"recovery": None},
        {"recovery": "gpu_reset"},
        {"recovery": "node_reboot"},
        {"pending": None},
        {"pending": 1.0},
        {"failed": None},
        {"failed": 1.0},
        {"uncorrected": None},
        {"unknown": "GPU is lost"},
    ],
    ids=str,
)
def test_a_card_that_is_not_known_to_be_well_stays_blocked_until_it_is(doubt: dict[str, Any]) -> None:
    readings = (*BROKEN, (100.0, told(4.0)), (200.0, told(5.0, **doubt)), (1e6, told(6.0, **doubt)))
    assert after(*readings) == [(A, 95)]
    assert after(*readings, (1e6 + 1, told(7.0))) == []


def test_errors_since_the_reset_keep_the_card_blocked() -> None:
    assert after(*BROKEN, (100.0, told(4.0)), (200.0, told(5.0, uncorrected=1.0))) == [(A, 95)]


@pytest.mark.parametrize("persistence", [None, 0.0])
def test_a_card_that_the_driver_may_let_go_of_shows_no_reset(persistence: float | None) -> None:
    """Without persistence mode its counters begin anew whenever nobody uses it."""
    loose = tuple(
        (at, told(gpus[0].energy_joules, *gpus[0].xids or (), persistence=persistence)) for at, gpus in BROKEN
    )
    assert after(*loose, (100.0, told(4.0)), (160.0, told(5.0)), (1e6, told(6.0))) == [(A, 95)]


def test_a_card_that_went_away_and_came_back_is_not_well_by_that() -> None:
    lost = (Gpu(0, A, unknown="GPU is lost"),)
    readings = ((1.0, told(5000.0)), (2.0, told(5001.0, 79)), (10.0, lost), (20.0, told(5003.0)), (1e6, told(5004.0)))
    assert after(*readings) == [(A, 79)]


def test_rules_see_nothing_of_anothers_card() -> None:
    cards = GpuCards()
    cards.observe((card(A, 7), card(B, 8)), 1.0, (7,), ready=True)
    ours = Sample(labels("dsobs_gpu_row_remap_failed", gpu="0", uuid=A), 1.0)
    theirs = Sample(labels("dsobs_gpu_row_remap_failed", gpu="1", uuid=B), 1.0)
    assert cards.judged([ours, theirs]) == [ours]


def test_signals_are_lost_only_where_cards_were_read_before_over_restarts_of_dsobs() -> None:
    def told(cards: GpuCards, gpus: tuple[Gpu, ...] | Unknown) -> list[float]:
        cards.observe(gpus, 1.0, None, ready=False)
        return [sample.value for sample in cards.signals_up(gpus)]

    cards, gone = GpuCards(), Unknown("no driver")
    assert told(cards, gone) == []
    assert told(cards, (card(A),)) == [1.0]
    assert told(cards, gone) == [0.0]
    after = GpuCards()
    after.load(cards.dump())
    assert told(after, gone) == [0.0]


def test_nothing_is_concluded_from_readings_that_are_not_there() -> None:
    cards = GpuCards()
    cards.observe(Unknown("no driver"), 1.0, (7,), ready=True)
    assert cards.dump() == {"were_read": False, "ours": [], "others": [], "faults": [], "sessions": {}}
    assert cards.foreign_memory(Unknown("no driver"), (7,)) == []
