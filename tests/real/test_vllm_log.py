"""Real vLLM with the logging configuration that `dsobs k8s inject` gives it: stdout as it is without, and the file."""

import json
import re

import pytest

from tests.real.conftest import SharedVllm

_VARYING = re.compile(r"\d+(?:\.\d+)?|0x[0-9a-f]+")


def shapes(lines: list[str]) -> list[str]:
    """Kinds of lines of a start and of a request, without their numbers. Left out is vLLM's logo, in whose place one
    line with its version stands where there is more than one handler; routes, whose methods have no order; what is said
    of a start that takes long, and who looks meanwhile whether it has ended; and the supervisor's own."""
    end = next(index for index, line in enumerate(lines) if "POST /v1/" in line)
    kept = [line for line in lines[: end + 1] if re.search(r"\b(INFO|WARNING)\b", line)]
    without = re.compile(
        r"[█▄▀]|\[api_utils\.py:N\] $|vLLM server version|Route: |\[shm_broadcast\.py|\"GET /|^dsobs supervise"
    )
    plain = [_VARYING.sub("N", re.sub(r"'.*'|\{.*\}|/tmp\S+", "…", line)) for line in kept]
    return sorted({line for line in plain if not without.search(line)})


@pytest.mark.real("vllm")
def test_stdout_of_real_vllm_stays_and_every_process_writes_the_file(
    vllm: SharedVllm, configured_vllm: SharedVllm
) -> None:
    plain = shapes(vllm.first_lines)
    assert shapes(configured_vllm.first_lines) == plain
    assert len(plain) > 20
    records = [json.loads(line) for line in configured_vllm.log.read_text().splitlines()]
    assert len({record["pid"] for record in records}) >= 2
    names = {str(record["name"]).partition(".")[0] for record in records}
    assert names == {"vllm", "uvicorn"}
    assert any("POST /v1/" in str(record["message"]) for record in records)
