"""The rules that ship, by the very situations that promtool checks."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from dsobs import telemetry
from dsobs.config.models import Hang, LatencyRule, MemoryRule, RestartsRule, Rules
from dsobs.logs import metrics
from dsobs.model.samples import Sample, labels
from dsobs.model.signals import SIGNALS
from dsobs.rules import shipped
from dsobs.rules.duration import duration_seconds
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import AlertRule, load_text
from dsobs.series.store import Store
from tests.rules.unit_tests import firing

_FILE = Path(__file__).parents[2] / "alerts" / "dsobs.test.yaml"
_FILES = (_FILE, _FILE.with_name("logs.test.yaml"))
_DOCUMENTS = {file: yaml.safe_load(file.read_text()) for file in _FILES}
_TESTS = [(file, test) for file, document in _DOCUMENTS.items() for test in document["tests"]]


@pytest.mark.parametrize(("file", "test"), _TESTS, ids=[test["name"] for _, test in _TESTS])
def test_shipped_rules_decide_as_promtool_expects(file: Path, test: dict[str, Any]) -> None:
    for expected in test["alert_rule_test"]:
        interval = duration_seconds(_DOCUMENTS[file]["evaluation_interval"])
        alerts = firing(file, test, interval, duration_seconds(expected["eval_time"]))
        got = [
            ({k: v for k, v in alert.labels.items() if k != "alertname"}, dict(alert.annotations))
            for alert in alerts
            if alert.name == expected["alertname"]
        ]
        assert got == [(want["exp_labels"], want["exp_annotations"]) for want in expected["exp_alerts"]]


def _rules(rules: Rules | None = None, hang: Hang | None = None) -> dict[str, AlertRule]:
    groups = load_text(shipped.files_for(rules or Rules(), hang or Hang()))
    return {rule.name: rule for group in groups for rule in group.rules if isinstance(rule, AlertRule)}


def test_default_settings_render_to_the_file_that_is_checked_in() -> None:
    assert shipped.render(Rules(), Hang()) == _FILE.with_name("dsobs.rules.yaml").read_text()


def test_every_shipped_rule_has_a_positive_and_a_negative_case() -> None:
    for name in _rules():
        fires = [bool(e["exp_alerts"]) for _, t in _TESTS for e in t["alert_rule_test"] if e["alertname"] == name]
        assert set(fires) == {True, False}, name


def test_shipped_rules_name_only_canonical_signals_and_metrics_of_dsobs() -> None:
    own = {name for registry in (telemetry.REGISTRY, metrics.REGISTRY) for name in _names(registry)}
    for rule in _rules().values():
        for name in rule.query.metric_names:
            base = name.removesuffix("_bucket").removesuffix("_count")
            assert base in SIGNALS or name in own, f"{rule.name}: {name}"


def _names(registry: CollectorRegistry) -> set[str]:
    return {f"{one.name}_total" if one.type == "counter" else one.name for one in registry.collect()}


def test_shipped_rules_have_severity_summary_description_threshold_and_runbook() -> None:
    for rule in _rules().values():
        assert {"severity"} <= {name for name, _ in rule.labels}
        assert {name for name, _ in rule.annotations} == {"description", "runbook", "summary", "threshold"}
        assert dict(rule.annotations)["runbook"].text == f"docs/runbooks/{rule.name}.md"
        assert (_FILE.parents[1] / "docs" / "runbooks" / f"{rule.name}.md").is_file()
    restarted = {rule.name for rule in _rules().values() if "action" in dict(rule.labels)}
    assert restarted == {"EngineHung", "EngineDown", "EngineUnresponsive"}


def test_settings_reach_every_place_of_their_rule() -> None:
    rules = _rules(
        Rules(
            gpu_memory=MemoryRule.model_validate({"threshold": 0.9, "for": 120}),
            latency_p99=LatencyRule(threshold=2, window=600, min_requests=50, signal="e2e"),
            restarts=RestartsRule(threshold=5),
        ),
        Hang(unresponsive_after=120),
    )
    memory = rules["GPUMemoryHigh"]
    assert (memory.expr, memory.for_seconds) == ("dsobs_gpu_memory_effective_ratio > 0.9", 120.0)
    assert dict(memory.annotations)["threshold"].text == "90% for 2m"
    latency = rules["LatencyP99High"]
    assert "time_to_first_token" not in latency.expr
    assert 'dsobs_engine_request_duration_seconds_bucket{le=~"2|2[.]0"}' in latency.expr
    assert "0.5" not in latency.expr
    assert "[5m]" not in latency.expr
    assert latency.expr.count(">= 50") == 2
    assert latency.range_seconds == 600.0
    assert dict(latency.annotations)["threshold"].text == "2s at P99 over 10m, 50 requests or more"
    assert "request latency" in dict(latency.annotations)["summary"].text
    assert rules["ContainerRestartsHigh"].expr == "dsobs_container_restarts_24h > 5"
    assert rules["EngineUnresponsive"].expr == "dsobs_engine_unresponsive_seconds >= 120"
    assert dict(rules["EngineUnresponsive"].annotations)["threshold"].text == "2m"


def test_literal_gpu_memory_form_reads_what_nvml_says() -> None:
    rule = _rules(Rules(gpu_memory=MemoryRule(form="literal")))["GPUMemoryHigh"]
    assert rule.expr == "dsobs_gpu_memory_used_ratio > 0.85"
    assert "reserved KV cache included" in dict(rule.annotations)["description"].text


def test_critical_rules_run_each_second_and_thresholds_each_fifteen() -> None:
    groups = load_text([("dsobs.rules.yaml", shipped.source())])
    assert [(group.name, group.interval) for group in groups] == [("dsobs-engine", 1.0), ("dsobs-thresholds", 15.0)]


def test_evaluating_the_shipped_rules_each_second_costs_less_than_a_millisecond() -> None:
    store = Store()
    evaluator = Evaluator(load_text([("dsobs.rules.yaml", shipped.source())]), store)
    for name in evaluator.metric_names:
        store.want(name)
    engine = {"model_name": "m", "engine": "0"}
    ttft = "dsobs_engine_time_to_first_token_seconds"
    bounds = [
        "0.001",
        "0.005",
        "0.01",
        "0.02",
        "0.04",
        "0.06",
        "0.08",
        "0.1",
        "0.25",
        "0.5",
        "0.75",
        "1",
        "2.5",
        "+Inf",
    ]
    spent = 0.0
    for second in range(600):
        samples = [
            Sample(labels("dsobs_engine_stall_seconds", **engine), 0.0),
            Sample(labels("dsobs_engine_stall_threshold_seconds", **engine), 5.0),
            Sample(labels("dsobs_engine_probe_success", **engine), 1.0),
            Sample(labels("dsobs_engine_idle_probe_failures", **engine), 0.0),
            Sample(labels("dsobs_engine_down"), 0.0),
            Sample(labels("dsobs_engine_unresponsive_seconds"), 0.0),
            Sample(labels("dsobs_engine_starting_seconds"), 0.0),
            Sample(labels("dsobs_engine_startup_budget_seconds"), 3600.0),
            Sample(labels("dsobs_gpu_memory_effective_ratio", gpu="0", source="pool"), 0.4),
            Sample(labels("dsobs_container_restarts_24h", name="vllm"), 0.0),
            Sample(labels("dsobs_engine_seen"), 1.0),
            *(Sample(labels(f"{ttft}_bucket", le=le, **engine), float(second)) for le in bounds),
            Sample(labels(f"{ttft}_count", **engine), float(second)),
        ]
        store.append_samples(samples, 1e9 + second, "engine")
        begun = time.process_time()
        assert evaluator.evaluate(1e9 + second) == []
        spent += time.process_time() - begun
    # Measured at 0.2 ms; the bound leaves room for a slow machine.
    assert spent / 600 < 0.001
