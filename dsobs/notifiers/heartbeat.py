"""A sign of life for a dead man's switch: whoever gets it pages when it stops."""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from dsobs import telemetry
from dsobs.config import SecretError
from dsobs.config.models import Heartbeat
from dsobs.model.clock import Clock
from dsobs.notifiers.json_bytes import json_bytes
from dsobs.notifiers.messages import iso_time
from dsobs.notifiers.post import post_json
from dsobs.notifiers.wait import Wait, wait_on

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

NAME = "heartbeat"
LOOK_SECONDS = 1.0
"""While a beat is held, between two looks whether it may go out."""


class HeartbeatSender:
    """POSTs each interval, but only while `alive` gives no reason against it: what only half works is dead.

    A beat that was held goes out as soon as there is no reason any more.
    """

    def __init__(
        self,
        settings: Heartbeat,
        session: "aiohttp.ClientSession",
        clock: Clock,
        source: str,
        alive: Callable[[], str | None],
        *,
        wait: Wait | None = None,
    ) -> None:
        self._settings = settings
        self._session = session
        self._clock = clock
        self._source = source
        self._alive = alive
        self._wait = wait or wait_on(clock)
        self._woken = asyncio.Event()
        self._told = ""
        self._begun = clock.now()

    async def run(self) -> None:
        """Until cancelled. Beats that are missed are not made up for."""
        due = self._clock.now()
        held = False
        while True:
            now = self._clock.now()
            why = self._alive()
            if why is None and (held or now >= due):
                await self._beat()
                due = max(min(due, now) + self._settings.interval, self._clock.now())
                held = False
            elif why is not None and now >= due:
                self._note("held", why)
                due = max(due + self._settings.interval, now)
                held = True
            self._woken.clear()
            await self._wait(self._woken, min(due, now + LOOK_SECONDS) if held else due)

    async def _beat(self) -> None:
        url = self._settings.url
        if url is None:
            return
        body = {"alertname": "Watchdog", "status": "firing", "source": self._source, "at": iso_time(self._clock.now())}
        try:
            answer = await post_json(
                self._session, url.reveal(), json_bytes(body), deadline_seconds=self._settings.timeout
            )
        except SecretError as error:
            self._note("retried", str(error))
            return
        if answer.status is not None and 200 <= answer.status < 300:
            self._note("accepted", "")
        else:
            told = answer.detail if answer.status is None else f"HTTP {answer.status} {answer.detail}".rstrip()
            self._note("retried", told)

    def _note(self, outcome: str, why: str) -> None:
        telemetry.NOTIFICATIONS.labels(NAME, outcome).inc()
        if why and why != self._told:
            # What holds the very first one is mostly that dsobs has just begun.
            early = outcome == "held" and self._clock.now() - self._begun < self._settings.interval
            log.log(logging.DEBUG if early else logging.WARNING, "no heartbeat went out: %s", why)
            if early:
                return
        elif self._told and not why:
            log.info("heartbeats go out again")
        self._told = why
