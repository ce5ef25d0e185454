"""GPU memory in use for work.

vLLM takes `gpu_memory_utilization` of the card at start and keeps it: an idle healthy server on an H100 reads 93.0 %.
So

    effective = (used − kv_pool_bytes × (1 − kv_cache_usage)) / total

where the size of the KV pool is known. Where it is not and the engine reserves memory, KV-cache usage itself is the
signal;
where the engine reserves nothing, memory in use is.
"""

from collections.abc import Iterable, Mapping

from dsobs.model.engine import EngineKey
from dsobs.model.observation import Gpu, Unknown
from dsobs.model.samples import Sample, labels
from dsobs.model.start_up import facts_of_log


def kv_pool_of_log(lines: Iterable[str]) -> int | None:
    """Bytes of the KV pool from vLLM's start-up log, the last such line; None without one."""
    pool = facts_of_log(lines).get("kv_pool_bytes")
    return None if pool is None else int(pool)


def effective_memory(
    gpus: tuple[Gpu, ...] | Unknown,
    kv_usage: Mapping[EngineKey, float],
    kv_pool_bytes: int | None,
    reserves_memory: bool | None,
) -> list[Sample]:
    """`dsobs_gpu_memory_used_ratio` and `_effective_ratio` of each card.

    `kv_usage`: engine → share of its KV cache in use; which card serves which engine is not known, so the fullest
    counts.
    `kv_pool_bytes`: of one card, None if unknown. `reserves_memory`: None while the engine is not known.
    """
    out: list[Sample] = []
    if isinstance(gpus, Unknown):
        return out
    usage = max(kv_usage.values(), default=None)
    for gpu in gpus:
        if not gpu.memory_total_bytes or gpu.memory_used_bytes is None:
            continue
        names = {"gpu": str(gpu.index), "uuid": gpu.uuid}
        raw = gpu.memory_used_bytes / gpu.memory_total_bytes
        out.append(Sample(labels("dsobs_gpu_memory_used_ratio", **names), raw))
        if reserves_memory is None:
            continue
        if not reserves_memory:
            source, value = "raw", raw
        elif usage is None:
            continue
        elif kv_pool_bytes is not None and kv_pool_bytes <= gpu.memory_used_bytes:
            source = "pool"
            value = (gpu.memory_used_bytes - kv_pool_bytes * (1.0 - min(usage, 1.0))) / gpu.memory_total_bytes
        else:
            source, value = "kv_usage", usage
        out.append(Sample(labels("dsobs_gpu_memory_effective_ratio", source=source, **names), value))
    return out
