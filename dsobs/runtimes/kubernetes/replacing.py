"""Pods that are replaced: by eviction, which disruption budgets may refuse.

An evicted pod takes its emptyDir volumes and its shared memory with it, which no restart of a container does; whatever
made it makes another.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from dsobs.model.runtime import RestartResult, RuntimeRefused
from dsobs.runtimes.kubernetes.api import CREATE_EVENT, EVICT, Api, ApiError, rule
from dsobs.runtimes.kubernetes.pod import Json, workload

BUDGET_SECONDS = 25.0
"""How long a disruption budget that allows no eviction is waited for."""
BUDGET_LOOK_SECONDS = 5.0
MIRROR = "kubernetes.io/config.mirror"
"""Annotation of a pod that kubelet runs from a file; its eviction does nothing."""


def cannot_replace(pod: Json, granted: frozenset[Any]) -> str | None:
    """Why this pod can't be replaced, and what to do; None if it can be."""
    meta = pod.get("metadata") or {}
    if MIRROR in (meta.get("annotations") or {}):
        return "the pod is a static one of its node"
    if workload(pod).kind == "Pod":
        return "nothing would make the pod anew: it has no Deployment, StatefulSet or the like above it"
    if EVICT not in granted:
        return f"no right to replace the pod; add to the Role: {rule([EVICT])}"
    return None


async def evict(api: Api, pods: Sequence[Json], still_may: Callable[[], str | None]) -> RestartResult:
    """Evicts these pods in their order, the own one last. `still_may`: asked before each, why not any more.

    RuntimeRefused where nothing was done: the budget allows none. OSError where some are gone and others are not.
    """
    deadline = asyncio.get_running_loop().time() + BUDGET_SECONDS
    done: list[str] = []
    try:
        for pod in pods:
            await _evict(api, pod, deadline, still_may)
            done.append(str(pod["metadata"]["name"]))
    except (ApiError, TimeoutError, OSError, RuntimeRefused) as error:
        if done:
            raise OSError(f"evicted {', '.join(done)} and no more: {error}") from error
        if isinstance(error, ApiError):
            raise RuntimeRefused(f"the pod can't be evicted: {error}") from error
        raise
    return RestartResult(started_at=None, detail=f"evicted {', '.join(done)}")


async def _evict(api: Api, pod: Json, deadline: float, still_may: Callable[[], str | None]) -> None:
    loop = asyncio.get_running_loop()
    meta = pod["metadata"]
    while True:
        if (why := still_may()) is not None:
            raise RuntimeRefused(why)
        try:
            await api.evict(str(meta["name"]), str(meta["uid"]))
        except ApiError as error:
            if error.status == 404:
                return  # It has gone by itself.
            if error.status != 429:
                raise
            if loop.time() + BUDGET_LOOK_SECONDS > deadline:
                raise RuntimeRefused(
                    f"a disruption budget allowed no eviction of {meta['name']} for {BUDGET_SECONDS:.0f} s: {error}"
                ) from error
            await asyncio.sleep(BUDGET_LOOK_SECONDS)
        else:
            return


async def tell(api: Api, pod: Json, granted: frozenset[Any], reason: str, message: str, now: float) -> bool:
    """Writes an Event about the pod, where there is the right; whether there was."""
    if CREATE_EVENT not in granted:
        return False
    meta = pod["metadata"]
    stamp = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%SZ}"
    about = {"apiVersion": "v1", "kind": "Pod", **{key: meta[key] for key in ("namespace", "name", "uid")}}
    await api.create_event(
        {
            "metadata": {"generateName": f"{meta['name'][:200]}.dsobs-", "namespace": meta["namespace"]},
            "involvedObject": about,
            "reason": reason,
            "message": message[:1000],
            "type": "Warning",
            "source": {"component": "dsobs"},
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "count": 1,
        }
    )
    return True
