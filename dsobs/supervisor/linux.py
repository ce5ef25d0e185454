"""Calls of Linux that Python has no function for."""

import ctypes
import os
import signal
import struct
import sys

_PR_SET_CHILD_SUBREAPER = 36
_SIGNALFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
SIGINFO = struct.Struct("=IiiII108x")
"""struct signalfd_siginfo, signalfd(2): signo, errno, code, pid, uid."""


def give_back_memory() -> None:
    """What compiling and starting took: 1.8 MiB. Only glibc has the call."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def become_subreaper() -> None:
    """Orphans of the engine become children of this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def open_signals(signals: set[signal.Signals]) -> int:
    """A descriptor that says who sent each signal, which a handler does not learn."""
    mask = sum(1 << (signo - 1) for signo in signals).to_bytes(8, sys.byteorder).ljust(128, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.signalfd(-1, mask, _SIGNALFD_FLAGS))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd
