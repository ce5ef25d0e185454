"""What deploy/ holds twice since a chart and a Compose project must be whole: copies, and what code knows.

`tests.generated` writes these files and names those that differ.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from dsobs.config.reference import schema_text
from dsobs.manifests import Options, inject
from dsobs.manifests.changes import ANNOTATION
from dsobs.manifests.sidecar import log_code, logging_config

ROOT = Path(__file__).parents[2]
CHART = "deploy/helm/dsobs"
COPIED = (("alerts", "*.rules.yaml", "rules"), ("deploy/rbac", "*.yaml", "rbac"))
"""Folder, pattern, and the folder of the chart's files that has them too."""
DASHBOARDS = ("dashboards/grafana", "*.json", "dashboards")
ENGINE_LOG = "deploy/compose/engine-log"

Generated = tuple[str, Callable[[], str]]


def files() -> Sequence[Generated]:
    """Path from the repository's root, and what gives the file's text."""
    copies = [
        (f"{CHART}/files/{into}/{source.name}", lambda source=source: source.read_text(encoding="utf-8"))
        for folder, pattern, into in (*COPIED, DASHBOARDS)
        for source in sorted((ROOT / folder).glob(pattern))
    ]
    return (
        *copies,
        (f"{CHART}/files/pod.json", pod_text),
        (f"{CHART}/values.schema.json", values_schema_text),
        (f"{ENGINE_LOG}/engine_log.py", log_code),
        (f"{ENGINE_LOG}/logging.json", lambda: logging_config(None, ()) + "\n"),
    )


def values_schema_text() -> str:
    """The schema of the chart's values, in which `settings` are dsobs's own."""
    schema = json.loads((ROOT / CHART / "values.schema.json").read_text(encoding="utf-8"))
    own = json.loads(schema_text())
    schema["$defs"] = own.pop("$defs")
    own.pop("$schema")
    schema["properties"]["settings"] = own
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _engine(resources: dict[str, Any]) -> str:
    """A vLLM without dsobs, as the chart has it."""
    container = {
        "name": "vllm",
        "image": "vllm/vllm-openai",
        "args": ["--port=8000"],
        "resources": resources,
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    template = {
        "metadata": {"labels": {"app": "vllm"}},
        "spec": {"containers": [container], "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}]},
    }
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "vllm"}}, "template": template}
    tree = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "vllm"}, "spec": spec}
    return yaml.safe_dump(tree)


def _injected(resources: dict[str, Any]) -> dict[str, Any]:
    """The pod template that `dsobs k8s inject` makes of it."""
    options = Options("IMAGE", config_map="CONFIG", secret="SECRET", token=True)
    outcome = inject(_engine(resources), "vllm.yaml", options)
    assert outcome.problems == []
    template: dict[str, Any] = yaml.safe_load(outcome.text)["spec"]["template"]
    return template


def pod_text() -> str:
    """What `dsobs k8s inject` adds to a vLLM, for the chart to add it too."""
    template = _injected({})
    engine, (sidecar,) = template["spec"]["containers"][0], template["spec"]["initContainers"]
    annotations = {key: value for key, value in template["metadata"]["annotations"].items() if key != ANNOTATION}
    every = {"cpu": "1", "memory": "1Gi"}
    guaranteed = _injected({"limits": every, "requests": every})
    limited = _injected({"limits": {"ephemeral-storage": "1Gi"}})
    found = {
        "annotations": annotations,
        "engine": {
            "probes": {key: engine[key] for key in ("startupProbe", "livenessProbe", "readinessProbe")},
            "env": engine["env"],
            "volumeMounts": engine["volumeMounts"][1:],
        },
        "sidecar": sidecar,
        "guaranteedResources": guaranteed["spec"]["initContainers"][0]["resources"],
        "diskRequest": limited["spec"]["initContainers"][0]["resources"]["requests"]["ephemeral-storage"],
        "volumes": template["spec"]["volumes"][1:],
    }
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
