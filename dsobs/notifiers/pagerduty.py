"""PagerDuty, Events API v2 (https://developer.pagerduty.com/docs/send-alert-event)."""

from typing import TYPE_CHECKING, Any

from dsobs.config import Secret, SecretError
from dsobs.config.models import PagerDuty
from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Answer
from dsobs.notifiers.json_bytes import json_bytes
from dsobs.notifiers.messages import SEVERITIES, iso_time, severity_of, short_key
from dsobs.notifiers.post import DEADLINE_SECONDS, post_json

if TYPE_CHECKING:
    import aiohttp

MAX_SUMMARY = 1024
MAX_BODY_BYTES = 512 * 1024


class PagerDutyNotifier:
    """Opens and resolves incidents. The routing key is read for each event, so that it may rotate."""

    name = "pagerduty"

    def __init__(
        self, settings: PagerDuty, session: "aiohttp.ClientSession", *, deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self.fallback = settings.fallback
        """Pages only what no Alertmanager takes."""
        self._url = settings.url
        self._routing_key: Secret = settings.routing_key
        self._severities = frozenset(settings.severities)
        self._session = session
        self._deadline = deadline_seconds

    def accepts(self, notification: Notification) -> bool:
        """Its severity is among those configured."""
        return severity_of(notification.severity) in self._severities

    async def send(self, notification: Notification) -> Answer:
        """Sends one event; PagerDuty answers 202."""
        try:
            routing_key = self._routing_key.reveal()
        except SecretError as error:
            return Answer(detail=str(error), arrived=False)
        return await post_json(
            self._session,
            self._url,
            event_body(notification, routing_key),
            secrets=(routing_key,),
            deadline_seconds=self._deadline,
        )


def event_body(notification: Notification, routing_key: str) -> bytes:
    """The event as JSON, within PagerDuty's limits: a summary of 1,024 characters, 512 KB in all.

    A resolve needs no payload. What is too long is cut and ends in `…`: details first, then left out.
    """
    event: dict[str, Any] = {
        "routing_key": routing_key,
        "event_action": notification.event.value,
        "dedup_key": short_key(notification.dedup_key),
    }
    if notification.event is Event.RESOLVE:
        return json_bytes(event)
    event["client"] = "dsobs"
    links = [{"href": href, "text": text or href} for href, text in notification.links if _is_address(href)]
    if links:
        event["client_url"] = links[0]["href"]
        event["links"] = links[:20]
    severity = severity_of(notification.severity)
    assert severity in SEVERITIES
    payload: dict[str, Any] = {
        "summary": cut(notification.summary or notification.dedup_key, MAX_SUMMARY),
        "source": cut(notification.source or "dsobs", MAX_SUMMARY),
        "severity": severity,
        "timestamp": iso_time(notification.started_at if notification.started_at is not None else notification.at),
        "class": notification.labels.get("alertname", ""),
        "component": notification.component,
        "group": notification.labels.get("model_name", ""),
    }
    event["payload"] = {key: cut(value, MAX_SUMMARY) for key, value in payload.items() if value}
    details: dict[str, Any] = dict(notification.details)
    if notification.labels:
        details["labels"] = dict(notification.labels)
    if notification.annotations:
        details["annotations"] = dict(notification.annotations)
    bare = len(json_bytes(event))
    kept = trimmed(details, MAX_BODY_BYTES - bare - len(b',"custom_details":'))
    if kept:
        event["payload"]["custom_details"] = kept
    return json_bytes(event)


def _is_address(href: str) -> bool:
    return href.startswith(("http://", "https://")) and len(href) <= 2048


def trimmed(details: dict[str, Any], limit: int) -> dict[str, Any]:
    """`details` in at most `limit` bytes of JSON: values are cut ever shorter, then entries left out from the end."""
    if len(json_bytes(details)) <= limit:
        return details
    for longest in (16384, 4096, 1024, 256):
        shorter = _shortened(details, longest)
        if len(json_bytes(shorter)) <= limit:
            return shorter
    kept: dict[str, Any] = {"left_out": "further details did not fit"}
    size = len(json_bytes(kept))
    for key, value in _shortened(details, 256).items():
        entry = len(json_bytes({key: value}))
        if size + entry <= limit:
            kept[key] = value
            size += entry
    return kept if size <= limit else {}


def _shortened(details: dict[str, Any], longest: int) -> dict[str, Any]:
    return {
        cut(key, 256): _shortened(value, longest) if isinstance(value, dict) else cut(value, longest)
        for key, value in details.items()
    }


def cut(text: str, length: int) -> str:
    """At most `length` characters; what was cut ends in `…`."""
    return text if len(text) <= length else text[: length - 1] + "…"
