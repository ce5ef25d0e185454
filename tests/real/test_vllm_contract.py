"""Real vLLM passes the suite that the simulator passes."""

import pytest

from tests.contracts.engine_contract import DATA, EngineContract, ServedModel
from tests.real.conftest import SharedVllm


@pytest.mark.real("vllm")
class TestVllm(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, configured_vllm: SharedVllm) -> ServedModel:
        page = (DATA / "vllm-0.32" / "after.prom").read_text()
        return ServedModel(configured_vllm.process, configured_vllm.process.model, page)
