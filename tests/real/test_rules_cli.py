"""`dsobs rules test` and promtool 3 on the same unit tests: the same verdict for each case, and how long each takes."""

import json
import os
import resource
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "alerts").rglob("*.test.yaml"))
TRICKY = sorted((ROOT / "tests" / "data" / "rules").glob("*.test.yaml"))

pytestmark = pytest.mark.real("servers")


@pytest.fixture(scope="module")
def promtool() -> str:
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


def promtool_verdicts(promtool: str, path: Path, junit: Path) -> dict[str, bool]:
    """Test's name → whether it passed."""
    done = subprocess.run([promtool, "test", "rules", f"--junit={junit}", path], capture_output=True, text=True)
    assert junit.is_file(), done.stderr
    return {case.attrib["name"]: case.find("failure") is None for case in ET.parse(junit).iter("testcase")}


def dsobs_cases(path: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "dsobs.cli", "rules", "test", "--json", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("path", SHIPPED + TRICKY, ids=lambda p: p.name)
def test_each_case_has_promtools_verdict(promtool: str, path: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    document["rule_files"] = [str(path.parent / name) for name in document.get("rule_files", [])]
    document["tests"] = list(cases(path))
    split = tmp_path / "split.test.yaml"
    split.write_text(yaml.safe_dump(document))
    theirs = promtool_verdicts(promtool, split, tmp_path / "junit.xml")
    ours = {case["name"]: case["ok"] for case in dsobs_cases(split)}
    assert len(theirs) == len(document["tests"])
    assert ours == theirs
    print(
        f"{path.name}: {len(ours)} cases, {sum(ours.values())} pass, {len(ours) - sum(ours.values())} fail, all alike"
    )


@pytest.mark.parametrize("path", SHIPPED + TRICKY, ids=lambda p: p.name)
def test_each_test_has_promtools_verdict(promtool: str, path: Path, tmp_path: Path) -> None:
    theirs = promtool_verdicts(promtool, path, tmp_path / "junit.xml")
    ours: dict[str, bool] = {}
    for case in dsobs_cases(path):
        ours[case["name"]] = ours.get(case["name"], True) and case["ok"]
    assert ours == {name: ok for name, ok in theirs.items() if name in ours}
    assert all(ok for name, ok in theirs.items() if name not in ours)


def test_shipped_tests_take_at_most_ten_times_promtools_time(promtool: str) -> None:
    """CPU time of the whole command, its start included; the best of three."""
    ours = min(_cpu_seconds([sys.executable, "-m", "dsobs.cli", "rules", "test", *SHIPPED]) for _ in range(3))
    theirs = min(_cpu_seconds([promtool, "test", "rules", *SHIPPED]) for _ in range(3))
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
    ours = min(_cpu_seconds([sys.executable, "-m", "dsobs.cli", "rules", "test", path]) for _ in range(3))
    theirs = min(_cpu_seconds([promtool, "test", "rules", path]) for _ in range(3))
    print(f"a day: dsobs rules test {ours:.2f} s, promtool {theirs:.2f} s: {ours / theirs:.2f} times")
    assert ours <= 10 * theirs


def _cpu_seconds(command: Sequence[str | Path]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, cwd=ROOT, check=True, env={**os.environ, "GOMAXPROCS": "2"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
