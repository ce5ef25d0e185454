"""Hung, or only slow."""

from typing import Any

import pytest

from dsobs.config.models import Hang
from dsobs.model.observation import Probe, ProbeOutcome
from dsobs.model.samples import Sample, labels
from dsobs.model.view import Witness
from dsobs.signals.gaps import HealthyGaps
from dsobs.signals.progress import ProgressTracker

KEY = ("m", "0")


def page(engine: str = "0", *, finished: float = 0.0, model: str = "m", **values: Any) -> list[Sample]:
    """Canonical samples of one engine."""
    names = {
        "running": "dsobs_engine_requests_running",
        "waiting": "dsobs_engine_requests_waiting",
        "deferred": "dsobs_engine_requests_deferred",
        "tokens": "dsobs_engine_generation_tokens_total",
        "kv": "dsobs_engine_kv_cache_usage_ratio",
        "awake": "dsobs_engine_awake",
    }
    values = {"running": 0.0, "waiting": 0.0, "tokens": 100.0, "kv": 0.1, **values}
    out = [Sample(labels(names[k], model_name=model, engine=engine), v) for k, v in values.items()]
    for reason, count in (("stop", finished), ("abort", values.get("aborted", 0.0))):
        out.append(
            Sample(
                labels("dsobs_engine_requests_finished_total", model_name=model, engine=engine, finished_reason=reason),
                count,
            )
        )
    return out


def gauge(tracker: ProgressTracker, name: str, engine: str = "0", model: str = "m") -> float | None:
    found = {s.labels: s.value for s in tracker.samples()}
    return found.get(labels(f"dsobs_engine_{name}", model_name=model, engine=engine))


def decoding(tracker: ProgressTracker, start: float = 0.0, seconds: int = 5, **values: Any) -> float:
    """Tokens move each second; returns the time of the last movement."""
    for second in range(seconds):
        tracker.observe(start + second, page(running=8, tokens=100.0 + 10 * second, **values))
    return start + seconds - 1


def frozen(tracker: ProgressTracker, start: float, until: float, **values: Any) -> None:
    at = start
    while at <= until:
        tracker.observe(at, page(**{"running": 8, "tokens": 140.0, **values}))
        at += 1.0


def timed_out(start: float, **more: Any) -> Probe:
    return Probe(start, start + 3.0, ProbeOutcome.TIMEOUT, **more)


def test_stall_counts_from_the_last_sample_in_which_a_signal_differed() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = decoding(tracker)
    frozen(tracker, last + 1, last + 7)
    assert gauge(tracker, "stall_seconds") == 7.0


def test_an_idle_engine_has_no_stall() -> None:
    tracker = ProgressTracker(Hang(), "on")
    for at in range(100):
        tracker.observe(at, page())
    assert gauge(tracker, "stall_seconds") == 0.0


def test_threshold_is_5_s_after_tokens_and_60_s_in_a_prefill() -> None:
    tracker = ProgressTracker(Hang(), "on")
    decoding(tracker)
    assert gauge(tracker, "stall_threshold_seconds") == 5.0
    tracker.observe(5, page(running=8, tokens=140.0, kv=0.2))
    assert gauge(tracker, "stall_threshold_seconds") == 60.0


@pytest.mark.parametrize("signal", ["running", "waiting", "kv", "tokens"])
def test_any_signal_that_moves_is_progress(signal: str) -> None:
    tracker = ProgressTracker(Hang(), "on")
    base: dict[str, Any] = {"running": 8.0, "waiting": 0.0, "kv": 0.1, "tokens": 100.0}
    tracker.observe(0, page(**base))
    tracker.observe(4, page(**{**base, signal: base[signal] + 2}))
    assert gauge(tracker, "stall_seconds") == 0.0


def test_aborted_requests_are_no_progress() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = decoding(tracker)
    for second in range(1, 8):
        samples = page(running=8, tokens=140.0)
        samples = [s._replace(value=float(second)) if ("finished_reason", "abort") in s.labels else s for s in samples]
        tracker.observe(last + second, samples)
    assert gauge(tracker, "stall_seconds") == 7.0


def test_probe_starts_when_the_stall_passes_the_threshold_and_once_a_gap() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = decoding(tracker)
    frozen(tracker, last + 1, last + 4)
    assert tracker.probe_wanted(last + 4.9) == []
    frozen(tracker, last + 5, last + 6)
    assert tracker.probe_wanted(last + 5) == [KEY]
    tracker.probe_sent(last + 6, None)
    assert tracker.probe_wanted(last + 7) == []
    assert tracker.probe_wanted(last + 21) == [KEY]


def hung(tracker: ProgressTracker) -> float:
    last = decoding(tracker)
    frozen(tracker, last + 1, last + 6)
    tracker.probe_sent(last + 6, None)
    frozen(tracker, last + 7, last + 9)
    tracker.probe_ended(timed_out(last + 6))
    frozen(tracker, last + 10, last + 10)
    return last


def test_the_moment_is_known_at_which_a_stall_will_pass_its_threshold() -> None:
    tracker = ProgressTracker(Hang(), "on")
    assert tracker.due_at(0) is None
    moved = decoding(tracker)
    assert tracker.due_at(moved + 0.3) == moved + 5.0
    # Passed, it is no longer waited for; nor where nothing is outstanding.
    assert tracker.due_at(moved + 5.0) is None
    tracker.observe(moved + 1, page(running=0, tokens=150.0, finished=8.0))
    assert tracker.due_at(moved + 1) is None


def test_a_probe_that_timed_out_with_no_movement_confirms_the_hang() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = hung(tracker)
    assert gauge(tracker, "probe_success") == 0.0
    assert tracker.progress()[0].failed_at == last + 9


def test_the_verdict_waits_for_a_scrape_from_after_the_deadline() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = decoding(tracker)
    frozen(tracker, last + 1, last + 8)
    tracker.probe_sent(last + 6, None)
    tracker.probe_ended(timed_out(last + 6))
    assert gauge(tracker, "probe_success") is None


def test_movement_before_the_probes_deadline_makes_its_time_out_prove_nothing() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = decoding(tracker)
    frozen(tracker, last + 1, last + 6)
    tracker.probe_sent(last + 6, None)
    tracker.observe(last + 8, page(running=8, tokens=140.0, kv=0.3))
    tracker.probe_ended(timed_out(last + 6))
    frozen(tracker, last + 10, last + 10, kv=0.3)
    assert gauge(tracker, "probe_success") is None
    assert tracker.progress()[0].failed_at is None


def test_movement_after_a_confirmed_hang_clears_it() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = hung(tracker)
    tracker.observe(last + 11, page(running=8, tokens=150.0))
    assert gauge(tracker, "probe_success") is None
    assert tracker.progress()[0].failed_at is None


@pytest.mark.parametrize("outcome", [ProbeOutcome.INCONCLUSIVE, ProbeOutcome.ERROR, ProbeOutcome.REFUSED])
def test_an_answer_that_proves_nothing_neither_confirms_nor_clears(outcome: ProbeOutcome) -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = decoding(tracker)
    frozen(tracker, last + 1, last + 6)
    tracker.probe_sent(last + 6, None)
    tracker.probe_ended(Probe(last + 6, last + 6.1, outcome, status=401))
    frozen(tracker, last + 7, last + 12)
    assert gauge(tracker, "probe_success") is None
    assert gauge(tracker, "stall_unconfirmed_threshold_seconds") == 10.0
    assert tracker.progress()[0].failed_at is None


def test_an_answered_probe_is_proof_of_life_although_nothing_moves() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = decoding(tracker)
    frozen(tracker, last + 1, last + 6)
    tracker.probe_sent(last + 6, None)
    tracker.probe_ended(Probe(last + 6, last + 6.2, ProbeOutcome.ANSWERED))
    frozen(tracker, last + 7, last + 9)
    assert gauge(tracker, "probe_success") == 1.0
    assert gauge(tracker, "stall_unconfirmed_threshold_seconds") is None


def test_one_outstanding_request_of_a_frozen_page_is_not_taken_for_the_probe() -> None:
    tracker = ProgressTracker(Hang(), "on")
    for second in range(5):
        tracker.observe(second, page(running=1, tokens=100.0 + second))
    frozen(tracker, 5, 10, running=1, tokens=104.0)
    tracker.probe_sent(10, None)
    tracker.observe(11, page(running=1, tokens=104.0), probing={None: 1})
    assert gauge(tracker, "stall_seconds") == 7.0


def test_the_probes_own_place_in_the_queue_is_no_progress_and_no_work() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = decoding(tracker)
    frozen(tracker, last + 1, last + 6)
    tracker.probe_sent(last + 6, None)
    tracker.observe(last + 7, page(running=8, waiting=1, tokens=140.0), probing={None: 1})
    assert gauge(tracker, "stall_seconds") == 7.0
    tracker.observe(last + 10, page(running=8, waiting=0, tokens=140.0))
    assert gauge(tracker, "stall_seconds") == 10.0


def idle(tracker: ProgressTracker, start: int, end: int) -> None:
    for at in range(start, end + 1):
        tracker.observe(at, page())


def test_two_failed_probes_in_a_row_while_idle_confirm_a_hang() -> None:
    tracker = ProgressTracker(Hang(), "on")
    idle(tracker, 0, 30)
    assert tracker.probe_wanted(29) == []
    assert tracker.probe_wanted(30) == [KEY]
    tracker.probe_sent(30, None)
    tracker.probe_ended(timed_out(30))
    idle(tracker, 31, 60)
    assert gauge(tracker, "idle_probe_failures") == 1.0
    assert tracker.progress()[0].failed_at is None
    assert tracker.probe_wanted(60) == [KEY]
    tracker.probe_sent(60, None)
    tracker.probe_ended(timed_out(60))
    idle(tracker, 61, 64)
    assert gauge(tracker, "idle_probe_failures") == 2.0
    assert tracker.progress()[0].failed_at == 63


def test_before_the_first_token_two_idle_failures_page_but_start_no_restarts_clock() -> None:
    tracker = ProgressTracker(Hang(), "on")
    for at in range(70):
        tracker.observe(at, page(tokens=0.0))
        if at in (30, 60):
            tracker.probe_sent(at, None)
        if at in (33, 63):
            tracker.probe_ended(timed_out(at - 3))
    assert gauge(tracker, "idle_probe_failures") == 2.0
    assert tracker.progress()[0].failed_at is None


def test_idle_probes_can_be_switched_off_and_a_sleeping_engine_gets_none() -> None:
    tracker = ProgressTracker(Hang(idle_probe_interval=0.0), "on")
    idle(tracker, 0, 100)
    assert tracker.probe_wanted(100) == []
    tracker = ProgressTracker(Hang(), "on")
    for at in range(100):
        tracker.observe(at, page(awake=0.0, running=3))
    assert tracker.probe_wanted(100) == []
    assert gauge(tracker, "stall_seconds") == 0.0
    assert tracker.asleep


def test_a_sleep_is_no_stall_of_the_requests_that_it_kept_waiting() -> None:
    tracker = ProgressTracker(Hang(), "on")
    at = decoding(tracker)
    tracker.probe_sent(at, None)
    frozen(tracker, at + 1, at + 60, awake=0.0)
    tracker.probe_ended(timed_out(at))
    frozen(tracker, at + 61, at + 61 + 59, awake=1.0)
    assert tracker.progress()[0].failed_at is None
    assert gauge(tracker, "stall_seconds") == 59.0
    assert gauge(tracker, "stall_threshold_seconds") == 60.0
    assert tracker.probe_wanted(at + 61 + 59) == []
    slowest = tracker.gaps[KEY].quantile(0.999)
    assert slowest is not None
    assert slowest < 2.0
    # Awake for as long as a prefill may take: a hang like any other.
    frozen(tracker, at + 121, at + 122, awake=1.0)
    assert tracker.probe_wanted(at + 122) == [KEY]


def test_requests_that_wait_for_a_kv_transfer_are_no_stalled_work() -> None:
    tracker = ProgressTracker(Hang(), "on")
    for at in range(100):
        tracker.observe(at, page(waiting=4, deferred=4))
    assert gauge(tracker, "stall_seconds") == 0.0


@pytest.mark.parametrize(("kv", "asked"), [(0.5, True), (0.97, False)])
def test_an_engine_whose_requests_all_wait_for_a_kv_transfer_is_asked_like_an_idle_one(
    kv: float, *, asked: bool
) -> None:
    """Its core may stand still all the same, and its page shows that as waiting for ever. With a full cache the probe
    would have to wait too, and prove nothing."""
    tracker = ProgressTracker(Hang(), "on")
    for at in range(100):
        tracker.observe(at, page(waiting=4, deferred=4, kv=kv))
        for key in tracker.probe_wanted(at):
            tracker.probe_sent(at, None)
            tracker.probe_ended(timed_out(at))
            assert key == KEY
    assert tracker.hung == asked


def test_seven_live_engines_do_not_hide_a_dead_one() -> None:
    tracker = ProgressTracker(Hang(), "on")
    for at in range(20):
        samples = [s for rank in range(7) for s in page(str(rank), running=4, tokens=100.0 + at)]
        samples += page("7", running=4, tokens=100.0 + min(at, 5))
        tracker.observe(at, samples)
    assert gauge(tracker, "stall_seconds", "7") == 14.0
    assert gauge(tracker, "stall_seconds", "3") == 0.0
    assert tracker.probe_wanted(19) == [("m", "7")]


def test_with_several_engines_an_unaddressed_probe_proves_nothing() -> None:
    tracker = ProgressTracker(Hang(), "on")
    for at in range(20):
        tracker.observe(
            at, [*page("0", running=4, tokens=100.0 + at), *page("1", running=4, tokens=100.0 + min(at, 5))]
        )
    tracker.probe_sent(19, None)
    tracker.probe_ended(Probe(19, 19.1, ProbeOutcome.ANSWERED))
    assert gauge(tracker, "probe_success", "1") is None
    tracker.probe_ended(Probe(19, 19.1, ProbeOutcome.ANSWERED, engine="0"))
    assert gauge(tracker, "probe_success", "1") is None
    assert gauge(tracker, "probe_success", "0") == 1.0


def test_of_several_models_a_probe_proves_only_the_one_that_it_asked() -> None:
    def both(at: int) -> list[Sample]:
        return [*page(running=4, tokens=100.0 + at), *page(model="b", running=4, tokens=100.0 + min(at, 5))]

    tracker = ProgressTracker(Hang(), "on")
    for at in range(20):
        tracker.observe(at, both(at))
    tracker.probe_sent(19, None)
    tracker.probe_ended(Probe(19, 19.1, ProbeOutcome.ANSWERED, model="m"))
    assert gauge(tracker, "probe_success") == 1.0
    assert gauge(tracker, "probe_success", model="b") is None
    # The other one is called hung by the length of its stall, as where no probe can be had.
    assert tracker.hung
    tracker.probe_sent(20, None)
    tracker.probe_ended(timed_out(20, model="b"))
    for at in range(20, 25):
        tracker.observe(at, both(at))
    failed = {engine.key: engine.failed_at for engine in tracker.progress()}
    assert failed == {("m", "0"): None, ("b", "0"): 23.0}


def test_the_engine_that_was_asked_longest_ago_is_asked_next() -> None:
    """One request is in flight at a time: ranks that stall for long must not keep the others from being asked."""
    tracker = ProgressTracker(Hang(), "on")
    for at in range(40):
        tracker.observe(at, [s for rank in range(8) for s in page(str(rank), running=4, tokens=100.0)])
    asked = []
    for at in range(100, 124, 3):
        (key, *_) = tracker.probe_wanted(at)
        asked.append(key[1])
        tracker.probe_sent(at, key[1])
    assert sorted(asked) == [str(rank) for rank in range(8)]


def test_a_stall_is_asked_for_before_those_that_were_asked_already() -> None:
    tracker = ProgressTracker(Hang(), "on")
    for at in range(100):
        samples = [*page("0", running=4, tokens=100.0), *page("1"), *page("2", running=4, tokens=100.0 + min(at, 90))]
        tracker.observe(at, samples)
        for key in tracker.probe_wanted(at) if at < 95 else ():
            tracker.probe_sent(at, key[1])
    # Asked later than the others, in a gap of its own.
    tracker.probe_sent(89.5, "2")
    assert tracker.probe_wanted(120)[0] == ("m", "2")


def test_a_prefill_begun_in_the_same_second_gets_patience_while_a_witness_sees_work() -> None:
    tracker = ProgressTracker(Hang(), "on")
    tracker.observe(0, page(running=1, tokens=100.0, finished=1))
    tracker.observe(1, page(running=1, tokens=110.0, finished=2))
    assert gauge(tracker, "stall_threshold_seconds") == 5.0
    tracker.witness = Witness.WORKING
    assert gauge(tracker, "stall_threshold_seconds") == 60.0
    tracker.witness = Witness.STILL
    assert gauge(tracker, "stall_threshold_seconds") == 5.0


def test_without_probes_a_hang_is_called_at_10_s_or_5_s_past_a_prefills_threshold() -> None:
    tracker = ProgressTracker(Hang(), "off")
    decoding(tracker)
    assert gauge(tracker, "stall_unconfirmed_threshold_seconds") == 10.0
    tracker.observe(5, page(running=8, tokens=140.0, kv=0.2))
    assert gauge(tracker, "stall_unconfirmed_threshold_seconds") == 65.0
    assert tracker.progress()[0].failed_at is None


def test_threshold_is_learned_from_healthy_gaps_after_ten_minutes_of_work() -> None:
    gaps = HealthyGaps()
    for _ in range(150):
        gaps.add(3.9)
    assert gaps.threshold(5.0, 60.0, 600.0) == 5.0
    for _ in range(10):
        gaps.add(3.9)
    assert gaps.threshold(5.0, 60.0, 600.0) == pytest.approx(12.0)
    for _ in range(1000):
        gaps.add(90.0)
    assert gaps.threshold(5.0, 60.0, 600.0) == 60.0


def test_gaps_that_raised_an_alert_or_hold_missed_scrapes_are_not_learned() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = hung(tracker)
    healthy = tracker.gaps[KEY].counts()
    tracker.observe(last + 11, page(running=8, tokens=150.0))
    assert tracker.gaps[KEY].counts() == healthy
    tracker.observe(last + 40, page(running=8, tokens=160.0))
    assert tracker.gaps[KEY].counts() == healthy
    tracker.observe(last + 41, page(running=8, tokens=170.0))
    assert tracker.gaps[KEY].counts() != healthy


def test_learned_gaps_come_back_as_they_were() -> None:
    gaps = HealthyGaps()
    for seconds in (1.0, 1.0, 7.0):
        gaps.add(seconds)
    again = HealthyGaps(gaps.counts(), gaps.worked_seconds)
    assert again.quantile(0.999) == gaps.quantile(0.999)
    assert again.worked_seconds == 9.0


def test_a_scrape_that_fails_leaves_the_stall_where_it_was_seen() -> None:
    tracker = ProgressTracker(Hang(), "on")
    last = decoding(tracker)
    frozen(tracker, last + 1, last + 3)
    assert gauge(tracker, "stall_seconds") == 3.0
    assert tracker.progress()[0].last_seen_at == last + 3


def test_a_request_that_leaves_the_queue_to_run_is_progress() -> None:
    tracker = ProgressTracker(Hang(), "on")
    tracker.observe(0, page(running=1, waiting=5))
    for at in range(1, 40):
        ran = min(at // 10, 3)
        tracker.observe(at, page(running=1 + ran, waiting=5 - ran))
    assert tracker.progress()[0].last_moved_at == 30


def test_an_own_probe_that_leaves_the_queue_to_run_is_none() -> None:
    tracker = ProgressTracker(Hang(), "on")
    at = decoding(tracker)
    tracker.probe_sent(at + 5, None)
    for second, (running, waiting) in enumerate([(8, 1), (9, 0), (9, 0)], 6):
        queue: dict[str, Any] = {"running": float(running), "waiting": float(waiting)}
        tracker.observe(at + second, page(tokens=140.0, **queue), probing={None: 1})
    tracker.observe(at + 9, page(running=8.0, tokens=140.0))
    assert tracker.progress()[0].last_moved_at == at


@pytest.mark.parametrize("signal", ["kv", "tokens", "running", "waiting"])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_signal_that_is_nan_hides_no_hang(signal: str, every: int) -> None:
    tracker = ProgressTracker(Hang(), "on")
    decoding(tracker)
    for at in range(5, 105):
        values: dict[str, Any] = {"running": 8.0, "tokens": 140.0}
        tracker.observe(at, page(**{**values, **({signal: float("nan")} if at % every == 0 else {})}))
    assert tracker.progress()[0].stall_seconds == 100
    assert tracker.progress()[0].outstanding == 8


def test_a_page_on_which_nothing_can_be_read_ends_no_stall() -> None:
    tracker = ProgressTracker(Hang(), "on")
    decoding(tracker)
    for at in range(5, 105):
        tracker.observe(at, [], there=[KEY])
    assert tracker.progress()[0].stall_seconds == 100
    tracker.observe(105, [])
    assert tracker.progress() == ()
