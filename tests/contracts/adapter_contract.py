"""What every engine's adapter owes. A test module of an engine derives from `AdapterContract` and names its pages."""

import math
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsobs.model.engine import EngineAdapter
from dsobs.model.samples import Page, Sample, metric_name
from dsobs.model.signals import SIGNALS

_PARTS = ("_bucket", "_sum", "_count")


def family_of(name: str) -> str:
    """The signal that a series belongs to."""
    if name in SIGNALS:
        return name
    return next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name)


def native_family(page: Page, name: str) -> str:
    """The family of a series on the page."""
    if name in page.types:
        return name
    return next((name.removesuffix(part) for part in _PARTS if name.endswith(part)), name)


# The suite is inherited by the class of each adapter on purpose; hypothesis takes that for a mistake.
_inherited = settings(suppress_health_check=[HealthCheck.differing_executors])


class AdapterContract:
    """Set `pages` and `foreign_pages`, and give `adapter`."""

    pages: dict[str, Page]
    """Pages of this engine, by what they are."""
    foreign_pages: dict[str, Page]
    """Pages of something else."""

    def adapter(self) -> EngineAdapter:
        """A new adapter."""
        raise NotImplementedError

    def each(self) -> list[tuple[str, Page, Sequence[Sample]]]:
        """Each page with its canonical samples."""
        return [(name, page, self.adapter().canonical(page)) for name, page in self.pages.items()]

    def test_says_what_it_is(self) -> None:
        adapter = self.adapter()
        assert adapter.name.isidentifier()
        assert adapter.metrics_path.startswith("/")
        assert isinstance(adapter.reserves_memory, bool)

    def test_recognizes_its_own_pages_and_no_other(self) -> None:
        for name, page in self.pages.items():
            assert self.adapter().recognizes(page), name
        for name, page in {**self.foreign_pages, "empty": Page([], {}, {})}.items():
            assert not self.adapter().recognizes(page), name

    def test_every_name_type_and_label_is_of_the_table(self) -> None:
        for name, _, samples in self.each():
            assert samples, name
            for sample in samples:
                labels = dict(sample.labels)
                full = labels.pop("__name__")
                signal = SIGNALS[family_of(full)]
                assert signal.name == full or signal.type == "histogram", full
                if full.endswith("_bucket"):
                    bound = labels.pop("le")
                    assert bound == "+Inf" or repr(float(bound)).removesuffix(".0") == bound
                assert labels.keys() <= set(signal.labels), sample
                assert list(sample.labels) == sorted(sample.labels), "a series' identity is sorted"
                assert all(labels.values()), "an empty label is no label"

    def test_no_series_comes_twice(self) -> None:
        for name, _, samples in self.each():
            series = [sample.labels for sample in samples]
            assert len(series) == len(set(series)), name

    def test_nothing_is_invented(self) -> None:
        for name, page, samples in self.each():
            values = {sample.value for sample in page.samples}
            for sample in samples:
                assert not math.isnan(sample.value), name
                if metric_name(sample.labels) != "dsobs_engine_kv_cache_size_bytes":
                    assert sample.value in values, (name, sample)

    def test_histograms_are_whole_and_cumulative(self) -> None:
        for name, _, samples in self.each():
            buckets: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
            counts: dict[tuple[tuple[str, str], ...], float] = {}
            for sample in samples:
                full = metric_name(sample.labels)
                rest = tuple(pair for pair in sample.labels if pair[0] not in ("__name__", "le"))
                if full.endswith("_bucket"):
                    key = (("", family_of(full)), *rest)
                    buckets.setdefault(key, []).append((float(dict(sample.labels)["le"]), sample.value))
                elif full.endswith("_count"):
                    counts[(("", family_of(full)), *rest)] = sample.value
            assert buckets.keys() == counts.keys(), name
            for key, bounds in buckets.items():
                ordered = [value for _, value in sorted(bounds)]
                assert ordered == sorted(ordered), (name, key)
                assert ordered[-1] == counts[key], (name, key)

    def test_the_same_page_again_gives_the_same(self) -> None:
        adapter = self.adapter()
        for page in self.pages.values():
            assert adapter.canonical(page) == adapter.canonical(page) == self.adapter().canonical(page)
            assert adapter.facts(page) == self.adapter().facts(page)

    @_inherited
    @given(data=st.data())
    def test_a_family_that_is_missing_takes_its_own_signals_along_and_no_other(self, data: st.DataObject) -> None:
        page = self.pages[data.draw(st.sampled_from(sorted(self.pages)))]
        families = sorted({native_family(page, metric_name(sample.labels)) for sample in page.samples})
        gone = data.draw(st.sets(st.sampled_from(families), min_size=1, max_size=4))
        samples = [s for s in page.samples if native_family(page, metric_name(s.labels)) not in gone]
        types = {name: kind for name, kind in page.types.items() if name not in gone}
        adapter = self.adapter()
        whole = {sample.labels: sample.value for sample in adapter.canonical(page)}
        rest = {s.labels: s.value for s in adapter.canonical(Page(samples, types, {}))}
        only = {
            s.labels
            for s in self.adapter().canonical(
                Page([s for s in page.samples if native_family(page, metric_name(s.labels)) in gone], types, {})
            )
        }
        missing = whole.keys() - rest.keys()
        size = "dsobs_engine_kv_cache_size_bytes"
        assert rest.keys() <= whole.keys()
        assert {series for series in missing if metric_name(series) != size} <= only
        read = {sample.value for sample in samples}
        assert all(value in read or metric_name(series) == size for series, value in rest.items())

    @_inherited
    @given(data=st.data())
    def test_a_reading_that_is_not_a_number_is_no_reading(self, data: st.DataObject) -> None:
        page = self.pages[data.draw(st.sampled_from(sorted(self.pages)))]
        where = data.draw(st.integers(0, len(page.samples) - 1))
        samples = list(page.samples)
        samples[where] = samples[where]._replace(value=math.nan)
        adapter = self.adapter()
        whole = {sample.labels for sample in adapter.canonical(page)}
        rest = adapter.canonical(Page(samples, page.types, page.helps))
        assert not any(math.isnan(sample.value) for sample in rest)
        assert {sample.labels for sample in rest} <= whole

    def test_facts_name_the_engines_of_the_signals(self) -> None:
        for name, page, samples in self.each():
            facts = self.adapter().facts(page)
            named = {
                (labels.get("model_name", ""), labels.get("engine", ""))
                for labels in (dict(sample.labels) for sample in samples)
                if labels["__name__"] == "dsobs_engine_requests_running"
            }
            assert named <= set(facts.engine_keys), name
            assert len(facts.engine_keys) == len(set(facts.engine_keys)), name
            assert facts.kv_cache_bytes.keys() <= set(facts.engine_keys), name
            assert all(size > 0 for size in facts.kv_cache_bytes.values()), name
            assert facts.process_start_time is None or facts.process_start_time > 1e9, name

    def test_probes_are_one_token_and_carry_their_id(self) -> None:
        requests = self.adapter().probe_requests(("m",), "dsobs-probe-1", None)
        assert requests
        for request in requests:
            assert request.path.startswith("/")
            assert request.headers["X-Request-Id"] == "dsobs-probe-1"
            assert request.engine is None
            assert request.json is not None
            assert request.json["model"] == "m"
            assert request.json.get("max_tokens", 1) == 1
        assert self.adapter().probe_requests((), "dsobs-probe-1", None) == []

    def test_a_probe_that_says_it_is_addressed_differs_by_rank(self) -> None:
        first, second = (self.adapter().probe_requests(("m",), "dsobs-probe-1", rank) for rank in ("0", "1"))
        for one, other in zip(first, second, strict=True):
            assert (one.engine, other.engine) in (("0", "1"), (None, None))
            assert ((one.headers, one.json) != (other.headers, other.json)) == (one.engine is not None)
