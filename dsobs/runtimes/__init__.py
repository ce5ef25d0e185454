"""What runs the engine, and so can restart it: a supervised process, Docker, …

A runtime is one module with a class of the `dsobs.model.runtime.Runtime` protocol and one entry point of the group
`dsobs.runtimes`: a coroutine function (settings, target) → runtime, or `Unknown` with the reason why there is none.
"""

import logging
import os
from typing import Protocol, runtime_checkable

from dsobs import plugins
from dsobs.config.models import Remediation, RuntimeSettings, Target
from dsobs.model.observation import Unknown
from dsobs.model.runtime import Runtime
from dsobs.model.turn import Turn

log = logging.getLogger(__name__)

IN_POD = "KUBERNETES_SERVICE_HOST"
"""kubelet sets it in every container of a pod."""


@runtime_checkable
class Coordinates(Protocol):
    """A runtime whose engine is one replica of a workload, and that can ask the others."""

    def turn(self, settings: Remediation) -> Turn | Unknown:
        """By these settings from now on; Unknown, with the reason, where there is nobody to ask."""
        ...


async def select(settings: RuntimeSettings, target: Target) -> Runtime | Unknown:
    """The runtime that the settings name; LookupError for a name that there is not.

    `auto` is a process under `dsobs supervise` if its socket is there; else in a pod Kubernetes, where it can be used;
    else the process that listens on the port, to look at, and why it is not Kubernetes is logged.
    """
    found: Runtime | Unknown
    if settings.name == "none":
        return Unknown("no runtime (runtime.name is none)")
    name, passed_over = settings.name, None
    if name == "auto":
        if IN_POD in os.environ and not settings.supervisor_socket.exists():
            found = await plugins.load("dsobs.runtimes", "kubernetes")(settings, target)
            if not isinstance(found, Unknown):
                return found
            passed_over = found.reason
        name = "process"
    found = await plugins.load("dsobs.runtimes", name)(settings, target)
    if passed_over is not None:
        if isinstance(found, Unknown):
            return Unknown(f"{passed_over}; {found.reason}")
        log.warning("the engine is only looked at, nothing restarts it by Kubernetes: %s", passed_over)
    return found
