"""`dsobs replay`: what it says and its exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
