"""Which panel of Grafana shows what an alert is about, and the line of its runbook that leads there."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from dashboards.source import document


class Place(NamedTuple):
    """A panel, by the dashboard's name and its title there."""

    dashboard: str
    title: str


_FAULTS, _TTFT = Place("gpu", "Faults"), Place("latency", "How fast the error budget is burnt")
_AVAILABLE = Place("server", "Available in the last hour")
_RECORDS = Place("logs", "Records, by what became of them")
_TURNS = Place("server", "Last look of dsobs")
_TOLD = Place("server", "Notifications behind")

PANELS: Mapping[str, Place] = {
    "AvailabilityBudgetFast": _AVAILABLE,
    "AvailabilityBudgetLong": _AVAILABLE,
    "AvailabilityBudgetSlow": _AVAILABLE,
    "ContainerCPUPressure": Place("server", "Waiting for a processor"),
    "ContainerMemoryHigh": Place("server", "Memory of its limit"),
    "ContainerRestartsHigh": Place("actions", "Restarts in 24 hours"),
    "DsobsAbsent": Place("fleet", "dsobs"),
    "DsobsConfigReloadFailed": Place("actions", "Settings that were not taken"),
    "DsobsLedgerNotWritable": Place("actions", "Ledger can't be written"),
    "DsobsLoopOverrun": Place("actions", "Turns missed"),
    "DsobsLoopStalled": _TURNS,
    "DsobsOutboxStuck": _TOLD,
    "DsobsRuleFailing": Place("actions", "Rules that fail"),
    "DsobsTellsNobody": _TOLD,
    "EngineDown": Place("server", "What the engine does"),
    "EngineHung": Place("actions", "Stall and its limit"),
    "EngineLogFatal": Place("logs", "Fatal patterns"),
    "EnginePlannedStopLong": Place("server", "What the engine does"),
    "EngineSignalsLost": Place("server", "What the engine does"),
    "EngineStartSlow": Place("server", "Start-up of its budget"),
    "EngineTargetAbsent": Place("server", "What the engine does"),
    "EngineUnresponsive": Place("server", "Not a byte answered"),
    "ErrorRateHigh": Place("latency", "Requests that failed"),
    "GPUApplicationFault": _FAULTS,
    "GPUECCCorrectedMany": Place("gpu", "ECC errors"),
    "GPUECCUncorrected": Place("gpu", "ECC errors"),
    "GPUFaultEscalate": _FAULTS,
    "GPUFaultUnknown": _FAULTS,
    "GPUFellOffBus": Place("gpu", "Cards"),
    "GPUMemoryHigh": Place("gpu", "In use for work"),
    "GPUNVLinkFault": _FAULTS,
    "GPUOrphanMemory": Place("gpu", "Taken by others"),
    "GPURecoveryNeeded": Place("gpu", "What the driver advises"),
    "GPUResetNeeded": _FAULTS,
    "GPURowRemapFailed": Place("gpu", "Remapped rows"),
    "GPURowRemapPending": Place("gpu", "Remapped rows"),
    "GPUSignalsLost": Place("gpu", "Cards"),
    "GPUThrottled": Place("gpu", "Clocks held down"),
    "HostDiskNearlyFull": Place("server", "Disk space left"),
    "HostShmNearlyFull": Place("server", "Shared memory in use"),
    "KVCacheSaturated": Place("latency", "KV cache in use"),
    "LatencyP99High": Place("latency", "Time to first token, P99"),
    "LogBytesLost": Place("logs", "Lost"),
    "LogDeadLetters": _RECORDS,
    "LogDiskBudgetUsed": Place("logs", "Lost"),
    "LogLinesMissing": Place("logs", "Read"),
    "LogShipperDown": Place("logs", "Shipper"),
    "LogShippingBehind": Place("logs", "Log shipping behind"),
    "LogShippingHeld": Place("logs", "Held"),
    "LogShippingStalled": Place("logs", "Log shipping behind"),
    "PreemptionThrash": Place("latency", "Preemptions"),
    "QueueGrowing": Place("latency", "Requests"),
    "SchedulerStuck": Place("latency", "Requests"),
    "TimeToFirstTokenBudgetFast": _TTFT,
    "TimeToFirstTokenBudgetLong": _TTFT,
    "TimeToFirstTokenBudgetSlow": _TTFT,
    "Watchdog": Place("actions", "Alerts over time"),
}
"""Alert → where it is seen. A new rule is one entry."""

_LINE = re.compile(r"^Panel: .*\n\n", re.MULTILINE)
_HEADING = "## First look\n\n"


@cache
def _panels(dashboard: str) -> Mapping[str, dict[str, Any]]:
    """By title; of two with one title the later, which is the chart over time."""
    return {panel["title"]: panel for panel in document(dashboard)["panels"] if panel["type"] != "row"}


def panel_of(alert: str) -> dict[str, Any]:
    """The panel as Grafana reads it; KeyError where there is none."""
    place = PANELS[alert]
    return _panels(place.dashboard)[place.title]


def with_link(alert: str, page: str) -> str:
    """The runbook with its line: the panel's name, and its address below that of Grafana."""
    place = PANELS[alert]
    made = document(place.dashboard)
    address = f"/d/{made['uid']}?viewPanel={panel_of(alert)['id']}&var-instance=INSTANCE"
    line = f"Panel: {made['title']} / {place.title}, at `{address}` of your Grafana.\n\n"
    return _LINE.sub("", page).replace(_HEADING, _HEADING + line)
