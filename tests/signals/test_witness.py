"""CPU time and GPU utilization as a second opinion."""

import pytest

from dsobs.model.observation import Gpu, RuntimeView, Unknown
from dsobs.model.view import Witness
from dsobs.signals.witness import StandstillWitness

NO = Unknown("none")
STILL, WORKING, CONFLICTING, UNKNOWN = Witness.STILL, Witness.WORKING, Witness.CONFLICTING, Witness.UNKNOWN


def cpu(seconds: float, started: float = 1.0) -> RuntimeView:
    return RuntimeView("process", "p", running=True, started_at=started, cpu_seconds=seconds)


def card(used: float, watts: float | None = None) -> tuple[Gpu, ...]:
    """The engine's card, and one that nobody uses."""
    return Gpu(0, "a", utilization_ratio=used, power_watts=watts), Gpu(1, "b", utilization_ratio=0.0)


def watched(cores: float | None, used: float | None, seconds: int = 8) -> StandstillWitness:
    witness = StandstillWitness()
    for at in range(seconds):
        witness.observe(at, NO if cores is None else cpu(100 + at * cores), NO if used is None else card(used))
    return witness


@pytest.mark.parametrize(
    ("cores", "used", "verdict"),
    [
        (None, None, UNKNOWN),
        (0.0, None, STILL),
        (0.05, None, STILL),
        (0.3, None, UNKNOWN),
        (1.0, None, WORKING),
        (None, 1.0, WORKING),
        (None, 0.0, STILL),
        (None, 0.2, UNKNOWN),
        (1.0, 1.0, WORKING),
        (1.0, 0.0, CONFLICTING),
        (8.0, 0.0, CONFLICTING),
        (1.0, 0.2, UNKNOWN),
        (0.0, 1.0, CONFLICTING),
        (0.0, 0.0, STILL),
        (0.0, 0.2, UNKNOWN),
        (0.3, 1.0, WORKING),
        (0.3, 0.0, STILL),
        (0.3, 0.2, UNKNOWN),
    ],
)
def test_two_sources_together(cores: float | None, used: float | None, verdict: Witness) -> None:
    assert watched(cores, used).verdict is verdict


def test_the_work_of_anothers_card_says_nothing_of_this_engine() -> None:
    witness = StandstillWitness()
    for at in range(8):
        gpus = (Gpu(0, "a", utilization_ratio=0.0), Gpu(1, "b", utilization_ratio=1.0, power_watts=600.0))
        witness.observe(at, cpu(100.0), gpus, others={"b"})
    assert witness.verdict is STILL


@pytest.mark.parametrize(("watts", "verdict"), [(480.0, WORKING), (252.0, WORKING), (251.0, UNKNOWN), (None, WORKING)])
def test_a_card_in_full_use_near_its_idle_power_only_spins(watts: float | None, verdict: Witness) -> None:
    witness = StandstillWitness()
    for at in range(5):
        witness.observe(at, cpu(100 + at), card(0.0, 126.0))
    for at in range(5, 15):
        witness.observe(at, cpu(100 + at), card(1.0, watts))
    assert witness.verdict is verdict


def test_a_short_look_says_nothing() -> None:
    assert watched(0.0, None, seconds=3).verdict is UNKNOWN
    assert watched(None, 0.0, seconds=3).verdict is UNKNOWN


def test_another_instance_starts_the_look_anew() -> None:
    witness = watched(1.0, None)
    assert witness.worked_at == 7
    witness.observe(8, cpu(0.1, started=7.5), NO)
    assert witness.verdict is UNKNOWN
    assert witness.worked_at is None


def test_a_reading_that_has_not_come_yet_is_no_stand_still() -> None:
    witness = watched(1.0, 1.0)
    late, gpus = cpu(107.0), card(1.0)
    for at in range(8, 30):
        witness.observe(at, late, gpus)
    assert witness.verdict is UNKNOWN
    assert witness.worked_at is not None
    assert witness.worked_at <= 8 + 5


def test_a_stand_still_is_as_long_as_it_was_without_a_break() -> None:
    witness = StandstillWitness()
    for at in range(20):
        witness.observe(at, cpu(100.0), NO)
    assert witness.still_since == 0
    witness.observe(20, cpu(104.0), NO)
    assert witness.still_since is None
    for at in range(21, 40):
        witness.observe(at, cpu(104.0), NO)
    assert witness.still_since == 20
    assert witness.worked_at == 24
