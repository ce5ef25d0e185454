"""What the API server's objects say: pure reading of JSON, as the server gives it. Nothing here asks anybody.

Fields as in the Kubernetes API reference, v1.34: Pod v1 core, Node v1 core, Deployment and StatefulSet v1 apps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dsobs.model.observation import RuntimeView, Unknown
from dsobs.runtimes.control_folder import Kind

Json = Mapping[str, Any]

DAY = 86400.0
LWS_LABEL = "leaderworkerset.sigs.k8s.io/name"
KSERVE_LABEL = "serving.kserve.io/inferenceservice"
HASH_LABEL = "pod-template-hash"
DELETED = "the pod is being deleted"


@dataclass(frozen=True, slots=True)
class Workload:
    """What the pod is a replica of."""

    kind: str
    """Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, LeaderWorkerSet, InferenceService; Pod for one that stands
    alone; the owner's kind as it is for any other."""
    name: str
    rolled_out_by: tuple[str, str] | None = None
    """(kind, name) of the Deployment or StatefulSet below it whose roll-out can be looked at."""
    known: bool = True
    """A kind that dsobs knows."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def workload(pod: Json) -> Workload:
    """The top of the owner chain, by the pod's own owner and labels: no right but that to read the pod is needed."""
    meta = pod.get("metadata") or {}
    labels = meta.get("labels") or {}
    owner = next((o for o in meta.get("ownerReferences") or () if o.get("controller")), None)
    if owner is None:
        return Workload("Pod", str(meta.get("name", "")))
    kind, name = str(owner["kind"]), str(owner["name"])
    below: tuple[str, str] | None = None
    mark = labels.get(HASH_LABEL)
    if kind == "ReplicaSet" and mark and name.endswith(f"-{mark}"):
        # The Deployment's own naming of its ReplicaSets.
        kind, name = "Deployment", name.removesuffix(f"-{mark}")
    if kind in ("Deployment", "StatefulSet"):
        below = (kind, name)
    if LWS_LABEL in labels:
        return Workload("LeaderWorkerSet", str(labels[LWS_LABEL]), below)
    if KSERVE_LABEL in labels:
        return Workload("InferenceService", str(labels[KSERVE_LABEL]), below)
    known = kind in ("Deployment", "StatefulSet", "ReplicaSet", "DaemonSet", "Job")
    return Workload(kind, name, below, known)


def engine_container(pod: Json, wanted: str, port: int, folder: str) -> str | Unknown:
    """Name of the engine's container: `wanted`, else the one whose liveness probe reads the control folder, else the
    only one, else the one that names `port`."""
    containers = (pod.get("spec") or {}).get("containers") or []
    names = [str(c["name"]) for c in containers]
    if wanted:
        if wanted in names:
            return wanted
        return Unknown(f"the pod has no container {wanted} (runtime.container); it has {', '.join(names)}")
    for fits in (
        [str(c["name"]) for c in containers if reads_requests(c, folder)],
        names,
        [str(c["name"]) for c in containers if any(p.get("containerPort") == port for p in c.get("ports") or ())],
    ):
        if len(fits) == 1:
            return fits[0]
    return Unknown(
        f"the pod has the containers {', '.join(names)}, and none is clearly the engine's: set runtime.container"
    )


def reads_requests(container: Json, folder: str) -> bool:
    """Its liveness probe is an exec that reads restart requests in `folder`."""
    probe = container.get("livenessProbe") or {}
    words = (probe.get("exec") or {}).get("command") or ()
    return any(f"{folder}/{Kind.RESTART}" in str(word) for word in words)


def cannot_restart(pod: Json, container: str, folder: str) -> str | None:
    """Why a restart request would do nothing, and what to do; None if kubelet would act on it."""
    spec = pod.get("spec") or {}
    if spec.get("restartPolicy") == "Never":
        return "the pod's restartPolicy is Never, so kubelet would end the engine and not start it again; use Always"
    found = next((c for c in spec.get("containers") or () if c["name"] == container), None)
    if found is not None and not reads_requests(found, folder):
        return (
            f"the liveness probe of container {container} does not read {folder}/{Kind.RESTART}, so a request would "
            "do nothing; `dsobs k8s inject` adds that probe"
        )
    return None


def hold(pod: Json) -> str | None:
    """Who is at work on the pod, so that nothing may be done to it."""
    meta, status = pod.get("metadata") or {}, pod.get("status") or {}
    if meta.get("deletionTimestamp"):
        return deletion(pod)
    target = condition(status, "DisruptionTarget")
    if target is not None and target.get("status") == "True":
        return f"the pod is to be disrupted: {target.get('reason', '')} {target.get('message', '')}".strip()
    for each in status.get("ephemeralContainerStatuses") or ():
        if "running" in (each.get("state") or {}):
            return f"somebody debugs the pod (ephemeral container {each['name']})"
    return None


def deletion(pod: Json) -> str | None:
    """Who is seen to stop the pod, with the reason where one is given."""
    if not (pod.get("metadata") or {}).get("deletionTimestamp"):
        return None
    target = condition(pod.get("status") or {}, "DisruptionTarget")
    why = target.get("reason") if target is not None and target.get("status") == "True" else None
    return f"{DELETED} ({why})" if why else DELETED


def start_up_pending(pod: Json, container: str) -> bool:
    """Its start-up probe has not succeeded yet, and until then kubelet runs no liveness probe."""
    status = container_status(pod, container)
    return status is not None and status.get("started") is False


def container_status(pod: Json, container: str) -> Json | None:
    """The status of one container; None before it has one."""
    for each in (pod.get("status") or {}).get("containerStatuses") or ():
        if each["name"] == container:
            found: Json = each
            return found
    return None


def runtime_view(pod: Json, container: str, *, now: float, held: str | None, events: Sequence[str] = ()) -> RuntimeView:
    """The engine's container. `held`: who is at work beyond what the pod itself tells."""
    status = container_status(pod, container) or {}
    state, last = status.get("state") or {}, (status.get("lastState") or {}).get("terminated") or {}
    running, ended = state.get("running"), state.get("terminated") or last
    count = int(status.get("restartCount", 0))
    deleted = deletion(pod)
    started = parse_time((running or state.get("terminated") or last).get("startedAt"))
    return RuntimeView(
        runtime="kubernetes",
        name=container,
        running=running is not None,
        started_at=started,
        exit_code=int(ended["exitCode"]) if "exitCode" in ended else None,
        oom_killed=ended.get("reason") == "OOMKilled" if ended else None,
        restart_count=count,
        ended_at=parse_time(ended.get("finishedAt")),
        planned_stop=deleted,
        stopping=deleted if running is not None else None,
        started_history=_history(pod, now, count, parse_time(last.get("startedAt")), started),
        brings_back=True,
        hold=hold(pod) or held,
        events=tuple(events),
    )


def _history(pod: Json, now: float, count: int, before: float | None, started: float | None) -> tuple[float, ...]:
    """The starts of the last 24 hours. kubelet tells of the last two and counts the rest: of a pod that is younger than
    that, the rest was within that time too, at the latest when the last but one began."""
    told = [at for at in (before, started) if at is not None]
    born = parse_time((pod.get("status") or {}).get("startTime"))
    if told and born is not None and born > now - DAY:
        told = [min(told)] * (count + 1 - len(set(told))) + sorted(set(told))
    return tuple(at for at in sorted(told) if at >= now - DAY)


def rollout(found: Json) -> str | None:
    """The roll-out of this Deployment or StatefulSet that is under way; None if there is none.

    As `kubectl rollout status` judges it.
    """
    meta, spec, status = found.get("metadata") or {}, found.get("spec") or {}, found.get("status") or {}
    name = f"{found.get('kind', 'workload')} {meta.get('name', '')}"
    if int(status.get("observedGeneration", 0)) < int(meta.get("generation", 0)):
        return f"a change of {name} has just been made"
    wanted = int(spec.get("replicas", 1))
    updated, present = int(status.get("updatedReplicas", 0)), int(status.get("replicas", 0))
    if "updateRevision" in status:
        strategy = spec.get("updateStrategy") or {}
        if strategy.get("type") == "OnDelete" or status.get("currentRevision") == status["updateRevision"]:
            return None
        kept = int((strategy.get("rollingUpdate") or {}).get("partition") or 0)
        under_way = updated < wanted - kept
    else:
        under_way = updated < wanted or present > updated
    return f"a roll-out of {name} is under way ({updated} of {wanted} updated)" if under_way else None


def node_going_down(node: Json) -> str | None:
    """Why this node is about to lose its pods; None if it is not."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    name = (node.get("metadata") or {}).get("name", "")
    if spec.get("unschedulable"):
        return f"node {name} is cordoned"
    for taint in spec.get("taints") or ():
        if taint.get("effect") == "NoExecute":
            return f"node {name} is tainted {taint.get('key')}:NoExecute"
    ready = condition(status, "Ready")
    if ready is not None and ready.get("status") != "True":
        return f"node {name} is not ready: {ready.get('reason', '')}"
    return None


def event_line(event: Json) -> str:
    """One event as a line of text."""
    at = event.get("lastTimestamp") or event.get("eventTime") or (event.get("metadata") or {}).get("creationTimestamp")
    often = f" (x{event['count']})" if int(event.get("count") or 1) > 1 else ""
    return f"{at} {event.get('type')} {event.get('reason')}: {str(event.get('message', ''))[:500]}{often}"


def condition(status: Json, kind: str) -> Json | None:
    """The status's condition of this type."""
    return next((c for c in status.get("conditions") or () if c.get("type") == kind), None)


def parse_time(text: object) -> float | None:
    """RFC 3339 of the API server, in seconds since the Unix epoch."""
    return datetime.fromisoformat(text).timestamp() if isinstance(text, str) and text else None
