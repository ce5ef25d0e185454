"""What a rule says that is no mistake for sure and is likely one: a metric or a severity that there is not."""

import difflib
from collections.abc import Iterator, Sequence

from prometheus_client import Counter, Gauge, Histogram

from dsobs import telemetry
from dsobs.logs import metrics as log_metrics
from dsobs.model.signals import SIGNALS
from dsobs.notifiers.messages import SEVERITIES, known_severity
from dsobs.rules.files import AlertRule, Group, RecordingRule
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


def notes(groups: Sequence[Group]) -> list[Problem]:
    """All of them, by place."""
    found = [*unknown_metrics(groups), *unknown_severities(groups)]
    return sorted(found, key=lambda problem: (problem.file, problem.line))


def unknown_severities(groups: Sequence[Group]) -> Iterator[Problem]:
    """Words that count as a warning, so that a pager that takes none is never told. Templates are known only later."""
    for group in groups:
        for rule in group.rules:
            if not isinstance(rule, AlertRule):
                continue
            word = next((template.text for name, template in rule.labels if name == "severity"), "")
            if word and "{{" not in word and not known_severity(word):
                near = difflib.get_close_matches(word.lower(), SEVERITIES, 1, cutoff=0.7)
                advice = f"did you mean {near[0]}?" if near else f"there are {', '.join(SEVERITIES)}"
                text = f"severity {word!r} counts as a warning; {advice}"
                yield Problem(group.file, rule.line, group.name, rule.name, text)


def unknown_metrics(groups: Sequence[Group]) -> Iterator[Problem]:
    """Those by dsobs's prefix that neither dsobs nor a recording rule of these groups gives."""
    names = known() | {rule.name for group in groups for rule in group.rules if isinstance(rule, RecordingRule)}
    for group in groups:
        for rule in group.rules:
            for name in sorted({name for query in rule.queries for name in query.metric_names} - names):
                if name.startswith("dsobs_") and not name.startswith(_EXPORTER):
                    near = difflib.get_close_matches(name, names, 1, cutoff=0.8)
                    advice = f"did you mean {near[0]}?" if near else "docs/reference/metrics.md has all"
                    yield Problem(group.file, rule.line, group.name, rule.name, f"there is no metric {name}; {advice}")
