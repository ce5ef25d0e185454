"""Alertmanager, API v2 (https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml)."""

import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dsobs.config import SecretError
from dsobs.config.models import Alertmanager
from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Answer, Standing
from dsobs.notifiers.json_bytes import json_bytes
from dsobs.notifiers.messages import iso_time, severity_of
from dsobs.notifiers.post import ask
from dsobs.tls import tls_of

if TYPE_CHECKING:
    import aiohttp

VALID_RESENDS = 4
"""An alert is valid for four times the longer of its rule's interval and the resend delay (as in Prometheus,
rules/alerting.go)."""
MESSAGE_ALERT = "DsobsMessage"
"""`alertname` of what is no alert of a rule."""
MAX_ANSWER_BYTES = 4 * 1024 * 1024


def open_notifiers(settings: Alertmanager, session: "aiohttp.ClientSession") -> "list[AlertmanagerNotifier]":
    """One for each address: one that is away never holds up another."""
    return [AlertmanagerNotifier(url, settings, session) for url in settings.urls]


class AlertmanagerNotifier:
    """One Alertmanager. Secrets and certificates are read for each request, so that they may rotate."""

    def __init__(
        self,
        url: str,
        settings: Alertmanager,
        session: "aiohttp.ClientSession",
        *,
        deadline_seconds: float | None = None,
    ) -> None:
        parts = urlsplit(url)
        self.name = f"alertmanager/{parts.netloc}{parts.path.rstrip('/')}"
        self.resend_delay = settings.resend_delay
        self.settings = settings
        self._url = url.rstrip("/")
        self._severities = frozenset(settings.severities)
        self._labels = dict(pair.split("=", 1) for pair in settings.labels)
        self._session = session
        self._deadline = settings.timeout if deadline_seconds is None else deadline_seconds

    def accepts(self, notification: Notification) -> bool:
        """Its severity is among those configured."""
        return severity_of(notification.severity) in self._severities

    def wants(self, alert: Standing) -> bool:
        """Its severity is among those configured, or it is no fault (Watchdog)."""
        return alert.severity == "none" or severity_of(alert.severity) in self._severities

    def labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        """An alert's labels with those of the settings that it lacks; an empty one counts as lacking."""
        return {**self._labels, **{name: value for name, value in labels.items() if value}}

    def instance_of(self, source: str) -> str:
        """What alerts there call the server that dsobs calls `source`."""
        return self._labels.get("instance") or source

    async def send(self, notification: Notification) -> Answer:
        """One event as an alert that holds for four resend delays, or has just ended."""
        started = notification.started_at if notification.started_at is not None else notification.at
        trigger = notification.event is Event.TRIGGER
        labels = {
            "alertname": MESSAGE_ALERT,
            "instance": self.instance_of(notification.source),
            "severity": severity_of(notification.severity),
            **notification.labels,
        }
        annotations = {
            "summary": notification.summary,
            **notification.details,
            **notification.annotations,
            "dedup_key": notification.dedup_key,
        }
        link = notification.links[0][0] if notification.links else ""
        ends = notification.at + VALID_RESENDS * self.resend_delay if trigger else notification.at
        return await self._post([self._alert(labels, annotations, started, ends, link)])

    async def send_standing(self, alerts: Sequence[Standing]) -> Answer:
        """All of them in one request."""
        return await self._post(
            [
                self._alert(
                    alert.labels, alert.annotations, alert.started_at, valid_until(alert, self.resend_delay), alert.link
                )
                for alert in alerts
            ]
        )

    def _alert(
        self, labels: Mapping[str, str], annotations: Mapping[str, str], starts: float, ends: float, link: str
    ) -> dict[str, Any]:
        made: dict[str, Any] = {
            "labels": self.labels(labels),
            "annotations": {name: value for name, value in annotations.items() if value},
            "startsAt": iso_time(starts),
            # Alertmanager refuses an alert that ends before it starts.
            "endsAt": iso_time(max(starts, ends)),
        }
        if link.startswith(("http://", "https://")):
            made["generatorURL"] = link
        return made

    async def _post(self, alerts: list[dict[str, Any]]) -> Answer:
        answer, _ = await self.request("POST", "/api/v2/alerts", alerts)
        return answer

    async def request(self, method: str, path: str, body: Any = None) -> tuple[Answer, bytes]:
        """One request to the API under the configured address; what goes wrong is in the answer."""
        try:
            headers, secrets = self._authorization()
            tls = self._tls()
        except SecretError as error:
            return Answer(detail=str(error), arrived=False), b""
        except OSError as error:
            return Answer(detail=f"{error.filename or ''} {error.strerror or error}".strip(), arrived=False), b""
        return await ask(
            self._session,
            method,
            self._url + path,
            None if body is None else json_bytes(body),
            headers=headers,
            secrets=secrets,
            deadline_seconds=self._deadline,
            tls=tls,
            most_bytes=MAX_ANSWER_BYTES,
        )

    def _authorization(self) -> tuple[dict[str, str], tuple[str, ...]]:
        settings = self.settings
        if settings.bearer_token is not None:
            token = settings.bearer_token.reveal()
            return {"Authorization": f"Bearer {token}"}, (token,)
        if settings.basic_user:
            password = settings.basic_password.reveal() if settings.basic_password is not None else ""
            pair = b64encode(f"{settings.basic_user}:{password}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}, (password, pair)
        return {}, ()

    def _tls(self) -> ssl.SSLContext | None:
        settings = self.settings
        if settings.ca_file is None and settings.cert_file is None:
            return None
        return tls_of(settings.ca_file, settings.cert_file, settings.key_file)


def valid_until(alert: Standing, resend_delay: float) -> float:
    """`endsAt` of an alert, as Prometheus gives it: its end, or four resend delays after it was last seen."""
    if alert.ended_at is not None:
        return alert.ended_at
    return alert.seen_at + VALID_RESENDS * max(alert.interval, resend_delay)
