"""dsobs's own server over loopback, in front of a source in memory."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp
import pytest

from dsobs import silences
from dsobs.api.application import Source
from dsobs.api.queries import Window
from dsobs.api.server import serve
from dsobs.config import ReloadError, Secret
from dsobs.model.samples import Page, Sample
from dsobs.model.status import Charts, Status
from dsobs.promql import LIMITS
from dsobs.series.store import Store
from dsobs.silences import Silence
from dsobs.state import StateError
from tests.status_scenes import SCENES

TOKEN = "a-control-tökén"


class MemorySource:
    """A `Source` whose answers a test sets."""

    def __init__(self) -> None:
        self.samples: Sequence[Sample] = []
        self.page: Page | None = None
        self.standing: str | None = None
        self.awaited: str | None = None
        self.alerts: list[dict[str, Any]] = []
        self.groups: list[dict[str, Any]] = []
        self._shown: Status | None = None
        self.charted = Charts(0.0, 15.0, 1, {})
        self.found: list[dict[str, Any]] = []
        self.kept: list[Silence] = []
        self.killed = False
        self.faults: dict[str, int] = {}
        self.full = False
        self.bad_settings = ""
        self.now = 1000.0
        self.store = Store()
        self.limits = LIMITS

    def window(self) -> Window:
        return Window(self.store, self.now, self.limits)

    def metric_samples(self) -> Sequence[Sample]:
        return self.samples

    def native_page(self) -> Page | None:
        return self.page

    def alive(self) -> str | None:
        return self.standing

    def prepared(self) -> str | None:
        return self.awaited

    def alert_views(self) -> list[dict[str, Any]]:
        return self.alerts

    def rule_groups(self) -> list[dict[str, Any]]:
        return self.groups

    @property
    def shown(self) -> Status:
        """What `status` gives; a server of which nothing is known, unless it is set."""
        if self._shown is None:
            self._shown = SCENES["empty"]()[0]
        return self._shown

    @shown.setter
    def shown(self, status: Status) -> None:
        self._shown = status

    def status(self) -> Status:
        return self.shown

    def charts(self) -> Charts:
        return self.charted

    async def incidents(self, incident: str | None) -> list[dict[str, Any]]:
        return [one for one in self.found if one["id"].startswith(incident or "")]

    def active_silences(self) -> list[Silence]:
        return self.kept

    async def silence(self, matchers: list[str], seconds: float, created_by: str, comment: str) -> Silence:
        made = silences.new(matchers, self.now, seconds, created_by, comment)
        if self.full:
            raise StateError("state.db: database or disk is full")
        self.kept.append(made)
        return made

    async def expire_silence(self, id_: str) -> bool:
        before = len(self.kept)
        self.kept = [silence for silence in self.kept if silence.id != id_]
        return len(self.kept) < before

    async def clear_gpu(self, card: str) -> int:
        return self.faults.pop(card, 0)

    async def switch(self, *, killed: bool) -> None:
        self.killed = killed

    async def reload(self) -> dict[str, list[str]]:
        if self.bad_settings:
            raise ReloadError(self.bad_settings)
        return {"changed": ["remediation.mode"], "need_restart": ["api.listen"]}


def _is_a_source(source: MemorySource) -> Source:
    return source


Client = aiohttp.ClientSession
Open = Callable[[Secret | None], contextlib.AbstractAsyncContextManager[Client]]


@pytest.fixture
def source() -> MemorySource:
    return MemorySource()


@pytest.fixture
def opened(source: MemorySource) -> Open:
    @contextlib.asynccontextmanager
    async def open_(token: Secret | None) -> AsyncIterator[Client]:
        async with (
            serve(source, "127.0.0.1:0", token) as (host, port),
            aiohttp.ClientSession(f"http://{host}:{port}", auto_decompress=True) as session,
        ):
            yield session

    return open_


@pytest.fixture
async def client(opened: Open) -> AsyncIterator[Client]:
    """Control is on; this client has no token."""
    async with opened(Secret(TOKEN)) as session:
        yield session


@pytest.fixture
def bearer() -> dict[str, str]:
    # As a client sends UTF-8: aiohttp encodes headers so.
    return {"Authorization": f"Bearer {TOKEN}"}
