import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

from dsobs import telemetry
from dsobs.config import Secret
from dsobs.config.models import Heartbeat
from dsobs.notifiers.heartbeat import HeartbeatSender
from tests.contracts.alertmanager_contract import until
from tests.notifiers.virtual import VirtualTime


class Switch:
    """A dead man's switch."""

    def __init__(self) -> None:
        self.beats: list[dict[str, str]] = []
        self.status = 200
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.beats.append(json.loads(await request.read()))
        return web.Response(status=self.status)


@pytest.fixture
async def switch() -> AsyncIterator[Switch]:
    switch = Switch()
    app = web.Application()
    app.router.add_post("/secret-path", switch.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    switch.url = f"http://127.0.0.1:{runner.addresses[0][1]}/secret-path"
    yield switch
    await runner.cleanup()


async def test_beats_each_minute_while_dsobs_is_well_and_not_while_it_is_not(
    switch: Switch, session: aiohttp.ClientSession, time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    why: str | None = None
    sender = HeartbeatSender(
        Heartbeat(url=Secret(switch.url)), session, time.clock, "gpu-1", lambda: why, wait=time.wait
    )
    task = asyncio.create_task(sender.run())

    async def minute(beats: int) -> None:
        await until(lambda: len(time._waiters) == 1)
        assert len(switch.beats) == beats
        waited = set(time._waiters)
        time.advance(60.0)
        await until(lambda: not waited & set(time._waiters))

    await minute(1)
    await minute(2)
    why = "the main loop stands still for 31 s"
    await minute(3)
    await minute(3)
    assert "the main loop stands still" in caplog.text
    why = None
    switch.status = 500
    await minute(3)
    await until(lambda: "HTTP 500" in caplog.text)
    assert "secret-path" not in caplog.text
    assert {(beat["alertname"], beat["source"]) for beat in switch.beats} == {("Watchdog", "gpu-1")}
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_a_beat_that_was_held_goes_out_as_soon_as_it_may(
    switch: Switch, session: aiohttp.ClientSession, time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    why: str | None = "the first turn is not done"
    sender = HeartbeatSender(
        Heartbeat(url=Secret(switch.url)), session, time.clock, "gpu-1", lambda: why, wait=time.wait
    )
    task = asyncio.create_task(sender.run())
    held = telemetry.NOTIFICATIONS.labels("heartbeat", "held")
    before = held._value.get()

    async def second(beats: int) -> None:
        await until(lambda: len(time._waiters) == 1)
        assert len(switch.beats) == beats
        waited = set(time._waiters)
        time.advance(1.0)
        await until(lambda: not waited & set(time._waiters))

    await second(0)
    await second(0)
    assert held._value.get() == before + 1
    why = None
    await second(0)
    await until(lambda: len(switch.beats) == 1 and len(time._waiters) == 1)
    (at,) = [at for _, at in time._waiters.values()]
    assert at == time.clock.now() + 60.0
    # What holds the first one for a moment is that dsobs has just begun.
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    why = "no turn for 70 s"
    time.advance(60.0)
    await until(lambda: "no heartbeat went out: no turn for 70 s" in caplog.text)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_secret_that_is_not_there_is_said_and_tried_again(
    session: aiohttp.ClientSession, time: VirtualTime, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Heartbeat(url=Secret("file:/nowhere/secret"))
    sender = HeartbeatSender(settings, session, time.clock, "gpu-1", lambda: None, wait=time.wait)
    task = asyncio.create_task(sender.run())
    await until(lambda: "/nowhere/secret" in caplog.text)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
