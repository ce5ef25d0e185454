"""What dsobs relies on in an Alertmanager, for the stand-in and for the real one."""

import abc
import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from dsobs import silences
from dsobs.config.models import Alertmanager
from dsobs.model.clock import SteadyClock
from dsobs.model.notifier import Standing
from dsobs.notifiers.alertmanager import AlertmanagerNotifier
from dsobs.notifiers.mirror import SilenceMirror
from dsobs.notifiers.standing import StandingLane
from dsobs.silences import Matcher, Silence


def standing(name: str = "EngineHung", **fields: Any) -> Standing:
    """One that fires."""
    now = time.time()
    defaults: dict[str, Any] = {
        "labels": {"alertname": name, "instance": "gpu-1", "severity": "critical"},
        "annotations": {"summary": "no progress"},
        "severity": "critical",
        "started_at": now - 5,
        "seen_at": now,
        "interval": 1.0,
    }
    return Standing(**{**defaults, **fields})


def silence(*matchers: str, seconds: float = 3600.0) -> Silence:
    """One from now on."""
    return silences.new(matchers or ("alertname=EngineHung",), time.time(), seconds, "me", "why")


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Waits for a condition, plain or awaitable."""
    async with asyncio.timeout(seconds):
        while True:
            holds = condition()
            if asyncio.iscoroutine(holds):
                holds = await holds
            if holds:
                return
            await asyncio.sleep(0.02)


class AlertmanagerContract(abc.ABC):
    """The suite; each test with alerts and silences of its own names."""

    @pytest.fixture
    @abc.abstractmethod
    def url(self) -> str:
        """Base address."""

    @pytest.fixture
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with aiohttp.ClientSession() as session:
            yield session

    @pytest.fixture
    def notifier(self, url: str, session: aiohttp.ClientSession) -> AlertmanagerNotifier:
        return AlertmanagerNotifier(url, Alertmanager(urls=(url,)), session)

    async def known(self, session: aiohttp.ClientSession, url: str, name: str) -> list[dict[str, Any]]:
        """Alerts of a name that the Alertmanager holds for active."""
        async with session.get(f"{url}/api/v2/alerts") as answer:
            return [alert for alert in await answer.json() if alert["labels"]["alertname"] == name]

    async def test_firing_alert_is_there_with_an_end_four_resend_delays_away(
        self, notifier: AlertmanagerNotifier, session: aiohttp.ClientSession, url: str
    ) -> None:
        alert = standing("Fires")
        assert (await notifier.send_standing([alert])).status == 200
        (found,) = await self.known(session, url, "Fires")
        assert found["labels"] == dict(alert.labels)
        ends = aiohttp_time(found["endsAt"])
        assert ends == pytest.approx(alert.seen_at + 240, abs=0.01)

    async def test_resolved_alert_is_no_longer_active(
        self, notifier: AlertmanagerNotifier, session: aiohttp.ClientSession, url: str
    ) -> None:
        await notifier.send_standing([standing("Ends")])
        assert (await notifier.send_standing([standing("Ends", ended_at=time.time() - 1)])).status == 200
        assert await self.known(session, url, "Ends") == []

    async def test_mixed_batch_answers_400_and_keeps_the_valid_ones(
        self, notifier: AlertmanagerNotifier, session: aiohttp.ClientSession, url: str
    ) -> None:
        bad = standing(labels={"": "no name", "alertname": "Bad"})
        assert (await notifier.send_standing([standing("Good"), bad])).status == 400
        assert len(await self.known(session, url, "Good")) == 1

    async def test_lane_sends_a_mixed_batch_once_and_then_the_valid_ones_only(
        self, notifier: AlertmanagerNotifier, session: aiohttp.ClientSession, url: str
    ) -> None:
        sent: list[int] = []
        post = notifier.send_standing

        async def counted(alerts: Any) -> Any:
            sent.append(len(alerts))
            return await post(alerts)

        notifier.send_standing = counted  # type: ignore[method-assign]
        lane = StandingLane(notifier, SteadyClock())
        task = asyncio.create_task(lane.run())
        bad = standing(labels={"": "no name", "alertname": "BadInLane"})
        good = standing("GoodInLane")
        lane.update([good, bad])
        await until(lambda: lane.knows(good.key) and len(sent) == 3)
        assert lane.pending == 1
        lane.update([standing("GoodInLane"), bad])
        lane.close()
        await task
        assert sent == [2, 1, 1]
        assert len(await self.known(session, url, "GoodInLane")) == 1

    async def test_event_is_an_alert_and_its_resolve_ends_it(
        self, notifier: AlertmanagerNotifier, session: aiohttp.ClientSession, url: str
    ) -> None:
        from dataclasses import replace

        from dsobs.model.notification import Event
        from tests.contracts.notifier_contract import a_notification

        event = a_notification(at=time.time(), labels={"alertname": "AnEvent"})
        assert (await notifier.send(event)).status == 200
        (found,) = await self.known(session, url, "AnEvent")
        assert (found["labels"]["instance"], found["annotations"]["dedup_key"]) == ("gpu-1", event.dedup_key)
        assert (await notifier.send(replace(event, event=Event.RESOLVE, at=time.time()))).status == 200
        assert await self.known(session, url, "AnEvent") == []

    async def test_silence_is_mirrored_for_this_server_only_and_ended_there(
        self, notifier: AlertmanagerNotifier, session: aiohttp.ClientSession, url: str
    ) -> None:
        mirror = SilenceMirror(notifier, "gpu-1", SteadyClock())
        made = silence("alertname=Silenced")
        assert mirror.want([made])
        assert await mirror.sync()
        assert mirror.holds(made)
        here, elsewhere = standing("Silenced"), standing("Silenced", labels={"alertname": "Silenced", "instance": "b"})
        with_port = standing("Silenced", labels={"alertname": "Silenced", "instance": "gpu-1:9940"})
        await notifier.send_standing([here, with_port, elsewhere])

        async def silenced() -> dict[str, bool]:
            found = await self.known(session, url, "Silenced")
            return {alert["labels"]["instance"]: bool(alert["status"]["silencedBy"]) for alert in found}

        wanted = {"gpu-1": True, "gpu-1:9940": True, "b": False}
        await until(lambda: _equals(silenced(), wanted))
        mirror.want([])
        assert await mirror.sync()
        await until(lambda: _equals(silenced(), dict.fromkeys(wanted, False)))

    async def test_mirrored_silence_is_found_again_after_a_restart_and_not_made_twice(
        self, notifier: AlertmanagerNotifier, session: aiohttp.ClientSession, url: str
    ) -> None:
        made = silence("alertname=MadeOnce")
        for _ in range(2):
            mirror = SilenceMirror(notifier, "gpu-1", SteadyClock())
            mirror.want([made])
            assert await mirror.sync()
        async with session.get(f"{url}/api/v2/silences") as answer:
            comments = [one["comment"] for one in await answer.json()]
        assert comments.count(f"why [dsobs gpu-1 {made.id}]") == 1
        after = SilenceMirror(notifier, "gpu-1", SteadyClock())
        after.want([])
        assert await after.sync()
        async with session.get(f"{url}/api/v2/silences") as answer:
            states = [one["status"]["state"] for one in await answer.json() if made.id in one["comment"]]
        assert states == ["expired"]

    async def test_silences_of_others_are_seen_and_left_alone(
        self, notifier: AlertmanagerNotifier, session: aiohttp.ClientSession, url: str
    ) -> None:
        other = SilenceMirror(notifier, "gpu-2", SteadyClock())
        other.want([silence("alertname=OfAnother", "severity!=info", 'model_name=~"r1-.*"')])
        assert await other.sync()
        mirror = SilenceMirror(notifier, "gpu-1", SteadyClock())
        mirror.want([])
        assert await mirror.sync()
        (found,) = [one for one in mirror.others if "alertname" in {m.name: m.value for m in one.matchers}
                    and ("alertname", "OfAnother") in {(m.name, m.value) for m in one.matchers}]  # fmt: skip
        labels = {"alertname": "OfAnother", "severity": "critical", "model_name": "r1-70b", "instance": "gpu-2"}
        assert found.silences(labels, time.time() + 1)
        assert not found.silences({**labels, "severity": "info"}, time.time() + 1)

    async def test_silence_that_it_refuses_is_said_once_and_not_asked_for_again(
        self, notifier: AlertmanagerNotifier, session: aiohttp.ClientSession, url: str
    ) -> None:
        # dsobs makes no silence that fits everything; an earlier one may have.
        notifier.settings = notifier.settings.model_copy(update={"silence_scope": ("instance=~.*",)})
        mirror = SilenceMirror(notifier, "gpu-1", SteadyClock())
        made = replace(silence(), matchers=(Matcher.parse("alertname=~.*"),))
        mirror.want([made])
        assert await mirror.sync()
        assert not mirror.holds(made)


async def _equals(found: Any, wanted: Any) -> bool:
    return bool(await found == wanted)


def aiohttp_time(text: str) -> float:
    """Seconds since the Unix epoch of an RFC 3339 text."""
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()
