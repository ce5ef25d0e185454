from pathlib import Path

import pytest
import yaml

from dsobs.config import ConfigError
from dsobs.notifiers.inhibition import InhibitRule, inhibitor, load_inhibition
from dsobs.silences import Matcher

DOWN = {"alertname": "EngineDown", "severity": "critical", "instance": "gpu-1"}
SLOW = {"alertname": "LatencyP99High", "severity": "warning", "instance": "gpu-1"}
SHIPPED = Path(__file__).parents[2] / "alerts" / "alertmanager.yaml"


def rule(source: str, target: str, *equal: str) -> InhibitRule:
    return InhibitRule((Matcher.parse(source),), (Matcher.parse(target),), equal)


def test_a_target_is_held_by_the_name_of_a_firing_source() -> None:
    rules = [rule("alertname=EngineDown", "severity=warning", "instance")]
    assert inhibitor(rules, SLOW, [SLOW, DOWN]) == "EngineDown"
    assert inhibitor(rules, SLOW, [SLOW]) is None
    assert inhibitor(rules, DOWN, [SLOW, DOWN]) is None


def test_equal_labels_must_be_equal_and_missing_is_empty() -> None:
    rules = [rule("alertname=EngineDown", "severity=warning", "instance", "zone")]
    assert inhibitor(rules, SLOW, [{**DOWN, "instance": "gpu-2"}]) is None
    assert inhibitor(rules, SLOW, [{**DOWN, "zone": ""}]) == "EngineDown"
    assert inhibitor(rules, {**SLOW, "zone": "a"}, [DOWN]) is None


def test_alerts_that_match_both_sides_do_not_hold_each_other() -> None:
    both = [rule("severity=~critical|warning", "severity=~critical|warning")]
    assert inhibitor(both, SLOW, [SLOW, DOWN]) is None
    # A source of the source side only holds one that matches both.
    one = [rule("severity=~critical|warning", "severity=warning")]
    assert inhibitor(one, SLOW, [DOWN]) == "EngineDown"


def test_all_matchers_of_a_side_must_fit() -> None:
    held = InhibitRule(
        (Matcher.parse("alertname=EngineDown"), Matcher.parse("severity=critical")),
        (Matcher.parse("alertname=~Latency.+"), Matcher.parse("severity!=critical")),
    )
    assert inhibitor([held], SLOW, [DOWN]) == "EngineDown"
    assert inhibitor([held], SLOW, [{**DOWN, "severity": "warning"}]) is None
    assert inhibitor([held], {**SLOW, "severity": "critical"}, [DOWN]) is None


@pytest.mark.parametrize(
    ("source", "held", "free"),
    [
        ("EngineDown", ("EngineHung", "LatencyP99High"), ("GPUMemoryHigh", "ContainerRestartsHigh", "Watchdog")),
        ("EngineHung", ("EngineUnresponsive", "LatencyP99High"), ("EngineDown", "GPUMemoryHigh")),
        ("EngineStartSlow", ("EngineTargetAbsent",), ("EngineDown", "EngineHung")),
        ("GPUFellOffBus", ("EngineDown", "EngineHung", "GPUResetNeeded", "GPUFaultEscalate"), ("GPUMemoryHigh",)),
        (
            "GPUResetNeeded",
            ("EngineDown", "EngineStartSlow", "GPUFaultEscalate", "GPURowRemapFailed", "GPURecoveryNeeded"),
            ("GPUFellOffBus", "GPUNVLinkFault"),
        ),
        ("GPUFaultEscalate", ("EngineDown", "GPUECCUncorrected"), ("GPUFellOffBus", "GPUResetNeeded")),
        ("DsobsTellsNobody", ("DsobsOutboxStuck",), ("EngineDown",)),
        ("TimeToFirstTokenBudgetFast", ("LatencyP99High", "TimeToFirstTokenBudgetLong"), ("AvailabilityBudgetFast",)),
        ("KVCacheSaturated", ("QueueGrowing", "LatencyP99High"), ("PreemptionThrash", "EngineHung")),
    ],
)
def test_shipped_rules_make_one_page_of_one_fault(source: str, held: tuple[str, ...], free: tuple[str, ...]) -> None:
    rules = load_inhibition([SHIPPED])
    firing = [{"alertname": source, "instance": "a"}]
    found = {name: inhibitor(rules, {"alertname": name, "instance": "a"}, firing) for name in (*held, *free)}
    assert found == {**dict.fromkeys(held, source), **dict.fromkeys(free)}
    assert not any(inhibitor(rules, {"alertname": name, "instance": "b"}, firing) for name in held)


@pytest.mark.parametrize(("advice", "held"), [("gpu_reset", "GPURecoveryNeeded"), ("node_reboot", "GPUResetNeeded")])
def test_of_what_helps_a_card_the_most_is_told(advice: str, held: str) -> None:
    rules = load_inhibition([SHIPPED])
    card = {"instance": "a", "uuid": "GPU-1"}
    firing = [
        {"alertname": "GPUResetNeeded", **card},
        {"alertname": "GPURecoveryNeeded", "advice": advice, **card},
    ]
    assert [one["alertname"] for one in firing if inhibitor(rules, one, firing)] == [held]


def test_each_shipped_rule_and_each_name_in_it_is_of_a_shipped_alert() -> None:
    names = {
        rule["alert"]
        for file in SHIPPED.parent.glob("*.rules.yaml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    for one in load_inhibition([SHIPPED]):
        for matcher in (*one.sources, *one.targets):
            if matcher.name != "alertname":
                continue
            for word in matcher.value.split("|"):
                part = Matcher("alertname", matcher.op, word)
                assert any(part.matches({"alertname": name}) for name in names), word


def test_of_an_alertmanager_configuration_only_the_inhibit_rules_are_read(tmp_path: Path) -> None:
    file = tmp_path / "am.yaml"
    file.write_text("route: {receiver: x}\ninhibit_rules:\n  - {source_matchers: [a=b], target_matchers: [c=d]}\n")
    (found,) = load_inhibition([file])
    assert found == rule("a=b", "c=d")
    assert load_inhibition([], [("empty", "route: {receiver: x}\n")]) == []


BAD = """\
inhibit_rules:
  - source_matchers: [alertname=A]
    target_match: {alertname: B}
  - source_matchers: ['a=~(']
    target_matchers: []
    equal: instance
  - nothing
"""


def test_everything_that_is_wrong_is_said_at_once_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(BAD)
    with pytest.raises(ConfigError) as caught:
        load_inhibition([file, tmp_path / "none.yaml"])
    told = str(caught.value).replace(str(tmp_path), "DIR").splitlines()
    assert told == [
        "DIR/bad.yaml:3: inhibit_rules[0].target_match: is no key of an inhibit rule; write target_matchers",
        "DIR/bad.yaml:2: inhibit_rules[0].target_matchers: must be a list with at least one matcher",
        "DIR/bad.yaml:4: inhibit_rules[1].source_matchers[0]: 'a=~(': bad regular expression: missing ): (",
        "DIR/bad.yaml:5: inhibit_rules[1].target_matchers: must be a list with at least one matcher",
        "DIR/bad.yaml:6: inhibit_rules[1].equal: must be a list of label names",
        "DIR/bad.yaml:7: inhibit_rules[2]: must be a mapping with source_matchers and target_matchers",
        "DIR/none.yaml: there is no such file; give the path of a settings file",
    ]


WIDE = """inhibit_rules:
  - source_matchers: [alertname=EngineDown]
    target_matchers: ['alertname=~".*"']
    equal: [instance]
  - source_matchers: ['severity=~"|.+"', team=]
    target_matchers: [severity=warning]
  - source_matchers: ['severity!="info"']
    target_matchers: [severity=warning]
    equal: [instance]
  - source_matchers: ['alertname=~".+"']
    target_matchers: [severity=warning]
  - source_matchers: [severity=critical]
    target_matchers: ['severity!="critical"']
  - source_matchers: ['severity!="info"']
    target_matchers: [severity=warning]
    equal: [model_name]
"""


def test_a_side_that_fits_every_alert_is_refused_and_so_is_a_source_that_always_fires(tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text(WIDE)
    with pytest.raises(ConfigError) as caught:
        load_inhibition([file])
    told = str(caught.value).replace(str(tmp_path), "DIR").splitlines()
    everything = "fits every alert that has no such label; name the alerts, such as alertname=EngineDown"
    always = "fits Watchdog, which always fires, so that its targets are never told; add alertname!=Watchdog"
    assert told == [
        f'DIR/wide.yaml:3: inhibit_rules[0].target_matchers: alertname=~".*" {everything}',
        f'DIR/wide.yaml:5: inhibit_rules[1].source_matchers: severity=~"|.+" team="" {everything}',
        f'DIR/wide.yaml:7: inhibit_rules[2].source_matchers: severity!="info" {always}',
        f'DIR/wide.yaml:10: inhibit_rules[3].source_matchers: alertname=~".+" {always}',
    ]
