"""What a workload's Lease says, and what follows from it and from the workload's pods: pure reading and deciding.

The Lease (coordination.k8s.io/v1) is held by the pod that acts, and by nobody else. Its annotation ACTIONS is the
workload's memory: it outlives the pods that were acted on. As in client-go's leader election nobody compares clocks: a
holder is taken for dead once its Lease has stayed the same for its duration by the looker's own clock.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from dsobs.model.observation import Unknown
from dsobs.model.turn import Fleet
from dsobs.runtimes.kubernetes.pod import DAY, LWS_LABEL, Json, condition, parse_time, workload

ACTIONS = "dsobs.io/actions"
"""The annotation with the actions of the last 24 hours, a JSON list."""
DURATION_SECONDS = 15
"""A Lease that was not renewed for this long is free, by the looker's own clock."""
RENEW_SECONDS = 3.0
DEADLINE_SECONDS = 10.0
"""The holder stops what it does this long after it asked for the last renewal that was granted."""
BACK_SECONDS = 600.0
"""An action on a pod that has been ready all the time since had no effect: it is waited for no longer than this."""
DRAIN = "drain"
"""An action that comes before a restart of the same replica: it takes it out of service, and is no restart."""
KEPT_ACTIONS = 100
KEPT_RESTARTS = 20
"""Both bound the annotation, which with all others of an object may take 256 KiB."""
LWS_GROUP_LABEL = "leaderworkerset.sigs.k8s.io/group-index"


@dataclass(frozen=True, slots=True)
class Action:
    """One action on one replica."""

    at: float
    """Unix seconds by the clock of the acting pod's node."""
    pod: str
    uid: str
    what: str
    """restart, replace, drain or scale."""
    incident: str = ""
    restarts: tuple[float, ...] = ()
    """The pod's restarts of the last 24 hours before it, whoever made them."""


@dataclass(frozen=True, slots=True)
class Held:
    """A Lease as it was read."""

    holder: str = ""
    """Empty: nobody."""
    spec: Mapping[str, Any] = field(default_factory=dict)
    actions: tuple[Action, ...] | Unknown = ()
    """Oldest first."""
    raw: Json | None = None
    """None: there is no Lease yet."""

    @property
    def duration(self) -> float:
        """Seconds; what is not there or not sensible is the usual."""
        told = self.spec.get("leaseDurationSeconds")
        return float(told) if isinstance(told, int) and told > 0 else float(DURATION_SECONDS)


def lease_name(kind: str, name: str) -> str:
    """Of the workload's Lease: `dsobs-deployment-vllm`. A name that would be too long is cut, and told apart by a
    hash."""
    full = f"dsobs-{kind}-{name}".lower()
    if len(full) <= 253:
        return full
    return f"{full[:240]}-{hashlib.sha256(full.encode()).hexdigest()[:12]}"


def read_lease(lease: Json | None) -> Held:
    """What it says; actions are Unknown, with the reason, where the annotation can't be read."""
    if lease is None:
        return Held()
    spec = lease.get("spec") or {}
    meta = lease.get("metadata") or {}
    text = (meta.get("annotations") or {}).get(ACTIONS) or "[]"
    actions: tuple[Action, ...] | Unknown
    try:
        actions = tuple(sorted((_action(each) for each in json.loads(text)), key=lambda action: action.at))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        actions = Unknown(
            f"annotation {ACTIONS} of Lease {meta.get('name')} can't be read ({type(error).__name__}: {error}), so "
            "what was done to the workload is not known; remove the annotation to agree to go on"
        )
    return Held(str(spec.get("holderIdentity") or ""), spec, actions, lease)


def _action(told: Mapping[str, Any]) -> Action:
    at = float(told["at"])
    restarts = tuple(float(each) for each in told.get("restarts", ()))
    if not all(map(math.isfinite, (at, *restarts))):
        raise ValueError("a time is not finite")
    return Action(at, str(told["pod"]), str(told["uid"]), str(told["what"]), str(told.get("incident", "")), restarts)


def kept(actions: Sequence[Action], now: float) -> tuple[Action, ...]:
    """What is still of use: the last 24 hours. One from the future was written by a clock that goes ahead."""
    young = [replace(action, at=min(action.at, now)) for action in actions if action.at > now - DAY]
    return tuple(young[-KEPT_ACTIONS:])


def written(
    held: Held, name: str, holder: str, actions: Sequence[Action], now: float, owner: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The Lease with another holder (empty: released) and these actions; all else in it stays."""
    raw = dict(held.raw or {"metadata": {"name": name, **({"ownerReferences": [dict(owner)]} if owner else {})}})
    meta = dict(raw.get("metadata") or {})
    text = json.dumps([asdict(action) for action in actions], separators=(",", ":"))
    meta["annotations"] = {**(meta.get("annotations") or {}), ACTIONS: text}
    spec = dict(raw.get("spec") or {})
    stamp = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
    if holder and holder != held.holder:
        spec["acquireTime"] = stamp
        spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
    spec |= {"holderIdentity": holder, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": stamp}
    return {**raw, "metadata": meta, "spec": spec}


class Watched:
    """Since when, by this process's own clock, a Lease has stayed as it is."""

    def __init__(self) -> None:
        self._spec: Mapping[str, Any] | None = None
        self._since = 0.0

    def held_by_another(self, held: Held, me: str, now: float) -> str | None:
        """Who holds it, None if it is free: for this pod, or by its holder's silence. `now` is monotonic."""
        if self._spec is None or dict(self._spec) != dict(held.spec):
            self._spec, self._since = dict(held.spec), now
        if held.holder in ("", me) or now - self._since >= held.duration:
            return None
        return held.holder


# The workload's pods.


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine of the workload: a pod, or the pods of a group."""

    key: str
    pods: tuple[Json, ...]

    @property
    def ready(self) -> bool:
        """All of its pods are."""
        return all(_ready(pod) for pod in self.pods)

    def acted_on(self, actions: Collection[Action], now: float) -> bool:
        """Something was done to it from which it has yet to come back.

        Both times that are compared are of the pod's own node. Readiness is told in whole seconds.
        """
        for pod in self.pods:
            meta = pod["metadata"]
            found = condition(pod.get("status") or {}, "Ready") or {}
            since = parse_time(found.get("lastTransitionTime")) or 0.0
            for action in actions:
                if action.uid != meta["uid"]:
                    continue
                if not _ready(pod) or (since < math.floor(action.at) and now - action.at < BACK_SECONDS):
                    return True
        return False


def replica_key(pod: Json, group_label: str = "") -> str:
    """Which engine a pod is (part of): the group's name by `group_label` or by LeaderWorkerSet, else the pod's own."""
    meta = pod["metadata"]
    labels = meta.get("labels") or {}
    if group_label and group_label in labels:
        return f"group {labels[group_label]}"
    if LWS_LABEL in labels and LWS_GROUP_LABEL in labels:
        return f"group {labels[LWS_GROUP_LABEL]}"
    return str(meta["name"])


def replicas(pods: Sequence[Json], of: Json, group_label: str = "") -> tuple[Replica, ...]:
    """The engines of the workload of pod `of`: its pods that are there to stay."""
    whole = workload(of)
    grouped: dict[str, list[Json]] = {}
    for pod in pods:
        over = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if workload(pod) == whole and not over and not pod["metadata"].get("deletionTimestamp"):
            grouped.setdefault(replica_key(pod, group_label), []).append(pod)
    return tuple(Replica(key, tuple(found)) for key, found in sorted(grouped.items()))


def _ready(pod: Json) -> bool:
    return (condition(pod.get("status") or {}, "Ready") or {}).get("status") == "True"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be done to a workload."""

    share: float
    """Of the replicas, that may be unready at once; one always may."""
    actions: int
    """In a window of so many seconds."""
    window: float


def breaker(
    found: Sequence[Replica], mine: str, wanted: int | None, actions: Sequence[Action], now: float, limits: Limits
) -> Fleet:
    """Whether an action on replica `mine` leaves the workload enough. `wanted`: replicas that there should be, None
    where that is not known.

    A replica that kubelet calls ready may serve: taking it must leave the minimum. One that is unready anyway takes
    nothing away; then only those count that are acted on already.
    """
    recent = sum(1 for action in actions if action.at > now - limits.window and action.what != DRAIN)
    if recent >= limits.actions:
        return Fleet(
            budget=f"{recent} actions on the workload within {limits.window:.0f} s "
            f"(remediation.fleet_max_actions is {limits.actions})"
        )
    total = max(len(found), wanted or 0)
    may = max(math.floor(limits.share * total + 1e-9), 1)
    me = next((replica for replica in found if replica.key == mine), None)
    acted = {replica.key for replica in found if replica.key != mine and replica.acted_on(actions, now)}
    if me is not None and me.ready:
        away = acted | {replica.key for replica in found if replica.key != mine and not replica.ready}
        missing = total - len(found)
        count = len(away) + missing + 1
        names = ", ".join([*sorted(away), *([f"{missing} that there should be"] if missing else [])])
    else:
        count, names = len(acted) + 1, ", ".join(sorted(acted))
    if count <= may:
        return Fleet()
    return Fleet(
        unready=f"{count} of {total} replicas would be unready, {may} may be (remediation.fleet_breaker is "
        f"{limits.share:g}); not ready: {names}"
    )


def inherited(actions: Sequence[Action], pods: Sequence[Json], mine: Json) -> tuple[float, ...]:
    """Restarts of the pods that pod `mine` stands in for, oldest first: they were made to the same replica.

    A pod of the same name is the successor (StatefulSet). Else each pod that is gone has one, the oldest that was
    created after what was done to it last: every sidecar comes to the same result, and nothing counts twice.
    """
    whole = workload(mine)
    there = sorted(
        (pod for pod in pods if workload(pod) == whole),
        key=lambda pod: (parse_time(pod["metadata"].get("creationTimestamp")) or 0.0, pod["metadata"]["uid"]),
    )
    uids = {pod["metadata"]["uid"] for pod in there}
    last: dict[str, Action] = {}
    for action in actions:
        if action.uid not in uids:
            last[action.uid] = action
    successors: dict[str, list[Action]] = {}
    taken: set[str] = set()
    # One whose restarts another has taken over is counted there.
    passed_on = {at for action in last.values() for at in action.restarts}
    for action in sorted((each for each in last.values() if each.at not in passed_on), key=lambda each: each.at):
        same = [pod for pod in there if pod["metadata"]["name"] == action.pod]
        younger = [
            pod
            for pod in there
            if pod["metadata"]["uid"] not in taken
            and (parse_time(pod["metadata"].get("creationTimestamp")) or 0.0) >= math.floor(action.at)
        ]
        for pod in (same or younger)[:1]:
            uid = pod["metadata"]["uid"]
            if not same:
                taken.add(uid)
            successors.setdefault(uid, []).append(action)
    found = successors.get(mine["metadata"]["uid"], [])
    own = {action.at for action in found if action.what != DRAIN}
    return tuple(sorted(own | {at for action in found for at in action.restarts}))
