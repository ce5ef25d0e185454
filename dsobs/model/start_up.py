"""What vLLM's log says once, while it starts: memory taken, time spent. Read from any log, in one place.

Lines of 0.8 to 0.32, as `Model loading took 14.28 GiB memory and 0.358657 seconds`.
"""

import re
from collections.abc import Iterable

LITERALS = ("KV cache", " took ", "Maximum concurrency")
"""One of these is in every line that `facts_of` knows: a search for them costs less than the expressions."""

_GIB = 2**30
_BYTES, _SECONDS, _NUMBER = "bytes", "seconds", "number"
_PATTERNS = (
    (re.compile(r"Available KV cache memory: (\d+(?:\.\d+)?) GiB"), (("kv_pool_bytes", _BYTES),)),
    (re.compile(r"Explicitly set \((\d+(?:\.\d+)?)/[\d.]+\) GiB for KV cache"), (("kv_pool_bytes", _BYTES),)),
    (
        re.compile(r"Model loading took (\d+(?:\.\d+)?) GiB(?: memory)? and (\d+(?:\.\d+)?) seconds"),
        (("weights_bytes", _BYTES), ("load_seconds", _SECONDS)),
    ),
    (re.compile(r"[CGX]PU KV cache size: ([\d,]+) tokens"), (("kv_cache_tokens", _NUMBER),)),
    (
        re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: (\d+(?:\.\d+)?)x"),
        (("max_model_len", _NUMBER), ("max_concurrency", _SECONDS)),
    ),
    (re.compile(r"init engine \([^)]*\) took (\d+(?:\.\d+)?) s"), (("init_seconds", _SECONDS),)),
)


def facts_of(message: str) -> dict[str, float]:
    """What one message says, by name: `kv_pool_bytes`, `weights_bytes`, `load_seconds`, `init_seconds`,
    `kv_cache_tokens`, `max_model_len`, `max_concurrency`. Bytes and seconds are those of one worker."""
    found: dict[str, float] = {}
    for pattern, parts in _PATTERNS:
        match = pattern.search(message)
        if match is None:
            continue
        for text, (name, unit) in zip(match.groups(), parts, strict=True):
            number = text.replace(",", "")
            if unit == _BYTES:
                found[name] = int(float(number) * _GIB)
            else:
                found[name] = int(number) if unit == _NUMBER else float(number)
    return found


def facts_of_log(lines: Iterable[str]) -> dict[str, float]:
    """What a whole start-up log says; the last line that says something counts."""
    found: dict[str, float] = {}
    for line in lines:
        if any(literal in line for literal in LITERALS):
            found.update(facts_of(line))
    return found
