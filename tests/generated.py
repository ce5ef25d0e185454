"""Files that code writes: `python -m tests.generated` writes them, `--check` names those that differ."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from dsobs_nvml import documentation as nvml

from dashboards import saved_objects as kibana
from dashboards import source as grafana
from dashboards.source import runbooks
from dsobs.api.reference import metrics_page
from dsobs.cli.reference import commands_page
from dsobs.config.models import Rules
from dsobs.config.reference import schema_text, settings_page
from dsobs.indicators import RULES_FILE, indicators_page, rules_file
from dsobs.logs import metrics as log_metrics
from dsobs.rules.catalogue import rules_page
from tests.deploy import packaged
from tests.log_faults import page as log_faults_page

ROOT = Path(__file__).parent.parent

NVML_README = "exporters/nvml/README.md"


def nvml_readme() -> str:
    """Of dsobs-nvml, whose tables are generated and whose text is not."""
    return nvml.written((ROOT / NVML_README).read_text(encoding="utf-8"))


def runbook(alert: str) -> str:
    """Of a shipped rule, whose text is written by hand, with the address of its panel."""
    return runbooks.with_link(alert, (ROOT / "docs" / "runbooks" / f"{alert}.md").read_text(encoding="utf-8"))


def metrics() -> str:
    """Of the sidecar and of log shipping."""
    return metrics_page(vars(log_metrics).values())


GENERATED: Sequence[tuple[str, Callable[[], str]]] = (
    ("docs/reference/settings.md", settings_page),
    ("docs/reference/config.schema.json", schema_text),
    ("docs/reference/cli.md", commands_page),
    (f"alerts/{RULES_FILE}", lambda: rules_file(Rules())),
    ("docs/indicators.md", indicators_page),
    ("docs/reference/rules.md", rules_page),
    ("docs/reference/metrics.md", metrics),
    ("docs/reference/log-faults.md", log_faults_page),
    (NVML_README, nvml_readme),
    *((f"dashboards/grafana/{name}.json", partial(grafana.text, name)) for name in grafana.DASHBOARDS),
    *((f"docs/runbooks/{alert}.md", partial(runbook, alert)) for alert in runbooks.PANELS),
    *((f"dashboards/kibana/{name}.ndjson", partial(kibana.text, name)) for name in kibana.FILES),
    # Copies of others of these files.
    *packaged.files(),
)
"""Path from the repository's root, and what gives the file's text; what is made of another of them stands after it.
A part that generates a file adds its line here."""


def _differs(path: Path, text: Callable[[], str]) -> bool:
    return not path.is_file() or path.read_text() != text()


def differing(root: Path = ROOT) -> list[str]:
    """Paths of the files under `root` that are not as the code would write them."""
    return [path for path, text in GENERATED if _differs(root / path, text)]


def main(arguments: Sequence[str]) -> int:
    """Writes what differs, or under `--check` names it and returns 1."""
    if "--check" in arguments:
        paths = differing()
        for path in paths:
            print(f"{path}: not as generated; run `make generate`", file=sys.stderr)
        return 1 if paths else 0
    for path, text in GENERATED:
        if _differs(ROOT / path, text):
            (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / path).write_text(text())
            print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
