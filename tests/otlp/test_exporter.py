"""What is sent, and what becomes of it when nobody takes it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from dsobs.config.otlp import Otlp
from dsobs.model.clock import ManualClock
from dsobs.model.samples import Sample, labels
from dsobs.otlp import exporter as module
from dsobs.otlp.exporter import Exporter, back_off
from dsobs.remediation.ledger import Entry
from dsobs.telemetry import OTLP_DROPPED
from tests.otlp_receiver import Fate, OtlpReceiver


async def until(what: Callable[[], object], seconds: float = 90.0) -> None:
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def exporting(receiver: OtlpReceiver, **settings: object) -> AsyncIterator[Exporter]:
    registry = CollectorRegistry()
    Counter("dsobs_x", "X.", registry=registry).inc(2)
    wanted = Otlp.model_validate({"endpoint": receiver.url, "interval": 0.05, "timeout": 2.0, **settings})
    async with aiohttp.ClientSession() as session:
        exporter = Exporter(
            wanted,
            session,
            ManualClock(1000.0),
            server="vllm-a",
            host="h",
            samples=lambda: [Sample(labels("dsobs_engine_up"), 1.0)],
            engine=lambda: "vllm",
            registry=registry,
        )
        exporter.start()
        try:
            yield exporter
        finally:
            await exporter.stop(1.0)


def dropped(signal: str, reason: str) -> float:
    value: float = OTLP_DROPPED.labels(signal, reason)._value.get()
    return value


def line(number: int, state: str = "done") -> Entry:
    return Entry(1000.0 + number, "i-1", "page", state, {}, number)


async def test_metrics_go_out_again_and_again_with_both_resources() -> None:
    async with OtlpReceiver() as receiver, exporting(receiver, traces=False):
        await until(lambda: len(receiver.metrics) >= 3)
    assert receiver.metric("dsobs_engine_up")["gauge"]["dataPoints"][0]["asDouble"] == 1.0
    assert receiver.metric("dsobs_x_total")["sum"]["dataPoints"][0]["asDouble"] == 2.0
    assert not receiver.traces


async def test_spans_go_out_as_they_come_and_what_waits_goes_out_at_the_end() -> None:
    async with OtlpReceiver() as receiver:
        async with exporting(receiver, metrics=False) as exporter:
            exporter.line(line(1), [])
            await until(receiver.spans)
            exporter.line(line(2), [])
        assert [span.name for span in receiver.spans()] == ["page", "page"]
        assert not receiver.metrics


async def test_receiver_that_is_away_costs_a_bounded_queue_of_which_the_newest_are_kept_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_SPANS", 10)
    monkeypatch.setattr(module, "FIRST_DELAY", 0.01)
    before = dropped("traces", "queue_full")
    async with OtlpReceiver() as receiver:
        receiver.always = Fate(503)
        async with exporting(receiver, metrics=False) as exporter:
            for number in range(25):
                exporter.line(line(number), [])
                await asyncio.sleep(0)
            await until(lambda: len(receiver.headers) > 2)
            receiver.always = None
            await until(lambda: len(receiver.spans()) >= 10)
        assert [span.end_time_unix_nano // 10**9 - 1000 for span in receiver.spans()] == list(range(15, 25))
    assert dropped("traces", "queue_full") - before == 15


async def test_what_is_refused_for_good_is_counted_and_not_sent_again() -> None:
    before = dropped("traces", "refused")
    async with OtlpReceiver() as receiver:
        receiver.script.append(Fate(400))
        async with exporting(receiver, metrics=False) as exporter:
            exporter.line(line(1), [])
            await until(lambda: len(receiver.headers) == 1)
            exporter.line(line(2), [])
        assert [span.end_time_unix_nano // 10**9 for span in receiver.spans()] == [1002]
    assert dropped("traces", "refused") - before == 1


async def test_trouble_is_told_once_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dsobs")
    async with OtlpReceiver() as receiver:
        receiver.script.extend([Fate(404), Fate(404), Fate(404)])
        async with exporting(receiver, traces=False):
            await until(lambda: receiver.metrics)
    assert [r.getMessage() for r in caplog.records] == ["OTLP metrics: HTTP 404", "OTLP metrics is taken again"]


async def test_end_waits_no_longer_than_it_may_for_a_receiver_that_is_away() -> None:
    before = dropped("traces", "stopped")
    async with OtlpReceiver() as receiver:
        receiver.always = Fate(503)
        async with exporting(receiver, metrics=False) as exporter:
            exporter.line(line(1), [])
            await until(lambda: receiver.headers)
    assert dropped("traces", "stopped") - before == 1


def test_pauses_double_up_to_a_minute_and_a_receiver_may_ask_for_longer() -> None:
    assert [back_off(attempt, None, 1.0) for attempt in (1, 2, 3, 10)] == [1.0, 2.0, 4.0, 60.0]
    assert back_off(1, None, 0.0) == 0.5
    assert back_off(1, 90.0, 0.5) == 90.0
    assert back_off(1, 1e9, 0.5) == 600.0
