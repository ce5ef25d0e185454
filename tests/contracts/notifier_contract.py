"""What every notifier holds to. A test class inherits `NotifierContract` and says how its notifier is made."""

import abc
import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Notifier


def a_notification(event: Event = Event.TRIGGER, **fields: Any) -> Notification:
    """A plain one."""
    defaults: dict[str, Any] = {
        "at": 1_800_000_000.0,
        "event": event,
        "dedup_key": "dsobs/gpu-1/abc",
        "summary": "[critical] EngineHung on gpu-1: no progress for 12 s",
        "severity": "critical",
        "source": "gpu-1",
    }
    return Notification(**{**defaults, **fields})


class Receiver:
    """A loopback server that answers everything alike and keeps what came."""

    def __init__(self, accepted_status: int) -> None:
        self.status = accepted_status
        self.headers: dict[str, str] = {}
        self.body = '{"status": "success"}'
        self.echo = False
        self.stuck = asyncio.Event()
        self.stuck.set()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append((request.path, dict(request.headers), body))
        await self.stuck.wait()
        text = body.decode() + str(request.url) + str(dict(request.headers)) if self.echo else self.body
        return web.Response(status=self.status, headers=self.headers, text=text)


class NotifierContract(abc.ABC):
    """The suite."""

    accepted_status: int
    secrets: tuple[str, ...]
    """Texts of the settings that no answer may hold."""

    @abc.abstractmethod
    def make(self, url: str, session: aiohttp.ClientSession, *, deadline_seconds: float) -> Notifier:
        """The notifier, taking critical and warning only, sending to `url`, a path under the receiver's address."""

    @abc.abstractmethod
    def make_without_secret(self, url: str, session: aiohttp.ClientSession) -> Notifier:
        """The same with a secret whose file is not there."""

    @pytest.fixture
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with aiohttp.ClientSession() as session:
            yield session

    @pytest.fixture
    async def receiver(self) -> AsyncIterator[Receiver]:
        receiver = Receiver(self.accepted_status)
        application = web.Application(client_max_size=4 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", receiver.answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield receiver
        receiver.stuck.set()
        await runner.cleanup()

    @pytest.fixture
    def notifier(self, receiver: Receiver, session: aiohttp.ClientSession) -> Notifier:
        return self.make(receiver.url, session, deadline_seconds=5.0)

    async def test_accepted_event_gives_the_receivers_status(self, notifier: Notifier, receiver: Receiver) -> None:
        answer = await notifier.send(a_notification())
        assert (answer.status, answer.arrived, answer.surely_refused) == (self.accepted_status, True, False)
        assert receiver.requests[0][1]["Content-Type"] == "application/json"

    async def test_trigger_and_resolve_carry_the_same_dedup_key(self, notifier: Notifier, receiver: Receiver) -> None:
        for event in Event:
            await notifier.send(a_notification(event))
        assert [b"dsobs/gpu-1/abc" in body for _, _, body in receiver.requests] == [True, True]

    async def test_severities_that_are_not_configured_are_not_accepted(self, notifier: Notifier) -> None:
        taken = {word: notifier.accepts(a_notification(severity=word)) for word in ("critical", "warning", "info")}
        assert taken == {"critical": True, "warning": True, "info": False}
        assert notifier.accepts(a_notification(Event.RESOLVE))

    async def test_retry_after_is_handed_on(self, notifier: Notifier, receiver: Receiver) -> None:
        receiver.status, receiver.headers = 429, {"Retry-After": "7"}
        answer = await notifier.send(a_notification())
        assert (answer.status, answer.retry_after, answer.surely_refused) == (429, "7", True)

    @pytest.mark.parametrize("status", [400, 403, 500, 503])
    async def test_refusals_come_back_as_answers(self, notifier: Notifier, receiver: Receiver, status: int) -> None:
        receiver.status, receiver.body = status, "no\nthanks " * 1000
        answer = await notifier.send(a_notification())
        assert answer.status == status
        assert answer.detail.startswith("no thanks")
        assert len(answer.detail) <= 300
        assert answer.surely_refused == (status < 500)

    async def test_redirects_are_not_followed(self, notifier: Notifier, receiver: Receiver) -> None:
        receiver.status, receiver.headers = 307, {"Location": f"{receiver.url}/elsewhere"}
        assert (await notifier.send(a_notification())).status == 307
        assert len(receiver.requests) == 1

    async def test_receiver_that_never_answers_is_left_at_the_deadline(
        self, receiver: Receiver, session: aiohttp.ClientSession
    ) -> None:
        receiver.stuck.clear()
        notifier = self.make(receiver.url, session, deadline_seconds=0.2)
        answer = await notifier.send(a_notification())
        assert (answer.status, answer.arrived) == (None, True)
        assert "no answer within 0.2 s" in answer.detail

    async def test_refused_connection_surely_did_not_arrive(self, session: aiohttp.ClientSession) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            notifier = self.make(f"http://127.0.0.1:{closed.getsockname()[1]}", session, deadline_seconds=5.0)
            answer = await notifier.send(a_notification())
        assert (answer.status, answer.arrived) == (None, False)
        assert "no connection" in answer.detail

    async def test_answers_never_hold_a_secret(
        self, notifier: Notifier, receiver: Receiver, session: aiohttp.ClientSession
    ) -> None:
        receiver.echo, receiver.status = True, 400
        answers = [await notifier.send(a_notification())]
        answers.append(await self.make("http://127.0.0.1:1", session, deadline_seconds=5.0).send(a_notification()))
        for secret in self.secrets:
            assert secret not in repr(answers)

    async def test_missing_secret_is_an_answer_that_names_the_file(
        self, receiver: Receiver, session: aiohttp.ClientSession
    ) -> None:
        answer = await self.make_without_secret(receiver.url, session).send(a_notification())
        assert (answer.status, answer.arrived, receiver.requests) == (None, False, [])
        assert "/nowhere/secret" in answer.detail

    async def test_text_that_is_no_utf8_is_sent_all_the_same(self, notifier: Notifier, receiver: Receiver) -> None:
        answer = await notifier.send(a_notification(summary="bad \udcff byte", details={"\udcff": "\udcff"}))
        assert answer.status == self.accepted_status
