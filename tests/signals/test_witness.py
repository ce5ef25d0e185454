"""CPU time and GPU utilization as a second opinion."""

import pytest

from dsobs.model.observation import Gpu, RuntimeView, Unknown
from dsobs.model.view import Witness
from dsobs.signals.witness import StandstillWitness

NO = Unknown("none")


def cpu(seconds: float, started: float = 1.0) -> RuntimeView:
    return RuntimeView("process", "p", running=True, started_at=started, cpu_seconds=seconds)


@pytest.mark.parametrize(
    ("cores", "verdict"), [(0.0, Witness.STILL), (0.05, Witness.STILL), (0.3, Witness.UNKNOWN), (1.0, Witness.WORKING)]
)
def test_cpu_time_tells_work_from_a_stand_still(cores: float, verdict: Witness) -> None:
    witness = StandstillWitness()
    for at in range(8):
        witness.observe(at, cpu(100 + at * cores), NO)
    assert witness.verdict(7) is verdict


@pytest.mark.parametrize(("used", "verdict"), [(0.0, Witness.STILL), (0.2, Witness.UNKNOWN), (1.0, Witness.WORKING)])
def test_a_card_is_believed_before_the_cpu_that_may_only_spin(used: float, verdict: Witness) -> None:
    witness = StandstillWitness()
    for at in range(8):
        witness.observe(at, cpu(100 + at), (Gpu(0, utilization_ratio=used), Gpu(1, utilization_ratio=0.0)))
    assert witness.verdict(7) is verdict


def test_no_source_or_a_short_look_says_nothing() -> None:
    witness = StandstillWitness()
    witness.observe(0, NO, NO)
    assert witness.verdict(0) is Witness.UNKNOWN
    for at in range(3):
        witness.observe(at, cpu(100), NO)
    assert witness.verdict(2) is Witness.UNKNOWN


def test_another_instance_starts_the_look_anew() -> None:
    witness = StandstillWitness()
    for at in range(8):
        witness.observe(at, cpu(100 + at), NO)
    witness.observe(8, cpu(0.1, started=7.5), NO)
    assert witness.verdict(8) is Witness.UNKNOWN
