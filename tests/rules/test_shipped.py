"""The rules that ship, by the very situations that promtool checks."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from dsobs_nvml import XIDS

from dsobs.config.models import Hang, LatencyRule, MemoryRule, Objectives, RestartsRule, Rules
from dsobs.logs import metrics
from dsobs.model.samples import Sample, labels
from dsobs.model.signals import SIGNALS
from dsobs.rules import shipped
from dsobs.rules.evaluator import Evaluator
from dsobs.rules.files import AlertRule, load_text, out_of_reach
from dsobs.rules.unit_test_run import run_file
from dsobs.rules.unit_tests import read_unit_tests
from dsobs.series.store import Store
from dsobs.telemetry import REGISTRY

_FOLDER = Path(__file__).parents[2] / "alerts"
_TESTS = sorted(_FOLDER.glob("*.test.yaml"))
_ALL = shipped.ALL_FILE_NAMES


@pytest.mark.parametrize("path", _TESTS, ids=lambda path: path.name)
def test_shipped_rules_decide_as_promtool_expects(path: Path) -> None:
    tests, problems = read_unit_tests(path)
    assert problems == []
    assert tests is not None
    assert tests.unmatched == []
    results, problems = run_file(tests)
    assert problems == []
    assert [result for result in results if not result.ok] == []


@pytest.mark.parametrize("path", _TESTS, ids=lambda path: path.name)
def test_a_test_over_several_groups_names_their_order(path: Path) -> None:
    """Without it promtool draws an order in each run, and a case that reads a recorded series passes only at times."""
    document = yaml.safe_load(path.read_text())
    groups = [g for name in document["rule_files"] for g in yaml.safe_load((_FOLDER / name).read_text())["groups"]]
    recorded = any("record" in rule for group in groups for rule in group["rules"])
    if recorded and len(groups) > 1:
        assert sorted(document["group_eval_order"]) == sorted(group["name"] for group in groups)


def _rules(rules: Rules | None = None, hang: Hang | None = None, names: Sequence[str] = _ALL) -> dict[str, AlertRule]:
    groups = load_text((name, shipped.render(name, rules or Rules(), hang or Hang())) for name in names)
    return {rule.name: rule for group in groups for rule in group.rules if isinstance(rule, AlertRule)}


def test_every_rule_file_is_the_sidecars_or_prometheus() -> None:
    assert sorted(_ALL) == sorted(path.name for path in _FOLDER.glob("*.rules.yaml"))


@pytest.mark.parametrize("name", _ALL)
def test_default_settings_render_to_the_file_that_is_checked_in(name: str) -> None:
    assert shipped.render(name, Rules(), Hang()) == (_FOLDER / name).read_text()


def test_every_shipped_rule_has_a_positive_and_a_negative_case() -> None:
    fires: dict[str, set[bool]] = {}
    for path in _TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                fires.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    # Watchdog always fires: there is no case in which it does not.
    assert fires == {name: {True, False} if name != "Watchdog" else {True} for name in _rules()}


def test_shipped_rules_name_only_canonical_signals_and_dsobs_own() -> None:
    families = [family for registry in (REGISTRY, metrics.REGISTRY) for family in registry.collect()]
    own = {sample.name for family in families for sample in family.samples}
    own |= {family.name + "_total" for family in families if family.type == "counter"}
    own |= {family.name for family in families}
    # `up` is Prometheus's own, and the other one of dsobs-nvml, which Prometheus may read by itself.
    recorded = {"dsobs:engine_available:avg30s", "up", "dsobs_nvml_up"}
    unknown = set()
    for rule in _rules().values():
        for name in rule.query.metric_names - recorded:
            base = name.removesuffix("_bucket").removesuffix("_count")
            if base not in SIGNALS and name not in own:
                unknown.add(name)
    assert unknown == set()


def test_each_metric_of_the_shipped_rules_is_in_the_reference() -> None:
    page = (_FOLDER.parent / "docs/reference/metrics.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))
    recorded = {"dsobs:engine_available:avg30s", "up", "dsobs_nvml_up"}
    named = set().union(*(rule.query.metric_names for rule in _rules().values())) - recorded
    assert len(named) > 50
    assert {name for name in named if not {name, re.sub("_(bucket|count|sum)$", "", name)} & listed} == set()


def test_shipped_rules_have_severity_summary_description_threshold_and_runbook() -> None:
    for rule in _rules().values():
        severity = dict(rule.labels)["severity"].text
        assert severity in ("critical", "warning") or (rule.name, severity) == ("Watchdog", "none")
        assert {name for name, _ in rule.annotations} == {"description", "runbook", "summary", "threshold"}
        assert dict(rule.annotations)["runbook"].text == f"docs/runbooks/{rule.name}.md"


def test_only_a_dead_or_hung_engine_asks_for_a_restart() -> None:
    actions = {
        rule.name: dict(rule.labels)["action"].text for rule in _rules().values() if "action" in dict(rule.labels)
    }
    assert {name for name, action in actions.items() if action == "restart"} == {
        "EngineHung",
        "EngineDown",
        "EngineUnresponsive",
    }
    assert {name for name in actions if name.startswith("GPU")} == actions.keys() - {
        "EngineHung",
        "EngineDown",
        "EngineUnresponsive",
    }


def test_xids_have_the_consequence_of_the_table() -> None:
    rules = {rule.name: rule for rule in _rules().values() if "cause" in dict(rule.labels)}
    unknown = rules.pop("GPUFaultUnknown")
    numbers: dict[str, set[str]] = {}
    for rule in rules.values():
        told = set(re.findall(r"\d+", re.findall(r'xid=~?"([^"]*)"', rule.expr)[0]))
        numbers.setdefault(dict(rule.labels)["action"].text, set()).update(told)
    table: dict[str, set[str]] = {}
    for xid in XIDS.values():
        table.setdefault(xid.action.value, set()).add(str(xid.number))
    (known,) = re.findall(r'xid!~"([^"]*)"', unknown.expr)
    assert set(known.split("|")) == set().union(*table.values())
    del table["ignore"]
    assert numbers == table


def test_the_sidecar_looks_back_six_hours_at_most_and_leaves_the_rest_to_prometheus() -> None:
    def beyond(names: Sequence[str]) -> set[str]:
        groups = load_text((name, shipped.source(name)) for name in names)
        return {problem.rule for problem in out_of_reach(groups)}

    assert beyond(shipped.FILE_NAMES) == set()
    assert beyond([shipped.PROMETHEUS_FILE_NAME]) >= {"TimeToFirstTokenBudgetLong", "AvailabilityBudgetLong"}


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
    assert rules["EngineUnresponsive"].expr.startswith("dsobs_engine_unresponsive_seconds >= 120\n")
    assert dict(rules["EngineUnresponsive"].annotations)["threshold"].text == "2m"


def test_literal_gpu_memory_form_reads_what_nvml_says() -> None:
    rule = _rules(Rules(gpu_memory=MemoryRule(form="literal")))["GPUMemoryHigh"]
    assert rule.expr == "dsobs_gpu_memory_used_ratio > 0.85"
    assert "reserved KV cache included" in dict(rule.annotations)["description"].text


def test_settings_of_objectives_reach_every_place_of_their_rules() -> None:
    rules = _rules(Rules(objectives=Objectives(ttft_threshold=1, ttft_target=0.95, availability_target=0.99)))
    for window in ("Fast", "Slow", "Long"):
        ttft, availability = rules[f"TimeToFirstTokenBudget{window}"], rules[f"AvailabilityBudget{window}"]
        assert ttft.expr.count('le=~"1|1[.]0"') == 2
        assert ttft.expr.count("(1 - 0.95)") == 2
        assert "0.99)" not in ttft.expr
        assert "budget of 95% within 1s over" in dict(ttft.annotations)["threshold"].text
        assert availability.expr.count("(1 - 0.99)") == 2
        assert "budget of 99% over" in dict(availability.annotations)["threshold"].text


def test_what_restarts_an_engine_or_speaks_against_it_is_evaluated_each_second_and_the_rest_each_fifteen_or_more() -> (
    None
):
    groups = load_text((name, shipped.source(name)) for name in _ALL)
    intervals = {group.name: group.interval for group in groups}
    assert {name for name, interval in intervals.items() if interval == 1.0} == {"dsobs-engine", "dsobs-gpu-faults"}
    assert min(interval or 0.0 for interval in intervals.values() if interval != 1.0) == 15.0


def test_evaluating_the_shipped_rules_each_second_costs_less_than_a_millisecond() -> None:
    store = Store()
    evaluator = Evaluator(load_text((name, shipped.source(name)) for name in shipped.FILE_NAMES), store)
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
        assert [t for t in evaluator.evaluate(1e9 + second) if t.alert.name != "Watchdog"] == []
        spent += time.process_time() - begun
    # Measured at 0.2 ms; the bound leaves room for a slow machine.
    assert spent / 600 < 0.001
