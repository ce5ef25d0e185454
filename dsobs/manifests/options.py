"""What the user asks of an injection."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Options:
    """Each as the flag of its name."""

    image: str
    """The sidecar's image."""
    image_given: bool = False
    """Whether the user named it: then it replaces that of a sidecar which is there already."""
    container: str = ""
    """Name of the engine's container; empty: it is found."""
    port: int | None = None
    """Of the engine's HTTP server; None: it is found."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables of dsobs's settings and their values, as `DSOBS_REMEDIATION__MODE`: `enforce`."""
    config_map: str = ""
    """A ConfigMap whose `dsobs.yaml` is the settings file."""
    secret: str = ""
    """A Secret whose keys become variables of the sidecar."""
    token: bool = False
    """Mount a token of the pod's service account in the sidecar, and there only."""
    replace_liveness: bool = False
    """Replace a liveness probe even if it is none that only asks whether the server answers."""
