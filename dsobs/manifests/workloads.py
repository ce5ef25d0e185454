"""Where the pod of a workload stands in its manifest, by kind."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from dsobs.manifests.nodes import Path
from dsobs.manifests.problem import Finding, ManifestError
from dsobs.manifests.text import Document

_TEMPLATES: dict[tuple[str, str], Path] = {
    ("", "Pod"): (),
    ("", "ReplicationController"): ("spec", "template"),
    ("apps", "Deployment"): ("spec", "template"),
    ("apps", "StatefulSet"): ("spec", "template"),
    ("apps", "DaemonSet"): ("spec", "template"),
    ("apps", "ReplicaSet"): ("spec", "template"),
    ("batch", "Job"): ("spec", "template"),
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
    ("argoproj.io", "Rollout"): ("spec", "template"),
    ("leaderworkerset.x-k8s.io", "LeaderWorkerSet"): ("spec", "leaderWorkerTemplate"),
    ("serving.kserve.io", "InferenceService"): ("spec", "predictor"),
}
KINDS = tuple(kind for _, kind in _TEMPLATES)
_SCALERS = {("autoscaling", "HorizontalPodAutoscaler"), ("keda.sh", "ScaledObject")}


@dataclass(frozen=True, slots=True)
class Workload:
    """An object that makes pods. Paths lead from the document's root."""

    path: Path
    """Of the object: (), or an item of a List."""
    group: str
    kind: str
    name: str
    namespace: str
    pod: Path
    """What holds `containers`, `volumes` and so on."""
    annotations: Path
    """The annotations that its pods get."""

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


@dataclass(frozen=True, slots=True)
class Scaler:
    """A HorizontalPodAutoscaler or a ScaledObject, and what it scales."""

    kind: str
    name: str
    namespace: str
    target_kind: str
    target_name: str

    def scales(self, workload: Workload) -> bool:
        """Whether it scales this one."""
        target = (self.target_kind, self.target_name, self.namespace)
        return target == (workload.kind, workload.name, workload.namespace)


def objects(document: Document) -> Iterator[Path]:
    """The path of each object: the document's root, or the items of a List."""
    root = document.root
    if isinstance(root, yaml.MappingNode):
        kind = document.get(("kind",))
        items = document.node(("items",))
        if isinstance(kind, str) and kind.endswith("List") and isinstance(items, yaml.SequenceNode):
            yield from (("items", index) for index in range(len(items.value)))
            return
    yield ()


def malformed(document: Document, path: Path, file: str) -> Finding | None:
    """What keeps this from being an object of Kubernetes; None if it is one."""
    tree = document.get(path)
    line = document.line(path)
    if not isinstance(tree, dict):
        return Finding(
            line, file, "", "is no object of Kubernetes; write apiVersion, kind, metadata and spec, or take it out"
        )
    missing = [name for name in ("apiVersion", "kind") if not isinstance(tree.get(name), str) or not tree[name]]
    if missing:
        return Finding(
            line,
            file,
            "",
            f"is no object of Kubernetes: it has no {' and no '.join(missing)}; write them or take it out",
        )
    return None


def workload(document: Document, path: Path) -> Workload | None:
    """The workload at `path`; None for an object that makes no pods, or of a kind that is not known here.
    ManifestError for one whose pod can't be found."""
    tree = document.get(path)
    group = tree["apiVersion"].rpartition("/")[0]
    template = _TEMPLATES.get((group, tree["kind"]))
    if template is None:
        return None
    metadata = tree.get("metadata") if isinstance(tree.get("metadata"), dict) else {}
    name = str(metadata.get("name") or metadata.get("generateName") or "?")
    namespace = str(metadata.get("namespace") or "")
    where = (*path, *template)
    if tree["kind"] == "InferenceService":
        pod, annotations = where, (*where, "annotations")
    elif tree["kind"] == "LeaderWorkerSet":
        leader = (*where, "leaderTemplate")
        where = leader if isinstance(document.get(leader), dict) else (*where, "workerTemplate")
        pod, annotations = (*where, "spec"), (*where, "metadata", "annotations")
    else:
        pod, annotations = (*where, "spec"), (*where, "metadata", "annotations")
    if not isinstance(document.get(pod), dict):
        words = ".".join(str(step) for step in pod[len(path) :])
        raise ManifestError(
            f"{tree['kind']}/{name}: has no {words}, where the pod stands; write it", document.line(pod)
        )
    return Workload(path, group, tree["kind"], name, namespace, pod, annotations)


def scaler(document: Document, path: Path) -> Scaler | None:
    """The autoscaler at `path`, if that is one."""
    tree = document.get(path)
    if (tree["apiVersion"].partition("/")[0], tree["kind"]) not in _SCALERS:
        return None
    spec: Any = tree.get("spec") if isinstance(tree.get("spec"), dict) else {}
    target: Any = spec.get("scaleTargetRef") if isinstance(spec.get("scaleTargetRef"), dict) else {}
    metadata = tree.get("metadata") if isinstance(tree.get("metadata"), dict) else {}
    return Scaler(
        tree["kind"],
        str(metadata.get("name", "?")),
        str(metadata.get("namespace") or ""),
        str(target.get("kind", "Deployment")),
        str(target.get("name", "")),
    )


def replicas(document: Document, one: Workload) -> int:
    """How many pods of this workload there are to be at once, as it is written; 1 where nothing is said."""
    places: dict[str, Path] = {
        "Job": ("spec", "parallelism"),
        "CronJob": ("spec", "jobTemplate", "spec", "parallelism"),
        "InferenceService": ("spec", "predictor", "minReplicas"),
    }
    value = document.get((*one.path, *places.get(one.kind, ("spec", "replicas"))))
    return value if isinstance(value, int) and one.kind != "Pod" else 1
