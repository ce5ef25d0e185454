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


FIELDS = {82: 36, 74: 1_500_000_000, 75: 0, 76: 0, 79: 0, 269: 2_000_000, 270: 0, 271: 0, 230: 0, 38: 0, 45: 0, 52: 1}
FIELDS |= {59: 0, 138: 1024, 139: 2048}
SIMPLE = {
    "nvmlDeviceGetMarginTemperature": 55,
    "nvmlDeviceGetPerformanceState": 0,
    "nvmlDeviceGetFanSpeed": 30,
    "nvmlDeviceGetPcieReplayCounter": 3,
    "nvmlDeviceGetCurrPcieLinkGeneration": 4,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetPowerManagementLimit": 700000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700000,
    "nvmlDeviceGetMaxMigDeviceCount": 7,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetComputeMode": 0,
    "nvmlDeviceGetMinorNumber": 0,
}
"""Functions of one argument, and what they give."""


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
        self.fields: dict[int, float] = dict(FIELDS)
        """NVML's field → its value; others are refused."""
        self.links = 4
        self.mig_parts: list[tuple[int, str]] = []
        """(card, UUID) of each MIG device that there is."""
        self.inits = 0

    def __getattr__(self, name: str) -> Any:
        if name in SIMPLE:

            def ask(handle: Any) -> int:
                self._call(name, handle)
                return SIMPLE[name]

            return ask
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
        for card, known in enumerate(self.handles):
            if known is handle:
                return card
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    def _part(self, handle: Any) -> str | None:
        return getattr(handle, "uuid", None)

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
        if self._part(handle):
            return str(self._part(handle))
        card = self._call("nvmlDeviceGetUUID", handle)
        assert card is not None
        return self.uuids[card]

    def nvmlDeviceGetName(self, handle: Any) -> str:
        self._call("nvmlDeviceGetName", handle)
        return "NVIDIA Pretended"

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        if self._part(handle):
            return SimpleNamespace(total=10737418240, used=1073741824)
        self._call("nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo", handle)
        reserved = 0 if version else 503316480
        return SimpleNamespace(total=85520809984, used=79042510848 + reserved, reserved=503316480)

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

    def nvmlDeviceGetFieldValues(self, handle: Any, ids: list[Any]) -> list[Any]:
        self._call("nvmlDeviceGetFieldValues", handle)
        answers = []
        for asked in ids:
            number, scope = asked if isinstance(asked, tuple) else (asked, 0)
            assert (scope == 0xFFFFFFFF) == (number in (138, 139))
            known = number in self.fields
            answers.append(
                SimpleNamespace(
                    nvmlReturn=pynvml.NVML_SUCCESS if known else pynvml.NVML_ERROR_NOT_SUPPORTED,
                    valueType=pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
                    value=SimpleNamespace(ullVal=self.fields.get(number, 0)),
                )
            )
        return answers

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: int, counter: int) -> int:
        self._call("nvmlDeviceGetTotalEccErrors", handle)
        return 10 * counter + kind

    def nvmlDeviceGetRemappedRows(self, handle: Any) -> tuple[int, int, int, int]:
        self._call("nvmlDeviceGetRemappedRows", handle)
        return 2, 1, 1, 0

    def nvmlDeviceGetNvLinkState(self, handle: Any, link: int) -> int:
        self._call("nvmlDeviceGetNvLinkState", handle)
        if link >= self.links:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT if link else pynvml.NVML_ERROR_NOT_SUPPORTED)
        return int(link != 1)

    def nvmlDeviceGetPcieThroughput(self, handle: Any, counter: int) -> int:
        self._call(f"nvmlDeviceGetPcieThroughput {counter}", handle)
        return {pynvml.NVML_PCIE_UTIL_TX_BYTES: 1026, pynvml.NVML_PCIE_UTIL_RX_BYTES: 617}[counter]

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: Any) -> list[int]:
        self._call("nvmlDeviceGetPowerManagementLimitConstraints", handle)
        return [200000, 700000]

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, domain: int) -> int:
        self._call("nvmlDeviceGetMaxClockInfo", handle)
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}[domain]

    def nvmlDeviceGetApplicationsClock(self, handle: Any, domain: int) -> int:
        self._call("nvmlDeviceGetApplicationsClock", handle)
        return self.nvmlDeviceGetMaxClockInfo(handle, domain)

    def nvmlDeviceGetTemperatureThreshold(self, handle: Any, threshold: int) -> int:
        self._call("nvmlDeviceGetTemperatureThreshold", handle)
        return 95 - threshold

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        card = self._call("nvmlDeviceGetMigMode", handle)
        return [int(any(owner == card for owner, _ in self.mig_parts))] * 2

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, position: int) -> Any:
        card = self._call("nvmlDeviceGetMigDeviceHandleByIndex", handle)
        mine = [uuid for owner, uuid in self.mig_parts if owner == card]
        if position >= len(mine):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return SimpleNamespace(uuid=mine[position])

    def nvmlDeviceGetGpuInstanceId(self, part: Any) -> int:
        return 7

    def nvmlDeviceGetComputeInstanceId(self, part: Any) -> int:
        return 0

    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:
        card = self._call("nvmlDeviceGetPciInfo", handle)
        return SimpleNamespace(busId=f"00000000:0{card}:00.0")

    def nvmlDeviceGetEccMode(self, handle: Any) -> list[int]:
        self._call("nvmlDeviceGetEccMode", handle)
        return [1, 1]

    def nvmlSystemGetDriverVersion(self) -> str:
        self._call("nvmlSystemGetDriverVersion")
        return "580.159.04"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        self._call("nvmlSystemGetCudaDriverVersion_v2")
        return 13000

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
