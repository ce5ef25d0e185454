from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs.collectors.engines.vllm import Vllm
from dsobs.collectors.probe_offset import ProbeOffset
from dsobs.model.observation import Probe, ProbeOutcome
from dsobs.model.samples import Labels, Sample, labels, metric_name
from tests.collectors import pages

BOUNDS = (0.1, 0.5, 1.0, 5.0, float("inf"))
HISTOGRAMS = ("time_to_first_token_seconds", "request_duration_seconds", "queue_duration_seconds")
COUNTERS = ("prompt_tokens_total", "generation_tokens_total", "steps_total", "prefix_cache_queries_total")


class Engine:
    """What one vLLM engine counts, in the canonical form."""

    def __init__(self, rank: str = "0") -> None:
        self.labels = {"model_name": "m", "engine": rank}
        self.running = 0
        self.counters = dict.fromkeys(COUNTERS, 0.0)
        self.finished = {"stop": 0.0, "length": 0.0}
        self.observed: dict[str, list[float]] = {name: [] for name in HISTOGRAMS}

    def serve(self, latency: float, prompt: int, generated: int, reason: str = "stop") -> None:
        """One whole request."""
        self.counters["prompt_tokens_total"] += prompt
        self.counters["prefix_cache_queries_total"] += prompt
        self.counters["generation_tokens_total"] += generated
        self.counters["steps_total"] += generated
        self.finished[reason] += 1
        self.observed["time_to_first_token_seconds"].append(latency / 2)
        self.observed["request_duration_seconds"].append(latency)
        self.observed["queue_duration_seconds"].append(latency / 10)

    def samples(self) -> list[Sample]:
        prefix = "dsobs_engine_"
        found = [Sample(labels(prefix + "requests_running", **self.labels), float(self.running))]
        found.append(Sample(labels(prefix + "requests_waiting", **self.labels), 0.0))
        found += [Sample(labels(prefix + name, **self.labels), value) for name, value in self.counters.items()]
        for reason, value in self.finished.items():
            series = labels(prefix + "requests_finished_total", **self.labels, finished_reason=reason)
            found.append(Sample(series, value))
        for name, values in self.observed.items():
            for bound in BOUNDS:
                le = "+Inf" if bound == float("inf") else repr(bound).removesuffix(".0")
                series = labels(f"{prefix}{name}_bucket", **self.labels, le=le)
                found.append(Sample(series, float(sum(value <= bound for value in values))))
            found.append(Sample(labels(f"{prefix}{name}_count", **self.labels), float(len(values))))
            found.append(Sample(labels(f"{prefix}{name}_sum", **self.labels), sum(values)))
        return found


def answered(latency: float, engine: str | None = None, reason: str | None = "length") -> Probe:
    return Probe(
        0.0,
        1.0,
        ProbeOutcome.ANSWERED,
        engine=engine,
        latency_seconds=latency,
        prompt_tokens=4,
        generated_tokens=1,
        finish_reason=reason,
    )


def values(samples: Sequence[Sample]) -> dict[Labels, float]:
    return {sample.labels: sample.value for sample in samples}


def grows(series: Labels) -> bool:
    return metric_name(series).endswith(("_total", "_bucket", "_sum", "_count"))


def test_a_probe_of_an_idle_engine_leaves_no_trace_to_the_last_token() -> None:
    engine, offset = Engine(), ProbeOffset()
    engine.serve(3.0, 100, 50)
    before = values(offset.corrected(engine.samples(), 0.0))
    engine.running = 1
    engine.counters["prompt_tokens_total"] += 0
    assert grown(before, values(offset.corrected(engine.samples(), 1.0, in_flight=True))) == {}
    engine.running = 0
    # The server's own figure is in another bucket than what dsobs measures.
    engine.serve(0.09, 4, 1, "length")
    assert grown(before, values(offset.corrected(engine.samples(), 2.0, ended=[answered(0.7)]))) == {}
    engine.serve(0.3, 10, 5)
    after = values(offset.corrected(engine.samples(), 3.0))
    truth = Engine()
    truth.serve(3.0, 100, 50)
    truth.serve(0.3, 10, 5)
    assert after == pytest.approx(values(truth.samples()))


def grown(before: dict[Labels, float], after: dict[Labels, float]) -> dict[Labels, float]:
    return {s: after[s] - before[s] for s in before if grows(s) and after[s] != before[s]}


def test_statistics_that_follow_the_answer_late_are_taken_all_the_same() -> None:
    engine, offset = Engine(), ProbeOffset()
    before = values(offset.corrected(engine.samples(), 0.0))
    assert grown(before, values(offset.corrected(engine.samples(), 1.0, ended=[answered(0.2)]))) == {}
    engine.serve(0.2, 4, 1, "length")
    assert grown(before, values(offset.corrected(engine.samples(), 2.0))) == {}
    engine.serve(0.2, 4, 1, "length")
    assert grown(before, values(offset.corrected(engine.samples(), 3.0))) != {}


def test_a_page_read_while_the_probe_is_counted_but_not_yet_back_shows_nothing_of_it() -> None:
    engine, offset = Engine(), ProbeOffset()
    before = values(offset.corrected(engine.samples(), 0.0))
    engine.serve(0.2, 4, 1, "length")
    assert grown(before, values(offset.corrected(engine.samples(), 1.0, in_flight=True))) == {}
    assert grown(before, values(offset.corrected(engine.samples(), 2.0, ended=[answered(0.2)]))) == {}


@pytest.mark.parametrize("outcome", [ProbeOutcome.TIMEOUT, ProbeOutcome.INCONCLUSIVE, ProbeOutcome.ERROR])
def test_what_was_held_back_for_a_probe_that_failed_is_handed_on(outcome: ProbeOutcome) -> None:
    engine, offset = Engine(), ProbeOffset()
    offset.corrected(engine.samples(), 0.0)
    engine.serve(0.2, 4, 1)
    offset.corrected(engine.samples(), 1.0, in_flight=True)
    after = offset.corrected(engine.samples(), 2.0, ended=[Probe(0.0, 3.0, outcome)])
    assert after == engine.samples()


def test_traffic_that_begins_meanwhile_is_not_held_back() -> None:
    engine, offset = Engine(), ProbeOffset()
    before = values(offset.corrected(engine.samples(), 0.0))
    engine.running = 3
    engine.counters["generation_tokens_total"] += 7
    after = values(offset.corrected(engine.samples(), 1.0, in_flight=True))
    assert list(grown(before, after).values()) == [7]


def test_the_engine_that_answered_is_the_one_corrected() -> None:
    engines, offset = [Engine("0"), Engine("1")], ProbeOffset()

    def page() -> list[Sample]:
        return [sample for engine in engines for sample in engine.samples()]

    before = values(offset.corrected(page(), 0.0))
    engines[1].serve(0.2, 4, 1, "length")
    engines[0].serve(0.2, 9, 9)
    after = values(offset.corrected(page(), 1.0, ended=[answered(0.2, engine="1")]))
    assert {dict(series)["engine"] for series in grown(before, after)} == {"0"}


def test_among_others_the_highest_grown_bucket_below_the_measured_latency_is_taken() -> None:
    engine, offset = Engine(), ProbeOffset()
    engine.running = 2
    offset.corrected(engine.samples(), 0.0)
    engine.serve(0.3, 4, 1, "length")
    engine.serve(4.0, 10, 5)
    after = values(offset.corrected(engine.samples(), 1.0, ended=[answered(0.8)]))
    counts = [
        after[labels("dsobs_engine_request_duration_seconds_bucket", model_name="m", engine="0", le=le)]
        for le in ("0.1", "0.5", "1", "5", "+Inf")
    ]
    assert counts == [0, 0, 0, 1, 1]


def test_a_restart_of_the_engine_forgets_the_offsets() -> None:
    engine, offset = Engine(), ProbeOffset()
    engine.serve(0.2, 9, 9)
    offset.corrected(engine.samples(), 0.0)
    engine.serve(0.2, 4, 1, "length")
    offset.corrected(engine.samples(), 1.0, ended=[answered(0.2)])
    again = Engine()
    again.serve(0.2, 4, 1)
    assert offset.corrected(again.samples(), 2.0) == again.samples()


def test_on_a_real_page_nothing_but_the_probe_goes() -> None:
    adapter, offset = Vllm(), ProbeOffset()
    idle = adapter.canonical(pages.parsed(pages.recorded()[0]))
    assert offset.corrected(idle, 0.0) == idle
    assert offset.corrected(idle, 1.0, in_flight=True) == idle


def test_without_probes_the_samples_are_as_they_came() -> None:
    adapter, offset = Vllm(), ProbeOffset()
    for turn, text in enumerate(pages.recorded()[::20]):
        samples = adapter.canonical(pages.parsed(text))
        assert offset.corrected(samples, float(turn)) == samples


REQUEST = st.tuples(st.floats(0.01, 9.0), st.integers(1, 50), st.integers(1, 20))
TICK = st.tuples(
    st.lists(REQUEST, max_size=3),
    st.sampled_from(["none", "within", "across", "lost"]),
    st.floats(0.01, 2.9),
    st.floats(0.0, 0.5),
    st.integers(0, 2),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(TICK, max_size=12))
def test_corrected_series_never_go_down_stay_histograms_and_end_up_as_without_probes(
    ticks: list[tuple[list[tuple[float, int, int]], str, float, float, int]],
) -> None:
    engine, truth, offset = Engine(), Engine(), ProbeOffset()
    last = values(offset.corrected(engine.samples(), 0.0))
    now, probes, across = 0.0, 0, None
    for requests, kind, latency, transport, running in ticks:
        now += 1
        engine.running = running
        ended = []
        for request in requests:
            engine.serve(*request)
            truth.serve(*request)
        if across is not None:
            ended.append(across)
            across = None
        elif kind == "lost":
            ended.append(Probe(0.0, 1.0, ProbeOutcome.TIMEOUT))
        elif kind != "none":
            engine.serve(latency, 4, 1, "length")
            probes += 1
            probe = answered(latency + transport)
            if kind == "within":
                ended.append(probe)
            else:
                across = probe
        corrected = offset.corrected(engine.samples(), now, ended=ended, in_flight=across is not None)
        last = check(last, values(corrected))
    if across is not None:
        last = check(last, values(offset.corrected(engine.samples(), now + 1, ended=[across])))
    # Enough of each kind that whatever was owed can be taken: nobody is idle for ever.
    engine.running = 1
    for _ in range(probes + 1):
        for reason in ("length", "stop"):
            engine.serve(0.01, 50, 50, reason)
            truth.serve(0.01, 50, 50, reason)
        now += 1
        last = check(last, values(offset.corrected(engine.samples(), now)))
    true = values(truth.samples())
    for series, value in last.items():
        name = metric_name(series)
        if (
            name.endswith(("_count", "finished_total", "prompt_tokens_total", "generation_tokens_total"))
            or (
                "le",
                "+Inf",
            )
            in series
        ):
            assert value == true[series], series
        elif name.endswith("_bucket"):
            assert abs(value - true[series]) <= probes, series
        elif name.endswith(("steps_total", "queries_total")):
            assert true[series] <= value <= true[series] + 4 * probes, series


def check(before: dict[Labels, float], after: dict[Labels, float]) -> dict[Labels, float]:
    for series, value in after.items():
        if grows(series):
            assert value >= before[series], series
    for name in HISTOGRAMS:
        bucket = f"dsobs_engine_{name}_bucket"
        counts = sorted(
            (float(dict(series)["le"]), value) for series, value in after.items() if metric_name(series) == bucket
        )
        assert [value for _, value in counts] == sorted(value for _, value in counts)
    return after
