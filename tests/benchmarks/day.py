"""Resident memory of the whole of `dsobs run` over a virtual day beside a busy engine.

`python -m tests.benchmarks.day [HOURS [ENGINES]]` prints one JSON object; with several engines the server has as many
data-parallel ranks, each with its own series, and as many cards of which everything is known. It is the sidecar itself
with everything that it starts (state.db and flight recorder on disk, pages sent to a receiver on loopback, the API
asked for its metrics each minute), only that a second takes no longer than its turn, and that what it asks the engine,
its runtime and NVML is answered from the recording's busy seconds, laid end to end. Each hour the engine is down for
two minutes and comes back anew.

Idle is the same process after ten virtual minutes without an engine and without a card: what it takes to run, to page
and to be asked, and no engine's series.
"""

import asyncio
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from dsobs.cli import footprint
from dsobs.collectors.nvml import gpus_of_record
from dsobs.config import Config
from dsobs.config.models import Api, Notifiers, State, Webhook
from dsobs.model.alert import Transition
from dsobs.model.clock import ManualClock
from dsobs.model.observation import Failure, Gpu, Health, RuntimeView, Scrape, Unknown
from dsobs.model.samples import metric_name
from dsobs.promql import Sliced
from dsobs.recorder.records import read_records
from dsobs.series.exposition import Parser
from dsobs.series.store import Store
from dsobs.sidecar import Sidecar
from dsobs.sidecar.latest import Latest
from tests.benchmarks.gpus import card

RECORDING = Path(__file__).parents[1] / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
BUSY = slice(50, 176)
_RANK = 'engine="0"'
GROWS = ("_total", "_bucket", "_count", "_sum")
HOUR = 3600
T = TypeVar("T")
IDLE_SECONDS = 600
DOWN = range(1800, 1920)
"""Seconds of each hour in which the engine is down."""
TOLD = (0, 1, 2, 3, 4, 5, 6, 9, 12, 15, 18, 21, 24)
"""Hours after which memory is told; 0 stands for the first ten minutes, in which the store fills."""


def resident_mib() -> float:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


class Engine:
    """Busy seconds again and again; what only grows goes on growing until the engine is started anew."""

    def __init__(self, engines: int = 1) -> None:
        parser = Parser()
        records = [record for record in list(read_records(RECORDING))[BUSY] if record["metrics"].startswith("# HELP")]
        pages = [parser.parse(record["metrics"]) for record in records]
        self._values = [array("d", (sample.value for sample in page.samples)) for page in pages]
        grows = [metric_name(sample.labels).endswith(GROWS) for sample in pages[0].samples]
        first, last = self._values[0], self._values[-1]
        self._gains = array("d", (b - a if g else 0.0 for a, b, g in zip(first, last, grows, strict=True)))
        lines: list[str] = []
        self._order: list[int] = []
        """Which of the page's samples each line shows."""
        sample = 0
        for line in records[0]["metrics"].replace("%", "%%").splitlines():
            if line.startswith("#"):
                lines.append(line)
                continue
            head = line.rpartition(" ")[0] + " %r"
            ranks = engines if _RANK in head else 1
            lines += [head.replace(_RANK, f'engine="{rank}"') for rank in range(ranks)]
            self._order += [sample] * ranks
            sample += 1
        self._template = "\n".join(lines) + "\n"
        self._gpus = [gpus_of_record(record.get("nvml")) for record in records]
        if engines > 1:
            self._gpus = [tuple(card(index) for index in range(engines))]
        self.begun = float(records[0]["t"])
        self.second = 0
        self.there = False
        """There is one at all, with its cards."""

    def page(self) -> str:
        """`/metrics` at this second."""
        lap, index = divmod(self.second % HOUR, len(self._values))
        values = [value + lap * gain for value, gain in zip(self._values[index], self._gains, strict=True)]
        return self._template % tuple([values[number] for number in self._order])

    @property
    def down(self) -> bool:
        """Nobody listens, and the process is gone."""
        return not self.there or self.second % HOUR in DOWN

    def gpus(self) -> tuple[Gpu, ...] | Unknown:
        """NVML's reading at this second."""
        if not self.there:
            return Unknown("no card")
        return self._gpus[self.second % len(self._gpus)]

    def runtime(self) -> RuntimeView:
        """The process, a new one after each time that it was down."""
        starts, at = divmod(self.second, HOUR)
        starts += at >= DOWN.stop
        started = self.begun + (starts - 1) * HOUR + DOWN.stop
        cpu = float(self.second)
        if self.down:
            return RuntimeView("process", "vllm", running=False, started_at=started, exit_code=1, cpu_seconds=cpu)
        return RuntimeView("process", "vllm", running=True, started_at=started, cpu_seconds=cpu, pids=(1,))


class VirtualSidecar(Sidecar):
    """The sidecar, whose loop runs over virtual seconds."""

    def __init__(self, config: Config, hours: int, engines: int) -> None:
        self.engine = Engine(engines)
        self._virtual = ManualClock(self.engine.begun)
        super().__init__(config, self._virtual)
        self.hours = hours
        self.told: dict[int, float] = {}
        self.samples: dict[int, float] = {}
        """MiB of samples in the store, by hour."""
        self.started = self.idle = self.spent = 0.0
        self.rules: list[float] = []
        """Milliseconds of CPU of each evaluation in the last hour, when all windows are full; what others do between
        its slices is not in it."""
        self._time_rules()

    def _time_rules(self) -> None:
        evaluation = self.evaluator.evaluation

        def timed(now: float, *, news: bool = False) -> Sliced[list[Transition]]:
            spent = 0

            def counted(part: Callable[[], T]) -> T:
                nonlocal spent
                begun = time.thread_time_ns()
                try:
                    return part()
                finally:
                    spent += time.thread_time_ns() - begun

            work, answer = evaluation(now, news=news), None
            while True:
                try:
                    part = counted(partial(work.send, answer))
                except StopIteration as finished:
                    transitions: list[Transition] = finished.value
                    break
                answer = yield None if part is None else partial(counted, part)
            if self.engine.second > (self.hours - 1) * HOUR:
                self.rules.append(spent / 1e6)
            return transitions

        self.evaluator.evaluation = timed  # type: ignore[method-assign]

    async def _scraped(self) -> Scrape:
        now = self.clock.now()
        if self.engine.down:
            return Scrape(
                now, 0.0, failure=Failure.REFUSED, detail="connection refused", connected=False, answered=False
            )
        text = self.engine.page()
        return Scrape(now, 0.01, page=self._parser.parse(text), text=text, status=200)

    async def _health(self) -> Health:
        down = self.engine.down
        return Health(self.clock.now(), 0.0, *((None, Failure.REFUSED, "refused") if down else (200,)))

    async def _gpu(self) -> tuple[Gpu, ...] | Unknown:
        return self.engine.gpus()

    async def _runtime(self) -> RuntimeView | Unknown:
        return self.engine.runtime() if self.engine.there else Unknown("no engine")

    async def _loop(self) -> None:
        watch = self.watch
        watch._scrapes = Latest(self._scraped, watch._no_scrape)
        watch._healths = Latest(self._health, watch._no_health)
        watch._gpus, watch._views = Latest(self._gpu, Unknown), Latest(self._runtime, Unknown)
        # As `dsobs run` does some seconds after its start, or idle would be told too high.
        footprint.give_back()
        self.started = resident_mib()
        for second in range(1, IDLE_SECONDS + 1):
            await self._second(second)
        footprint.give_back()
        self.idle = resident_mib()
        print(f"idle: {self.idle} MiB, {self.started} MiB at the start", file=sys.stderr, flush=True)
        self.engine.there = True
        begun = time.process_time()
        while self.engine.second < self.hours * HOUR:
            self.engine.second += 1
            await self._second(self.engine.second)
            if self.engine.second % (24 * HOUR) == HOUR:
                await self._prune()
            if self.engine.second == 600:
                footprint.give_back()
                self._tell(0)
            elif self.engine.second % HOUR == 0:
                self._tell(self.engine.second // HOUR)
        self.spent = time.process_time() - begun
        await watch.stop_asking()

    async def _second(self, number: int) -> None:
        self._virtual.advance(1.0)
        self._nudge.clear()
        await self._turn(1.0)
        if number % 60 == 0:
            async with self._session.get(f"http://{self.address}/metrics") as answer:
                await answer.read()

    def _tell(self, hour: int) -> None:
        if hour in TOLD:
            self.told[hour], self.samples[hour] = resident_mib(), stored(self.store)["samples_mib"]
            told = f"{self.told[hour]} MiB, {self.samples[hour]} of samples"
            print(f"virtual hour {hour}: {told}", file=sys.stderr, flush=True)


async def receiver(pages: list[int]) -> tuple[asyncio.Server, str]:
    """Takes every page; their number in `pages[0]`."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-l"))
        await reader.readexactly(length)
        pages[0] += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def stored(store: Store) -> dict[str, float]:
    """Series, and MiB of their samples."""
    series = [one for family in store._names.values() for one in family.values()]
    samples = sum(len(one.times) + len(one.old_times) for one in series)
    return {"series": len(series), "samples_mib": round(16 * samples / 2**20, 1)}


async def measure(hours: int, engines: int) -> dict[str, Any]:
    """MiB by hour, and what happened."""
    pages = [0]
    server, url = await receiver(pages)
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            state=State(directory=Path(folder)),
            api=Api(listen="127.0.0.1:0"),
            notifiers=Notifiers(webhook=Webhook.model_validate({"url": url})),
        )
        sidecar = VirtualSidecar(config, hours, engines)
        await sidecar.run()
    server.close()
    return {
        "hours": hours,
        "engines": engines,
        "started_mib": sidecar.started,
        "idle_mib": sidecar.idle,
        "resident_mib": sidecar.told,
        "above_idle_mib": round(max(sidecar.told.values()) - sidecar.idle, 1),
        "samples_mib": sidecar.samples,
        "store": stored(sidecar.store),
        "turn_cpu_ms": round(1000 * sidecar.spent / (hours * HOUR), 2),
        "rules_ms": round(statistics.mean(sidecar.rules), 3),
        "rules_greatest_ms": [round(one, 2) for one in sorted(sidecar.rules)[-3:]],
        "pages": pages[0],
    }


def main() -> None:
    """Prints one JSON object."""
    footprint.one_heap()
    # Said a hundred times an hour, and known.
    logging.getLogger("dsobs").setLevel(logging.CRITICAL)
    hours = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    engines = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    print(json.dumps(asyncio.run(measure(hours, engines))))


if __name__ == "__main__":
    main()
