from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtimes.supervised import Supervised


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised
    supervised.end()
