"""A stand-in for Slack: the published limits of its fields are checked here."""

import json
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs import plugins
from dsobs.config import Secret
from dsobs.config.models import Slack
from dsobs.model.notification import Event
from dsobs.model.notifier import Notifier
from dsobs.notifiers.slack import SlackNotifier, cut, message
from tests.contracts.notifier_contract import NotifierContract, Receiver, a_notification


class TestSlack(NotifierContract):
    accepted_status = 200
    secrets = ("T000/B000/slack-secret",)

    def make(self, url: str, session: aiohttp.ClientSession, *, deadline_seconds: float) -> Notifier:
        settings = Slack(url=Secret(f"{url}/services/T000/B000/slack-secret"), severities=("critical", "warning"))
        return SlackNotifier(settings, session, deadline_seconds=deadline_seconds)

    def make_without_secret(self, url: str, session: aiohttp.ClientSession) -> Notifier:
        return SlackNotifier(Slack(url=Secret("file:/nowhere/secret")), session)

    async def test_message_goes_to_the_secret_path(self, notifier: Notifier, receiver: Receiver) -> None:
        await notifier.send(a_notification())
        path, _, sent = receiver.requests[0]
        assert path == "/services/T000/B000/slack-secret"
        assert problems_of(json.loads(sent)) == []


def problems_of(sent: dict[str, Any]) -> list[str]:
    """Where a message breaks Slack's published limits (docs.slack.dev/reference/block-kit/blocks)."""
    problems = []
    if not 0 < len(sent["text"]) <= 40_000:
        problems.append("text")
    for attachment in sent["attachments"]:
        blocks = attachment["blocks"]
        if len(blocks) > 50:
            problems.append("blocks")
        for block in blocks:
            texts = [block["text"]] if "text" in block else []
            problems += ["section" for text in texts if not 0 < len(text["text"]) <= 3000]
            fields = block.get("fields", [])
            problems += ["fields"] if len(fields) > 10 else []
            problems += ["field" for field in fields if not 0 < len(field["text"]) <= 2000]
            problems += ["elements"] if len(block.get("elements", [])) > 10 else []
            problems += ["mrkdwn" for text in (*texts, *fields, *block.get("elements", [])) if text["type"] != "mrkdwn"]
            problems += ["element" for text in block.get("elements", []) if not 0 < len(text["text"]) <= 2000]
    return problems


TEXTS = st.text(max_size=5000)


@given(
    st.sampled_from(list(Event)), TEXTS, TEXTS, st.dictionaries(st.text(max_size=300), TEXTS, max_size=15),
    st.lists(st.tuples(st.text(max_size=2000), st.text(max_size=300)), max_size=8),
)  # fmt: skip
def test_any_event_keeps_slacks_limits(
    event: Event, summary: str, description: str, details: dict[str, str], links: list[tuple[str, str]]
) -> None:
    sent = message(
        a_notification(
            event,
            summary=summary or "-",
            annotations={"description": description},
            details=details,
            links=tuple(links),
        )
    )
    assert problems_of(json.loads(json.dumps(sent))) == []


def test_numbers_description_and_runbook_are_in_the_message() -> None:
    sent = message(
        a_notification(
            annotations={"description": "P99 < 500 ms & more"},
            details={"value": "0.612", "threshold": "500ms"},
            links=(("https://runbooks.example/a", "Runbook"),),
        )
    )
    text = json.dumps(sent, ensure_ascii=False)
    assert "P99 &lt; 500 ms &amp; more" in text
    assert "*value*\\n0.612" in text
    assert "*threshold*\\n500ms" in text
    assert "<https://runbooks.example/a|Runbook>" in text


def test_resolved_is_green_and_severities_have_their_colours() -> None:
    colours = {
        word: message(a_notification(severity=word))["attachments"][0]["color"] for word in ("critical", "warning")
    }
    assert colours == {"critical": "#d00000", "warning": "#dbab09"}
    assert message(a_notification(Event.RESOLVE))["attachments"][0]["color"] == "#2da44e"


@pytest.mark.parametrize(("text", "length", "kept"), [("<<<", 9, "&lt;&lt;…"), ("abc", 3, "abc"), ("abcd", 3, "ab…")])
def test_text_is_cut_between_escapes(text: str, length: int, kept: str) -> None:
    assert cut(text, length) == kept


def test_is_found_by_its_entry_point() -> None:
    assert plugins.load("dsobs.notifiers", "slack") is SlackNotifier
