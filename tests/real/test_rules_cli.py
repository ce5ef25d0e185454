"""`dsobs rules test` and promtool 3 on the same unit tests: the same verdict for each case, and how long each takes."""

import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dsobs.config import Config
from dsobs.indicators import RULES_FILE
from dsobs.rules import shipped
from tests.docs.test_docs import of

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "alerts").rglob("*.test.yaml"))
TRICKY = sorted((ROOT / "tests" / "data" / "rules").glob("*.test.yaml"))

pytestmark = pytest.mark.real("servers")


@pytest.fixture(scope="module")
def promtool() -> str:
    return built_promtool()


@functools.cache
def built_promtool() -> str:
    script = Path(__file__).with_name("prometheus.sh")
    built = subprocess.run(["bash", str(script), "promtool"], stdout=subprocess.PIPE, text=True, check=True)
    return built.stdout.strip()


def cases(path: Path) -> Iterator[dict[str, Any]]:
    """The file's tests with one case in each, named by its number, so that promtool judges each case by itself."""
    number = 0
    for test in yaml.safe_load(path.read_text())["tests"]:
        for kind in ("alert_rule_test", "promql_expr_test"):
            for case in test.get(kind) or []:
                single = {k: v for k, v in test.items() if k not in ("alert_rule_test", "promql_expr_test")}
                yield {**single, "name": f"case {number}", kind: [case]}
                number += 1


@dataclass(frozen=True)
class Run:
    """One file's tests by both."""

    theirs: Mapping[str, bool]
    """Test's name → whether it passed in promtool."""
    ours: Sequence[Mapping[str, Any]]
    """Each case as `dsobs rules test --json` tells it."""
    their_seconds: float
    our_seconds: float
    """CPU time of the whole command, its start included."""


@functools.cache
def run(path: Path) -> Run:
    """Once for all tests of this module: promtool takes a minute and more for the shipped ones."""
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        done, their_seconds = timed([built_promtool(), "test", "rules", f"--junit={junit}", path])
        assert junit.is_file(), done.stderr
        theirs = {case.attrib["name"]: case.find("failure") is None for case in ET.parse(junit).iter("testcase")}
    done, our_seconds = timed([sys.executable, "-m", "dsobs.cli", "rules", "test", "--json", path])
    ours = [json.loads(line) for line in done.stdout.splitlines()]
    return Run(theirs, ours, their_seconds, our_seconds)


def timed(command: Sequence[str | Path]) -> tuple[subprocess.CompletedProcess[str], float]:
    """What it said, and seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "GOMAXPROCS": "2"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("path", TRICKY, ids=lambda p: p.name)
def test_each_case_has_promtools_verdict(promtool: str, path: Path, tmp_path: Path) -> None:
    """promtool judges tests: with one case in each it judges cases."""
    document = yaml.safe_load(path.read_text())
    document["rule_files"] = [str(path.parent / name) for name in document.get("rule_files", [])]
    document["tests"] = list(cases(path))
    split = tmp_path / "split.test.yaml"
    split.write_text(yaml.safe_dump(document))
    both = run(split)
    ours = {case["name"]: case["ok"] for case in both.ours}
    assert len(both.theirs) == len(document["tests"])
    assert ours == both.theirs
    print(
        f"{path.name}: {len(ours)} cases, {sum(ours.values())} pass, {len(ours) - sum(ours.values())} fail, all alike"
    )


@pytest.mark.parametrize("path", TRICKY, ids=lambda p: p.name)
def test_each_test_has_promtools_verdict(promtool: str, path: Path) -> None:
    both = run(path)
    ours: dict[str, bool] = {}
    for case in both.ours:
        ours[case["name"]] = ours.get(case["name"], True) and case["ok"]
    assert ours == {name: ok for name, ok in both.theirs.items() if name in ours}
    assert all(ok for name, ok in both.theirs.items() if name not in ours)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_all_shipped_tests_pass_in_both(promtool: str, path: Path) -> None:
    """A test that passes in promtool passes with each of its cases."""
    both = run(path)
    named = {case["name"] for case in both.ours}
    assert named == both.theirs.keys() == {test["name"] for test in yaml.safe_load(path.read_text())["tests"]}
    assert [name for name, ok in both.theirs.items() if not ok] == []
    assert [case for case in both.ours if not case["ok"]] == []
    assert len(both.ours) == len(list(cases(path)))


def test_shipped_tests_take_at_most_ten_times_promtools_time(promtool: str) -> None:
    """A command for each file: its start counts as often."""
    ours, theirs = sum(run(path).our_seconds for path in SHIPPED), sum(run(path).their_seconds for path in SHIPPED)
    print(f"dsobs rules test {ours:.2f} s, promtool {theirs:.2f} s: {ours / theirs:.2f} times")
    assert ours <= 10 * theirs


def test_a_day_at_15_s_takes_at_most_ten_times_promtools_time(promtool: str, tmp_path: Path) -> None:
    rules = ROOT / "alerts"
    path = tmp_path / "day.test.yaml"
    engine = 'model_name="m", engine="0"'
    ttft = "dsobs_engine_time_to_first_token_seconds"
    path.write_text(
        f"""
rule_files: ['{rules}/thresholds.rules.yaml', '{rules}/engine.rules.yaml']
evaluation_interval: 15s
tests:
  - name: a day
    interval: 15s
    input_series:
      - {{series: 'dsobs_engine_stall_seconds{{{engine}}}', values: 0x5760}}
      - {{series: 'dsobs_container_restarts_24h{{name="vllm"}}', values: 4x5760}}
      - {{series: 'dsobs_gpu_memory_effective_ratio{{gpu="0", source="pool"}}', values: 0.9x5760}}
      - {{series: '{ttft}_bucket{{{engine}, le="0.5"}}', values: 0+15x5760}}
      - {{series: '{ttft}_bucket{{{engine}, le="+Inf"}}', values: 0+16x5760}}
      - {{series: '{ttft}_count{{{engine}}}', values: 0+16x5760}}
    alert_rule_test: [{{eval_time: 1d, alertname: EngineHung, exp_alerts: []}}]
    promql_expr_test: [{{expr: 'count(ALERTS)', eval_time: 1d, exp_samples: [{{value: 3}}]}}]
"""
    )
    both = run(path)
    ours, theirs = both.our_seconds, both.their_seconds
    assert [case["ok"] for case in both.ours] == [True, True]
    assert list(both.theirs.values()) == [True]
    print(f"a day: dsobs rules test {ours:.2f} s, promtool {theirs:.2f} s: {ours / theirs:.2f} times")
    assert ours <= 10 * theirs


def test_the_prometheus_configuration_of_the_how_to_is_one(promtool: str, tmp_path: Path) -> None:
    (block,) = [block for block in of("yaml") if "scrape_configs" in block.text]
    rules = tmp_path / "dsobs.rules.yaml"
    rules.write_text(shipped.rule_file([RULES_FILE, "objectives.rules.yaml"], Config()))
    file = tmp_path / "prometheus.yaml"
    file.write_text(block.text.replace("/etc/prometheus/dsobs.rules.yaml", str(rules)))
    done = subprocess.run([promtool, "check", "config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout
