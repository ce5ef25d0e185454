"""Which container of a pod runs vLLM, and where its server listens."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dsobs.manifests.command_line import Command, image_command, serve_command
from dsobs.manifests.nodes import Path
from dsobs.manifests.options import Options
from dsobs.manifests.problem import ManifestError
from dsobs.manifests.text import Document
from dsobs.manifests.workloads import Workload
from dsobs.runtimes.control_folder import NEEDED

DEFAULT_PORT = 8000
"""Of `vllm serve` without `--port`."""
KSERVE_PORT = 8080
"""What KServe sends requests to where a container names no port."""
VLLMS_OWN = "vllm-openai"
"""The image that vLLM publishes, and copies of it: it has what the probes need."""
KSERVE_CONTAINER = "kserve-container"
_NOT_SERVING = {
    "router",
    "exporter",
    "gateway",
    "proxy",
    "operator",
    "benchmark",
    "bench",
    "controller",
    "tool",
    "tools",
}
_OPEN_HOSTS = {"", "0.0.0.0", "127.0.0.1", "localhost", "::"}  # noqa: S104 - what a server is told to listen on
_NAME = re.compile(r"\$\(?\{?([A-Za-z_][A-Za-z0-9_]*)[)}]?")


@dataclass(frozen=True, slots=True)
class Engine:
    """The container that runs vLLM's server."""

    path: Path
    """From the document's root."""
    name: str
    port: int
    scheme: str
    """`http` or `https`."""
    host: str
    """Where the server is reached from another container of the pod; `$(POD_IP)` where it listens on that alone."""
    host_variable: str
    """The engine's own variable that holds it; empty for a plain host."""
    command: Command | None
    """None where the image or a script decides what runs."""
    env: Mapping[str, str]
    """The variables that have plain values."""
    remarks: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """For the sidecar."""
        return f"{self.scheme}://{self.host}:{self.port}"

    def option(self, *names: str) -> str | None:
        """The value of one of the server's options; None if it is not given."""
        return self.command.option(*names) if self.command else None


@dataclass
class _Candidate:
    path: Path
    name: str
    tree: dict[str, Any]
    command: Command | None = None
    env: dict[str, str] = field(default_factory=dict)


def find_engine(document: Document, one: Workload, options: Options) -> Engine | None:
    """The engine of this workload; None if there is no vLLM in it. ManifestError where it can't be told which container
    it is, or where it listens."""
    containers = list(_containers(document, one, options.container))
    if options.container:
        chosen = [c for c in containers if c.name == options.container]
        if not chosen:
            return None
    else:
        chosen = [c for c in containers if c.command] or [c for c in containers if _is_vllm(c.tree)]
        if not chosen:
            return None
    if len(chosen) > 1:
        names = ", ".join(c.name for c in chosen)
        raise ManifestError(
            f"{len(chosen)} containers may be the engine: {names}; choose with --container {chosen[0].name}",
            document.line((*one.pod, "containers")),
        )
    return _engine(document, one, chosen[0], options)


def container_names(document: Document, one: Workload) -> list[str]:
    """Of the containers that could be named by --container."""
    return [c.name for c in _containers(document, one)]


def _containers(document: Document, one: Workload, wanted: str = "") -> Iterator[_Candidate]:
    pod = document.get(one.pod)
    found: list[tuple[Path, Any]] = []
    if one.kind == "InferenceService" and isinstance(pod.get("model"), dict):
        found.append(((*one.pod, "model"), pod["model"]))
    items = pod.get("containers")
    if items is not None and not isinstance(items, list):
        raise ManifestError(
            "containers is no list; write each container behind a dash", document.line((*one.pod, "containers"))
        )
    for index, item in enumerate(items if isinstance(items, list) else ()):
        name = item.get("name") if isinstance(item, dict) else None
        found.append(((*one.pod, "containers", ("name", name) if isinstance(name, str) else index), item))
    for path, tree in found:
        if not isinstance(tree, dict):
            raise ManifestError("is no container; write its name and image", document.line(path))
        name = str(tree.get("name") or (KSERVE_CONTAINER if one.kind == "InferenceService" else ""))
        if not name:
            raise ManifestError("a container has no name; write one", document.line(path))
        env = {
            str(item.get("name")): str(item["value"]) if item["value"] is not True else "true"
            for item in _dicts(tree.get("env"))
            if item.get("value") is not None
        }
        words, args = _words(tree.get("command")), _words(tree.get("args"))
        candidate = _Candidate(path, name, tree, serve_command(words, args, env), env=env)
        if candidate.command is None and not words and (_is_vllm(tree) or name == wanted):
            candidate.command = image_command(args, env)
        if name == wanted or not (candidate.command and "--headless" in candidate.command.options):
            yield candidate


def _is_vllm(tree: Mapping[str, Any]) -> bool:
    """Whether the image or KServe's model format says so, and no other program is started in it by name."""
    model_format = tree.get("modelFormat")
    if isinstance(model_format, dict) and str(model_format.get("name", "")).lower() == "vllm":
        return True
    name = _image_name(tree)
    words = set(re.split(r"[^a-z0-9]+", name))
    if "vllm" not in name or words & _NOT_SERVING:
        return False
    started = _words(tree.get("command"))
    program = started[0].rpartition("/")[2] if started else ""
    other = program and program not in {"sh", "bash", "dash", "python", "python3"} and not program.endswith(".sh")
    return not other and "ray start" not in " ".join((*started, *_words(tree.get("args"))))


def _image_name(tree: Mapping[str, Any]) -> str:
    """Without registry, folder, tag and digest, in small letters."""
    image = str(tree.get("image") or "").partition("@")[0]
    return re.sub(r":[^/]*$", "", image).rpartition("/")[2].lower()


def _engine(document: Document, one: Workload, chosen: _Candidate, options: Options) -> Engine:
    command = chosen.command
    if command is not None and command.option("--uds") is not None:
        raise ManifestError(
            f"the engine of container {chosen.name} listens on a Unix socket (--uds), which dsobs can't ask; "
            "give it --host and --port",
            document.line(chosen.path),
        )
    remarks: list[str] = []
    port = options.port or _port(document, one, chosen, remarks)
    host, variable = _host(chosen, remarks)
    tls = command is not None and command.option("--ssl-certfile", "--ssl-keyfile") is not None
    if tls:
        remarks.append(
            "the engine serves https: give dsobs its CA with --set target.ca_file=FILE, and a certificate that "
            f"is valid for {host}"
        )
    if _image_name(chosen.tree) != VLLMS_OWN:
        remarks.append(
            f"its image must have {NEEDED}, which the probes use: without sh its pods never get ready, without such a "
            "date no restart and no drain has an effect"
        )
    if command is not None and command.through_pipe:
        remarks.append("the engine's output goes through a pipe, which takes its signals and hides its exit code")
    return Engine(
        chosen.path, chosen.name, port, "https" if tls else "http", host, variable, command, chosen.env, tuple(remarks)
    )


def _port(document: Document, one: Workload, chosen: _Candidate, remarks: list[str]) -> int:
    declared = [
        item["containerPort"]
        for item in _dicts(chosen.tree.get("ports"))
        if isinstance(item.get("containerPort"), int) and item.get("protocol", "TCP") == "TCP"
    ]
    given = chosen.command.option("--port") if chosen.command else None
    if given is not None:
        if given.isdigit() and 0 < int(given) < 65536:
            return int(given)
        raise ManifestError(
            f"the engine's port is {given or 'empty'}, which the manifest does not tell; say it with --port",
            document.line(chosen.path),
        )
    default = KSERVE_PORT if one.kind == "InferenceService" else DEFAULT_PORT
    in_file = chosen.command is not None and "--config" in chosen.command.options
    if in_file or chosen.command is None or not chosen.command.arguments or one.kind == "InferenceService":
        where = "in the --config file" if in_file else "elsewhere"
        if len(declared) == 1:
            if declared[0] != default:
                remarks.append(
                    f"takes {declared[0]}, its containerPort, for the engine's port; else say it with --port"
                )
            return int(declared[0])
        if declared and default not in declared:
            raise ManifestError(
                f"the engine's port is set {where}, and containerPorts are {', '.join(map(str, declared))}; "
                "say it with --port",
                document.line(chosen.path),
            )
        if chosen.command is None and not declared:
            raise ManifestError(
                "the engine's port is set by what the container's command runs, and the manifest does not tell it; "
                "say it with --port",
                document.line(chosen.path),
            )
        if where != "elsewhere" or one.kind == "InferenceService":
            remarks.append(f"takes {default} for the engine's port, which may be set {where}; else say it with --port")
        return default
    if declared and default not in declared:
        remarks.append(
            f"containerPort is {', '.join(map(str, declared))}, but vLLM without --port listens on {default}"
        )
    return default


def _host(chosen: _Candidate, remarks: list[str]) -> tuple[str, str]:
    given = (chosen.command.option("--host") if chosen.command else None) or ""
    if given in _OPEN_HOSTS:
        return "127.0.0.1", ""
    if given == "::1":
        return "[::1]", ""
    match = _NAME.fullmatch(given)
    if match:
        for item in _dicts(chosen.tree.get("env")):
            source = item.get("valueFrom")
            reference = source.get("fieldRef") if isinstance(source, dict) else None
            path = reference.get("fieldPath") if isinstance(reference, dict) else None
            if item.get("name") == match[1] and path in ("status.podIP", "status.podIPs"):
                return "$(POD_IP)", match[1]
        remarks.append(f"can't tell what --host {given} is, and takes 127.0.0.1")
        return "127.0.0.1", ""
    return f"[{given}]" if ":" in given else given, ""


def _words(value: Any) -> Sequence[str]:
    return [str(word) for word in value] if isinstance(value, list) else ()


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
