"""Which cards are the engine's, and which of them are broken beyond a restart."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from dsobs_nvml import XIDS, XidAction

from dsobs.model.observation import Gpu, Unknown
from dsobs.model.samples import Sample, labels
from dsobs.model.view import GpuFault
from dsobs.signals.gpu_sessions import CardSessions

BEYOND_A_RESTART = frozenset({XidAction.RESET_GPU, XidAction.REBOOT_NODE, XidAction.ESCALATE})
"""What helps after such XIDs is not another engine on the same card."""


class GpuCards:
    """What is known of the cards over time; it outlives dsobs, see `dump` and `load`.

    Ours are the cards on which a process of the engine was seen. NVML's process ids are those of the driver's PID
    namespace: that they are the engine's too is shown by one match, and before it a stranger can't be told from the
    engine. Others' are the cards without one while the engine was ready: by then each of its processes has its card.
    What is neither may be ours, and is judged as if it were.

    A fault stands until the node was booted, the card was seen to be initialised anew and to be well since
    (`CardSessions`), or somebody said that it is well. That it answers again proves nothing: most broken cards never
    stop answering.
    """

    def __init__(self, boot_id: str = "") -> None:
        """`boot_id`: of this boot of the node; empty: unknown."""
        self.unsaved = False
        """There is a fault that may not be on disk yet."""
        self._boot_id = boot_id
        self._ours: set[str] = set()
        self._others: set[str] = set()
        self._faults: dict[tuple[str, int], GpuFault] = {}
        """(card, XID) → the last one."""
        self._moved = False
        """Another instance is there, maybe on other cards."""
        self._were_read = False
        """Cards were read at some time."""
        self._sessions = CardSessions()

    def observe(
        self, gpus: tuple[Gpu, ...] | Unknown, at: float, pids: Collection[int] | None, *, ready: bool
    ) -> list[GpuFault]:
        """Takes one reading, made at `at`; call it once for each. Gives the faults that it ends.

        `pids`: the engine's processes, None if they are not known; `ready`: the engine serves, so that all of its
        processes are there.
        """
        if isinstance(gpus, Unknown):
            return []
        self._were_read = True
        ended = []
        for gpu in gpus:
            card = card_of(gpu)
            self._sessions.observe(card, gpu, at)
            for xid in gpu.xids or ():
                if xid in XIDS and XIDS[xid].action in BEYOND_A_RESTART:
                    self._faults[card, xid] = GpuFault(card, gpu.index, xid, XIDS[xid].meaning, at, self._boot_id)
                    self.unsaved = True
            ended += [
                fault
                for fault in self._faults.values()
                if fault.card == card and self._sessions.renewed(card, gpu, fault.at, at)
            ]
        for fault in ended:
            del self._faults[fault.card, fault.xid]
            self.unsaved = True
        self._take_processes(gpus, pids, ready=ready)
        return ended

    def _take_processes(self, gpus: tuple[Gpu, ...], pids: Collection[int] | None, *, ready: bool) -> None:
        if not pids:
            return
        engine = frozenset(pids)
        matched = {card_of(gpu) for gpu in gpus if any(p.pid in engine for p in gpu.processes or ())}
        if not matched:
            return
        # A card whose processes can't be read is not known to be without ours.
        empty = {card_of(gpu) for gpu in gpus if gpu.processes is not None} - matched
        if ready and self._moved:
            self._ours -= empty
            self._moved = False
        self._ours |= matched
        if ready:
            self._others |= empty
        self._others -= self._ours

    def new_instance(self) -> None:
        """The engine was started anew: the cards that it leaves are ours until it is ready on others."""
        self._moved = True

    @property
    def others(self) -> frozenset[str]:
        """Cards that are known not to be the engine's."""
        return frozenset(self._others)

    def faults(self) -> tuple[GpuFault, ...]:
        """Those that stand, of cards that are or may be the engine's, oldest first."""
        standing = (fault for fault in self._faults.values() if fault.card not in self._others)
        return tuple(sorted(standing, key=lambda fault: (fault.at, fault.card, fault.xid)))

    def clear(self, card: str) -> int:
        """Somebody says that this card (its UUID) is well again; how many faults of it stood."""
        found = [key for key in self._faults if key[0] == card]
        for key in found:
            del self._faults[key]
        return len(found)

    def foreign_memory(self, gpus: tuple[Gpu, ...] | Unknown, pids: Collection[int] | None) -> list[Sample]:
        """`dsobs_gpu_foreign_memory_bytes`: memory of processes that are not the engine's, on its own cards, where all
        of it can be told."""
        if isinstance(gpus, Unknown) or pids is None:
            return []
        out = []
        for gpu in gpus:
            if card_of(gpu) not in self._ours or gpu.processes is None:
                continue
            strangers = [process.memory_bytes for process in gpu.processes if process.pid not in pids]
            if None not in strangers:
                held = sum(bytes_ for bytes_ in strangers if bytes_ is not None)
                names = labels("dsobs_gpu_foreign_memory_bytes", gpu=str(gpu.index), uuid=gpu.uuid)
                out.append(Sample(names, float(held)))
        return out

    def signals_up(self, gpus: tuple[Gpu, ...] | Unknown) -> list[Sample]:
        """`dsobs_gpu_signals_up`; none where no card was ever read: such a host may have none."""
        if not self._were_read:
            return []
        return [Sample(labels("dsobs_gpu_signals_up"), float(not isinstance(gpus, Unknown)))]

    def judged(self, samples: Iterable[Sample]) -> list[Sample]:
        """Those that rules may see: an alert on another's card is no alert of this engine."""
        if not self._others:
            return list(samples)
        return [sample for sample in samples if _card(dict(sample.labels)) not in self._others]

    # Over restarts of dsobs.

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "were_read": self._were_read,
            "ours": sorted(self._ours),
            "others": sorted(self._others),
            "faults": [[f.card, f.index, f.xid, f.at, f.boot_id] for f in self._faults.values()],
            "sessions": self._sessions.dump({card for card, _ in self._faults}),
        }

    def load(self, value: Mapping[str, Any]) -> None:
        """What `dump` gave, but for faults of an earlier boot. Where either boot is not known, a fault stands."""
        self._were_read = bool(value.get("were_read"))
        self._ours, self._others = set(value.get("ours", ())), set(value.get("others", ()))
        self._sessions.load(value.get("sessions", {}))
        for card, index, xid, at, boot_id in value.get("faults", ()):
            if boot_id and self._boot_id and boot_id != self._boot_id:
                continue
            meaning = XIDS[xid].meaning if xid in XIDS else ""
            self._faults[card, xid] = GpuFault(card, index, xid, meaning, at, boot_id)


def card_of(gpu: Gpu) -> str:
    """What names a card for good: its UUID, or its index in a recording without."""
    return gpu.uuid or str(gpu.index)


def _card(names: Mapping[str, str]) -> str:
    return names.get("uuid") or names.get("gpu", "")
