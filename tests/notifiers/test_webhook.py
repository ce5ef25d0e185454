import json

import aiohttp
import jsonschema

from dsobs import plugins
from dsobs.config import Secret
from dsobs.config.models import Webhook
from dsobs.model.notification import Event
from dsobs.model.notifier import Notifier
from dsobs.notifiers.webhook import BODY_SCHEMA, WebhookNotifier, body
from tests.contracts.notifier_contract import NotifierContract, Receiver, a_notification


class TestWebhook(NotifierContract):
    accepted_status = 204
    secrets = ("hook-path-secret", "bearer-secret")

    def make(self, url: str, session: aiohttp.ClientSession, *, deadline_seconds: float) -> Notifier:
        configured = Webhook(
            url=Secret(f"{url}/hook-path-secret"), token=Secret("bearer-secret"), severities=("critical", "warning")
        )
        return WebhookNotifier(configured, session, deadline_seconds=deadline_seconds)

    def make_without_secret(self, url: str, session: aiohttp.ClientSession) -> Notifier:
        return WebhookNotifier(Webhook(url=Secret(url), token=Secret("file:/nowhere/secret")), session)

    async def test_token_goes_as_a_bearer_token_to_the_path_given(self, notifier: Notifier, receiver: Receiver) -> None:
        await notifier.send(a_notification())
        path, headers, sent = receiver.requests[0]
        assert (path, headers["Authorization"]) == ("/hook-path-secret", "Bearer bearer-secret")
        assert json.loads(sent)["version"] == 1

    async def test_no_token_no_authorization(self, receiver: Receiver, session: aiohttp.ClientSession) -> None:
        await WebhookNotifier(Webhook(url=Secret(receiver.url)), session).send(a_notification())
        assert "Authorization" not in receiver.requests[0][1]

    async def test_address_that_is_none_is_an_answer(self, session: aiohttp.ClientSession) -> None:
        for address in ("not an address", "ftp://host/secret", "http://[::1/secret", "http://host:99999/secret"):
            answer = await WebhookNotifier(Webhook(url=Secret(address)), session).send(a_notification())
            assert (answer.status, answer.arrived) == (None, False), address
            assert "secret" not in answer.detail


def test_is_found_by_its_entry_point() -> None:
    assert plugins.load("dsobs.notifiers", "webhook") is WebhookNotifier


def test_body_follows_its_schema() -> None:
    sent = a_notification(
        details={"value": "12"}, labels={"a": "b"}, annotations={"summary": "s"}, links=(("https://x.example", "X"),)
    )
    for event in (sent, a_notification(Event.RESOLVE)):
        jsonschema.validate(json.loads(json.dumps(body(event))), BODY_SCHEMA)
    assert body(sent) == {
        "version": 1,
        "event": "trigger",
        "status": "firing",
        "dedup_key": "dsobs/gpu-1/abc",
        "severity": "critical",
        "summary": "[critical] EngineHung on gpu-1: no progress for 12 s",
        "source": "gpu-1",
        "component": "",
        "at": "2027-01-15T08:00:00.000Z",
        "starts_at": "2027-01-15T08:00:00.000Z",
        "labels": {"a": "b"},
        "annotations": {"summary": "s"},
        "details": {"value": "12"},
        "links": [{"href": "https://x.example", "text": "X"}],
    }
