"""`dsobs replay`: what it says and its exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsobs.config import Config
from dsobs.replay import Replay, replay

PAGE = (
    'vllm:num_requests_running{model_name="m",engine="0"} 0\nvllm:num_requests_waiting{model_name="m",engine="0"} 0\n'
)


def replayed(path: Path, times: list[float]) -> tuple[int, dict[str, object], str]:
    """Exit code, the last event, and standard error."""
    path.write_text("".join(json.dumps({"t": at, "metrics": PAGE, "health": 200}) + "\n" for at in times))
    words = [sys.executable, "-m", "dsobs.cli", "replay", "--json", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_records_out_of_order_are_left_out_counted_and_a_failure(tmp_path: Path) -> None:
    code, end, said = replayed(tmp_path / "backwards.jsonl", [1000.0 - at for at in range(250)])
    assert (code, end) == (1, {"t": 0.0, "kind": "end", "samples": 1})
    assert "249 records are older than the one before them and were left out" in said


def test_records_in_order_are_all_taken(tmp_path: Path) -> None:
    code, end, said = replayed(tmp_path / "forwards.jsonl", [1000.0 + at for at in range(250)])
    assert (code, end, said) == (0, {"t": 249.0, "kind": "end", "samples": 250}, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing to replay: it holds no record; "),
        ('{"t": 1}\n', "nothing to replay: none of its 1 records has any of `metrics`, `health`, `nvml`, `runtime`; "),
        ('{"t": 1, "nvml": null}\n{"t": 2}\n', "nothing to replay: none of its 2 records has any of `metrics`, "),
    ],
)
def test_a_file_with_nothing_to_replay_is_a_failure_that_says_what_it_lacks(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(text)
    words = [sys.executable, "-m", "dsobs.cli", "replay", "--json", str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{path}: {said}" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["kind"] == "end"


WORKS = (
    'vllm:num_requests_running{{model_name="m",engine="0"}} {running}\n'
    'vllm:num_requests_waiting{{model_name="m",engine="0"}} 0\n'
    'vllm:kv_cache_usage_perc{{model_name="m",engine="0"}} {usage}\n'
    'vllm:generation_tokens_total{{model_name="m",engine="0"}} {tokens}\n'
)
RULES = """
groups:
  - name: mine
    rules:
      - alert: Cause
        expr: dsobs_engine_kv_cache_usage_ratio > 0.8
        labels: {severity: warning}
      - alert: Consequence
        expr: dsobs_engine_kv_cache_usage_ratio > 0.7
        labels: {severity: critical}
      - alert: Remark
        expr: dsobs_engine_kv_cache_usage_ratio > 0.7
        labels: {severity: info}
"""
INHIBITION = """
inhibit_rules:
  - source_matchers: [alertname=Cause]
    target_matchers: [alertname=Consequence]
    equal: [instance]
"""


def test_pages_are_what_a_live_dsobs_would_tell_warnings_too_and_not_what_inhibition_holds_back(tmp_path: Path) -> None:
    (tmp_path / "mine.rules.yaml").write_text(RULES)
    (tmp_path / "inhibit.yaml").write_text(INHIBITION)
    config = Config.model_validate(
        {
            "rules": {"shipped": False, "files": [tmp_path / "mine.rules.yaml"]},
            "inhibition": {"files": [tmp_path / "inhibit.yaml"]},
        }
    )
    records = (
        {
            "t": 1000.0 + at,
            "metrics": WORKS.format(running=1, tokens=at, usage=0.9 if 100 <= at < 200 else 0.75 if at < 300 else 0.1),
            "health": 200,
        }
        for at in range(100, 400)
    )
    pages = [(e["name"], e["state"], e["severity"]) for e in Replay(config).run(records) if e["kind"] == "page"]
    assert pages == [
        ("Cause", "triggered", "warning"),
        ("Consequence", "triggered", "critical"),
        ("Cause", "resolved", "warning"),
        ("Consequence", "resolved", "critical"),
    ]


def test_of_the_recorded_hang_nothing_critical_is_paged_before_it() -> None:
    recording = Path(__file__).parents[1] / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
    pages = [event for event in replay(recording, Config()) if event["kind"] == "page"]
    critical = [(e["name"], e["state"]) for e in pages if e["severity"] == "critical"]
    assert critical[:2] == [("EngineHung", "triggered"), ("EngineHung", "resolved")]
    assert critical[2:] == [("EngineDown", "triggered")]
    assert min(e["t"] for e in pages if e["severity"] == "critical") >= 186.0


def test_what_is_wrong_with_an_inhibition_file_is_said_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "inhibit.yaml").write_text("inhibit_rules: 3\n")
    recording = tmp_path / "one.jsonl"
    recording.write_text(json.dumps({"t": 1.0, "metrics": PAGE, "health": 200}) + "\n")
    words = [sys.executable, "-m", "dsobs.cli", "replay", str(recording), "--set"]
    done = subprocess.run(
        [*words, f"inhibition.files={tmp_path}/inhibit.yaml"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("inhibit.yaml:1: inhibit_rules: must be a list\n")
