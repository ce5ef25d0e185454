"""Waiting for an event or a time of a clock."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from dsobs.model.clock import Clock

Wait: TypeAlias = Callable[[asyncio.Event, float | None], Awaitable[None]]
"""Waits until the event is set or the clock has come to the time (None: for ever). Tests pass virtual time."""


def wait_on(clock: Clock) -> Wait:
    """The live one."""

    async def wait(event: asyncio.Event, until: float | None) -> None:
        if until is None:
            await event.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - clock.now())):
                await event.wait()

    return wait
