import base64
import json
import logging
import ssl
import time as real_time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from dsobs import plugins
from dsobs.config import Secret
from dsobs.config.models import Alertmanager, Notifiers
from dsobs.model.clock import ManualClock
from dsobs.model.notifier import Notifier, StandingNotifier
from dsobs.notifiers import configured
from dsobs.notifiers.alertmanager import AlertmanagerNotifier, open_notifiers, valid_until
from dsobs.notifiers.mirror import AGAIN_SECONDS, SilenceMirror
from tests.alertmanager_stand_in import AlertmanagerStandIn
from tests.contracts.alertmanager_contract import AlertmanagerContract, silence, standing
from tests.contracts.notifier_contract import NotifierContract, Receiver, a_notification


class TestNotifier(NotifierContract):
    accepted_status = 200
    secrets = ("bearer-secret",)

    def make(self, url: str, session: aiohttp.ClientSession, *, deadline_seconds: float) -> Notifier:
        settings = Alertmanager(urls=(url,), bearer_token=Secret("bearer-secret"), severities=("critical", "warning"))
        return AlertmanagerNotifier(url, settings, session, deadline_seconds=deadline_seconds)

    def make_without_secret(self, url: str, session: aiohttp.ClientSession) -> Notifier:
        return AlertmanagerNotifier(
            url, Alertmanager(urls=(url,), bearer_token=Secret("file:/nowhere/secret")), session
        )

    async def test_token_goes_as_a_bearer_token_below_the_path_prefix(
        self, receiver: Receiver, session: aiohttp.ClientSession
    ) -> None:
        await self.make(f"{receiver.url}/am/", session, deadline_seconds=5.0).send(a_notification())
        path, headers, _ = receiver.requests[0]
        assert (path, headers["Authorization"]) == ("/am/api/v2/alerts", "Bearer bearer-secret")

    async def test_basic_authentication(self, receiver: Receiver, session: aiohttp.ClientSession) -> None:
        settings = Alertmanager(urls=(receiver.url,), basic_user="dsobs", basic_password=Secret("pass-secret"))
        receiver.echo, receiver.status = True, 401
        answer = await AlertmanagerNotifier(receiver.url, settings, session).send(a_notification())
        header = receiver.requests[0][1]["Authorization"]
        assert base64.b64decode(header.removeprefix("Basic ")) == b"dsobs:pass-secret"
        assert header.removeprefix("Basic ") not in answer.detail
        assert "pass-secret" not in answer.detail

    async def test_certificate_that_is_not_there_is_an_answer_that_names_the_file(
        self, receiver: Receiver, session: aiohttp.ClientSession
    ) -> None:
        settings = Alertmanager(urls=(receiver.url,), ca_file=Path("/nowhere/ca.pem"))
        answer = await AlertmanagerNotifier(receiver.url, settings, session).send(a_notification())
        assert (answer.status, answer.arrived, receiver.requests) == (None, False, [])
        assert answer.detail == "/nowhere/ca.pem No such file or directory"

    async def test_certificate_that_is_none_is_an_answer_that_names_the_file(
        self, receiver: Receiver, session: aiohttp.ClientSession, tmp_path: Path
    ) -> None:
        file = tmp_path / "client.pem"
        file.write_text("nonsense")
        settings = Alertmanager(urls=(receiver.url,), cert_file=file)
        answer = await AlertmanagerNotifier(receiver.url, settings, session).send(a_notification())
        assert not answer.arrived
        assert str(file) in answer.detail

    async def test_labels_of_the_settings_are_added_where_an_alert_has_none(
        self, receiver: Receiver, session: aiohttp.ClientSession
    ) -> None:
        settings = Alertmanager(urls=(receiver.url,), labels=("cluster=eu-1", "severity=info"))
        await AlertmanagerNotifier(receiver.url, settings, session).send_standing([standing()])
        labels = json.loads(receiver.requests[0][2])[0]["labels"]
        assert (labels["cluster"], labels["severity"]) == ("eu-1", "critical")

    async def test_instance_of_the_settings_stands_in_events_and_for_mirrored_silences(
        self, receiver: Receiver, session: aiohttp.ClientSession
    ) -> None:
        settings = Alertmanager(urls=(receiver.url,), labels=("instance=node-7",))
        notifier = AlertmanagerNotifier(receiver.url, settings, session)
        await notifier.send(a_notification())
        assert json.loads(receiver.requests[0][2])[0]["labels"]["instance"] == "node-7"
        mirror = SilenceMirror(notifier, "gpu-1", ManualClock(real_time.time()))
        body = mirror._body(silence())
        assert {"name": "instance", "value": "node\\-7(:[0-9]+)?", "isRegex": True, "isEqual": True} in body["matchers"]


async def test_an_alertmanager_that_cannot_be_reached_is_not_in_step(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Alertmanager(urls=("http://127.0.0.1:1",))
    clock = ManualClock(real_time.time())
    mirror = SilenceMirror(AlertmanagerNotifier(settings.urls[0], settings, session), "gpu-1", clock)
    for _ in range(3):
        assert not await mirror.sync()
        clock.advance(AGAIN_SECONDS)
    (told,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "can't list silences" in told


class TestStandIn(AlertmanagerContract):
    @pytest.fixture
    async def url(self) -> AsyncIterator[str]:
        async with AlertmanagerStandIn() as stand_in:
            yield stand_in.url


async def test_each_address_is_a_notifier_of_its_own(session: aiohttp.ClientSession) -> None:
    settings = Notifiers(alertmanager=Alertmanager(urls=("http://a:9093", "https://b:9093/prefix")))
    found = configured(settings, session)
    assert [notifier.name for notifier in found] == ["alertmanager/a:9093", "alertmanager/b:9093/prefix"]
    assert all(isinstance(notifier, StandingNotifier) for notifier in found)
    assert plugins.load("dsobs.notifiers", "alertmanager") is open_notifiers


def test_an_alert_is_valid_for_four_times_the_longer_of_interval_and_resend_delay() -> None:
    assert valid_until(standing(seen_at=1000.0, interval=1.0), 60.0) == 1240.0
    assert valid_until(standing(seen_at=1000.0, interval=300.0), 60.0) == 2200.0
    assert valid_until(standing(seen_at=1000.0, ended_at=900.0), 60.0) == 900.0


async def test_watchdog_is_wanted_whatever_severities_are_configured(session: aiohttp.ClientSession) -> None:
    notifier = AlertmanagerNotifier("http://a", Alertmanager(urls=("http://a",), severities=("critical",)), session)
    wanted = {word: notifier.wants(standing(severity=word)) for word in ("none", "critical", "warning", "info")}
    assert wanted == {"none": True, "critical": True, "warning": False, "info": False}


def test_tls_context_is_made_anew_when_a_file_has_changed(tmp_path: Path) -> None:
    from dsobs.tls import tls_of

    roots = Path(ssl.get_default_verify_paths().cafile or ssl.get_default_verify_paths().openssl_cafile)
    file = tmp_path / "ca.pem"
    file.write_bytes(roots.read_bytes())
    first = tls_of(file, None, None)
    assert tls_of(file, None, None) is first
    file.unlink()
    file.write_bytes(roots.read_bytes() + b"\n")
    assert tls_of(file, None, None) is not first


async def test_silence_that_ended_while_dsobs_was_away_is_ended_there_once_it_can_be_reached(
    session: aiohttp.ClientSession,
) -> None:
    async with AlertmanagerStandIn() as alertmanager:
        notifier = AlertmanagerNotifier(alertmanager.url, Alertmanager(urls=(alertmanager.url,)), session)
        clock = ManualClock(real_time.time())
        before = SilenceMirror(notifier, "gpu-1", clock)
        before.want([silence()])
        assert await before.sync()
        await alertmanager.down()
        after = SilenceMirror(notifier, "gpu-1", clock)
        after.want([])
        assert not await after.sync()
        await alertmanager.up()
        assert after.look_at is not None
        clock.set(after.look_at)
        assert await after.sync()
        assert [alertmanager._state(one) for one in alertmanager.silences.values()] == ["expired"]
        assert after.look_at is None


async def test_after_a_restart_no_silence_is_ended_before_it_is_known_which_there_are(
    session: aiohttp.ClientSession,
) -> None:
    """Its alert fires in the Alertmanager all the while, and would be told of at once."""
    async with AlertmanagerStandIn() as alertmanager:
        notifier = AlertmanagerNotifier(alertmanager.url, Alertmanager(urls=(alertmanager.url,)), session)
        clock = ManualClock(real_time.time())
        held = silence()
        before = SilenceMirror(notifier, "gpu-1", clock)
        before.want([held])
        assert await before.sync()
        after = SilenceMirror(notifier, "gpu-1", clock)
        assert await after.sync()
        assert after.want([held])
        assert await after.sync()
        assert after.holds(held)
        assert [alertmanager._state(one) for one in alertmanager.silences.values()] == ["active"]


async def test_what_the_last_run_left_stays_where_its_silences_are_not_known(session: aiohttp.ClientSession) -> None:
    async with AlertmanagerStandIn() as alertmanager:
        notifier = AlertmanagerNotifier(alertmanager.url, Alertmanager(urls=(alertmanager.url,)), session)
        clock = ManualClock(real_time.time())
        before = SilenceMirror(notifier, "gpu-1", clock)
        before.want([silence()])
        assert await before.sync()
        after = SilenceMirror(notifier, "gpu-1", clock, complete=False)
        mine = silence("alertname=Mine")
        for wanted in ([], [mine], []):
            after.want(wanted)
            assert await after.sync()
        left, made = alertmanager.silences.values()
        assert (alertmanager._state(left), alertmanager._state(made)) == ("active", "expired")


async def test_alerts_go_out_after_their_silence_to_a_receiver_that_lost_it_unnoticed(
    session: aiohttp.ClientSession,
) -> None:
    async with AlertmanagerStandIn() as alertmanager:
        notifier = AlertmanagerNotifier(alertmanager.url, Alertmanager(urls=(alertmanager.url,)), session)
        clock = ManualClock(real_time.time())
        mirror = SilenceMirror(notifier, "gpu-1", clock)
        mirror.want([silence()])
        assert await mirror.sync()
        alertmanager.silences.clear()
        clock.advance(AGAIN_SECONDS)
        await mirror.ahead(False)
        assert len(alertmanager.silences) == 1
