# ruff: noqa: N802 (the names are NVML's)
"""The sources under the contract: a recording, the driver's code over a pretended library, and a real card if asked.

`python exporters/nvml/tests/real_gpu.py` runs the contract with the real one.
"""

import ctypes
import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from dsobs_nvml import Nvml, NvmlSource, RecordedNvml

RECORDING = Path(__file__).parents[3] / "tests/data/h100-vllm-0.23/scenario.jsonl.gz"
UUIDS = ("GPU-00000000-0000-0000-0000-00000000000a", "GPU-00000000-0000-0000-0000-00000000000b")
MIG = "MIG-00000000-0000-0000-0000-0000000000c1"


class Library:
    """As much of pynvml as `Nvml` calls, over cards that a test sets. Constants and errors are pynvml's own."""

    def __init__(self, cards: int = 2) -> None:
        self.handles = [ctypes.pointer(pynvml.struct_c_nvmlDevice_t()) for _ in range(cards)]
        self.uuids = list(UUIDS[:cards])
        self.fails: dict[tuple[str, int | None], int] = {}
        """(function, card or None for all) → NVML error."""
        self.calls: list[str] = []
        self.events: list[tuple[int, int]] = []
        """(card, XID) that wait to be read."""
        self.energy = 1_000_000
        self.inits = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml") and not name.startswith(("nvmlMemory", "nvmlEventType")):
            raise AttributeError(name)
        return getattr(pynvml, name)

    def _call(self, name: str, handle: Any = None) -> int | None:
        self.calls.append(name)
        if self.inits < 1 and name != "nvmlInit":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
        card = None if handle is None else self._card(handle)
        for key in ((name, card), (name, None), ("*", card)):
            if key in self.fails and (card is not None or key[0] != "*"):
                raise pynvml.NVMLError(self.fails[key])
        return card

    def _card(self, handle: Any) -> int:
        return next(i for i, known in enumerate(self.handles) if known is handle)

    def nvmlInit(self) -> None:
        self._call("nvmlInit")
        self.inits += 1

    def nvmlShutdown(self) -> None:
        self._call("nvmlShutdown")
        self.inits -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._call("nvmlDeviceGetCount")
        return len(self.handles)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if index >= len(self.handles):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        self._call("nvmlDeviceGetHandleByIndex", self.handles[index])
        return self.handles[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        self._call("nvmlDeviceGetHandleByUUID")
        if uuid not in self.uuids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return self.handles[self.uuids.index(uuid)]

    def nvmlDeviceGetIndex(self, handle: Any) -> int:
        card = self._call("nvmlDeviceGetIndex", handle)
        assert card is not None
        return card

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        card = self._call("nvmlDeviceGetUUID", handle)
        assert card is not None
        return self.uuids[card]

    def nvmlDeviceGetName(self, handle: Any) -> str:
        self._call("nvmlDeviceGetName", handle)
        return "NVIDIA Pretended"

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        self._call("nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo", handle)
        reserved = 0 if version else 503316480
        return SimpleNamespace(total=85520809984, used=79042510848 + reserved)

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        self._call("nvmlDeviceGetUtilizationRates", handle)
        return SimpleNamespace(gpu=58, memory=40)

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        self._call("nvmlDeviceGetPowerUsage", handle)
        return 416267

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        self._call("nvmlDeviceGetEnforcedPowerLimit", handle)
        return 700000

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        self._call("nvmlDeviceGetTemperature", handle)
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 49

    def nvmlDeviceGetClockInfo(self, handle: Any, domain: int) -> int:
        self._call("nvmlDeviceGetClockInfo", handle)
        return {pynvml.NVML_CLOCK_SM: 1965, pynvml.NVML_CLOCK_MEM: 2619}[domain]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        self._call("nvmlDeviceGetCurrentClocksEventReasons", handle)
        return 4

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        self._call("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return 4

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        self._call("nvmlDeviceGetTotalEnergyConsumption", handle)
        self.energy += 700
        return self.energy

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> list[Any]:
        self._call("nvmlDeviceGetComputeRunningProcesses_v3", handle)
        return [SimpleNamespace(pid=776, usedGpuMemory=79037464576), SimpleNamespace(pid=777, usedGpuMemory=None)]

    def nvmlEventSetCreate(self) -> Any:
        self._call("nvmlEventSetCreate")
        return object()

    def nvmlEventSetFree(self, events: Any) -> None:
        self._call("nvmlEventSetFree")

    def nvmlDeviceGetSupportedEventTypes(self, handle: Any) -> int:
        self._call("nvmlDeviceGetSupportedEventTypes", handle)
        return pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeClock

    def nvmlDeviceRegisterEvents(self, handle: Any, kinds: int, events: Any) -> None:
        self._call("nvmlDeviceRegisterEvents", handle)
        assert kinds == pynvml.nvmlEventTypeXidCriticalError

    def nvmlEventSetWait_v2(self, events: Any, timeout_ms: int) -> Any:
        self._call("nvmlEventSetWait_v2")
        assert timeout_ms == 0
        if not self.events:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        card, xid = self.events.pop(0)
        # NVML makes a handle of its own; only the address is the same.
        handle = ctypes.cast(self.handles[card], ctypes.POINTER(pynvml.struct_c_nvmlDevice_t))
        return SimpleNamespace(device=handle, eventData=xid)


@pytest.fixture
def library() -> Library:
    return Library()


@pytest.fixture
def library_of() -> type[Library]:
    return Library


@pytest.fixture(scope="session")
def recording() -> list[Any]:
    with gzip.open(RECORDING, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["nvml"] for line in lines]


MakeSource = Callable[[Sequence[str]], NvmlSource]


@pytest.fixture(params=["real"] if os.environ.get("DSOBS_REAL_GPU") else ["recorded", "pretended"])
def make_source(request: pytest.FixtureRequest) -> MakeSource:
    """Makes a source for the given devices."""
    if request.param == "real":
        return Nvml
    if request.param == "recorded":
        records = request.getfixturevalue("recording")
        return lambda devices: RecordedNvml(records[46:120], devices)
    return lambda devices: Nvml(devices, Library())
