"""Which metrics a rule can name: a rule on one that there is not never says anything."""

import difflib
from collections.abc import Iterator, Sequence

from prometheus_client import Counter, Gauge, Histogram

from dsobs import telemetry
from dsobs.logs import metrics as log_metrics
from dsobs.model.signals import SIGNALS
from dsobs.rules.files import Group, RecordingRule
from dsobs.rules.reader import Problem

_EXPORTER = "dsobs_nvml_"
"""Of dsobs-nvml's own metrics, which Prometheus reads from it."""
_PARTS = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}


def known() -> frozenset[str]:
    """The series of dsobs's own metrics and of the canonical signals."""
    signals = {
        signal.name + part
        for signal in SIGNALS.values()
        for part in (_PARTS["histogram"] if signal.type == "histogram" else ("",))
    }
    own = {
        told.name + part
        for metric in (*vars(telemetry).values(), *vars(log_metrics).values())
        if isinstance(metric, (Counter, Gauge, Histogram))
        for told in metric.describe()
        for part in _PARTS.get(told.type, ("",))
    }
    return frozenset(signals | own)


def unknown(groups: Sequence[Group]) -> Iterator[Problem]:
    """Metrics by dsobs's prefix that neither dsobs nor a recording rule of these groups gives."""
    names = known() | {rule.name for group in groups for rule in group.rules if isinstance(rule, RecordingRule)}
    for group in groups:
        for rule in group.rules:
            for name in sorted({name for query in rule.queries for name in query.metric_names} - names):
                if name.startswith("dsobs_") and not name.startswith(_EXPORTER):
                    near = difflib.get_close_matches(name, names, 1, cutoff=0.8)
                    advice = f"did you mean {near[0]}?" if near else "docs/reference/metrics.md has all"
                    yield Problem(group.file, rule.line, group.name, rule.name, f"there is no metric {name}; {advice}")
