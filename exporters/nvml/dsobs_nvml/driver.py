"""The real source: this machine's driver, by pynvml."""

import contextlib
import ctypes
import importlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dsobs_nvml.questions import QUESTIONS, Question
from dsobs_nvml.reading import Reading
from dsobs_nvml.source import NvmlUnavailable

LOG = logging.getLogger("dsobs.nvml")

LIBRARY = "libnvidia-ml.so.1"
ASK_AGAIN_SECONDS = 600.0
"""A reading that a card refused is asked for again after this long."""
LOOK_AGAIN_SECONDS = 15.0
"""Cards that went away are looked for after this long, then after twice as long each time, `ASK_AGAIN_SECONDS` at most.
"""
BUS_SECONDS = 10.0
"""Between two looks at which cards the kernel's driver has."""
BUS = Path("/proc/driver/nvidia/gpus")
"""One folder for each card that the kernel's driver has. Not there in some containers."""
CHANGED_BY_XIDS = frozenset({"recovery", "remapped_rows", "ecc"})
"""Questions whose answer an XID may change: what to do about it must not be 10 s old when it is told."""
MAX_EVENTS = 64
"""XID events taken in one reading; what is left waits for the next."""


class _CardLost(Exception):
    """This card does not answer; others may."""


@dataclass(slots=True, eq=False)
class _Card:
    handle: Any
    index: int
    uuid: str
    name: str
    watched: bool = False
    """Registered for XID events."""
    refused: dict[str, float] = field(default_factory=dict)
    """Question → when to ask again, monotonic seconds."""
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Question that is asked rarely → its last answer; nothing if there was none."""
    due: dict[str, float] = field(default_factory=dict)
    """The same → when to ask again, monotonic seconds."""
    error: str = ""
    """Why it gave nothing last time; empty if it answered."""


class Nvml:
    """The cards of this machine. An `NvmlSource`.

    `devices`: UUIDs (`GPU-…`, `MIG-…`) or indices as nvidia-smi counts; empty for all cards that are visible. A MIG
    device gives its memory and processes; what only the whole card knows is None. A card that falls away while others
    answer stays, with nothing known of it but why. `questions`: what is asked, and how often. `library` is pynvml or
    something in its shape, `clock` gives monotonic seconds, `bus` is where the kernel lists cards; these are for tests.
    """

    def __init__(
        self,
        devices: Sequence[str] = (),
        library: Any = None,
        clock: Callable[[], float] = time.monotonic,
        questions: Sequence[Question] = QUESTIONS,
        bus: Path = BUS,
    ) -> None:
        self.costs: dict[str, tuple[int, float]] = {question.name: (0, 0.0) for question in questions}
        """Question → times asked of any card, seconds that the answers took together."""
        self._devices = tuple(devices)
        self._given = library
        self._clock = clock
        self._nv: Any = None
        self._cards: list[_Card] = []
        self._events: Any = None
        self._questions = tuple(questions)
        self._rare = tuple(question for question in questions if question.every)
        self._said: set[str] = set()
        self._known: dict[str, Reading] = {}
        """UUID of each card that there ever was → what is told of it while it is not shown."""
        self._gone: list[Reading] = []
        self._missing = False
        self._look_again_at: float | None = None
        self._look_again_after = LOOK_AGAIN_SECONDS
        self._bus = bus
        self._on_bus: frozenset[str] = frozenset()
        self._bus_due = 0.0

    def init(self) -> None:
        """Loads the library, connects, finds the cards and watches for XIDs; see `NvmlSource`."""
        self.shutdown()
        nv = self._given if self._given is not None else _pynvml()
        try:
            nv.nvmlInit()
        except nv.NVMLError as error:
            changed = error.value == nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH
            raise NvmlUnavailable(_no_driver(error, changed), restart=changed) from error
        self._nv = nv
        try:
            self._on_bus = self._cards_on_bus()
            self._bus_due = self._clock() + BUS_SECONDS
            self._cards = self._find()
            self._note_gone()
            self._stagger()
            self._watch()
            _trim()
        except nv.NVMLError as error:
            self.shutdown()
            raise NvmlUnavailable(f"NVML: {error}") from error
        except NvmlUnavailable:
            self.shutdown()
            raise

    def shutdown(self) -> None:
        """See `NvmlSource`."""
        nv, self._nv, self._cards = self._nv, None, []
        events, self._events = self._events, None
        if nv is None:
            return
        # What can't be given back any more went with the driver.
        if events is not None:
            with contextlib.suppress(nv.NVMLError):
                nv.nvmlEventSetFree(events)
        with contextlib.suppress(nv.NVMLError):
            nv.nvmlShutdown()

    def read(self) -> list[Reading]:
        """See `NvmlSource`."""
        if self._nv is None:
            raise NvmlUnavailable("NVML: not started")
        now = self._clock()
        xids = self._take_xids()
        dear = self._dear(now)
        readings = [self._read(card, now, xids.get(position), dear) for position, card in enumerate(self._cards)]
        readings = sorted([*readings, *self._gone], key=lambda reading: reading.index)
        # The last word of the last card (XID 79) is still handed on.
        if all(card.error for card in self._cards) and not any(xids.values()):
            raise NvmlUnavailable(f"NVML: {self._cards[0].error}")
        if self._looks_again(now):
            try:
                self.init()
            except NvmlUnavailable as error:
                self._say(str(error))
        return readings

    def _looks_again(self, now: float) -> bool:
        """Whether cards are to be found anew: some went away and it is time, or the kernel has others than it had."""
        if now >= self._bus_due:
            self._bus_due = now + BUS_SECONDS
            if self._cards_on_bus() != self._on_bus:
                return True
        if not self._missing and not any(card.error for card in self._cards):
            self._look_again_at, self._look_again_after = None, LOOK_AGAIN_SECONDS
            return False
        if self._look_again_at is None:
            self._look_again_at = now + self._look_again_after
        if now < self._look_again_at:
            return False
        self._look_again_at = None
        self._look_again_after = min(2 * self._look_again_after, ASK_AGAIN_SECONDS)
        return True

    def _cards_on_bus(self) -> frozenset[str]:
        try:
            return frozenset(entry.name for entry in self._bus.iterdir())
        except OSError:
            return frozenset()

    def _note_gone(self) -> None:
        """Cards that were there and are not found any more are told as unknown until they are back."""
        there = {card.uuid for card in self._cards}
        self._gone = [reading for uuid, reading in self._known.items() if uuid not in there]
        self._missing = self._missing or bool(self._gone)
        for card in self._cards:
            if card.uuid:
                reason = "NVML does not show it any more"
                self._known[card.uuid] = Reading(card.index, card.uuid, card.name, unknown=reason)

    def _stagger(self) -> None:
        """All is asked at the start but what is dear; after that each card waits a while of its own, so that one
        reading does not ask them all."""
        now = self._clock()
        for position, card in enumerate(self._cards):
            share = (position + 1) / len(self._cards)
            card.due = {question.name: now + question.every * share for question in self._rare if question.dear}

    def _dear(self, now: float) -> tuple[_Card, str] | None:
        """The one dear question that this reading may ask: the one that waits longest."""
        waiting = [
            (card.due[question.name], position, question.name)
            for position, card in enumerate(self._cards)
            for question in self._rare
            if question.dear and now >= card.due[question.name] and now >= card.refused.get(question.name, now)
        ]
        if not waiting:
            return None
        _, position, name = min(waiting)
        return self._cards[position], name

    def _find(self) -> list[_Card]:
        nv = self._nv
        wanted = self._devices or [str(index) for index in range(nv.nvmlDeviceGetCount())]
        cards: list[_Card] = []
        missing: list[str] = []
        for name in wanted:
            try:
                by_index = name.isdecimal()
                handle = nv.nvmlDeviceGetHandleByIndex(int(name)) if by_index else nv.nvmlDeviceGetHandleByUUID(name)
                uuid = self._fact(nv.nvmlDeviceGetUUID, handle) or ("" if by_index else name)
                card = _Card(
                    handle, self._index(name, handle), str(uuid), str(self._fact(nv.nvmlDeviceGetName, handle))
                )
            except nv.NVMLError as error:
                missing.append(f"{name} ({error})")
                continue
            if card.uuid not in {other.uuid for other in cards if other.uuid}:
                cards.append(card)
        self._missing = bool(missing)
        if missing:
            self._say(f"cards that NVML does not show: {', '.join(missing)}")
        if not cards:
            what = f"does not show {', '.join(missing)}" if missing else "shows no card"
            raise NvmlUnavailable(f"the NVIDIA driver {what}")
        return cards

    def _index(self, name: str, handle: Any) -> int:
        if name.isdecimal():
            return int(name)
        nv = self._nv
        try:
            return int(nv.nvmlDeviceGetIndex(handle))
        except nv.NVMLError:
            # A MIG device has the index of its card.
            return int(nv.nvmlDeviceGetIndex(nv.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)))

    def _fact(self, call: Callable[[Any], Any], handle: Any) -> Any:
        try:
            return call(handle)
        except self._nv.NVMLError as error:
            if error.value in _lost(self._nv):
                raise
            return ""

    def _watch(self) -> None:
        nv = self._nv
        kind = nv.nvmlEventTypeXidCriticalError
        reason = "not supported by any card"
        try:
            self._events = nv.nvmlEventSetCreate()
        except nv.NVMLError as error:
            reason = str(error)
        else:
            for card in self._cards:
                try:
                    if nv.nvmlDeviceGetSupportedEventTypes(card.handle) & kind:
                        nv.nvmlDeviceRegisterEvents(card.handle, kind, self._events)
                        card.watched = True
                except nv.NVMLError as error:
                    reason = str(error)
        blind = [card.uuid or str(card.index) for card in self._cards if not card.watched]
        if blind:
            self._say(f"XID errors can't be watched on {', '.join(blind)}: {reason}")

    def _take_xids(self) -> dict[int, list[int]]:
        """Position of the card → XIDs since the last call."""
        nv = self._nv
        positions = {_address(card.handle): position for position, card in enumerate(self._cards) if card.watched}
        found: dict[int, list[int]] = {position: [] for position in positions.values()}
        if not positions:
            return found
        try:
            for _ in range(MAX_EVENTS):
                event = nv.nvmlEventSetWait_v2(self._events, 0)
                position = positions.get(_address(event.device))
                if position is None:
                    self._say(f"XID {event.eventData} of a card that is not watched")
                else:
                    found[position].append(int(event.eventData))
        except nv.NVMLError as error:
            # A card that fell off the bus ends the wait with an error; its XID came before.
            if error.value not in (nv.NVML_ERROR_TIMEOUT, nv.NVML_ERROR_GPU_IS_LOST):
                self._say(f"XID errors: {error}")
                return {position: xids for position, xids in found.items() if xids}
        return found

    def _read(self, card: _Card, now: float, xids: list[int] | None, dear: tuple[_Card, str] | None = None) -> Reading:
        if xids:
            # What they change is asked at once.
            card.due.update(dict.fromkeys(CHANGED_BY_XIDS & card.due.keys(), now))
        values: dict[str, Any] = {}
        more: list[Any] = []
        error = ""
        answered = False
        for question in self._questions:
            if not self._is_due(question, card, now, dear):
                answer = card.kept.get(question.name, {})
            else:
                try:
                    answer = self._ask(question, card)
                    answered = True
                except self._nv.NVMLError as refusal:
                    answer = {}
                    error = error or str(refusal)
                    try:
                        self._weigh(card, question, refusal, now)
                    except _CardLost:
                        answered, error = False, str(refusal)
                        break
                self._keep(question, card, answer, now)
            for name, value in answer.items():
                if name == "more":
                    more += value
                else:
                    values[name] = value
        known = None if xids is None else tuple(xids)
        if not answered:
            card.error = error or "it gives nothing"
            card.kept.clear()
            card.due = {question.name: card.due[question.name] for question in self._rare if question.dear}
            self._say(f"card {card.uuid or card.index} gives nothing: {card.error}")
            lost = Reading(card.index, card.uuid, card.name, xids=known, unknown=card.error)
            if card.uuid:
                self._known[card.uuid] = replace(lost, xids=None)
            return lost
        card.error = ""
        return Reading(card.index, card.uuid, card.name, xids=known, more=tuple(more), **values)

    def _is_due(self, question: Question, card: _Card, now: float, dear: tuple[_Card, str] | None) -> bool:
        if now < card.refused.get(question.name, now):
            return False
        if not question.every:
            return True
        if question.dear:
            return dear is not None and dear[0] is card and dear[1] == question.name
        return now >= card.due.get(question.name, now)

    def _ask(self, question: Question, card: _Card) -> dict[str, Any]:
        began = time.perf_counter()
        try:
            return question.ask(self._nv, card.handle)
        finally:
            times, seconds = self.costs[question.name]
            self.costs[question.name] = times + 1, seconds + time.perf_counter() - began

    def _keep(self, question: Question, card: _Card, answer: dict[str, Any], now: float) -> None:
        if not question.every:
            return
        first = question.name not in card.due
        share = (self._cards.index(card) + 1) / len(self._cards) if first else 1.0
        card.due[question.name] = now + question.every * share
        card.kept[question.name] = answer

    def _weigh(self, card: _Card, question: Question, error: Any, now: float) -> None:
        """Whether a refusal is of the driver, of the card, of this reading for good, or of this moment."""
        nv = self._nv
        if error.value in (nv.NVML_ERROR_UNINITIALIZED, nv.NVML_ERROR_DRIVER_NOT_LOADED):
            raise NvmlUnavailable(f"NVML: {error}") from error
        if error.value in _lost(nv):
            raise _CardLost from error
        if error.value in _unsupported(nv):
            card.refused[question.name] = now + ASK_AGAIN_SECONDS
            level = logging.DEBUG if question.wide else logging.INFO
            what = question.name.replace("_", " ")
            self._say(f"card {card.uuid or card.index} does not give its {what}: {error}", level)

    def _say(self, text: str, level: int = logging.INFO) -> None:
        """Each thing once in this source's life."""
        if text not in self._said:
            self._said.add(text)
            LOG.log(level, "%s", text)


def _pynvml() -> Any:
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NvmlUnavailable(f"no NVIDIA driver: {error}") from error
    return importlib.import_module("pynvml")


def _trim() -> None:
    """Gives the memory that NVML needed for its start only, 9 MiB, back to the system, where the C library can."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _no_driver(error: Any, changed: bool) -> str:
    if changed:
        return f"no NVIDIA driver: {error}; the driver was changed and this process has the old library: restart it"
    return f"no NVIDIA driver: {error}"


def _lost(nv: Any) -> tuple[int, ...]:
    return (nv.NVML_ERROR_GPU_IS_LOST, nv.NVML_ERROR_GPU_NOT_FOUND)


def _unsupported(nv: Any) -> tuple[int, ...]:
    return (
        nv.NVML_ERROR_NOT_SUPPORTED,
        nv.NVML_ERROR_INVALID_ARGUMENT,  # what a MIG device answers to questions for a whole card
        nv.NVML_ERROR_NO_PERMISSION,
        nv.NVML_ERROR_FUNCTION_NOT_FOUND,
        nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
        nv.NVML_ERROR_DEPRECATED,
    )


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
