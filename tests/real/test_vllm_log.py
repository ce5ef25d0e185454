"""Real vLLM with the logging configuration that `dsobs k8s inject` gives it: stdout as it is without, and the file."""

import json
import re
import urllib.request
from pathlib import Path

import pytest

from dsobs.manifests import sidecar
from tests.real.vllm import VllmProcess

FLAGS = ("--max-num-batched-tokens", "512", "--max-model-len", "4096")
_VARYING = re.compile(r"\d+(?:\.\d+)?|0x[0-9a-f]+")


def shapes(lines: list[str]) -> list[str]:
    """Kinds of lines of a start and of a request, without their numbers. Left out is vLLM's logo, in whose place one
    line with its version stands where there is more than one handler, and routes, whose methods have no order."""
    end = next(index for index, line in enumerate(lines) if "POST /v1/" in line)
    kept = [line for line in lines[: end + 1] if re.search(r"\b(INFO|WARNING)\b", line)]
    without = re.compile(r"[█▄▀]|\[api_utils\.py:N\] $|vLLM server version|Route: ")
    plain = [_VARYING.sub("N", re.sub(r"'.*'|\{.*\}|/tmp\S+", "…", line)) for line in kept]
    return sorted({line for line in plain if not without.search(line)})


def written(environment: dict[str, str]) -> list[str]:
    with VllmProcess(*FLAGS, environment=environment) as process:
        body = json.dumps({"model": process.model, "prompt": "hello", "max_tokens": 4}).encode()
        asked = urllib.request.Request(f"{process.url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert answer.status == 200
        process.stop(20.0)
        return list(process.lines)


@pytest.mark.real("vllm")
def test_stdout_of_real_vllm_stays_and_every_process_writes_the_file(tmp_path: Path) -> None:
    (tmp_path / "engine_log.py").write_text(sidecar.log_code())
    config = sidecar.logging_config(None, ())
    config = config.replace(sidecar.LOGGING_PATH, str(tmp_path)).replace(sidecar.LOG_FILE, str(tmp_path / "vllm.log"))
    (tmp_path / "logging.json").write_text(config)
    plain = shapes(written({}))
    configured = shapes(written({sidecar.LOGGING_VARIABLE: str(tmp_path / "logging.json")}))
    assert configured == plain
    assert len(plain) > 20
    records = [json.loads(line) for line in (tmp_path / "vllm.log").read_text().splitlines()]
    assert len({record["pid"] for record in records}) >= 2
    names = {str(record["name"]).partition(".")[0] for record in records}
    assert names == {"vllm", "uvicorn"}
    assert any("POST /v1/" in str(record["message"]) for record in records)
