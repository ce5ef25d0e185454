"""Memory of a process that stands beside a server for months: what only the start needed is given back."""

import contextlib
import ctypes
import gc

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
"""malloc.h of glibc."""
_LARGE_BYTES = 128 * 1024
"""glibc's own first value."""


def one_heap() -> None:
    """One heap for all threads; to be called before there is a second one.

    glibc gives each thread its own, up to 8 for each core, and what one has freed the others can't use. The
    interpreter's lock lets one thread work at a time anyway. What is large has a map of its own, which goes back when
    it is freed: glibc would raise the bound to the largest that was ever freed.
    """
    _libc("mallopt", _M_ARENA_MAX, 1)
    _libc("mallopt", _M_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back() -> None:
    """Returns free memory to the system: some 3 MiB of compiling where no bytecode is cached. About 5 ms."""
    _libc("malloc_trim", 0)


def settle() -> None:
    """Takes what was imported out of the garbage collector's sight: it stays, and going through it takes 30 ms."""
    gc.collect()
    gc.freeze()


def _libc(name: str, *arguments: int) -> None:
    """Calls a function that not every C library has."""
    with contextlib.suppress(AttributeError, OSError):
        getattr(ctypes.CDLL(None), name)(*arguments)
