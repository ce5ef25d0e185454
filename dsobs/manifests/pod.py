"""One pod: what is changed in it, step by step."""

import shlex
from collections.abc import Sequence
from typing import Any

from dsobs.config import Config, load
from dsobs.manifests import sidecar
from dsobs.manifests.changes import Changes
from dsobs.manifests.engine import Engine, find_engine
from dsobs.manifests.nodes import Path
from dsobs.manifests.options import Options
from dsobs.manifests.problem import ManifestError
from dsobs.manifests.text import Document
from dsobs.manifests.workloads import Scaler, Workload, replicas
from dsobs.runtimes import control_folder

_ASKS_ONLY = {"/health", "/healthz", "/ping", "/metrics", "/version", "/v1/models", "/load", "/"}
"""Paths that tell whether the API server answers, and nothing about the engine behind it."""


class PodInjection:
    """Puts the sidecar into the pod of one workload. `remarks` is what is to be said about it."""

    def __init__(self, document: Document, one: Workload, options: Options, scalers: Sequence[Scaler]) -> None:
        self.document = document
        self.workload = one
        self.options = options
        self.scalers = scalers
        self.remarks: list[tuple[Path, str]] = []
        """Each with the path that it is about."""

    def run(self) -> bool:
        """Does it; False where the pod has no engine. ManifestError where it can't be done."""
        engine = find_engine(self.document, self.workload, self.options)
        if engine is None:
            self._say((), "no container runs vLLM as far as can be told; left as it is")
            return False
        self._refuse(engine)
        self.changes = Changes(self.document, self.workload)
        self._refuse_taken_names()
        self._say(engine.path, f"dsobs watches container {engine.name} at {engine.url}")
        for remark in engine.remarks:
            self._say(engine.path, remark)
        logs = self._logs(engine)
        shm = self._shm(engine)
        variables = sidecar.variables(engine, self.options, logs=logs, shm=shm)
        config = load(None, {k: v for k, v in variables.items() if k != "DSOBS_CONFIG"}, {})
        self._probes(engine)
        self._engine_mounts(engine, logs=logs)
        self._volumes(config, logs=logs)
        self._sidecar(engine, config, variables, logs=logs, shm=shm)
        self._account()
        self._coordination()
        self.changes.write()
        return True

    # Refusals

    def _refuse(self, engine: Engine) -> None:
        policy = self._of(engine.path, "restartPolicy") or self._of(self.workload.pod, "restartPolicy")
        place = (*(engine.path if self._of(engine.path, "restartPolicy") else self.workload.pod), "restartPolicy")
        if policy == "Never":
            raise ManifestError(
                "restartPolicy is Never: kubelet would not start the engine again after a restart that dsobs asks for, "
                "and the pod would end; write Always (a Job takes OnFailure)",
                self.document.line(place),
            )
        if policy == "OnFailure":
            self._say(
                place,
                "restartPolicy is OnFailure: an engine that ends with exit code 0 when it is told to stop, as some "
                "versions do, is not started again; Always is safer where the kind allows it",
            )
        if self.workload.kind == "LeaderWorkerSet":
            self._refuse_group()
        if self.workload.kind == "InferenceService":
            mode = self._of((*self.workload.path, "metadata", "annotations"), "serving.kserve.io/deploymentMode")
            if mode not in ("RawDeployment", "Standard"):
                self._say(
                    self.workload.path,
                    "native sidecars need KServe's standard (raw) deployment: set the annotation "
                    "serving.kserve.io/deploymentMode: Standard (RawDeployment before 0.16), unless it is the "
                    "cluster's default",
                )
        if self._of(self.workload.pod, "hostNetwork") is True:
            self._say(
                (*self.workload.pod, "hostNetwork"),
                f"hostNetwork: dsobs listens on port {sidecar.PORT} of the node; two such pods on a node need "
                "--set api.listen=ADDRESS:PORT",
            )

    def _refuse_group(self) -> None:
        template = (*self.workload.path, "spec", "leaderWorkerTemplate")
        size = self._of(template, "size")
        if self.workload.pod[-2] == "workerTemplate" and size not in (None, 1):
            raise ManifestError(
                f"workerTemplate makes the leader and {size - 1 if isinstance(size, int) else 'the'} workers alike, "
                "and only the leader serves; write a leaderTemplate of its own",
                self.document.line((*template, "workerTemplate")),
            )
        if self._of(template, "restartPolicy") == "None" and size not in (None, 1):
            self._say(
                (*template, "restartPolicy"),
                "restartPolicy None: workers stay behind when the leader is restarted; RecreateGroupOnPodRestart "
                "restarts the group",
            )

    def _refuse_taken_names(self) -> None:
        pod = self.workload.pod
        for kind in ("containers", "initContainers"):
            path = (*pod, kind, ("name", sidecar.CONTAINER))
            if self.document.has(path) and not self.changes.added(path):
                raise ManifestError(
                    f"has a container {sidecar.CONTAINER} that `dsobs k8s inject` has not made; take it out or rename "
                    "it",
                    self.document.line(path),
                )
        for name in sidecar.VOLUMES:
            path = (*pod, "volumes", ("name", name))
            if self.document.has(path) and not self.changes.added(path):
                raise ManifestError(
                    f"has a volume {name} that `dsobs k8s inject` has not made; rename it", self.document.line(path)
                )

    # What the engine gets

    def _logs(self, engine: Engine) -> bool:
        """Whether the engine's log goes to a file too."""
        place = (*engine.path, "env", ("name", sidecar.LOGGING_VARIABLE))
        if self.document.has(place):
            if self.changes.added(place):
                return True
            self._say(
                place,
                f"{sidecar.LOGGING_VARIABLE} is set already and stays: dsobs does not ship this engine's log unless "
                "that configuration writes a file to a volume, which --set logs.files then names",
            )
            return False
        options = engine.command.options if engine.command else {}
        own = [name for name in options if name == "--log-config-file" or name.startswith("--logging-config")]
        if own:
            self._say(engine.path, f"{own[0]} stays in charge of the engine's log, which dsobs then does not ship")
            return False
        if engine.env.get("VLLM_CONFIGURE_LOGGING") == "0":
            self._say(engine.path, "VLLM_CONFIGURE_LOGGING is 0: the engine's log is not configured, and not shipped")
            return False
        if self.workload.kind == "InferenceService" and engine.command is None:
            return self._known_to_be_vllm(engine)
        return True

    def _known_to_be_vllm(self, engine: Engine) -> bool:
        model_format = self._of((*engine.path, "modelFormat"), "name")
        return str(model_format).lower() == "vllm"

    def _shm(self, engine: Engine) -> str:
        """The volume that is the engine's /dev/shm; empty if there is none."""
        mount = self.document.get((*engine.path, "volumeMounts", ("mountPath", "/dev/shm")))  # noqa: S108 - the engine's
        return str(mount["name"]) if isinstance(mount, dict) and mount.get("name") else ""

    def _engine_mounts(self, engine: Engine, *, logs: bool) -> None:
        changes = self.changes
        mounts = [{"name": sidecar.CONTROL, "mountPath": control_folder.MOUNT_PATH, "readOnly": True}]
        if logs:
            mounts.append({"name": sidecar.LOGS, "mountPath": sidecar.LOGS_PATH})
            mounts.append({"name": sidecar.LOGGING, "mountPath": sidecar.LOGGING_PATH, "readOnly": True})
            changes.add_item(
                (*engine.path, "env"),
                "name",
                {"name": sidecar.LOGGING_VARIABLE, "value": f"{sidecar.LOGGING_PATH}/logging.json"},
            )
            level = (engine.option("--log-level") or "").upper() or None
            paths = engine.option("--disable-access-log-for-endpoints") or ""
            without = tuple(path.strip() for path in paths.split(",") if path.strip())
            changes.set_key((*self.workload.annotations, sidecar.LOG_CODE), sidecar.log_code())
            changes.set_key((*self.workload.annotations, sidecar.LOG_CONFIG), sidecar.logging_config(level, without))
        for mount in mounts:
            place = (*engine.path, "volumeMounts", ("mountPath", str(mount["mountPath"])))
            other = self._of(place, "name")
            if other not in (None, mount["name"]):
                raise ManifestError(
                    f"container {engine.name} mounts {other} at {mount['mountPath']}, which dsobs needs; move it",
                    self.document.line(place),
                )
            changes.add_item((*engine.path, "volumeMounts"), "mountPath", mount)

    def _probes(self, engine: Engine) -> None:
        self._startup(engine)
        self._liveness(engine)
        self._readiness(engine)

    def _startup(self, engine: Engine) -> None:
        place = (*engine.path, "startupProbe")
        probe = self.document.get(place)
        if not isinstance(probe, dict):
            made = control_folder.startup_probe("/health", engine.port, scheme=engine.scheme.upper())
            self.changes.set_key(place, made)
            return
        period = probe.get("periodSeconds") if isinstance(probe.get("periodSeconds"), int) else 10
        failures = probe.get("failureThreshold") if isinstance(probe.get("failureThreshold"), int) else 3
        assert isinstance(period, int)
        assert isinstance(failures, int)
        if max(period, 1) * failures < control_folder.STARTUP_SECONDS:
            wanted = -(-control_folder.STARTUP_SECONDS // max(period, 1))
            self.changes.set_number((*place, "failureThreshold"), wanted)
            self._say(
                place,
                f"startupProbe gave the engine {max(period, 1) * failures} s and then killed it; it has 24 h now, and "
                "dsobs pages when the start-up budget is over",
            )

    def _liveness(self, engine: Engine) -> None:
        place = (*engine.path, "livenessProbe")
        wanted = control_folder.liveness_probe()
        probe = self.document.get(place)
        if isinstance(probe, dict) and probe != wanted and not self.changes.added(place):
            what = _handler(probe)
            if not self.changes.changed(place):
                if not _only_asks(probe) and not self.options.replace_liveness:
                    raise ManifestError(
                        f"container {engine.name} has a livenessProbe of its own ({what}); a container has one only, "
                        "and dsobs asks for restarts through it: take yours out, or replace it with "
                        "--replace-liveness-probe",
                        self.document.line(place),
                    )
                self._say(
                    place,
                    f"livenessProbe ({what}) is replaced: it restarts an engine that is only busy, and does not see "
                    "one that hangs; dsobs asks for a restart once a hang is certain",
                )
        self.changes.set_key(place, wanted)

    def _readiness(self, engine: Engine) -> None:
        place = (*engine.path, "readinessProbe")
        probe = self.document.get(place)
        if self.changes.added(place) or self.changes.changed(place):
            return
        if not isinstance(probe, dict):
            self.changes.set_key(place, _readiness(engine, "/health"))
            return
        handler = _handler(probe)
        get = probe.get("httpGet")
        execute = probe.get("exec")
        if isinstance(get, dict):
            port = self._port_number(engine, get.get("port"))
            if port is None or port != engine.port or get.get("host"):
                self._say(
                    place,
                    f"readinessProbe ({handler}) asks something else than the engine and stays; a drain does not show "
                    "in it",
                )
                return
            if get.get("httpHeaders"):
                self._say(place, "readinessProbe asks without its httpHeaders now")
            made = _readiness(engine, str(get.get("path") or "/"))
        elif isinstance(execute, dict) and isinstance(execute.get("command"), list):
            made = {"exec": {"command": ["sh", "-c", _held_or([str(word) for word in execute["command"]])]}}
        elif isinstance(probe.get("tcpSocket"), dict):
            made = _readiness(engine, "/health")
        else:
            self._say(place, f"readinessProbe ({handler}) stays; a drain does not show in it")
            return
        rest = {name: value for name, value in probe.items() if name not in ("httpGet", "exec", "tcpSocket")}
        if "timeoutSeconds" in rest or "exec" not in probe:
            rest["timeoutSeconds"] = max(control_folder.PROBE_TIMEOUT, rest.get("timeoutSeconds") or 0)
        self.changes.set_key(place, {"exec": made["exec"], **rest})
        self._say(place, f"readinessProbe ({handler}) asks the same from within the container, after drain and warm-up")

    def _port_number(self, engine: Engine, port: Any) -> int | None:
        """The number of a port that may be a name of the container's ports."""
        if isinstance(port, str) and not port.isdigit():
            found = self._of((*engine.path, "ports", ("name", port)), "containerPort")
            return found if isinstance(found, int) else None
        return int(port) if port is not None else None

    # What the pod gets

    def _volumes(self, config: Config, *, logs: bool) -> None:
        for volume in sidecar.volumes(self.options, config, logs=logs):
            place = (*self.workload.pod, "volumes", ("name", volume["name"]))
            self.changes.add_item((*self.workload.pod, "volumes"), "name", volume)
            limit = volume.get("emptyDir", {}).get("sizeLimit")
            if limit and self._of((*place, "emptyDir"), "sizeLimit") != limit:
                # A setting has changed what is kept there.
                self.document.put((*place, "emptyDir", "sizeLimit"), limit)

    def _sidecar(self, engine: Engine, config: Config, variables: dict[str, str], *, logs: bool, shm: str) -> None:
        pod = self.workload.pod
        place = (*pod, "initContainers", ("name", sidecar.CONTAINER))
        api_key = self._api_key(engine)
        if api_key is not None:
            variables = {"DSOBS_TARGET__API_KEY": f"env:{api_key['name']}", **variables}
        environment = sidecar.env(variables, api_key)
        mounts = sidecar.mounts(self.options, logs=logs, shm=shm)
        guaranteed = self._guaranteed()
        if not self.document.has(place):
            root = self._of((*pod, "securityContext"), "runAsUser") == 0
            disk = sidecar.state_limit_mib(config) + (sidecar.LOG_LIMIT_MIB if logs else 0)
            resources = sidecar.resources_of_sidecar(
                guaranteed=guaranteed, disk_mib=disk if self._disk_is_limited() else 0
            )
            made = sidecar.container(self.options, environment, mounts, resources, root_pod=root)
            self.changes.add_item((*pod, "initContainers"), "name", made)
            if guaranteed:
                self._say(
                    pod,
                    "the pod's QoS class is Guaranteed, and stays so: the sidecar gets a CPU limit, which it otherwise "
                    "does not have",
                )
            return
        # One that is there already keeps what was changed by hand; what this run is about is brought up to date.
        document = self.document
        if self.options.image_given and document.get((*place, "image")) != self.options.image:
            document.put((*place, "image"), self.options.image)
        elif document.get((*place, "image")) != self.options.image:
            self._say(
                place,
                f"the sidecar keeps its image {document.get((*place, 'image'))}; --image {self.options.image} replaces "
                "it",
            )
        for item in environment:
            there = (*place, "env", ("name", item["name"]))
            if not document.has(there):
                document.append((*place, "env"), item)
            elif "value" in item and document.get((*there, "value")) not in (None, item["value"]):
                document.put((*there, "value"), item["value"])
        for mount in mounts:
            if not document.has((*place, "volumeMounts", ("mountPath", mount["mountPath"]))):
                document.append((*place, "volumeMounts"), mount)
        if self.options.secret and not document.has((*place, "envFrom")):
            document.put((*place, "envFrom"), [{"secretRef": {"name": self.options.secret}}])

    def _api_key(self, engine: Engine) -> dict[str, Any] | None:
        """The variable of the engine that holds its API key, for the sidecar's own requests."""
        name = "VLLM_API_KEY"
        given = engine.option("--api-key")
        if given is not None:
            self._say(
                engine.path,
                "the engine's API key stands in its arguments: put it into a Secret, as the variable VLLM_API_KEY, and "
                "dsobs takes it from there; without it dsobs sends no synthetic requests",
            )
            return None
        item = self.document.get((*engine.path, "env", ("name", name)))
        if not isinstance(item, dict) or "DSOBS_TARGET__API_KEY" in self.options.settings:
            return None
        return {key: item[key] for key in ("name", "value", "valueFrom") if key in item}

    def _others(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Requests and limits of every container but the sidecar."""
        pod = self.document.get(self.workload.pod)
        containers = [item for kind in ("containers", "initContainers") for item in (pod.get(kind) or ())]
        containers.append(pod.get("model"))
        found = []
        for item in containers:
            if isinstance(item, dict) and item.get("name") != sidecar.CONTAINER:
                resources: Any = item.get("resources")
                resources = resources if isinstance(resources, dict) else {}
                found.append((resources.get("requests") or {}, resources.get("limits") or {}))
        return found

    def _guaranteed(self) -> bool:
        """Whether the pod's QoS class is Guaranteed without the sidecar."""
        return all(
            name in limits and str(requests.get(name, limits[name])) == str(limits[name])
            for requests, limits in self._others()
            for name in ("cpu", "memory")
        )

    def _disk_is_limited(self) -> bool:
        return any("ephemeral-storage" in limits for _, limits in self._others())

    def _account(self) -> None:
        pod = self.workload.pod
        place = (*pod, "automountServiceAccountToken")
        if self.changes.added(place):
            return
        name = self._of(pod, "serviceAccountName") or self._of(pod, "serviceAccount")
        written = self._of(pod, "automountServiceAccountToken")
        if written is None and name is None:
            self.changes.set_key(place, value=False)
            return
        if written is False:
            return
        whose = f"serviceAccountName {name}" if name else "automountServiceAccountToken"
        self._say(
            (*pod, "serviceAccountName" if name else "automountServiceAccountToken"),
            f"{whose} stays as it is, so that the engine's container has the pod's token too, and every right that is "
            "given to dsobs; automountServiceAccountToken: false with --token keeps it to the sidecar",
        )

    def _coordination(self) -> None:
        one, document = self.workload, self.document
        scalers = [scaler for scaler in self.scalers if scaler.scales(one)]
        count = replicas(document, one)
        why = ""
        if one.kind == "DaemonSet":
            why = "there is a pod on each node"
        elif scalers:
            why = f"{scalers[0].kind} {scalers[0].name} changes the number of pods"
        elif one.kind == "InferenceService" and self._of(one.pod, "maxReplicas") not in (None, 1):
            why = "maxReplicas lets KServe change the number of pods"
        elif count != 1:
            why = f"replicas is {count}"
        if why and "DSOBS_REMEDIATION__COORDINATION" not in self.options.settings:
            self._say(
                one.path,
                f"{why}, and the sidecars of one workload must not act at once: dsobs only observes until it has the "
                "right to a Lease, or until you set remediation.coordination",
            )

    def _say(self, path: Path, message: str) -> None:
        self.remarks.append((path, message))

    def _of(self, path: Path, name: str) -> Any:
        return self.document.get((*path, name))


def _handler(probe: dict[str, Any]) -> str:
    """What a probe does, in words."""
    get = probe.get("httpGet")
    if isinstance(get, dict):
        return f"httpGet {get.get('path') or '/'}"
    return next((name for name in ("tcpSocket", "exec", "grpc") if name in probe), "without a handler")


def _only_asks(probe: dict[str, Any]) -> bool:
    """Whether the probe only asks if the API server answers."""
    get = probe.get("httpGet")
    if isinstance(get, dict):
        return str(get.get("path") or "/").partition("?")[0] in _ASKS_ONLY
    execute = probe.get("exec")
    words = execute.get("command") if isinstance(execute, dict) else None
    if isinstance(words, list):
        text = " ".join(map(str, words))
        return any(tool in text for tool in ("curl", "wget")) and "/health" in text
    return "tcpSocket" in probe or not ({"grpc", "exec"} & set(probe))


def _readiness(engine: Engine, path: str) -> dict[str, Any]:
    if not engine.host_variable:
        return control_folder.readiness_probe(f"{engine.url}{path}")
    # The engine listens on the pod's address alone, which only its own variable tells there.
    probe = control_folder.readiness_probe(f"{engine.scheme}://ENGINE:{engine.port}{path}")
    words = probe["exec"]["command"]
    words[-1] = words[-1].replace("//ENGINE:", f'//"${engine.host_variable}":')
    return probe


def _held_or(words: list[str]) -> str:
    """POSIX sh: not ready while a drain or a warm-up request holds, else what this command says."""
    return control_folder.readiness_script(None).removesuffix("exit 0") + f"exec {shlex.join(words)}"
