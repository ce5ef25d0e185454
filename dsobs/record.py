"""A recording of a live server: once a second its metrics page, `/health` and the GPUs, in the form that replays."""

import asyncio
from pathlib import Path
from typing import TextIO

import orjson

from dsobs.collectors.exchange import open_session
from dsobs.collectors.gpus import open_gpus
from dsobs.collectors.health import HealthCheck
from dsobs.collectors.nvml import record_of_gpus
from dsobs.collectors.scrape import Scraper
from dsobs.config import Config
from dsobs.model.clock import SteadyClock
from dsobs.model.observation import Observation, Unknown
from dsobs.recorder.records import record_of


async def record(config: Config, file: Path, seconds: float, told: TextIO | None = None) -> int:
    """Writes records to `file` for `seconds`; how many scrapes were answered. OSError if the file can't be written.

    Each record is complete on disk before the next is begun, so that ending it early loses nothing. `told` gets a
    line of
    progress.
    """
    import gzip

    clock = SteadyClock()
    loop = asyncio.get_running_loop()
    answered, count = 0, 0
    cards = open_gpus(config.gpu, clock)
    try:
        with gzip.open(file, "wb", compresslevel=6) as out:
            async with open_session(config.target) as session:
                scraper = Scraper(session, config.target, "/metrics", clock)
                health = HealthCheck(session, config.target, clock)
                begun = due = loop.time()
                while loop.time() - begun < seconds:
                    gpus = await cards.read() if config.gpu.enabled else Unknown("switched off (gpu.enabled)")
                    said = await health.check()
                    scrape = await scraper.scrape()
                    obs = Observation(at=clock.now(), scrape=scrape, health=said, gpus=gpus)
                    line = orjson.dumps(record_of(obs, record_of_gpus(gpus), said), option=orjson.OPT_APPEND_NEWLINE)
                    out.write(line)
                    out.flush()
                    answered += scrape.ok
                    count += 1
                    if told is not None:
                        print(f"\r{count} records, {answered} answered", end="", file=told, flush=True)
                    due = max(due + config.target.scrape_interval, loop.time())
                    await asyncio.sleep(max(due - loop.time(), 0.0))
    finally:
        await cards.close()
        if told is not None:
            print(file=told)
    return answered
