"""Slack's incoming webhooks (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).

Limits of fields: https://docs.slack.dev/reference/block-kit/blocks. What is too long is cut and ends in `…`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dsobs.config import Secret, SecretError
from dsobs.config.models import Slack
from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Answer
from dsobs.notifiers.json_bytes import json_bytes
from dsobs.notifiers.messages import severity_of
from dsobs.notifiers.post import DEADLINE_SECONDS, post_json

if TYPE_CHECKING:
    import aiohttp

MAX_TEXT = 4000
MAX_SECTION = 3000
MAX_FIELD = 2000
MAX_FIELDS = 10
MAX_LINK = 300
MAX_LINKS = 3
COLORS = {"critical": "#d00000", "error": "#e36209", "warning": "#dbab09", "info": "#4078c0"}
RESOLVED_COLOR = "#2da44e"


class SlackNotifier:
    """Posts each event as a message: a channel has no incidents, so a resolve is a message of its own."""

    name = "slack"

    def __init__(
        self, settings: Slack, session: "aiohttp.ClientSession", *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._url: Secret = settings.url
        self._severities = frozenset(settings.severities)
        self._session = session
        self._deadline = deadline_seconds

    def accepts(self, notification: Notification) -> bool:
        """Its severity is among those configured."""
        return severity_of(notification.severity) in self._severities

    async def send(self, notification: Notification) -> Answer:
        """Sends one message; Slack answers 200 `ok`."""
        try:
            url = self._url.reveal()
        except SecretError as error:
            return Answer(detail=str(error), arrived=False)
        return await post_json(self._session, url, json_bytes(message(notification)), deadline_seconds=self._deadline)


def message(notification: Notification) -> dict[str, Any]:
    """`text` for notifications and receivers without blocks, and one attachment with blocks beside a colour."""
    resolved = notification.event is Event.RESOLVE
    blocks = [
        {"type": "section", "text": _mrkdwn(f"*{cut(notification.summary, MAX_SECTION - 2)}*")},
        *_description(notification),
        *_fields(notification),
        {"type": "context", "elements": [_mrkdwn(_footer(notification))]},
    ]
    color = RESOLVED_COLOR if resolved else COLORS[severity_of(notification.severity)]
    return {
        "text": cut(notification.summary, MAX_TEXT),
        "attachments": [{"color": color, "fallback": cut(notification.summary, MAX_TEXT), "blocks": blocks}],
    }


def _description(notification: Notification) -> Iterator[dict[str, Any]]:
    told = notification.annotations.get("description", "")
    if told and notification.event is Event.TRIGGER:
        yield {"type": "section", "text": _mrkdwn(cut(told, MAX_SECTION))}


def _fields(notification: Notification) -> Iterator[dict[str, Any]]:
    fields = [
        _mrkdwn(f"*{cut(name, 100)}*\n{cut(value, MAX_FIELD - 200)}")
        for name, value in notification.details.items()
        if value
    ]
    if fields:
        yield {"type": "section", "fields": fields[:MAX_FIELDS]}


def _footer(notification: Notification) -> str:
    links = [f"<{cut(href, MAX_LINK)}|{cut(text or href, 75)}>" for href, text in notification.links if _short(href)]
    return " · ".join([cut(notification.source, 255), *links[:MAX_LINKS], cut(notification.dedup_key, 400)])


def _short(href: str) -> bool:
    """A link that would have to be cut leads nowhere."""
    return not cut(href, MAX_LINK).endswith("…")


def _mrkdwn(text: str) -> dict[str, str]:
    return {"type": "mrkdwn", "text": text}


def cut(text: str, length: int) -> str:
    """`text` with Slack's control characters escaped, within `length` characters; never cut within an escape."""
    escaped = "".join(_ESCAPES.get(letter, letter) for letter in text)
    if len(escaped) <= length:
        return escaped
    kept, size = [], 1
    for letter in text:
        piece = _ESCAPES.get(letter, letter)
        size += len(piece)
        if size > length:
            break
        kept.append(piece)
    return "".join(kept) + "…"


_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
