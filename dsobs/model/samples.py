"""Samples as every part of dsobs hands them on."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""A series' identity: (name, value) pairs sorted by name, no empty values; the metric's name is under `__name__`."""


def labels(name: str = "", /, **values: str) -> Labels:
    """The `Labels` of metric `name` with these label values; empty values are left out."""
    return labels_of({**values, "__name__": name})


def labels_of(values: Mapping[str, str] | Iterable[tuple[str, str]]) -> Labels:
    """The `Labels` of a mapping or of (name, value) pairs; empty values are left out."""
    return tuple(sorted((k, v) for k, v in dict(values).items() if v))


def metric_name(series: Labels) -> str:
    """The metric's name, or "" where there is none."""
    for name, value in series:
        if name == "__name__":
            return value
    return ""


class Sample(NamedTuple):
    """One reading of one series."""

    labels: Labels
    value: float
    timestamp: float | None = None
    """Seconds since the Unix epoch, where the page gave one."""


class Page(NamedTuple):
    """A parsed exposition page. Names are as on the page (vLLM's with `:`)."""

    samples: list[Sample]
    types: Mapping[str, str]
    """Metric family → counter, gauge, histogram, summary, untyped, …"""
    helps: Mapping[str, str]
