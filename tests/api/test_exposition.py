"""The metrics page, read back by prometheus-client's own parsers."""

import gzip
import io
import json
import math
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.parser import text_fd_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.utils import floatToGoString

from dsobs.api.exposition import TEXT, Renderer, family_of, quality, wants_openmetrics
from dsobs.collectors.engines.vllm import Vllm
from dsobs.model.samples import Labels, Page, Sample, labels
from dsobs.model.signals import SIGNALS
from dsobs.series.exposition import Parser
from dsobs.telemetry import REGISTRY

DATA = Path(__file__).parent.parent / "data"
OM = "application/openmetrics-text;version=1.0.0"
FORMATS = pytest.mark.parametrize("accept", ["text/plain;version=0.0.4", OM], ids=["text", "openmetrics"])


def busy_page() -> Page:
    """The longest page of the recording."""
    with gzip.open(DATA / "h100-vllm-0.23" / "scenario.jsonl.gz", "rt") as file:
        pages = [json.loads(line)["metrics"] for line in file]
    return Parser().parse(max((page for page in pages if page), key=len))


def text_of(samples: list[Sample], page: Page | None = None, accept: str = OM) -> str:
    return Renderer().render(samples, page, accept, "")[0].decode()


def read(text: str, accept: str) -> list[Metric]:
    parse = parse_openmetrics(io.StringIO(text)) if accept == OM else parse_text(text)  # type: ignore[no-untyped-call]
    return list(parse)


def values(families: list[Metric]) -> dict[Labels, float]:
    return {labels(s.name, **s.labels): s.value for family in families for s in family.samples}


def with_canonical_bound(series: Labels) -> Labels:
    """Bounds as OpenMetrics wants them: 640.0 where the engine says 640."""
    return tuple((k, floatToGoString(v) if k == "le" else v) for k, v in series)  # type: ignore[no-untyped-call]


def histogram(counts: dict[str, float], **names: str) -> list[Sample]:
    name = "dsobs_engine_time_to_first_token_seconds"
    buckets = [Sample(labels(name + "_bucket", le=le, **names), count) for le, count in counts.items()]
    count = max(counts.values())
    return [*buckets, Sample(labels(name + "_sum", **names), 1.5), Sample(labels(name + "_count", **names), count)]


@FORMATS
def test_canonical_samples_of_the_busy_page_go_through_unchanged(accept: str) -> None:
    samples = Vllm().canonical(busy_page())
    found = values(read(text_of(samples, accept=accept), accept))
    assert len(samples) > 100
    if accept == OM:
        samples = [sample._replace(labels=with_canonical_bound(sample.labels)) for sample in samples]
    assert {sample.labels: found.get(sample.labels) for sample in samples} == {s.labels: s.value for s in samples}


@FORMATS
def test_every_native_series_of_the_busy_page_is_passed_through(accept: str) -> None:
    page = busy_page()
    found = values(read(text_of(Vllm().canonical(page), page, accept), accept))
    passed = [s for s in page.samples if not dict(s.labels)["__name__"].startswith(("process_", "python_"))]
    assert passed
    assert {s.labels: found.get(s.labels) for s in passed} == {s.labels: s.value for s in passed}


@pytest.mark.parametrize("name", ["process_cpu_seconds_total", "python_info", "dsobs_engine_up", "ALERTS", "a.b"])
def test_native_names_that_would_be_taken_for_dsobs_own_stay_out(name: str) -> None:
    page = Page([Sample(labels(name, of="engine"), 7.0), Sample(labels("vllm:x"), 1.0)], {}, {})
    text = text_of([], page)
    assert 'of="engine"' not in text
    assert "vllm:x 1.0" in text


@FORMATS
def test_help_and_type_are_those_of_the_catalogue(accept: str) -> None:
    samples = []
    for name, signal in SIGNALS.items():
        names = dict.fromkeys(signal.labels, "x")
        if signal.type == "histogram":
            samples += [Sample(labels(name + "_bucket", le="+Inf", **names), 1.0)]
            samples += [Sample(labels(name + end, **names), 1.0) for end in ("_sum", "_count")]
        else:
            samples.append(Sample(labels(name, **names), 1.0))
    families = {family.name: family for family in read(text_of(samples[::-1], accept=accept), accept)}
    for name, signal in SIGNALS.items():
        family = families[name.removesuffix("_total") if signal.type == "counter" else name]
        assert (family.type, family.documentation) == (signal.type, signal.help)
        if accept == OM:
            assert family.unit == signal.unit


def test_samples_of_one_histogram_stand_together_with_bounds_in_order() -> None:
    samples = [
        *histogram({"+Inf": 4, "10.0": 3, "0.5": 1, "2.0": 2}, engine="0"),
        *histogram({"2.0": 2, "+Inf": 3, "0.5": 1}, engine="1"),
    ]
    mixed = samples[::2] + samples[1::2]
    text = text_of(mixed, accept=OM)
    assert values(read(text, OM)).items() >= {s.labels: s.value for s in samples}.items()
    bounds = [
        line.split('le="')[1].split('"')[0] for line in text.splitlines() if "_bucket{" in line and "token" in line
    ]
    assert bounds == ["0.5", "2.0", "10.0", "+Inf", "0.5", "2.0", "+Inf"]


def test_whole_bounds_are_canonical_in_openmetrics_and_as_the_engine_wrote_them_in_text() -> None:
    samples = histogram({"1": 1, "+Inf": 2})
    assert 'le="1.0"' in text_of(samples, accept=OM)
    assert 'le="1"' in text_of(samples, accept="")
    read(text_of(samples, accept=OM), OM)


def test_a_bound_that_is_no_number_does_not_spoil_the_page() -> None:
    broken = Sample(labels("dsobs_engine_queue_duration_seconds_bucket", le="soon"), 1.0)
    text = text_of([broken, Sample(labels("dsobs_engine_up"), 1.0)], accept="")
    assert "dsobs_engine_up 1.0" in text


def test_of_samples_of_one_series_the_last_counts_and_it_stands_once() -> None:
    text = text_of([Sample(labels("dsobs_engine_up"), 0.0), Sample(labels("dsobs_engine_up"), 1.0)])
    assert [line for line in text.splitlines() if line.startswith("dsobs_engine_up")] == ["dsobs_engine_up 1.0"]


@FORMATS
def test_nan_and_infinities_come_back(accept: str) -> None:
    samples = [
        Sample(labels("dsobs_engine_awake", engine=str(n)), value)
        for n, value in enumerate((math.nan, math.inf, -math.inf))
    ]
    found = values(read(text_of(samples, accept=accept), accept))
    assert math.isnan(found[samples[0].labels])
    assert found[samples[1].labels] == math.inf
    assert found[samples[2].labels] == -math.inf


@given(
    st.lists(
        # The parsers of prometheus-client split text at characters that the formats allow in values.
        st.text(st.characters(codec="utf-8", exclude_characters="\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), min_size=1),
        unique=True,
        max_size=5,
    ),
    st.floats(allow_nan=False),
)
def test_any_label_value_comes_back_in_both_formats(names: list[str], value: float) -> None:
    samples = [Sample(labels("ALERTS", alertname=name, alertstate="firing"), value) for name in names]
    for accept in ("", OM):
        found = values(read(text_of(samples, accept=accept), accept))
        assert found.items() >= {s.labels: value for s in samples}.items()


@FORMATS
def test_alerts_are_gauges_with_help(accept: str) -> None:
    samples = [Sample(labels("ALERTS", alertname="A"), 1.0), Sample(labels("ALERTS_FOR_STATE", alertname="A"), 17.0)]
    families = {family.name: family for family in read(text_of(samples, accept=accept), accept)}
    assert families["ALERTS"].type == families["ALERTS_FOR_STATE"].type == "gauge"
    assert families["ALERTS"].documentation == "Pending and firing alerts."


@FORMATS
def test_a_renderer_that_remembers_writes_what_a_new_one_writes(accept: str) -> None:
    page = busy_page()
    samples = Vllm().canonical(page)
    more = Sample(labels("dsobs_engine_up"), 1.0)
    one = Renderer()

    def written(renderer: Renderer, given: list[Sample], native: Page | None) -> list[str]:
        lines = renderer.render(given, native, accept, "")[0].decode().splitlines()
        return [line for line in lines if "process_" not in line]

    for given_now, native in ((samples, page), ([more, *samples], None), ([], None), (samples[::-1], page)):
        changed = [s._replace(value=s.value + 1) for s in given_now]
        assert written(one, given_now, native) == written(Renderer(), given_now, native)
        assert written(one, changed, native) == written(Renderer(), changed, native)


def test_what_is_remembered_is_one_page() -> None:
    renderer = Renderer()
    for n in range(50):
        renderer.render([Sample(labels("dsobs_engine_awake", engine=str(n)), 1.0)], None, "", "")
    assert len(renderer._lines[False]) == 1


def test_a_page_of_400_samples_takes_less_than_10_ms_of_cpu() -> None:
    page = busy_page()
    samples = Vllm().canonical(page)
    renderer = Renderer()
    renderer.render(samples, page, OM, "gzip")
    took = []
    for _ in range(10):
        begun = time.process_time()
        renderer.render(samples, page, OM, "gzip")
        took.append(time.process_time() - begun)
    assert len(page.samples) > 400
    assert min(took) < 0.010


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain;version=0.0.4", False),
        (OM, True),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1", True),
        ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=nonsense", False),
    ],
)
def test_the_format_is_the_one_that_the_client_prefers(accept: str, openmetrics: bool) -> None:
    assert wants_openmetrics(accept) is openmetrics
    headers = Renderer().render([], None, accept, "")[1]
    assert headers["Content-Type"] == (OPENMETRICS if openmetrics else TEXT)


@pytest.mark.parametrize(("header", "wanted"), [("gzip", 1.0), ("br, gzip;q=0.5", 0.5), ("gzip;q=0", 0.0), ("*", 0.0)])
def test_gzip_only_for_those_who_name_it(header: str, wanted: float) -> None:
    assert quality(header, "gzip") == wanted
    assert ("Content-Encoding" in Renderer().render([], None, "", header)[1]) is (wanted > 0)


def test_names_of_dsobs_own_metrics_follow_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming/"""
    catalogue = {family_of(name) for name in SIGNALS}
    for family in REGISTRY.collect():
        if family.name.startswith("process_"):
            continue
        assert family.name.startswith("dsobs_")
        assert family.documentation.endswith(".")
        assert family.name not in catalogue
        assert family.name + "_total" not in catalogue
        words = family.name.split("_")
        assert not {"milliseconds", "ms", "kilobytes", "mb", "percent", "minutes"} & set(words), family.name
        if family.type == "histogram":
            assert words[-1] in ("seconds", "bytes"), family.name
        if family.type == "gauge":
            assert words[-1] not in ("total", "count"), family.name
    text = text_of([], accept="")
    counters = [
        line.split()[2] for line in text.splitlines() if line.startswith("# TYPE") and line.endswith(" counter")
    ]
    assert counters
    assert all(name.endswith("_total") for name in counters)
    assert "_created" not in text


def test_units_of_the_catalogue_end_its_names() -> None:
    for name, signal in SIGNALS.items():
        base = name.removesuffix("_total")
        assert (name != base) == (signal.type == "counter"), name
        if signal.unit:
            assert base.endswith("_" + signal.unit), name
