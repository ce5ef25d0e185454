"""Delivery of what stands, in virtual time."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from dsobs import telemetry
from dsobs.model.notification import Notification
from dsobs.model.notifier import Answer, Standing
from dsobs.notifiers.alertmanager import valid_until
from dsobs.notifiers.standing import REFUSED_AGAIN_SECONDS, StandingLane, is_due
from tests.notifiers.virtual import START, VirtualTime


class Receiver:
    """A receiver that keeps what it is told, and its `endsAt`, as an Alertmanager does."""

    def __init__(self, time: VirtualTime, name: str = "alertmanager/a") -> None:
        self.name = name
        self.resend_delay = 60.0
        self.time = time
        self.away = False
        self.refuses: set[str] = set()
        self.requests: list[tuple[float, list[str]]] = []
        self.ends: dict[str, float] = {}

    def accepts(self, notification: Notification) -> bool:
        return True

    def wants(self, alert: Standing) -> bool:
        return True

    async def send(self, notification: Notification) -> Answer:
        return Answer(200)

    async def send_standing(self, alerts: Sequence[Standing]) -> Answer:
        names = [alert.labels["alertname"] for alert in alerts]
        self.requests.append((self.time.clock.now() - START, names))
        if self.away:
            return Answer(detail="no connection", arrived=False)
        for alert in alerts:
            if alert.labels["alertname"] not in self.refuses:
                self.ends[alert.labels["alertname"]] = valid_until(alert, self.resend_delay)
        return Answer(400, detail="bad") if self.refuses & set(names) else Answer(200)

    def firing(self) -> set[str]:
        """What it holds for firing now."""
        return {name for name, end in self.ends.items() if end > self.time.clock.now()}

    def sent(self, name: str) -> list[float]:
        """When an alert came, seconds since the start."""
        return [at for at, names in self.requests if name in names]


class Bench:
    """Lanes that are told of some alerts each second."""

    def __init__(self, time: VirtualTime, lanes: Sequence[StandingLane]) -> None:
        self.time = time
        self.lanes = lanes
        self.alerts: dict[str, Standing] = {}
        self.evaluating = True

    def fire(self, name: str, severity: str = "critical") -> None:
        now = self.time.clock.now()
        labels = {"alertname": name, "severity": severity}
        self.alerts[name] = Standing(labels, {}, severity, now, now, 1.0)

    def end(self, name: str) -> None:
        self.alerts[name] = replace(self.alerts[name], ended_at=self.time.clock.now())

    async def seconds(self, count: int) -> None:
        """Lets so many seconds go by, with an evaluation in each."""
        for _ in range(count):
            now = self.time.clock.now()
            if self.evaluating:
                self.alerts = {n: replace(a, seen_at=now) for n, a in self.alerts.items()}
            for lane in self.lanes:
                lane.update(list(self.alerts.values()))
            for _ in range(6):
                await asyncio.sleep(0)
            self.time.advance(1.0)
            for _ in range(6):
                await asyncio.sleep(0)


@pytest.fixture
def receiver(time: VirtualTime) -> Receiver:
    return Receiver(time)


Open = Callable[..., contextlib.AbstractAsyncContextManager[Bench]]


@pytest.fixture
def bench(time: VirtualTime) -> Open:
    @contextlib.asynccontextmanager
    async def opened(*receivers: Receiver, **settings: Any) -> AsyncIterator[Bench]:
        lanes = [StandingLane(r, time.clock, wait=time.wait, rng=Random(3), **settings) for r in receivers]
        tasks = [asyncio.create_task(lane.run()) for lane in lanes]
        yield Bench(time, lanes)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    return opened


async def test_firing_alert_goes_out_at_once_and_again_each_resend_delay(bench: Open, receiver: Receiver) -> None:
    async with bench(receiver) as b:
        b.fire("A")
        await b.seconds(185)
        assert receiver.sent("A") == [0, 60, 120, 180]


async def test_it_never_ends_at_the_receiver_while_it_is_confirmed(bench: Open, receiver: Receiver) -> None:
    async with bench(receiver) as b:
        b.fire("A")
        for _ in range(600):
            await b.seconds(1)
            assert receiver.firing() == {"A"}


async def test_resolved_alert_goes_out_at_once_and_again_for_as_long_as_it_is_shown(
    bench: Open, receiver: Receiver
) -> None:
    async with bench(receiver) as b:
        b.fire("A")
        await b.seconds(10)
        b.end("A")
        await b.seconds(1)
        assert (receiver.sent("A"), receiver.firing()) == ([0, 10], set())
        await b.seconds(899)
        assert receiver.sent("A") == [0, *range(10, 910, 60)]
        del b.alerts["A"]
        await b.seconds(200)
        assert receiver.sent("A") == [0, *range(10, 910, 60)]


async def test_while_evaluation_fails_nothing_is_sent_and_the_receiver_ends_it_after_four_resend_delays(
    bench: Open, receiver: Receiver
) -> None:
    async with bench(receiver) as b:
        b.fire("A")
        await b.seconds(61)
        b.evaluating = False
        await b.seconds(238)
        assert (receiver.sent("A"), receiver.firing()) == ([0, 60], {"A"})
        await b.seconds(3)
        assert (receiver.sent("A"), receiver.firing()) == ([0, 60], set())
        b.evaluating = True
        await b.seconds(2)
        assert receiver.firing() == {"A"}


async def test_fault_34_receiver_away_past_the_end_is_told_on_return(bench: Open, receiver: Receiver) -> None:
    async with bench(receiver) as b:
        b.fire("A")
        await b.seconds(30)
        receiver.away = True
        await b.seconds(3600)
        assert receiver.firing() == set()
        receiver.away = False
        await b.seconds(61)
        assert receiver.firing() == {"A"}


async def test_fault_34_ended_while_the_receiver_was_away_is_ended_on_return(bench: Open, receiver: Receiver) -> None:
    async with bench(receiver) as b:
        b.fire("A")
        await b.seconds(30)
        receiver.away = True
        await b.seconds(100)
        b.end("A")
        await b.seconds(60)
        receiver.away = False
        await b.seconds(61)
        assert receiver.firing() == set()
        assert receiver.ends["A"] == START + 130


async def test_fault_34_one_of_two_away_does_not_hold_up_the_other(bench: Open, time: VirtualTime) -> None:
    here, away = Receiver(time, "alertmanager/here"), Receiver(time, "alertmanager/away")
    away.away = True
    async with bench(here, away) as b:
        b.fire("A")
        await b.seconds(130)
        assert here.sent("A") == [0, 60, 120]
        assert b.lanes[0].oldest_seconds(time.clock.now()) <= 60
        assert b.lanes[1].oldest_seconds(time.clock.now()) == 130
        away.away = False
        await b.seconds(61)
        assert away.firing() == {"A"}


async def test_receiver_that_is_away_is_tried_with_back_off_and_at_least_each_resend_delay(
    bench: Open, receiver: Receiver
) -> None:
    receiver.away = True
    async with bench(receiver) as b:
        b.fire("A")
        await b.seconds(600)
    at = receiver.sent("A")
    gaps = [after - before for before, after in itertools.pairwise(at)]
    assert max(gaps) <= 61
    assert 10 <= len(at) <= 30


async def test_mixed_batch_is_taken_apart_once_and_the_refused_one_is_offered_again_after_15_minutes(
    bench: Open, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.refuses = {"Bad"}
    async with bench(receiver) as b:
        b.fire("Good")
        b.fire("Bad")
        b.fire("Fine", "warning")
        await b.seconds(int(REFUSED_AGAIN_SECONDS) - 1)
        assert receiver.requests[0][1] == ["Good", "Bad", "Fine"]
        assert [names for _, names in receiver.requests[1:4]] == [["Good"], ["Bad"], ["Fine"]]
        assert receiver.sent("Bad") == [0, 0]
        assert receiver.sent("Good")[2:] == list(range(60, 899, 60))
        await b.seconds(100)
        assert len(receiver.sent("Bad")) == 4
        refusals = [r for r in caplog.records if "refuses Bad" in r.message and r.levelno == logging.ERROR]
        assert len(refusals) == 1


async def test_wrong_settings_are_loud_once_and_tried_each_resend_delay(
    bench: Open, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    async def forbidden(alerts: Sequence[Standing]) -> Answer:
        receiver.requests.append((receiver.time.clock.now() - START, ["A"]))
        return Answer(403, detail="who are you")

    receiver.send_standing = forbidden  # type: ignore[method-assign]
    async with bench(receiver) as b:
        b.fire("A")
        await b.seconds(150)
    assert receiver.sent("A") == [0, 60, 120]
    loud = [r for r in caplog.records if "who are you" in r.message and r.levelno == logging.ERROR]
    assert len(loud) == 1


async def test_most_severe_first_and_never_more_than_256_in_one_request(bench: Open, receiver: Receiver) -> None:
    async with bench(receiver) as b:
        for n in range(300):
            b.fire(f"W{n}", "warning")
        b.fire("C")
        await b.seconds(1)
    assert [len(names) for _, names in receiver.requests] == [256, 45]
    assert receiver.requests[0][1][0] == "C"


async def test_a_notifier_that_raises_is_tried_again(bench: Open, receiver: Receiver) -> None:
    post = receiver.send_standing
    calls = 0

    async def clumsy(alerts: Sequence[Standing]) -> Answer:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise KeyError("oops")
        return await post(alerts)

    receiver.send_standing = clumsy  # type: ignore[method-assign]
    async with bench(receiver) as b:
        b.fire("A")
        await b.seconds(5)
        assert receiver.firing() == {"A"}


async def test_silences_are_kept_in_step_before_alerts_go_out_and_looked_for_anew_after_an_outage(
    bench: Open, receiver: Receiver
) -> None:
    order: list[str] = []
    post = receiver.send_standing

    async def before(fresh: bool) -> None:
        order.append(f"silences fresh={fresh}")

    async def noted(alerts: Sequence[Standing]) -> Answer:
        order.append("alerts")
        answer = await post(alerts)
        receiver.away = False
        return answer

    receiver.send_standing = noted  # type: ignore[method-assign]
    async with bench(receiver, before=before) as b:
        b.fire("A")
        await b.seconds(1)
        receiver.away = True
        b.fire("B")
        await b.seconds(2)
    assert order == [
        "silences fresh=False", "alerts", "silences fresh=False", "alerts", "silences fresh=True", "alerts",
    ]  # fmt: skip


async def test_what_became_of_them_is_counted(bench: Open, receiver: Receiver) -> None:
    def count(outcome: str) -> float:
        return float(telemetry.NOTIFICATIONS.labels("alertmanager/counted", outcome)._value.get())

    receiver.name = "alertmanager/counted"
    receiver.refuses = {"Bad"}
    async with bench(receiver) as b:
        b.fire("Bad")
        await b.seconds(1)
        b.fire("A")
        await b.seconds(1)
        receiver.away = True
        b.fire("B")
        await b.seconds(1)
    assert (count("dead"), count("accepted")) == (1, 1)
    assert count("retried") >= 1


def test_an_alert_that_was_never_told_and_is_no_longer_valid_is_not_sent() -> None:
    old = Standing({"alertname": "A"}, {}, "critical", 0.0, 100.0, 1.0)
    assert is_due(old, None, 60.0, 339.0)
    assert not is_due(old, None, 60.0, 340.0)
