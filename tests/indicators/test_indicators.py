"""The key indicators, each proved on what is known to have happened: the recording of an H100 and faults beside it."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from dsobs import promql
from dsobs.config import Config
from dsobs.config.models import LatencyRule, MemoryRule, Objectives, RestartsRule, Rules
from dsobs.indicators import INDICATORS, Better, Class, rules_file
from dsobs.model.observation import HostView, RuntimeView
from dsobs.model.samples import Sample, labels
from dsobs.pipeline import Pipeline, rule_groups
from dsobs.recorder.records import read_records
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Ledger
from dsobs.replay import observation_of
from dsobs.rules import shipped
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import AlertRule, load_text
from dsobs.series.exposition import Parser
from dsobs.series.store import Store

RECORDING = Path(__file__).parents[1] / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
GIB = 2**30
BROKE = 200.0
"""Seconds into the recording, in the middle of its hang: from here on host, card and shipping have faults, too."""
CARD = {"gpu": "0"}
"""The recording names no UUID."""


def _others(now: float, passed: float) -> list[Sample]:
    """What the recording has none of: a card's counters and margin, shipping, dsobs itself."""
    broken = passed >= BROKE
    return [
        Sample(labels("dsobs_gpu_temperature_threshold_celsius", **CARD, threshold="slowdown"), 87.0),
        Sample(labels("dsobs_gpu_clock_event_active", **CARD, reason="hw_thermal_slowdown"), float(broken)),
        Sample(labels("dsobs_gpu_clock_event_active", **CARD, reason="sw_power_cap"), 1.0),
        Sample(labels("dsobs_gpu_xid_last_time_seconds", **CARD, xid="43", reason="ignore"), now),
        *(
            [Sample(labels("dsobs_gpu_xid_last_time_seconds", **CARD, xid="48", reason="escalate"), now)]
            if broken
            else []
        ),
        Sample(labels("dsobs_gpu_ecc_errors_total", **CARD, type="uncorrected"), 2.0 * broken),
        Sample(labels("dsobs_log_behind_seconds", source="a"), 900.0 if broken else 1.0),
        Sample(labels("dsobs_log_matches_total", pattern="cuda_out_of_memory"), 3.0 * broken),
        Sample(labels("dsobs_outbox_oldest_seconds", notifier="pagerduty"), 400.0 if broken else 0.0),
        Sample(labels("dsobs_loop_last_tick_timestamp_seconds", loop="main"), now - (300.0 if broken else 0.5)),
    ]


def _host(now: float, passed: float) -> HostView:
    broken = passed >= BROKE
    return HostView(
        now,
        shm_size_bytes=GIB,
        shm_used_bytes=round(GIB * (0.95 if broken else 0.1)),
        filesystems=(("/", 2 if broken else 60, 100), ("/big", 90, 100)),
        memory_working_set_bytes=round(GIB * (0.97 if broken else 0.5)),
        memory_limit_bytes=GIB,
    )


@cache
def _played() -> tuple[Store, float]:
    """The store after the whole of it, and when it began."""
    store, parser = Store(), Parser()
    store.show(3600)
    config = Config()
    pipeline = Pipeline(config, store, Evaluator(rule_groups(config), store))
    begun = math.nan
    for record in read_records(RECORDING):
        seen = observation_of(record, parser)
        begun = seen.at if math.isnan(begun) else begun
        passed = seen.at - begun
        # Restarted every 50 s while it worked, by its runtime's word.
        started = begun + 40.0 * min(4, int(passed / 40.0))
        runtime = RuntimeView("docker", "vllm", passed < 235, started_at=started, cpu_seconds=passed * 2, pids=(776,))
        store.append_samples(_others(seen.at, passed), seen.at, source="others")
        observation = type(seen)(
            at=seen.at,
            scrape=seen.scrape,
            health=seen.health,
            gpus=seen.gpus,
            runtime=runtime,
            host=_host(seen.at, passed),
        )
        pipeline.turn(observation, Ledger(), Switches())
    return store, begun


@dataclass(frozen=True)
class Claim:
    """An indicator's value at a time, in seconds from the recording's begin: at least and at most; None: not known."""

    name: str
    at: float
    least: float | None
    most: float | None = None


HEALTHY, BUSY, FULL, HUNG, DEAD = 12.0, 110.0, 175.0, 207.0, 246.0
"""Idle; 600 clients; KV cache filling; engine core stopped since 186 s; killed at 231 s (README of the recording)."""

CLAIMS = [
    # Reserved memory fills the card from the start; what is in use for work follows the KV cache.
    Claim("gpu_memory_used", HEALTHY, 0.92, 0.94),
    Claim("gpu_memory_used", DEAD, 0.0, 0.02),
    Claim("gpu_memory_effective", HEALTHY, 0.0, 0.3),
    Claim("gpu_memory_effective", FULL, 0.45, 0.9),
    Claim("kv_cache_usage", HEALTHY, 0.0, 0.001),
    Claim("kv_cache_usage", FULL, 0.4, 0.6),
    Claim("gpu_utilization", HEALTHY, 0.0, 0.3),
    Claim("gpu_utilization", FULL, 0.95, 1.0),
    Claim("gpu_utilization", HUNG, 0.0, 0.01),
    Claim("gpu_power", HEALTHY, 0.1, 0.3),
    Claim("gpu_power", BUSY, 0.6, 0.8),
    Claim("gpu_power", FULL, 0.85, 1.0),
    Claim("gpu_power", HUNG, 0.1, 0.4),
    Claim("gpu_temperature_margin", HEALTHY, 40.0, 60.0),
    Claim("gpu_temperature_margin", BUSY, 20.0, 45.0),
    Claim("gpu_throttled", FULL, 0.0, 0.0),
    Claim("gpu_throttled", HUNG, 0.01, 0.1),
    Claim("energy_efficiency", HEALTHY, 0.0, 0.0),
    Claim("energy_efficiency", BUSY, 1.0, 30.0),
    Claim("container_cpu", BUSY, 1.9, 2.1),
    Claim("container_memory", BUSY, 0.49, 0.51),
    Claim("container_memory", HUNG, 0.96, 0.98),
    Claim("shm_used", BUSY, 0.09, 0.11),
    Claim("shm_used", HUNG, 0.94, 0.96),
    Claim("disk_free", BUSY, 0.6, 0.6),
    Claim("disk_free", HUNG, 0.02, 0.02),
    # Requests.
    Claim("request_rate", BUSY, 5.0, 200.0),
    Claim("request_rate", DEAD, 0.0, 0.5),
    Claim("generation_throughput", HEALTHY, 0.0, 0.0),
    Claim("generation_throughput", BUSY, 2_000.0, 30_000.0),
    Claim("prompt_throughput", BUSY, 50.0, 30_000.0),
    Claim("requests_running", HEALTHY, 0.0, 0.0),
    Claim("requests_running", BUSY, 100.0, 600.0),
    Claim("requests_running", HUNG, 8.0, 8.0),
    Claim("requests_waiting", HEALTHY, 0.0, 0.0),
    Claim("queue_time_p99", HEALTHY, None),
    Claim("queue_time_p99", BUSY, 0.1, 30.0),
    Claim("time_to_first_token_p99", HEALTHY, None),
    # The very first requests waited for a kernel to be made.
    Claim("time_to_first_token_p99", 40.0, 2.0, 5.0),
    Claim("time_to_first_token_p99", BUSY, 0.5, 30.0),
    Claim("time_to_first_token_objective", 40.0, 0.9, 0.96),
    Claim("time_to_first_token_objective", BUSY, 0.99, 1.0),
    Claim("time_to_first_token_objective", FULL, 0.94, 0.96),
    Claim("inter_token_p99", BUSY, 0.02, 0.5),
    Claim("request_duration_p99", BUSY, 5.0, 60.0),
    Claim("error_ratio", HEALTHY, None),
    Claim("error_ratio", BUSY, 0.0, 0.0),
    Claim("preemption_rate", BUSY, 0.0, 0.0),
    Claim("prefix_cache_hit_ratio", BUSY, 0.0, 1.0),
    # Health.
    Claim("engine_ready", BUSY, 1.0, 1.0),
    Claim("engine_ready", DEAD, 0.0, 0.0),
    Claim("availability", FULL, 1.0, 1.0),
    Claim("engine_stall", BUSY, 0.0, 0.3),
    Claim("engine_stall", HUNG, 2.0, 5.0),
    Claim("engine_unresponsive", HUNG, 0.0, 0.0),
    Claim("start_up", BUSY, 0.0, 0.0),
    Claim("restarts_24h", HEALTHY, 0.0, 0.0),
    Claim("restarts_24h", FULL, 4.0, 4.0),
    Claim("gpu_faults", FULL, 0.0, 0.0),
    Claim("gpu_faults", HUNG, 1.0, 1.0),
    Claim("gpu_ecc_uncorrected", FULL, 0.0, 0.0),
    Claim("gpu_ecc_uncorrected", DEAD, 1.5, 2.5),
    Claim("alerts_firing", HEALTHY, 0.0, 0.0),
    Claim("alerts_firing", DEAD, 1.0, 30.0),
    Claim("log_delay", FULL, 1.0, 1.0),
    Claim("log_delay", HUNG, 900.0, 900.0),
    Claim("log_fatal_lines", FULL, 0.0, 0.0),
    Claim("log_fatal_lines", DEAD, 2.0, 4.0),
    Claim("notification_delay", FULL, 0.0, 0.0),
    Claim("notification_delay", HUNG, 400.0, 400.0),
    Claim("turn_age", FULL, 0.0, 2.0),
    Claim("turn_age", HUNG, 300.0, 302.0),
]


def _value(name: str, at: float) -> float | None:
    store, begun = _played()
    found = promql.compile(INDICATORS[name].formula).evaluate(store, begun + at)
    assert isinstance(found, list)
    assert len(found) <= 1, found
    return found[0].value if found else None


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: f"{claim.name}-at-{claim.at:.0f}s")
def test_an_indicator_shows_what_is_known_to_have_happened(claim: Claim) -> None:
    value = _value(claim.name, claim.at)
    if claim.least is None:
        assert value is None
    else:
        assert value is not None
        assert claim.least <= value <= (claim.most if claim.most is not None else math.inf)


def test_every_indicator_is_proved() -> None:
    assert {claim.name for claim in CLAIMS} == set(INDICATORS)


def test_the_rules_record_every_indicator_each_15_s() -> None:
    store, _ = _played()
    recorded = {series.labels[0][1] for one in INDICATORS.values() for series in store.series(one.record)}
    assert recorded == {one.record for one in INDICATORS.values()}
    for one in INDICATORS.values():
        assert re.fullmatch(r"dsobs:[a-z0-9_]+:[a-z_]+", one.record)


def test_there_are_23_or_more_in_the_three_classes() -> None:
    assert len(INDICATORS) >= 23
    assert {one.class_ for one in INDICATORS.values()} == set(Class)
    assert all(one.name == name for name, one in INDICATORS.items())


def _alerts(rules: Rules) -> dict[str, AlertRule]:
    texts = ((name, shipped.render(name, rules, Config().hang)) for name in shipped.ALL_FILE_NAMES)
    return {rule.name: rule for group in load_text(texts) for rule in group.rules if isinstance(rule, AlertRule)}


CHANGED = Rules(
    gpu_memory=MemoryRule(threshold=0.7),
    latency_p99=LatencyRule(threshold=0.75),
    restarts=RestartsRule(threshold=7),
    objectives=Objectives(ttft_target=0.95, availability_target=0.95),
)


@pytest.mark.parametrize("rules", [Rules(), CHANGED], ids=["default", "changed"])
def test_a_threshold_is_the_one_that_its_alert_decides_by(rules: Rules) -> None:
    alerts = _alerts(rules)
    config = Config(rules=rules)
    checked = 0
    for one in INDICATORS.values():
        threshold = one.threshold_of(config)
        if threshold is None or one.threshold is None or one.threshold.alert not in alerts:
            continue
        if one.name in ("gpu_temperature_margin", "gpu_throttled", "engine_ready", "engine_stall", "start_up"):
            # Of a state, or of two signals that are compared with each other.
            continue
        written = repr(threshold).removesuffix(".0")
        expr = alerts[one.threshold.alert].expr
        number = rf"(?:[<>]=?|1 -) {re.escape(written)}\b"
        assert re.search(number, expr) or (one.name.startswith("gpu_") and threshold == 0), (one.name, written, expr)
        checked += 1
    assert checked >= 18


def test_a_documented_threshold_holds_for_the_signal_that_the_settings_choose() -> None:
    first, whole = INDICATORS["time_to_first_token_p99"], INDICATORS["request_duration_p99"]
    used, effective = INDICATORS["gpu_memory_used"], INDICATORS["gpu_memory_effective"]
    assert (first.threshold_of(Config()), whole.threshold_of(Config())) == (0.5, None)
    assert (effective.threshold_of(Config()), used.threshold_of(Config())) == (0.85, None)
    other = Config(rules=Rules(latency_p99=LatencyRule(signal="e2e"), gpu_memory=MemoryRule(form="literal")))
    assert (first.threshold_of(other), whole.threshold_of(other)) == (None, 0.5)
    assert (effective.threshold_of(other), used.threshold_of(other)) == (None, 0.85)


def test_unknown_is_neither_good_nor_bad() -> None:
    for one in INDICATORS.values():
        assert one.is_bad(None, Config()) is None
        assert one.is_bad(math.nan, Config()) is None
        assert one.shown(None) == one.shown(math.nan) == "unknown"


def test_bad_is_beyond_the_threshold_on_the_side_that_is_worse() -> None:
    ready, restarts = INDICATORS["engine_ready"], INDICATORS["restarts_24h"]
    assert [ready.is_bad(value, Config()) for value in (0.0, 1.0)] == [True, False]
    assert [restarts.is_bad(value, Config()) for value in (3.0, 4.0)] == [False, True]
    assert INDICATORS["gpu_utilization"].is_bad(0.0, Config()) is None
    assert all(one.threshold is None for one in INDICATORS.values() if one.better is Better.NEITHER)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("kv_cache_usage", 0.931, "93.1 %"),
        ("availability", 0.99951, "99.951 %"),
        ("availability", 1.0, "100 %"),
        ("time_to_first_token_p99", 0.48, "480 ms"),
        ("request_duration_p99", 27.04, "27 s"),
        ("log_delay", 900.0, "15 min"),
        ("log_delay", 9000.0, "2.5 h"),
        ("generation_throughput", 12345.6, "12,346 tokens/s"),
        ("gpu_temperature_margin", 31.0, "31 °C"),
        ("engine_ready", 1.0, "1"),
    ],
)
def test_values_are_shown_with_their_unit(name: str, value: float, words: str) -> None:
    assert INDICATORS[name].shown(value) == words


def test_the_objective_of_the_settings_is_in_the_formula_and_in_the_rules() -> None:
    rules = Rules(objectives=Objectives(ttft_threshold=1))
    assert 'le=~"1|1[.]0"' in INDICATORS["time_to_first_token_objective"].expression(rules)
    assert 'le="2.5"' not in rules_file(rules)
    assert 'le="2.5"' in rules_file(Rules())


def _lines(found: Iterable[str]) -> list[str]:
    return [line for line in found if line.startswith("| ")]


def test_the_reference_has_one_row_for_each_indicator() -> None:
    page = (Path(__file__).parents[2] / "docs" / "indicators.md").read_text()
    rows = _lines(page.splitlines())[1:]
    assert len(rows) == len(INDICATORS)
    assert all(f"`{one.record}`" in page for one in INDICATORS.values())
