"""What NVML's bits and the driver's XID numbers mean."""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class ClockEventReason:
    """One bit of the clock-event mask."""

    bit: int
    name: str
    slows: bool
    """It holds clocks below what the work asks for; the others are idleness or a setting."""


CLOCK_EVENT_REASONS: tuple[ClockEventReason, ...] = (
    ClockEventReason(0x001, "gpu_idle", slows=False),
    ClockEventReason(0x002, "applications_clocks_setting", slows=False),
    ClockEventReason(0x004, "sw_power_cap", slows=True),
    ClockEventReason(0x008, "hw_slowdown", slows=True),
    ClockEventReason(0x010, "sync_boost", slows=True),
    ClockEventReason(0x020, "sw_thermal_slowdown", slows=True),
    ClockEventReason(0x040, "hw_thermal_slowdown", slows=True),
    ClockEventReason(0x080, "hw_power_brake_slowdown", slows=True),
    ClockEventReason(0x100, "display_clock_setting", slows=False),
    ClockEventReason(0x200, "board_limit", slows=True),
    ClockEventReason(0x400, "reliability", slows=True),
)
"""nvml.h, group nvmlClocksEventReasons; the last two only under their older name nvmlClocksThrottleReasons."""


class XidAction(StrEnum):
    """What helps after an XID."""

    RESTART_APPLICATION = "restart_application"
    RESET_GPU = "reset_gpu"
    REBOOT_NODE = "reboot_node"
    ESCALATE = "escalate"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Xid:
    """One XID error."""

    number: int
    action: XidAction
    meaning: str


XIDS: dict[int, Xid] = {
    xid.number: xid
    for xid in (
        Xid(13, XidAction.RESTART_APPLICATION, "graphics engine exception"),
        Xid(31, XidAction.RESTART_APPLICATION, "GPU memory page fault"),
        Xid(43, XidAction.IGNORE, "GPU stopped processing for one application"),
        Xid(45, XidAction.IGNORE, "preemptive cleanup: a process with work on the GPU was ended"),
        Xid(46, XidAction.RESET_GPU, "GPU stopped processing"),
        Xid(48, XidAction.ESCALATE, "double-bit ECC error"),
        Xid(62, XidAction.RESET_GPU, "internal micro-controller halt"),
        Xid(63, XidAction.IGNORE, "row remapping or page retirement recorded"),
        Xid(64, XidAction.RESET_GPU, "row remapping or page retirement failed"),
        Xid(74, XidAction.ESCALATE, "NVLink error"),
        Xid(79, XidAction.REBOOT_NODE, "GPU has fallen off the bus"),
        Xid(92, XidAction.IGNORE, "high rate of single-bit ECC errors"),
        Xid(94, XidAction.RESTART_APPLICATION, "contained ECC error"),
        Xid(95, XidAction.RESET_GPU, "uncontained ECC error"),
        Xid(109, XidAction.RESET_GPU, "context switch time-out"),
        Xid(119, XidAction.RESET_GPU, "GSP RPC time-out"),
        Xid(120, XidAction.RESET_GPU, "GSP error"),
        Xid(140, XidAction.RESET_GPU, "unrecovered ECC error"),
        Xid(154, XidAction.IGNORE, "advice on recovery changed"),
    )
}
"""Actions as in NVSentinel's table, meanings from NVIDIA's XID catalogue. What is not here has no known answer.

45 and 154 by the catalogue: 45 comes of any kill of a process that uses the card, and beside another XID that one says
what helps; 154 says that `dsobs_gpu_recovery_action` changed, and that is what to go by.
"""
