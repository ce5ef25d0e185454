"""The Helm chart rendered, and its golden files: `python -m tests.deploy.chart` writes them.

A golden file is what `helm template` makes of one of the chart's examples, without what is told elsewhere word by word:
the engine's log handler, the rules and the dashboards.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dsobs.manifests.sidecar import LOG_CODE
from tests.manifests.golden import LEFT_OUT
from tests.real.kubernetes import tools

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/helm/dsobs"
EXAMPLES = CHART / "examples"
FOLDER = ROOT / "tests/data/chart"
OPERATOR = tuple(f"--api-versions=monitoring.coreos.com/v1/{kind}" for kind in ("PodMonitor", "PrometheusRule"))
"""As in a cluster that has the Prometheus operator."""

Objects = dict[tuple[str, str], dict[str, Any]]


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    """A `helm` that knows no cluster."""
    return subprocess.run(
        [str(tools.home() / "helm"), *words], capture_output=True, text=True, timeout=120, check=False
    )


def rendered(values: Mapping[str, Any] | str, *words: str, release: str = "chat") -> Objects:
    """(kind, name) → object, of these values or the example of that name; AssertionError with what helm says."""
    done = _template(values, *words, release=release)
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.safe_load_all(done.stdout) if each]
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert len(found) == len(objects)
    return found


def refused(values: Mapping[str, Any] | str, *words: str) -> list[str]:
    """The lines of a refusal."""
    done = _template(values, *words, release="chat")
    assert done.returncode != 0, done.stdout
    return done.stderr.strip().splitlines()


def _template(values: Mapping[str, Any] | str, *words: str, release: str) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({} if isinstance(values, str) else values, file)
        file.flush()
        given = EXAMPLES / f"{values}.yaml" if isinstance(values, str) else file.name
        return helm("template", release, str(CHART), f"--values={given}", "--namespace=inference", *words)


def examples() -> list[str]:
    """Their names."""
    return sorted(path.stem for path in EXAMPLES.iterdir())


def golden(name: str) -> str:
    """What is to stand in the golden file of an example."""
    texts = []
    for (kind, _), each in sorted(rendered(name, *OPERATOR).items()):
        if kind == "Deployment":
            each["spec"]["template"]["metadata"]["annotations"][LOG_CODE] = LEFT_OUT
        elif kind == "PrometheusRule":
            each["spec"] = "…"
        elif "-dashboard-" in each["metadata"]["name"]:
            each["data"] = sorted(each["data"])
        texts.append(yaml.safe_dump(each, allow_unicode=True, width=120))
    return re.sub(r" +$", "", "---\n".join(texts), flags=re.MULTILINE)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for example in examples():
        (FOLDER / f"{example}.yaml").write_text(golden(example), encoding="utf-8")
        print(f"wrote {FOLDER / example}.yaml")
