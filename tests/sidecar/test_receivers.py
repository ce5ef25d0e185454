"""Receivers together: silences ahead of alerts, the fallback, changes of settings."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest

from dsobs.config import Config
from dsobs.config.models import Alertmanager, Notifiers
from dsobs.model.clock import SteadyClock
from dsobs.model.notification import Notification
from dsobs.model.notifier import Answer
from dsobs.notifiers import configured
from dsobs.sidecar.receivers import Receivers
from tests.alertmanager_stand_in import AlertmanagerStandIn
from tests.contracts.alertmanager_contract import silence, standing, until
from tests.contracts.notifier_contract import a_notification


class Fallback:
    """A notifier that is one."""

    name = "fallback"
    fallback = True

    def __init__(self) -> None:
        self.got: list[str] = []

    def accepts(self, notification: Notification) -> bool:
        return True

    async def send(self, notification: Notification) -> Answer:
        self.got.append(notification.dedup_key)
        return Answer(202)


Use = Callable[..., Receivers]


@pytest.fixture
async def alertmanager() -> AsyncIterator[AlertmanagerStandIn]:
    async with AlertmanagerStandIn() as stand_in:
        yield stand_in


@pytest.fixture
async def use() -> AsyncIterator[Use]:
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        made: list[Receivers] = []

        def use_(settings: Alertmanager, *more: Fallback) -> Receivers:
            if not made:
                made.append(Receivers(None, session, SteadyClock(), "gpu-1", lambda: None))
                stack.push_async_callback(made[0].stop, 1.0)
            config = Config(notifiers=Notifiers(alertmanager=settings))
            made[0].use(config, [*configured(config.notifiers, session), *more])
            return made[0]

        yield use_


async def test_silenced_alert_goes_out_only_after_its_silence_is_there(
    use: Use, alertmanager: AlertmanagerStandIn
) -> None:
    await alertmanager.down()
    receivers = use(Alertmanager(urls=(alertmanager.url,)))
    held = [silence()]
    receivers.update([standing()], held, time.time())
    await alertmanager.up()

    def told() -> bool:
        receivers.update([standing()], held, time.time())
        assert alertmanager.silences or not alertmanager.posts
        return bool(alertmanager.posts)

    await until(told, 20.0)
    assert len(alertmanager.silences) == 1


async def test_without_mirrored_silences_a_silenced_alert_is_not_sent_and_one_that_is_known_goes_on(
    use: Use, alertmanager: AlertmanagerStandIn
) -> None:
    receivers = use(Alertmanager(urls=(alertmanager.url,), mirror_silences=False, resend_delay=0.05))
    receivers.update([standing("Known")], [], time.time())
    await until(lambda: len(alertmanager.posts) == 1)
    held = [silence("alertname=~.+")]

    def resent() -> bool:
        receivers.update([standing("Known"), standing("New")], held, time.time())
        return len(alertmanager.posts) >= 3

    await until(resent)
    assert {alert["labels"]["alertname"] for post in alertmanager.posts for alert in post} == {"Known"}
    assert not alertmanager.silences


async def test_silences_of_others_stop_repair_only_where_the_settings_say_so(
    use: Use, alertmanager: AlertmanagerStandIn
) -> None:
    other = {
        "matchers": [{"name": "alertname", "value": "EngineHung", "isRegex": False, "isEqual": True}],
        "startsAt": "2026-01-01T00:00:00Z",
        "endsAt": "2099-01-01T00:00:00Z",
        "createdBy": "somebody",
        "comment": "maintenance",
    }
    unreadable = {**other, "matchers": [{"name": "a", "value": "(", "isRegex": True, "isEqual": True}]}
    alertmanager.silences = {"theirs": other, "odd": unreadable}
    receivers = use(Alertmanager(urls=(alertmanager.url,), silences_stop_repair=True))
    await until(lambda: [one.id for one in receivers.others_silences()] == ["theirs"])
    receivers = use(Alertmanager(urls=(alertmanager.url,)))
    assert receivers.others_silences() == []


async def test_other_settings_of_alertmanager_hold_at_once(use: Use, alertmanager: AlertmanagerStandIn) -> None:
    async with AlertmanagerStandIn() as another:
        receivers = use(Alertmanager(urls=(alertmanager.url,)))
        receivers.update([standing()], [], time.time())
        await until(lambda: alertmanager.posts)
        receivers = use(Alertmanager(urls=(another.url,)))
        receivers.update([standing()], [], time.time())
        await until(lambda: another.posts)


async def test_fallback_pages_once_alertmanager_has_taken_nothing_for_so_long(
    use: Use, alertmanager: AlertmanagerStandIn
) -> None:
    fallback = Fallback()
    receivers = use(Alertmanager(urls=(alertmanager.url,), fallback_after=0.3), fallback)
    receivers.update([standing("First")], [], time.time())
    receivers.outbox.enqueue_in_memory([a_notification(dedup_key="first")])
    await until(lambda: alertmanager.posts)
    await alertmanager.down()

    def paged() -> bool:
        receivers.update([standing("First"), standing("Second")], [], time.time())
        return bool(fallback.got)

    receivers.outbox.enqueue_in_memory([a_notification(dedup_key="second")])
    await until(paged)
    assert "second" in fallback.got


async def test_fallback_never_pages_what_alertmanager_took(
    use: Use, alertmanager: AlertmanagerStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsobs.sidecar.receivers.FALLBACK_SLACK_SECONDS", 0.1)
    fallback = Fallback()
    receivers = use(Alertmanager(urls=(alertmanager.url,), fallback_after=0.3), fallback)
    receivers.outbox.enqueue_in_memory([a_notification(dedup_key="taken")])

    def updated() -> int:
        receivers.update([standing("Taken")], [], time.time())
        return receivers.outbox.pending

    await until(lambda: updated() == 1)
    await until(lambda: updated() == 0)
    await alertmanager.down()
    receivers.outbox.enqueue_in_memory([a_notification(dedup_key="later")])

    def paged() -> bool:
        receivers.update([standing("Taken"), standing("Later")], [], time.time())
        return bool(fallback.got)

    await until(paged)
    assert fallback.got == ["later"]
