"""The metrics page: canonical signals and dsobs's own, written by prometheus-client in both exposition formats."""

import gzip
import math
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from dsobs.model.samples import Labels, Page, Sample, metric_name
from dsobs.model.signals import SIGNALS, is_passed
from dsobs.telemetry import REGISTRY

TEXT = "text/plain; version=0.0.4; charset=utf-8"
_EOF = "# EOF\n"
_SUFFIXES = ("_bucket", "_count", "_sum")
_RANKS = {name: rank for rank, name in enumerate(SIGNALS)}
ALERT_SERIES = {"ALERTS": "Pending and firing alerts.", "ALERTS_FOR_STATE": "When an alert began, Unix time."}
"""What alerts have on the page besides the signals: name and meaning."""
_OTHERS_RANK = len(_RANKS)
_NATIVE_RANK = _OTHERS_RANK + 1


class _Line(NamedTuple):
    """What of a series' line stays the same from page to page."""

    order: tuple[int, str, tuple[tuple[str, str], ...], int, float, str]
    """OpenMetrics wants a family's samples together, those of one histogram together, and its buckets in order."""
    header: str
    """HELP, TYPE and UNIT of its family."""
    head: str
    """The line up to the value."""


class _Single(Collector):
    """A registry of one family."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return (self._metric,)


def _written(registry: Collector, openmetrics: bool) -> bytes:
    write = generate_openmetrics if openmetrics else generate_latest
    # By default OpenMetrics gets `vllm_x` for `vllm:x`, with HELP and TYPE of the old name.
    page: bytes = write(registry, escaping=ALLOWUTF8)
    return page


def _number(value: float) -> str:
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]
    return text


@lru_cache(maxsize=1024)
def _bound(text: str) -> float:
    """A bucket's bound; what is no number stands last."""
    try:
        return float(text)
    except ValueError:
        return math.inf


def family_of(name: str) -> str:
    """The family that a sample's name belongs to: histograms lose `_bucket`, `_count`, `_sum`."""
    for suffix in _SUFFIXES:
        base = name.removesuffix(suffix)
        if base != name and base in SIGNALS and SIGNALS[base].type == "histogram":
            return base
    return name


class Renderer:
    """Writes pages. Remembers the lines of the last page of each format, so that only values are written anew.

    prometheus-client writes each line once, when its series first appears: a page that it writes whole takes 10 ms for
    some 400 samples. What is remembered is never more than the series of one page. Safe for use by several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[bool, dict[tuple[bool, Labels], _Line]] = {False: {}, True: {}}

    def render(
        self, samples: Sequence[Sample], page: Page | None, accept: str, accept_encoding: str
    ) -> tuple[bytes, dict[str, str]]:
        """The page and its headers, in the form that the request's headers prefer.

        `page`: the engine's own, to pass through without a type so that nothing is claimed about its series. Of
        samples of the same series the last counts. ValueError for a canonical sample whose name is none.
        """
        openmetrics = wants_openmetrics(accept)
        values = {(False, sample.labels): sample.value for sample in samples}
        values.update({(True, sample.labels): sample.value for sample in native_samples(page)})
        with self._lock:
            known = self._lines[openmetrics]
            lines = {key: known[key] if key in known else _line(key, openmetrics) for key in values}
            self._lines[openmetrics] = lines
        written = [(line, values[key]) for key, line in lines.items()]
        written.sort(key=lambda item: item[0].order)
        parts: list[str] = []
        header = ""
        for line, value in written:
            if line.header != header:
                header = line.header
                parts.append(header)
            parts.append(f"{line.head}{_number(value)}\n")
        own = _written(REGISTRY, openmetrics)
        body = "".join(parts).encode() + own
        headers = {"Content-Type": OPENMETRICS if openmetrics else TEXT, "Vary": "Accept, Accept-Encoding"}
        if quality(accept_encoding, "gzip") > 0:
            body = gzip.compress(body, compresslevel=1)
            headers["Content-Encoding"] = "gzip"
        return body, headers


def native_samples(page: Page | None) -> list[Sample]:
    """The samples of an engine's page that are passed through; none without a page."""
    return [] if page is None else [sample for sample in page.samples if is_passed(metric_name(sample.labels))]


def _line(key: tuple[bool, Labels], openmetrics: bool) -> _Line:
    native, series = key
    names = dict(series)
    name = names.pop("__name__", "")
    family = name if native else family_of(name)
    signal = None if native else SIGNALS.get(family)
    group: tuple[tuple[str, str], ...] = ()
    bound = 0.0
    bucket = False
    if native:
        metric, rank = Metric(family, "Passed through from the engine.", "unknown"), _NATIVE_RANK
    elif signal is None:
        kind = "gauge" if family in ALERT_SERIES else "unknown"
        metric, rank = Metric(family, ALERT_SERIES.get(family, "Not in the catalogue."), kind), _OTHERS_RANK
    else:
        base = family.removesuffix("_total") if signal.type == "counter" else family
        metric, rank = Metric(base, signal.help, signal.type, signal.unit), _RANKS[family]
        if signal.type == "histogram":
            bucket = name.endswith("_bucket")
            bound = _bound(names.get("le", "")) if bucket else 0.0
            group = tuple((label, value) for label, value in series if label not in ("__name__", "le"))
            if openmetrics and bucket and "le" in names:
                # Bounds are canonical numbers there: 1.0, not 1.
                names["le"] = _number(bound)
    metric.add_sample(name, names, 0.0)
    text = _written(_Single(metric), openmetrics).decode()
    header, _, last = text.removesuffix(_EOF).removesuffix("\n").rpartition("\n")
    order = (rank, family, group, 0 if bucket else 1, bound, name if group or bucket else "")
    return _Line(order, header + "\n", last.removesuffix("0.0"))


def quality(header: str, wanted: str) -> float:
    """How much a client wants a media type or coding, 0 to 1, by its Accept or Accept-Encoding; 0 if it isn't named.

    RFC 9110, 12.4.2 and 12.5. Wildcards count for media types only: nobody is sent gzip for a `*`.
    """
    found: dict[str, float] = {}
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        found[name] = max(found.get(name, 0.0), weight)
    if wanted in found or "/" not in wanted:
        return found.get(wanted, 0.0)
    return found.get(wanted.partition("/")[0] + "/*", found.get("*/*", 0.0))


def wants_openmetrics(accept: str) -> bool:
    """Whether OpenMetrics is named, and preferred to plain text or as good."""
    named = "application/openmetrics-text"
    return named in accept.lower() and 0 < quality(accept, named) >= quality(accept, "text/plain")
