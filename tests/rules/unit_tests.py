"""Runs a rule test file of promtool's format through the real evaluator and store.

https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/, without `promql_expr_test`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dsobs.model.alert import Alert, AlertState
from dsobs.model.samples import labels_of
from dsobs.rules.duration import duration_seconds
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import load
from dsobs.series.store import Store

_TERM = re.compile(r"(?P<start>-?[\d.]+)(?P<step>[+-][\d.]+)?x(?P<count>\d+)")


def values(notation: str) -> Iterator[float | None]:
    """The values of `0 1 2x3 5+1x2 _x4`; None where there is no sample."""
    for term in notation.split():
        if term == "_":
            yield None
        elif term.startswith("_x"):
            yield from [None] * int(term[2:])
        elif match := _TERM.fullmatch(term):
            step = float(match["step"] or 0)
            yield from (float(match["start"]) + step * i for i in range(int(match["count"]) + 1))
        else:
            yield float(term)


def series(notation: str) -> dict[str, str]:
    """`{__name__: …, …}` of `name{label="value"}`."""
    name, _, rest = notation.partition("{")
    return {"__name__": name, **dict(re.findall(r'(\w+)="([^"]*)"', rest))}


def firing(path: Path, test: dict[str, Any], evaluation_interval: float, at: float) -> list[Alert]:
    """The alerts that fire at `at` seconds of this test group."""
    document = yaml.safe_load(path.read_text())
    store = Store()
    evaluator = Evaluator(load([path.parent / file for file in document["rule_files"]]), store)
    for name in evaluator.metric_names:
        store.want(name)
    interval = duration_seconds(test["interval"])
    inputs = [(labels_of(series(s["series"])), list(values(s["values"]))) for s in test["input_series"]]
    grid = {step * interval for step in range(max(len(v) for _, v in inputs))}
    ticks = {step * evaluation_interval for step in range(int(at / evaluation_interval) + 1)}
    for now in sorted(t for t in grid | ticks if t <= at):
        if now in grid:
            index = round(now / interval)
            for labels, sequence in inputs:
                if index < len(sequence) and (value := sequence[index]) is not None:
                    store.append(labels, now, value)
        if now in ticks:
            evaluator.evaluate(now)
    return [alert for alert in evaluator.alerts() if alert.state is AlertState.FIRING]
