"""What `dsobs k8s inject` puts into a pod: names, volumes, the sidecar's container, vLLM's logging."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from dsobs.config import Config
from dsobs.manifests.engine import Engine
from dsobs.manifests.options import Options
from dsobs.runtimes import control_folder

CONTAINER = "dsobs"
CONTROL, LOGS, STATE, LOGGING, TOKEN, CONFIG = (
    "dsobs-control",
    "dsobs-logs",
    "dsobs-state",
    "dsobs-engine-logging",
    "dsobs-token",
    "dsobs-config",
)
VOLUMES = (CONTROL, LOGS, STATE, LOGGING, TOKEN, CONFIG)
LOGS_PATH = "/var/log/engine"
"""Where the engine writes its log, and the sidecar reads it."""
LOG_FILE = f"{LOGS_PATH}/vllm.log"
LOGGING_PATH = "/etc/dsobs-engine"
"""Where the engine finds its logging configuration."""
STATE_PATH = "/var/lib/dsobs"
CONFIG_PATH = "/etc/dsobs"
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - where clients look for it
SHM_PATH = "/run/engine-shm"
PORT = 9940

MIB = 1 << 20
LOG_BYTES, LOG_FILES = 16 * MIB, 5
"""Of one file of the engine's log, and how many there are. With what rotation may lag behind (a quarter) they are 100
MiB at most."""
LOG_LIMIT_MIB = 256
"""sizeLimit of the engine's log; passing it would evict the pod, so the files stay under half of it."""
DATABASES_MIB = 128
"""Room for state.db, logs.db, their journals, and what is made while a file is rewritten."""
DEAD_LETTERS_MIB = 256
"""What `dsobs.logs.dead_letters` keeps at most."""

LOG_CODE, LOG_CONFIG = "dsobs.io/engine-log.py", "dsobs.io/engine-logging.json"
"""Annotations of the pods, which the engine sees as files: nothing has to run before it, and nothing can be missing."""

LOGGING_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"


def state_limit_mib(config: Config) -> int:
    """sizeLimit of the volume of state: what these settings let dsobs keep is under half of it. In MiB."""
    kept = (config.state.recorder_max_bytes + config.state.incident_max_bytes + config.logs.file.max_bytes) / MIB
    needed = kept + DEAD_LETTERS_MIB + DATABASES_MIB
    return 256 * (int(2 * needed) // 256 + 1)


def logging_config(level: str | None, without_access: tuple[str, ...]) -> str:
    """vLLM's logging configuration, as JSON: its stdout as it is without one, and the file.

    vLLM hands it to uvicorn too, so that uvicorn's own defaults stand in it. A handler that the engine's Python does
    not have comes from a file, by what `logging.config` offers: a filter that is the result of `runpy.run_path`, and
    `cfg://` to take the handler's class out of it.
    """
    handler = {"()": "cfg://filters.dsobs[RotatingFile]", "filename": LOG_FILE, "max_bytes": LOG_BYTES}
    stream = {"class": "logging.StreamHandler"}
    filters: dict[str, Any] = {"dsobs": {"()": "runpy.run_path", "path_name": f"{LOGGING_PATH}/engine_log.py"}}
    access: dict[str, Any] = {}
    if without_access:
        filters["access"] = {
            "()": "vllm.logging_utils.UvicornAccessLogFilter",
            "excluded_paths": list(without_access),
        }
        access = {"filters": ["access"]}
    console = {"()": "cfg://filters.dsobs[console]"}
    return json.dumps(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": filters,
            "formatters": {
                "default": {
                    "()": "uvicorn.logging.DefaultFormatter",
                    "fmt": "%(levelprefix)s %(message)s",
                    "use_colors": None,
                },
                "access": {
                    "()": "uvicorn.logging.AccessFormatter",
                    "fmt": '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s',
                },
            },
            "handlers": {
                "vllm": {**console, "level": level} if level else console,
                "file": {**handler, "files": LOG_FILES, **access},
                "default": {**stream, "formatter": "default", "stream": "ext://sys.stderr"},
                "access": {**stream, "formatter": "access", "stream": "ext://sys.stdout", **access},
            },
            "loggers": {
                "vllm": {
                    "handlers": ["vllm", "file"],
                    "level": level or "cfg://filters.dsobs[LEVEL]",
                    "propagate": False,
                },
                "uvicorn": {"handlers": ["default", "file"], "level": "INFO", "propagate": False},
                "uvicorn.error": {"level": "INFO"},
                "uvicorn.access": {"handlers": ["access", "file"], "level": "INFO", "propagate": False},
            },
        }
    )


def log_code() -> str:
    """The text of `dsobs.manifests.engine_log`."""
    return files("dsobs.manifests").joinpath("engine_log.py").read_text(encoding="utf-8")


def volumes(options: Options, config: Config, *, logs: bool) -> list[dict[str, Any]]:
    """The volumes of the pod."""
    made: list[dict[str, Any]] = [
        {"name": CONTROL, "emptyDir": {"sizeLimit": control_folder.SIZE_LIMIT}},
        {"name": STATE, "emptyDir": {"sizeLimit": f"{state_limit_mib(config)}Mi"}},
    ]
    if logs:
        made += [
            {"name": LOGS, "emptyDir": {"sizeLimit": f"{LOG_LIMIT_MIB}Mi"}},
            {
                "name": LOGGING,
                "downwardAPI": {
                    "items": [
                        {"path": name, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
                        for name, annotation in (("logging.json", LOG_CONFIG), ("engine_log.py", LOG_CODE))
                    ]
                },
            },
        ]
    if options.config_map:
        made.append({"name": CONFIG, "configMap": {"name": options.config_map}})
    if options.token:
        made.append({"name": TOKEN, "projected": {"sources": _token_sources()}})
    return made


def _token_sources() -> list[dict[str, Any]]:
    """What a pod gets by itself where a token is mounted automatically."""
    return [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]


def mounts(options: Options, *, logs: bool, shm: str) -> list[dict[str, Any]]:
    """Of the sidecar. `shm`: the volume that is the engine's /dev/shm, or empty."""
    made: list[dict[str, Any]] = [
        {"name": CONTROL, "mountPath": control_folder.MOUNT_PATH},
        {"name": STATE, "mountPath": STATE_PATH},
    ]
    if logs:
        made.append({"name": LOGS, "mountPath": LOGS_PATH, "readOnly": True})
    if shm:
        made.append({"name": shm, "mountPath": SHM_PATH, "readOnly": True})
    if options.config_map:
        made.append({"name": CONFIG, "mountPath": CONFIG_PATH, "readOnly": True})
    if options.token:
        made.append({"name": TOKEN, "mountPath": TOKEN_PATH, "readOnly": True})
    return made


def variables(engine: Engine, options: Options, *, logs: bool, shm: str) -> dict[str, str]:
    """The variables of dsobs's settings, those of the user last."""
    own = {
        "DSOBS_TARGET__URL": engine.url,
        "DSOBS_RUNTIME__NAME": "kubernetes",
        "DSOBS_RUNTIME__CONTAINER": engine.name,
        "DSOBS_API__LISTEN": f"0.0.0.0:{PORT}",
        "DSOBS_STATE__DIRECTORY": STATE_PATH,
    }
    if logs:
        own["DSOBS_LOGS__FILES"] = f"vllm-json:{LOG_FILE}*"
        own["DSOBS_LOGS__EXCLUDE"] = f"{LOG_FILE}.lock"
    if shm:
        own["DSOBS_HOST__SHM"] = SHM_PATH
    if options.config_map:
        own["DSOBS_CONFIG"] = f"{CONFIG_PATH}/dsobs.yaml"
    return {**own, **options.settings}


_FIELDS = {
    "POD_NAME": "metadata.name",
    "POD_NAMESPACE": "metadata.namespace",
    "POD_UID": "metadata.uid",
    "POD_IP": "status.podIP",
    "NODE_NAME": "spec.nodeName",
    "HOST_IP": "status.hostIP",
}


def env(settings: Mapping[str, str], api_key: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Of the sidecar. The pod's own facts stand before what may refer to them as `$(NAME)`."""
    made: list[dict[str, Any]] = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in _FIELDS.items()
    ]
    if api_key is not None:
        made.append(api_key)
    return made + [{"name": name, "value": value} for name, value in settings.items()]


CPU_REQUEST, MEMORY = "50m", "192Mi"
GUARANTEED_CPU = "500m"
DISK_REQUEST = "128Mi"


def resources_of_sidecar(*, guaranteed: bool, disk_mib: int) -> dict[str, Any]:
    """A memory limit, so that a leak ends the sidecar and not the engine; no CPU limit, which would only slow it down
    in the moment it is needed. A pod whose class is Guaranteed keeps it: every limit is there, and is the request.

    `disk_mib`: what the volumes may hold, where the pod's disk space is limited. A volume counts towards the limits of
    all containers together, so that without one of its own the sidecar would take from the engine's.
    """
    requests = {"cpu": GUARANTEED_CPU if guaranteed else CPU_REQUEST, "memory": MEMORY}
    limits = dict(requests) if guaranteed else {"memory": MEMORY}
    if disk_mib:
        requests["ephemeral-storage"] = DISK_REQUEST
        limits["ephemeral-storage"] = f"{disk_mib}Mi"
    return {"requests": requests, "limits": limits}


def container(
    options: Options,
    environment: list[dict[str, Any]],
    volume_mounts: list[dict[str, Any]],
    resources: dict[str, Any],
    *,
    root_pod: bool,
) -> dict[str, Any]:
    """The sidecar: native, so that it starts before the engine and ends after it. It has no probes: a readiness of its
    own would take the pod out of service with it, and a restart would too."""
    made: dict[str, Any] = {
        "name": CONTAINER,
        "image": options.image,
        "restartPolicy": "Always",
        "args": ["run"],
        "env": environment,
    }
    if options.secret:
        made["envFrom"] = [{"secretRef": {"name": options.secret}}]
    security: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if root_pod:
        security |= {"runAsUser": 65532, "runAsGroup": 65532}
    return made | {
        "ports": [{"name": "dsobs", "containerPort": PORT}],
        "lifecycle": {"preStop": control_folder.sidecar_pre_stop()},
        "resources": resources,
        "securityContext": security,
        "volumeMounts": volume_mounts,
    }
