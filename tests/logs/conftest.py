"""What tests of log shipping begin with."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.elasticsearch_stand_in import ElasticsearchStandIn


@pytest.fixture
async def server() -> AsyncIterator[ElasticsearchStandIn]:
    """A stand-in for Elasticsearch, empty."""
    async with ElasticsearchStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a log will be."""
    return tmp_path / "app.log"
