from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest

from dsobs.config import Secret
from dsobs.config.models import PagerDuty
from dsobs.notifiers.outbox import SCHEMA
from dsobs.notifiers.pagerduty import PagerDutyNotifier
from dsobs.state import StateDb
from tests.notifiers.virtual import VirtualTime
from tests.pagerduty_stand_in import PagerDutyStandIn


@pytest.fixture
def time() -> VirtualTime:
    return VirtualTime()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[StateDb]:
    db = StateDb(tmp_path / "state.db", SCHEMA)
    yield db
    db.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def pagerduty() -> AsyncIterator[PagerDutyStandIn]:
    async with PagerDutyStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def notifier(pagerduty: PagerDutyStandIn, session: aiohttp.ClientSession) -> PagerDutyNotifier:
    return PagerDutyNotifier(
        PagerDuty(
            routing_key=Secret("0123456789abcdef" * 2),
            url=pagerduty.url,
            severities=("critical", "error", "warning", "info"),
        ),
        session,
    )
