"""Whether a card was initialised anew: by a driver that was loaded again, or by a reset of the card.

The driver has no name for the time between two initialisations of a card, but some of its counters begin anew with
each: energy (nvml.h, `nvmlDeviceGetTotalEnergyConsumption`: since the driver was last reloaded) and volatile ECC
errors. One that reads less than before proves another initialisation; one that reads more proves nothing. Without
persistence mode the driver also lets go of an idle card, which mends nothing, so only counters that were read in
persistence mode count.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dsobs.model.observation import Gpu

SETTLED_SECONDS = 60.0
"""After this long every answer is of the new initialisation: what a card is judged by is asked each 10 s."""
_ENERGY = "energy"
_PERSISTENCE = "dsobs_gpu_persistence_mode"
_ECC = "dsobs_gpu_ecc_errors_total"


@dataclass(slots=True)
class _Session:
    counters: dict[str, float] = field(default_factory=dict)
    """What was read last of each, in persistence mode."""
    began_at: float | None = None
    """First reading after the last initialisation that was witnessed."""


class CardSessions:
    """Of all cards, by what names them for good; it outlives dsobs, see `dump` and `load`."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}

    def observe(self, card: str, gpu: Gpu, at: float) -> None:
        """Takes one reading of one card."""
        session = self._sessions.setdefault(card, _Session())
        told = _told(gpu)
        counters = {name: value for name, value in _counters(gpu, told).items() if value is not None}
        if any(value < session.counters.get(name, value) for name, value in counters.items()):
            session.began_at = at
            session.counters = {}
        persistent = told.get((_PERSISTENCE, ""))
        if persistent == 1.0:
            session.counters |= counters
        elif persistent is not None:
            session.counters = {}

    def renewed(self, card: str, gpu: Gpu, since: float, at: float) -> bool:
        """Whether the card was initialised anew after `since`, and says for a minute by now that it is well.

        What is not known is not well.
        """
        session = self._sessions.get(card)
        if session is None or session.began_at is None or session.began_at <= since:
            return False
        return at - session.began_at >= SETTLED_SECONDS and is_well(gpu)

    def dump(self, cards: Collection[str]) -> dict[str, Any]:
        """Of these cards, for JSON."""
        return {
            card: [dict(session.counters), session.began_at]
            for card, session in sorted(self._sessions.items())
            if card in cards
        }

    def load(self, value: Mapping[str, Any]) -> None:
        """What `dump` gave."""
        self._sessions = {card: _Session(dict(counters), began_at) for card, (counters, began_at) in value.items()}


def is_well(gpu: Gpu) -> bool:
    """The driver asks for no recovery of the card, no row waits to be remapped or could not be, and memory had no
    uncorrected error since its initialisation; all of it known."""
    told = _told(gpu)
    return (
        not gpu.unknown
        and told.get(("dsobs_gpu_recovery_action", "none")) == 1.0
        and told.get(("dsobs_gpu_row_remap_pending", "")) == 0.0
        and told.get(("dsobs_gpu_row_remap_failed", "")) == 0.0
        and told.get((_ECC, "uncorrected")) == 0.0
    )


def _told(gpu: Gpu) -> dict[tuple[str, str], float]:
    """(name, value of its one label) → value."""
    return {(name, _only(labels)): value for name, labels, value in gpu.more if len(labels) <= 1}


def _only(labels: Iterable[tuple[str, str]]) -> str:
    return next((value for _, value in labels), "")


def _counters(gpu: Gpu, told: Mapping[tuple[str, str], float]) -> dict[str, float | None]:
    errors = {f"ecc {kind}": told.get((_ECC, kind)) for kind in ("corrected", "uncorrected")}
    return {_ENERGY: gpu.energy_joules, **errors}
