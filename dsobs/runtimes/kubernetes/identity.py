"""Which pod this is, by the downward API: variables, or the files of a volume."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsobs.model.observation import Unknown


@dataclass(frozen=True, slots=True)
class Identity:
    """One pod."""

    namespace: str
    name: str
    uid: str | None = None
    """Where it is told: another pod may have the name by now."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def read_identity(environment: Mapping[str, str], folder: Path) -> Identity | Unknown:
    """The pod by POD_NAME, POD_NAMESPACE and POD_UID, else by the files `name`, `namespace` and `uid` in `folder`.

    A host name is not taken for the pod's name: with hostNetwork it is the node's.
    """
    name = environment.get("POD_NAME") or _file(folder / "name")
    namespace = environment.get("POD_NAMESPACE") or _file(folder / "namespace")
    if not name or not namespace:
        missing = " and ".join(
            variable for variable, value in (("POD_NAME", name), ("POD_NAMESPACE", namespace)) if not value
        )
        return Unknown(
            f"{missing} not set: which pod this is is not known; set it from the downward API (valueFrom.fieldRef: "
            "metadata.name, metadata.namespace)"
        )
    return Identity(namespace, name, environment.get("POD_UID") or _file(folder / "uid") or None)


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
