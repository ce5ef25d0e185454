"""The simulator behaves like the real server in what dsobs relies on."""

import gzip
import json
from collections.abc import Iterator

import pytest

from dsobs.simulator.process import SimulatorProcess
from tests.contracts.engine_contract import DATA, EngineContract, ServedModel

FLAGS = (
    *("--dev-mode", "--max-num-batched-tokens", "512"),
    *("--prefill-tokens-per-second", "20000", "--decode-step-seconds", "0.008"),
)


class TestSimulator032(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[ServedModel]:
        page = (DATA / "vllm-0.32" / "after.prom").read_text()
        with SimulatorProcess(*FLAGS) as process:
            yield ServedModel(process, process.model, page)


class TestSimulator023(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[ServedModel]:
        with gzip.open(DATA / "h100-vllm-0.23" / "scenario.jsonl.gz", "rt") as lines:
            page = json.loads(next(lines))["metrics"]
        with SimulatorProcess("--vllm-version", "0.23", *FLAGS) as process:
            yield ServedModel(process, process.model, page)
