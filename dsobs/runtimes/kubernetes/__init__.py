"""An engine that kubelet runs: a container of the pod that this sidecar is in.

It is restarted by a request file that its liveness probe reads (`dsobs.runtimes.control_folder`), which takes no right
at all. What the API server adds where the service account may read its own pod is sight: restarts and their causes, the
pod's end, and who else is at work on it. Without it, or while the server is away, the engine is seen by its page and by
its port alone, and all that a restart needs is there.
"""

import os

from dsobs.config.models import RuntimeSettings, Target
from dsobs.model.observation import Unknown
from dsobs.runtimes.control_folder import ControlFolder, FolderBusyError, unusable
from dsobs.runtimes.kubernetes.api import Api, open_api
from dsobs.runtimes.kubernetes.identity import read_identity
from dsobs.runtimes.kubernetes.runtime import KubernetesRuntime

__all__ = ["KubernetesRuntime", "open_runtime"]


async def open_runtime(settings: RuntimeSettings, target: Target) -> KubernetesRuntime | Unknown:
    """Entry point. Unknown where there is neither a control folder nor a way to the API server, and where the folder
    belongs to another sidecar of the pod."""
    identity = read_identity(os.environ, settings.pod_info)
    folder = ControlFolder(settings.control_folder)
    no_folder = unusable(settings.control_folder)
    if no_folder is None:
        try:
            folder.take()
        except FolderBusyError as error:
            return Unknown(str(error))
        except OSError as error:
            no_folder = f"the control folder {settings.control_folder} can't be used: {error}"
    api: Api | Unknown = identity if isinstance(identity, Unknown) else open_api(settings.service_account, identity)
    if no_folder is not None and isinstance(api, Unknown):
        return Unknown(f"{no_folder}; {api.reason}")
    return KubernetesRuntime(settings, target, folder, api, no_folder=no_folder)
