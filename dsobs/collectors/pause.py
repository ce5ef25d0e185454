"""Asks an engine whether somebody paused it: a paused scheduler moves and answers as little as a hung one."""

import asyncio

import aiohttp

from dsobs.collectors.exchange import exchange
from dsobs.config.models import Target
from dsobs.model.engine import EngineAdapter
from dsobs.model.observation import Paused

_MAX_BYTES = 64 * 1024


class PauseQuestion:
    """GETs the adapter's `pause_path` of `target`. `session` is of `open_session` and stays its maker's."""

    def __init__(self, session: aiohttp.ClientSession, target: Target) -> None:
        self._session = session
        self._target = target

    async def ask(self, adapter: EngineAdapter) -> Paused:
        """One request, over after `scrape_timeout` at the latest. Raises CancelledError only."""
        if adapter.pause_path is None:
            return Paused.NOT_THERE
        answer = await exchange(
            self._session,
            "GET",
            self._target.url.rstrip("/") + adapter.pause_path,
            headers={"Accept": "application/json"},
            deadline=asyncio.get_running_loop().time() + self._target.scrape_timeout,
            max_bytes=_MAX_BYTES,
        )
        if answer.failure is None and answer.status in (404, 405):
            return Paused.NOT_THERE
        said = adapter.paused(answer.body) if answer.failure is None and answer.status == 200 else None
        return Paused.UNKNOWN if said is None else Paused.YES if said else Paused.NO
