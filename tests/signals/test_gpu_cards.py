"""Which cards are the engine's, whose memory is whose, and which faults stand."""

import json

import pytest

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


@pytest.mark.parametrize("xid", [13, 31, 43, 63, 92, 94, 31337])
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


def test_rules_see_nothing_of_anothers_card() -> None:
    cards = GpuCards()
    cards.observe((card(A, 7), card(B, 8)), 1.0, (7,), ready=True)
    ours = Sample(labels("dsobs_gpu_row_remap_failed", gpu="0", uuid=A), 1.0)
    theirs = Sample(labels("dsobs_gpu_row_remap_failed", gpu="1", uuid=B), 1.0)
    assert cards.judged([ours, theirs]) == [ours]


def test_nothing_is_concluded_from_readings_that_are_not_there() -> None:
    cards = GpuCards()
    cards.observe(Unknown("no driver"), 1.0, (7,), ready=True)
    assert cards.dump() == {"ours": [], "others": [], "faults": []}
    assert cards.foreign_memory(Unknown("no driver"), (7,)) == []
