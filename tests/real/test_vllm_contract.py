"""Real vLLM passes the suite that the simulator passes."""

from collections.abc import Iterator

import pytest

from tests.contracts.engine_contract import DATA, EngineContract, ServedModel
from tests.real.vllm import VllmProcess


@pytest.mark.real("vllm")
class TestVllm(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[ServedModel]:
        page = (DATA / "vllm-0.32" / "after.prom").read_text()
        flags = ("--max-num-batched-tokens", "512", "--max-model-len", "32768")
        with VllmProcess(*flags, environment={"VLLM_SERVER_DEV_MODE": "1"}) as process:
            yield ServedModel(process, process.model, page)
