"""Asks the engine's /health. It proves little (a hung vLLM answers 200), but `ready` needs it."""

import asyncio

import aiohttp

from dsobs.collectors.exchange import exchange
from dsobs.config.models import Target
from dsobs.model.clock import Clock
from dsobs.model.observation import Failure, Health

_MAX_BYTES = 64 * 1024


class HealthCheck:
    """GETs `path` of `target`. `session` is of `open_session` and stays its maker's."""

    def __init__(self, session: aiohttp.ClientSession, target: Target, clock: Clock, path: str = "/health") -> None:
        self._session = session
        self._url = target.url.rstrip("/") + path
        self._timeout = target.scrape_timeout
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    async def check(self) -> Health:
        """One request, over after `scrape_timeout` at the latest. Raises CancelledError only."""
        async with self._one_at_a_time:
            loop = asyncio.get_running_loop()
            answer = await exchange(
                self._session,
                "GET",
                self._url,
                headers={"Accept": "*/*"},
                deadline=loop.time() + self._timeout,
                max_bytes=_MAX_BYTES,
            )
            failure, detail = answer.failure, answer.detail
            if failure is None and answer.status != 200:
                failure, detail = Failure.HTTP_STATUS, f"status {answer.status}"
            return Health(
                at=self._clock.now(),
                duration_seconds=answer.duration_seconds,
                status=answer.status,
                failure=failure,
                detail=detail,
            )
