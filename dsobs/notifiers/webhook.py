"""A plain HTTP receiver of JSON."""

from typing import TYPE_CHECKING, Any

from dsobs.config import Secret, SecretError
from dsobs.config.models import Webhook
from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Answer
from dsobs.notifiers.json_bytes import json_bytes
from dsobs.notifiers.messages import SEVERITIES, iso_time, severity_of
from dsobs.notifiers.post import DEADLINE_SECONDS, post_json

if TYPE_CHECKING:
    import aiohttp

_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}

BODY_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "What dsobs POSTs to a webhook",
    "type": "object",
    "additionalProperties": False,
    "required": ["version", "event", "status", "dedup_key", "severity", "summary", "source", "at", "starts_at"],
    "properties": {
        "version": {"const": 1, "description": "Goes up when a field changes its meaning or goes; new ones may come."},
        "event": {"enum": ["trigger", "resolve"]},
        "status": {"enum": ["firing", "resolved"]},
        "dedup_key": {
            "type": "string",
            "description": "Names the incident; the same event may come twice, a resolve may come without its trigger.",
        },
        "severity": {"enum": list(SEVERITIES)},
        "summary": {"type": "string", "description": "One line for a person."},
        "source": {"type": "string", "description": "The server's name, as alerts call it."},
        "component": {"type": "string"},
        "at": {"type": "string", "format": "date-time", "description": "When this event happened."},
        "starts_at": {"type": "string", "format": "date-time", "description": "When the condition began."},
        "labels": {**_TEXTS, "description": "The alert's labels."},
        "annotations": {**_TEXTS, "description": "The alert's annotations."},
        "details": {**_TEXTS, "description": "Value, times, what dsobs does next, and the like."},
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["href", "text"],
                "properties": {"href": {"type": "string"}, "text": {"type": "string"}},
            },
        },
    },
}
"""JSON Schema of the body, version 1."""


class WebhookNotifier:
    """POSTs each event as JSON; any 2xx is taken as accepted."""

    name = "webhook"

    def __init__(
        self, settings: Webhook, session: "aiohttp.ClientSession", *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self._url: Secret = settings.url
        self._token: Secret | None = settings.token
        self._severities = frozenset(settings.severities)
        self._session = session
        self._deadline = deadline_seconds

    def accepts(self, notification: Notification) -> bool:
        """Its severity is among those configured."""
        return severity_of(notification.severity) in self._severities

    async def send(self, notification: Notification) -> Answer:
        """Sends one event."""
        try:
            url = self._url.reveal()
            token = self._token.reveal() if self._token is not None else ""
        except SecretError as error:
            return Answer(detail=str(error), arrived=False)
        return await post_json(
            self._session,
            url,
            json_bytes(body(notification)),
            headers={"Authorization": f"Bearer {token}"} if token else None,
            secrets=(token,),
            deadline_seconds=self._deadline,
        )


def body(notification: Notification) -> dict[str, Any]:
    """The body, after `BODY_SCHEMA`."""
    started = notification.started_at if notification.started_at is not None else notification.at
    return {
        "version": 1,
        "event": notification.event.value,
        "status": "firing" if notification.event is Event.TRIGGER else "resolved",
        "dedup_key": notification.dedup_key,
        "severity": severity_of(notification.severity),
        "summary": notification.summary,
        "source": notification.source,
        "component": notification.component,
        "at": iso_time(notification.at),
        "starts_at": iso_time(started),
        "labels": dict(notification.labels),
        "annotations": dict(notification.annotations),
        "details": dict(notification.details),
        "links": [{"href": href, "text": text} for href, text in notification.links],
    }
