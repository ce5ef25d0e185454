"""Lines that say what is wrong with a server: counted by the name of their pattern, so that rules can raise alerts.

The texts are those of vLLM, PyTorch, NCCL, CUDA and the kernel; domain notes and issues of vLLM name them.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import orjson

from dsobs.config.log_expression import LinePattern, parse_pattern
from dsobs.logs.metrics import MATCHES
from dsobs.logs.record import Record
from dsobs.regex import compile_regex

SHIPPED = (
    LinePattern("cuda_out_of_memory", "CUDA out of memory", ""),
    LinePattern("hip_out_of_memory", "HIP out of memory", ""),
    LinePattern("cuda_error", "CUDA error: ", ""),
    LinePattern("nccl_watchdog", "Watchdog caught collective operation timeout", ""),
    LinePattern("nccl_error", "NCCL error", ""),
    LinePattern("shm_broadcast_stall", "No available shared memory broadcast block found", ""),
    LinePattern("engine_rpc_timeout", "RPC call", r"RPC call (to \S+ )?timed out"),
    LinePattern("engine_dead", "EngineDeadError", ""),
    LinePattern("engine_core_failed", "EngineCore encountered", r"EngineCore encountered (a fatal error|an issue)"),
    LinePattern("engine_core_exited", "engine core exited unexpectedly", ""),
    LinePattern("engine_core_start_failed", "Engine core initialization failed", ""),
    LinePattern("worker_died", "died unexpectedly", r"[Ww]orker.* died unexpectedly"),
    LinePattern("no_kv_cache_memory", "No available memory for the cache blocks", ""),
    LinePattern("disk_full", "No space left on device", ""),
    LinePattern("bus_error", "Bus error", ""),
    LinePattern("gpu_off_the_bus", "GPU has fallen off the bus", ""),
)


def table(patterns: Sequence[str]) -> list[LinePattern]:
    """The shipped patterns with those of the settings in place of, or beside, them."""
    by_name = {pattern.name: pattern for pattern in SHIPPED}
    by_name.update({pattern.name: pattern for pattern in map(parse_pattern, patterns)})
    return [pattern for pattern in by_name.values() if pattern.literal or pattern.regex]


RECENT_SECONDS = 3600.0
"""Older lines are not counted: a backlog must not raise alerts on what is long over."""


class Matches:
    """Counts; changes nothing. A record counts once for each pattern, whatever is left out later."""

    needs_fields = False

    def __init__(self, patterns: Sequence[LinePattern], clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        literals: list[tuple[bytes, list[tuple[Any, Any]]]] = []
        by_literal: dict[bytes, list[tuple[Any, Any]]] = {}
        self._bare: list[tuple[Any, Any]] = []
        for pattern in patterns:
            counter = MATCHES.labels(pattern.name)
            search = compile_regex(pattern.regex, dot_all=True).search if pattern.regex else None
            if pattern.literal:
                by_literal.setdefault(pattern.literal.encode(), []).append((search, counter))
            else:
                self._bare.append((search, counter))
        literals.extend(by_literal.items())
        self._literals = literals
        quoted = "|".join(_quoted(literal.decode()) for literal, _ in literals)
        # One pass over all lines for all texts: that costs less than one text costs in each line.
        self._any: Any = compile_regex(quoted).search if quoted else None

    def apply(self, records: list[Record]) -> list[Record]:
        """All of them."""
        if self._any is not None and self._any(b"\n".join([record[1] for record in records])) is not None:
            for literal, tests in self._literals:
                for record in records:
                    if literal in record[1]:
                        for search, counter in tests:
                            if (search is None or search(record[1]) is not None) and self._is_recent(record):
                                counter.inc()
        for search, counter in self._bare:
            for record in records:
                if search(record[1]) is not None and self._is_recent(record):
                    counter.inc()
        return records

    def _is_recent(self, record: Record) -> bool:
        """By its own time; one whose time can't be read is."""
        document = record[2]
        try:
            fields = document if isinstance(document, dict) else orjson.loads(document)
            at = datetime.fromisoformat(fields["@timestamp"]).timestamp()
        except (ValueError, TypeError, KeyError, OverflowError):
            return True
        return at > self._clock() - RECENT_SECONDS


def _quoted(text: str) -> str:
    """RE2 that fits `text` and nothing else."""
    return "".join(
        char if char.isalnum() or char in " _" or ord(char) > 127 else f"\\x{{{ord(char):x}}}" for char in text
    )
