"""Sends metrics every so often, and spans as they come, beside everything else: nobody waits for it."""

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import aiohttp
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry

from dsobs import __version__
from dsobs.config.otlp import Otlp
from dsobs.model.back_off import doubling
from dsobs.model.clock import Clock
from dsobs.model.samples import Sample, labels_of
from dsobs.otlp.client import Fate, OtlpClient, Reply
from dsobs.otlp.metrics import Family, metrics_data
from dsobs.otlp.traces import Line, spans_of
from dsobs.telemetry import OTLP_DROPPED, OTLP_EXPORTS, REGISTRY

log = logging.getLogger(__name__)

MOST_SPANS = 2048
"""That wait; the oldest go first, as in OpenTelemetry's own batch processor."""
MOST_AT_ONCE = 512
FIRST_DELAY = 1.0
MOST_DELAY = 60.0


def back_off(attempt: int, retry_after: float | None, chance: float) -> float:
    """Seconds before the next attempt after `attempt` failed ones (from 1), spread by `chance` in [0, 1)."""
    return doubling(attempt, FIRST_DELAY, MOST_DELAY, retry_after, chance)


def resource_of(name: str, **more: str) -> Resource:
    """`service.name` and more, with what OTEL_RESOURCE_ATTRIBUTES says beside them."""
    return Resource.create({"service.name": name, **more})


class Exporter:
    """To one receiver, until `stop`."""

    def __init__(
        self,
        settings: Otlp,
        session: aiohttp.ClientSession,
        clock: Clock,
        *,
        server: str,
        host: str,
        samples: Callable[[], Iterable[Sample]],
        engine: Callable[[], str],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """`server` is the `service.name` of the inference server, whose samples and engine are asked for when sent."""
        self.settings = settings
        self._client = OtlpClient(settings, session)
        self._clock = clock
        self._samples, self._engine, self._registry = samples, engine, registry
        self._since = clock.now()
        self._scope = InstrumentationScope("dsobs", __version__)
        self._server = resource_of(server, **{"host.name": host})
        self._dsobs = resource_of("dsobs", **{"service.version": __version__, "host.name": host})
        self._attributes = {"dsobs.server": server}
        self._spans: deque[ReadableSpan] = deque()
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        self._troubles: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to send."""
        if self.settings.metrics:
            self._tasks.append(asyncio.create_task(self._send_metrics()))
        if self.settings.traces:
            self._tasks.append(asyncio.create_task(self._send_spans()))

    async def stop(self, deadline: float) -> None:
        """Sends what waits, for `deadline` seconds, and ends; legal twice."""
        self._stopping.set()
        self._news.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=deadline)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._spans:
            OTLP_DROPPED.labels("traces", "stopped").inc(len(self._spans))
            self._spans.clear()
        self._tasks.clear()

    # Traces.

    def line(self, line: Line, before: Sequence[Line]) -> None:
        """A line of the ledger, committed, and those of its incident before it."""
        if not self.settings.traces:
            return
        for span in spans_of(line, before, resource=self._dsobs, scope=self._scope, attributes=self._attributes):
            if len(self._spans) >= MOST_SPANS:
                self._spans.popleft()
                OTLP_DROPPED.labels("traces", "queue_full").inc()
            self._spans.append(span)
        self._news.set()

    async def _send_spans(self) -> None:
        attempt = 0
        while True:
            await self._news.wait()
            self._news.clear()
            while self._spans:
                batch = [self._spans.popleft() for _ in range(min(MOST_AT_ONCE, len(self._spans)))]
                reply = await self._client.send("traces", await asyncio.to_thread(encode_spans, batch))
                self._told("traces", reply, len(batch))
                if reply.fate is not Fate.RETRY:
                    attempt = 0
                    continue
                kept = batch[max(0, len(batch) + len(self._spans) - MOST_SPANS) :]
                if len(kept) < len(batch):
                    OTLP_DROPPED.labels("traces", "queue_full").inc(len(batch) - len(kept))
                self._spans.extendleft(reversed(kept))
                attempt += 1
                if self._stopping.is_set():
                    return
                await self._pause(back_off(attempt, reply.retry_after, random.random()))
            if self._stopping.is_set():
                return

    # Metrics.

    async def _send_metrics(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            # What could not be sent is not kept: the next reading says the same and more.
            reply = await self._client.send("metrics", await self._reading())
            self._told("metrics", reply, 1)
            attempt = attempt + 1 if reply.fate is Fate.RETRY else 0
            wait = back_off(attempt, reply.retry_after, random.random()) if attempt else 0.0
            await self._pause(max(self.settings.interval, wait))

    async def _reading(self) -> Any:
        samples, engine, at = list(self._samples()), self._engine(), self._clock.now()
        own = [
            (
                family.name if family.type != "counter" else f"{family.name}_total",
                Family(family.type, family.documentation, family.unit),
                [Sample(labels_of({**one.labels, "__name__": one.name}), one.value) for one in family.samples],
            )
            for family in self._registry.collect()
        ]

        def made() -> Any:
            return encode_metrics(
                metrics_data(
                    samples,
                    own,
                    server=self._server,
                    dsobs=self._dsobs,
                    scope=self._scope,
                    engine=engine,
                    at=at,
                    since=self._since,
                )
            )

        return await asyncio.to_thread(made)

    # Both.

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _told(self, signal: str, reply: Reply, count: int) -> None:
        OTLP_EXPORTS.labels(signal, reply.fate.value).inc()
        if reply.fate is Fate.REFUSED:
            OTLP_DROPPED.labels(signal, "refused").inc(count)
        elif reply.rejected:
            OTLP_DROPPED.labels(signal, "rejected").inc(reply.rejected)
        trouble = reply.detail if reply.fate is not Fate.TAKEN or reply.rejected else ""
        if trouble and self._troubles.get(signal) != trouble:
            log.warning("OTLP %s: %s", signal, trouble)
        elif not trouble and self._troubles.get(signal):
            log.info("OTLP %s is taken again", signal)
        self._troubles[signal] = trouble
