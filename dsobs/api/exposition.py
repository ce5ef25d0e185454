"""The metrics page: canonical signals and dsobs's own, by prometheus-client, in both exposition formats."""

import gzip
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from dsobs.model.samples import Page, Sample
from dsobs.model.signals import SIGNALS
from dsobs.telemetry import REGISTRY

TEXT = "text/plain; version=0.0.4; charset=utf-8"
_SUFFIXES = ("_bucket", "_count", "_sum")


def family_of(name: str) -> str:
    """The family that a sample's name belongs to: histograms lose `_bucket`, `_count`, `_sum`."""
    for suffix in _SUFFIXES:
        base = name.removesuffix(suffix)
        if base != name and base in SIGNALS and SIGNALS[base].type == "histogram":
            return base
    return name


def families(samples: Iterable[Sample]) -> Iterator[Metric]:
    """Samples as prometheus-client's metric families, in the catalogue's order; then what is not in it (ALERTS)."""
    grouped: dict[str, Metric] = {}
    for series, value, _ in samples:
        names = dict(series)
        name = names.pop("__name__")
        family = family_of(name)
        metric = grouped.get(family)
        if metric is None:
            signal = SIGNALS.get(family)
            kind, text = (signal.type, signal.help) if signal is not None else ("gauge", "Pending and firing alerts.")
            metric = grouped[family] = Metric(
                family.removesuffix("_total") if kind == "counter" else family, text, kind
            )
        metric.add_sample(name, names, value)
    for family in (*SIGNALS, *(name for name in grouped if name not in SIGNALS)):
        if family in grouped:
            yield _ordered(grouped[family])


def _ordered(metric: Metric) -> Metric:
    """OpenMetrics wants the samples of one histogram together, its buckets in order."""
    if metric.type == "histogram":
        metric.samples.sort(
            key=lambda s: (
                sorted((k, v) for k, v in s.labels.items() if k != "le"),
                not s.name.endswith("_bucket"),
                float(s.labels.get("le", "0")),
                s.name,
            )
        )
    return metric


def native(page: Page) -> Iterator[Metric]:
    """The engine's own families as they came, passed through as untyped so that nothing is claimed about them."""
    grouped: dict[str, Metric] = {}
    for series, value, _ in page.samples:
        names = dict(series)
        name = names.pop("__name__")
        # Those of the engine's own process would be taken for dsobs's.
        if name.startswith(("process_", "python_")):
            continue
        grouped.setdefault(name, Metric(name, "Passed through from the engine.", "unknown")).add_sample(
            name, names, value
        )
    yield from grouped.values()


class _Collector:
    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


def render(
    samples: Sequence[Sample], page: Page | None, accept: str, accept_encoding: str
) -> tuple[bytes, dict[str, str]]:
    """The page and its headers. `page`: the engine's own metrics to pass through, or None."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(lambda: families(samples)))
    if page is not None:
        registry.register(_Collector(lambda: native(page)))
    openmetrics = "application/openmetrics-text" in accept
    if openmetrics:
        end = b"# EOF\n"
        body = generate_openmetrics(registry).removesuffix(end) + generate_openmetrics(REGISTRY)
    else:
        body = generate_latest(registry) + generate_latest(REGISTRY)
    headers = {"Content-Type": OPENMETRICS if openmetrics else TEXT}
    if "gzip" in accept_encoding:
        body = gzip.compress(body, compresslevel=1)
        headers["Content-Encoding"] = "gzip"
    return body, headers
