"""The number of replicas of the workload, and what else sets it: HorizontalPodAutoscalers and KEDA's ScaledObjects.

A number that is set under one of these is undone at its next look (every 15 s by default), so it is looked for first.
"""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dsobs.model.observation import Unknown
from dsobs.model.runtime import RuntimeHeld, RuntimeRefused
from dsobs.model.scaling import Autoscaler, Replicas
from dsobs.runtimes.kubernetes.api import Api, ApiError, Right, rule
from dsobs.runtimes.kubernetes.lease import LWS_GROUP_LABEL
from dsobs.runtimes.kubernetes.pod import Json, condition, workload

RAISED = "dsobs.io/raised-minimum"
"""Annotation of an autoscaler whose minimum a sidecar raised: JSON with `from`, `until` (Unix seconds) and `by`."""
SCALE_RIGHTS = (
    Right("list", "pods", purpose="to see how many replicas there are"),
    Right("list", "horizontalpodautoscalers", "autoscaling", "to leave a workload alone that is scaled already"),
    Right("list", "scaledobjects", "keda.sh", "to leave a workload alone that is scaled already"),
)
_PLURALS = {"Deployment": "deployments", "StatefulSet": "statefulsets"}
_FAILED = (ApiError, OSError, TimeoutError)


def autoscaler_of(objects: Sequence[Json], kind: str, name: str) -> Autoscaler | None:
    """The one that scales this Deployment or StatefulSet; a ScaledObject goes before the HPA that it owns, since it
    rewrites that one."""
    found: list[Autoscaler] = []
    for each in objects:
        spec, meta = each.get("spec") or {}, each.get("metadata") or {}
        keda = each.get("kind") == "ScaledObject"
        target = spec.get("scaleTargetRef") or {}
        if target.get("name") != name or target.get("kind", "Deployment") != kind:
            continue
        prefix, least = ("ReplicaCount", 0) if keda else ("Replicas", 1)
        raised = _raised(meta)
        found.append(
            Autoscaler(
                "ScaledObject" if keda else "HorizontalPodAutoscaler",
                str(meta.get("name", "")),
                int(spec.get(f"min{prefix}", least)),
                int(spec.get(f"max{prefix}", 100)),
                raised_from=raised[0] if raised else None,
                raised_until=raised[1] if raised else None,
            )
        )
    return min(found, key=lambda one: one.kind != "ScaledObject", default=None)


def _raised(meta: Mapping[str, Any]) -> tuple[int, float] | None:
    text = (meta.get("annotations") or {}).get(RAISED)
    if not text:
        return None
    with contextlib.suppress(ValueError, TypeError, KeyError):
        told = json.loads(text)
        until = float(told["until"])
        if math.isfinite(until):
            return int(told["from"]), until
    return None


def replicas_of(above: Json, pods: Sequence[Json], me: Json, autoscaler: Autoscaler | None) -> Replicas:
    """What the workload's spec and the pods beside this one say."""
    mine = workload(me)
    of = [pod for pod in pods if workload(pod) == mine and not (pod.get("metadata") or {}).get("deletionTimestamp")]
    ready = [pod for pod in of if (condition(pod.get("status") or {}, "Ready") or {}).get("status") == "True"]
    uid = me["metadata"]["uid"]
    peers = [
        str(pod["status"]["podIP"]) for pod in ready if pod["metadata"]["uid"] != uid and pod["status"].get("podIP")
    ]
    return Replicas(
        str(mine),
        int((above.get("spec") or {}).get("replicas", 1)),
        len(ready),
        autoscaler,
        tuple(sorted(peers)),
        len([pod for pod in pods if workload(pod) == mine]),
    )


class WorkloadScale:
    """Looks at it and changes it, for the workload of one pod."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._missing: tuple[Right, ...] | None = None

    async def look(self, me: Json) -> Replicas | Unknown:
        """As it is now."""
        mine = workload(me)
        below = mine.rolled_out_by
        if below is None or LWS_GROUP_LABEL in ((me.get("metadata") or {}).get("labels") or {}):
            return Unknown(f"{mine} has no number of replicas that dsobs sets; Deployments and StatefulSets have")
        try:
            missing = await self._rights(below[0])
            if missing:
                return Unknown(f"no right to see or set the number of replicas; add to the Role: {rule(missing)}")
            objects = [*await self._api.autoscalers(), *await self._api.scaled_objects()]
            above = await self._api.scale(*below)
            pods = await self._api.pods()
        except _FAILED as error:
            return Unknown(f"the number of replicas is not known: the API server does not answer: {error}")
        return replicas_of(above, pods, me, autoscaler_of(objects, *below))

    async def _rights(self, kind: str) -> tuple[Right, ...]:
        if self._missing is None or self._missing:
            scale = f"{_PLURALS[kind]}/scale"
            wanted = (
                *SCALE_RIGHTS,
                Right("get", scale, "apps", "to see how many replicas there are"),
                Right("update", scale, "apps", "to set how many replicas there are"),
            )
            self._missing = tuple([right for right in wanted if not await self._api.allowed(right)])
        return self._missing

    async def scale(self, me: Json, before: Replicas, to: int) -> str:
        """Of `dsobs.model.scaling.Scales`."""
        below = workload(me).rolled_out_by
        if below is None or before.autoscaler is not None:
            raise RuntimeHeld(f"{before.autoscaler or workload(me)} sets the number of replicas")
        with _refusing():
            scale = dict(await self._api.scale(*below))
            spec = dict(scale.get("spec") or {})
            if int(spec.get("replicas", 1)) != before.wanted:
                raise RuntimeHeld(f"somebody has set {spec.get('replicas')} replicas meanwhile")
            # With the resourceVersion that was read: whoever changes it in between is seen.
            await self._api.set_scale(*below, {**scale, "spec": {**spec, "replicas": to}})
        return f"{before.workload} has {to} replicas in its spec, it had {before.wanted}"

    async def set_minimum(self, me: Json, before: Replicas, to: int, until: float | None) -> str:
        """Of `dsobs.model.scaling.Scales`."""
        own = before.autoscaler
        below = workload(me).rolled_out_by
        if own is None or below is None:
            raise RuntimeHeld("there is no autoscaler any more")
        keda = own.kind == "ScaledObject"
        field = "minReplicaCount" if keda else "minReplicas"
        with _refusing():
            found = await (self._api.scaled_objects() if keda else self._api.autoscalers())
            raw = next((dict(one) for one in found if one["metadata"]["name"] == own.name), None)
            if raw is None:
                raise RuntimeHeld(f"{own} is there no more")
            meta, spec = dict(raw["metadata"]), dict(raw["spec"])
            annotations = dict(meta.get("annotations") or {})
            raised = _raised(meta)
            now = int(spec.get(field, 0 if keda else 1))
            original = raised[0] if raised is not None else now
            if until is None:
                annotations.pop(RAISED, None)
                spec[field] = original
            else:
                if to > own.maximum:
                    raise RuntimeHeld(f"{own} has at most {own.maximum} replicas")
                annotations[RAISED] = json.dumps({"from": original, "until": until, "by": me["metadata"]["name"]})
                spec[field] = to
            meta["annotations"] = annotations
            await self._api.write_autoscaler(own.kind, {**raw, "metadata": meta, "spec": spec})
        if until is None:
            return f"{own} has {field} {original} again, it had {now}"
        return f"{own} has {field} {to}, it had {now}"


@contextlib.contextmanager
def _refusing() -> Any:
    """An answer of the server that is an error: surely nothing was done."""
    try:
        yield
    except ApiError as error:
        if error.status == 409:
            raise RuntimeHeld("somebody else has just changed it") from error
        raise RuntimeRefused(f"the API server answers {error.status}: {error}") from error
