"""Looks at the engine: scrape, health, GPUs, runtime and synthetic requests, each at its own pace."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import aiohttp

from dsobs.collectors.gpus import GpuCollector, open_gpus
from dsobs.collectors.health import HealthCheck
from dsobs.collectors.host import HostCollector
from dsobs.collectors.pause import PauseQuestion
from dsobs.collectors.probe import Prober
from dsobs.collectors.scrape import Scraper
from dsobs.config import Config, SecretError
from dsobs.model.clock import Clock
from dsobs.model.engine import EngineAdapter
from dsobs.model.observation import (
    Failure,
    Gpu,
    Health,
    HostView,
    Observation,
    Paused,
    Probe,
    RuntimeView,
    Scrape,
    Unknown,
)
from dsobs.model.runtime import Replaces, Runtime, SeesByThePage
from dsobs.model.samples import Sample
from dsobs.model.scaling import Places
from dsobs.model.view import CANNOT_REPLACE, View
from dsobs.pipeline import Pipeline
from dsobs.runtimes import select
from dsobs.series.exposition import Parser
from dsobs.sidecar.latest import Latest
from dsobs.signals.memory import kv_pool_of_log

log = logging.getLogger(__name__)

HEALTH_SECONDS = 5.0
"""Between two `/health` requests to an engine that is up; each second else."""
LOOK_FOR_RUNTIME_SECONDS = 5.0


class Watch:
    """All that is asked of one engine and its surroundings."""

    def __init__(
        self,
        config: Config,
        session: aiohttp.ClientSession,
        clock: Clock,
        pipeline: Pipeline,
        parser: Parser,
        nudge: Callable[[], None],
    ) -> None:
        """`nudge` asks for a turn before it is due."""
        self.config = config
        self.runtime: Runtime | Unknown = Unknown("not looked for yet")
        self._session = session
        self._clock = clock
        self._pipeline = pipeline
        self._nudge = nudge
        self._scrapes = Latest(Scraper(session, config.target, "/metrics", clock, parser).scrape, self._no_scrape)
        self._healths = Latest(HealthCheck(session, config.target, clock).check, self._no_health)
        self._pause_question = PauseQuestion(session, config.target)
        self._pauses = Latest(self._ask_paused, lambda _: Paused.UNKNOWN)
        self._cards = open_gpus(config.gpu, clock)
        self._gpus: Latest[tuple[Gpu, ...] | Unknown] = Latest(self._cards.read, Unknown)
        self._host_collector = HostCollector(config.host, config.state.directory, clock)
        self._host: Latest[HostView | Unknown] = Latest(self._view_host, Unknown)
        self._views: Latest[RuntimeView | Unknown] = Latest(self._view_runtime, Unknown)
        self._probes: list[Probe] = []
        self._prober: Prober | None = None
        self._prober_for: tuple[EngineAdapter, float] | None = None
        self._asking: set[asyncio.Task[None]] = set()
        """Synthetic requests in flight."""
        self._background: set[asyncio.Task[None]] = set()
        self._runtime_looked_at = float("-inf")
        self._health_at = float("-inf")
        self._gpus_at = float("-inf")
        self._log_read_for: float | None = None
        self.shipped_pool: Callable[[], int | None] = lambda: None
        """Bytes of the KV pool that shipped logs name."""

    def _no_scrape(self, reason: str) -> Scrape:
        return Scrape(self._clock.now(), 0.0, failure=Failure.UNPARSABLE, detail=reason)

    def _no_health(self, reason: str) -> Health:
        return Health(self._clock.now(), 0.0, failure=Failure.UNPARSABLE, detail=reason)

    def configure(self, config: Config) -> None:
        """Other settings from now on; GPUs and host are opened anew where theirs changed."""
        before, self.config = self.config, config
        if config.gpu != before.gpu:
            self._leave(self._gpus, self._cards)
            self._cards = open_gpus(config.gpu, self._clock)
            self._gpus = Latest(self._cards.read, Unknown)
            self._gpus_at = float("-inf")
        if config.host != before.host:
            self._leave(self._host)
            self._host_collector = HostCollector(config.host, config.state.directory, self._clock)
            self._host = Latest(self._view_host, Unknown)

    def _leave(self, latest: Latest[Any], cards: GpuCollector | None = None) -> None:
        async def leave() -> None:
            await latest.cancel()
            if cards is not None:
                await cards.close()

        task = asyncio.create_task(leave())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def observe(self, interval: float) -> Observation:
        """What is known after at most `interval` seconds."""
        now = self._clock.now()
        questions: set[asyncio.Task[Any]] = {self._scrapes.start(), self._views.start()}
        wait = self.config.gpu.interval
        # A turn that comes a little early does not wait for the next.
        if self.config.gpu.enabled and now - self._gpus_at >= wait - min(wait, interval) / 2:
            self._gpus_at = now
            questions.add(self._gpus.start())
        self._host.start()
        if not self._pipeline.view.ready or now - self._health_at >= HEALTH_SECONDS:
            questions.add(self._healths.start())
        await asyncio.wait(questions, timeout=interval)
        scrape: Scrape | None = self._scrapes.take()
        self._views.take()
        kept = self._gpus.value if self._gpus.take() is None else None
        if isinstance(kept, tuple) and any(gpu.xids for gpu in kept):
            # The same reading once more: its XIDs are counted already. Without any it stays the very same object.
            self._gpus.value = tuple(dataclasses.replace(gpu, xids=()) for gpu in kept)
        paused = self._pauses.take()
        self._host.take()
        health = self._healths.take()
        if health is not None:
            self._health_at = self._clock.now()
        probes, self._probes = tuple(self._probes), []
        disabled = Unknown("switched off (gpu.enabled)")
        # What is unknown is falsy: its own reason must not be lost to "not read yet".
        gpus = Unknown("not read yet") if self._gpus.value is None else self._gpus.value
        view = self._views.value
        if view is None:
            view = self.runtime if isinstance(self.runtime, Unknown) else Unknown("asked just now")
        return Observation(
            at=self._clock.now(),
            scrape=scrape,
            health=health,
            gpus=gpus if self.config.gpu.enabled else disabled,
            runtime=view,
            probes=probes,
            paused=paused,
            host=self._host.value or Unknown("not read yet"),
        )

    async def _view_host(self) -> HostView | Unknown:
        return await self._host_collector.read(self._views.value or Unknown("not asked yet"))

    def ask_paused(self) -> None:
        """Asks the engine whether somebody paused it; one of the next observations has the answer."""
        self._pauses.start()

    async def _ask_paused(self) -> Paused:
        adapter = self._pipeline.adapter
        return Paused.NOT_THERE if adapter is None else await self._pause_question.ask(adapter)

    async def _view_runtime(self) -> RuntimeView | Unknown:
        now = self._clock.now()
        if isinstance(self.runtime, Unknown) and now - self._runtime_looked_at >= LOOK_FOR_RUNTIME_SECONDS:
            self._runtime_looked_at = now
            found = await select(self.config.runtime, self.config.target)
            if type(found) is not type(self.runtime) or found != self.runtime:
                missed = isinstance(found, Unknown) and self.config.runtime.name not in ("auto", "none")
                text = found.reason if isinstance(found, Unknown) else found.name
                log.log(logging.WARNING if missed else logging.INFO, "runtime: %s", text)
            self.runtime = found
            if isinstance(found, SeesByThePage):
                found.page_started_at = lambda: self._pipeline.restarts.known.page_start
            if isinstance(found, Places):
                found.cards = self._sound_cards
            self._take_abilities()
        if isinstance(self.runtime, Unknown):
            return self.runtime
        view = await self.runtime.view()
        self._take_abilities()
        return view

    def _sound_cards(self) -> tuple[Gpu, ...] | Unknown:
        """Those read last, without those that are broken."""
        if not self.config.gpu.enabled:
            return Unknown("gpu.enabled is false")
        broken = {fault.card for fault in self._pipeline.view.gpu_faults}
        read = self._gpus.value
        if not isinstance(read, tuple):
            return Unknown("not read yet") if read is None else read
        return tuple(card for card in read if card.uuid not in broken)

    async def canonical_of(self, url: str) -> list[Sample] | None:
        """The canonical samples of another server of the same kind; None where it does not answer."""
        adapter = self._pipeline.adapter
        if adapter is None:
            return None
        target = self.config.target.model_copy(update={"url": url})
        page = (await Scraper(self._session, target, adapter.metrics_path, self._clock).scrape()).page
        return adapter.canonical(page) if page is not None and adapter.recognizes(page) else None

    def _take_abilities(self) -> None:
        runtime, pipeline = self.runtime, self._pipeline
        pipeline.can_restart = not isinstance(runtime, Unknown) and runtime.can_restart
        pipeline.cannot_replace = (runtime.cannot_replace() or "") if isinstance(runtime, Replaces) else CANNOT_REPLACE

    def probe(self, rank: str | None) -> None:
        """Sends a synthetic request to engine `rank` (None: not addressed), unless one is in flight."""
        if not self._asking:
            task = asyncio.create_task(self._probe(rank))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)

    async def _probe(self, rank: str | None) -> None:
        adapter = self._pipeline.adapter
        if adapter is None:
            return
        timeout = self.config.hang.probe_timeout
        if self._prober is None or self._prober_for != (adapter, timeout):
            self._prober_for = (adapter, timeout)
            self._prober = Prober(self._session, self.config.target, adapter, self._clock, timeout)
        self._pipeline.probes_in_flight[rank] = 1
        self._pipeline.probe_sent(self._clock.now(), rank)
        log.info("a synthetic request of one token", extra={"event.action": "probe-sent"})
        try:
            probe = await self._prober.probe(rank)
            took = probe.ended_at - probe.started_at
            extra = {"event.action": f"probe-{probe.outcome}"}
            log.info("probe %s after %.1f s %s", probe.outcome, took, probe.detail, extra=extra)
            self._probes.append(probe)
            # The verdict needs a scrape from after the probe: not a second later, now.
            self._nudge()
        except SecretError as error:
            log.error("probe: %s", error)
        finally:
            self._pipeline.probes_in_flight.pop(rank, None)

    def read_start_up_log(self, view: View) -> None:
        """The size of the KV pool stands in the engine's start-up log and nowhere else on CUDA."""
        started = view.instance_started_at
        if not view.ready or started is None or started == self._log_read_for:
            return
        if isinstance(self.runtime, Unknown):
            # Nobody to ask for the log: what is shipped of it may say it, now or in a moment.
            if (pool := self.shipped_pool()) is not None:
                self._log_read_for = started
                self._take_pool(pool)
            return
        self._log_read_for = started
        task = asyncio.create_task(self._kv_pool(self.runtime))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _kv_pool(self, runtime: Runtime) -> None:
        tail = await runtime.log_tail(2000)
        if not isinstance(tail, Unknown):
            pool = kv_pool_of_log(tail)
            pool = self.shipped_pool() if pool is None else pool
            if pool is not None:
                self._take_pool(pool)

    def _take_pool(self, pool: int) -> None:
        self._pipeline.kv_pool_bytes = pool
        log.info("KV cache pool of %d bytes, by the engine's log", pool)

    async def stop_asking(self) -> None:
        """Nothing new is asked; what is in flight is given up."""
        for latest in (self._scrapes, self._healths, self._gpus, self._host, self._views, self._pauses):
            await latest.cancel()
        await self._cards.close()
        tasks = {*self._asking, *self._background}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Leaves the runtime."""
        if not isinstance(self.runtime, Unknown):
            await self.runtime.close()
