"""Run by test_outbox_kill.py: an outbox that delivers until it is killed, `python FILE STATE_FILE URL RESOLVE_FROM`."""

import asyncio
import sys

import aiohttp

from dsobs.config import Secret
from dsobs.config.models import PagerDuty
from dsobs.model.clock import SteadyClock
from dsobs.model.notification import Event, Notification
from dsobs.notifiers.outbox import SCHEMA, Outbox
from dsobs.notifiers.pagerduty import PagerDutyNotifier
from dsobs.state import StateDb


async def main(state_file: str, url: str, event: str) -> None:
    db, clock = StateDb(state_file, SCHEMA), SteadyClock()
    async with aiohttp.ClientSession() as session:
        notifier = PagerDutyNotifier(PagerDuty(routing_key=Secret("0123456789abcdef" * 2), url=url), session)
        outbox = Outbox(db, [notifier], clock, source="gpu-1")
        task = asyncio.create_task(outbox.run())
        if event != "nothing":
            await outbox.put(
                [
                    Notification(clock.now(), Event(event), f"key-{n}", f"page {n}", "critical", "gpu-1")
                    for n in range(20)
                ]
            )
        print("queued", flush=True)
        await task


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
