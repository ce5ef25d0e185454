"""An Alertmanager in memory: the parts of API v2 that dsobs uses, as the real one answers (tests/real checks that)."""

import re
import uuid
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.stand_in import StandIn


class AlertmanagerStandIn(StandIn):
    """`async with AlertmanagerStandIn() as alertmanager: … alertmanager.url …`; `down` and `up` for outages."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        self.silences: dict[str, dict[str, Any]] = {}
        self.posts: list[list[dict[str, Any]]] = []
        """Alerts as they came, one list for each request."""
        self.status: int | None = None
        """Answer to every request while set."""

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._refusing])
        app.router.add_post("/api/v2/alerts", self._take)
        app.router.add_get("/api/v2/alerts", self._list)
        app.router.add_get("/api/v2/silences", self._list_silences)
        app.router.add_post("/api/v2/silences", self._silence)
        app.router.add_delete("/api/v2/silence/{id}", self._expire)
        return app

    @web.middleware
    async def _refusing(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.status is not None:
            return web.json_response("no", status=self.status)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _take(self, request: web.Request) -> web.Response:
        alerts = await request.json()
        self.posts.append(alerts)
        problems = [problem for alert in alerts if (problem := self._take_one(alert))]
        if problems:
            return web.json_response("; ".join(problems), status=400)
        return web.json_response({}, status=200)

    def _take_one(self, alert: dict[str, Any]) -> str:
        labels = {name: value for name, value in alert["labels"].items() if value}
        if not labels:
            return "at least one label pair required"
        if not all(labels):
            return "invalid label set"
        if "endsAt" in alert and _time(alert["endsAt"]) < _time(alert["startsAt"]):
            return "start time must be before end time"
        self.alerts[tuple(sorted(labels.items()))] = {**alert, "labels": labels}
        return ""

    async def _list(self, _: web.Request) -> web.Response:
        now = datetime.now(UTC)
        return web.json_response(
            [
                {
                    **alert,
                    "status": {
                        "state": "suppressed" if self._silenced_by(alert) else "active",
                        "silencedBy": self._silenced_by(alert),
                    },
                }
                for alert in self.alerts.values()
                if _time(alert["endsAt"]) > now
            ]
        )

    def _silenced_by(self, alert: dict[str, Any]) -> list[str]:
        return [
            id_
            for id_, silence in self.silences.items()
            if self._state(silence) == "active"
            and all(_fits(matcher, alert["labels"].get(matcher["name"], "")) for matcher in silence["matchers"])
        ]

    @staticmethod
    def _state(silence: dict[str, Any]) -> str:
        now = datetime.now(UTC)
        if _time(silence["endsAt"]) <= now:
            return "expired"
        return "pending" if _time(silence["startsAt"]) > now else "active"

    async def _list_silences(self, _: web.Request) -> web.Response:
        return web.json_response(
            [{**one, "id": id_, "status": {"state": self._state(one)}} for id_, one in self.silences.items()]
        )

    async def _silence(self, request: web.Request) -> web.Response:
        silence = await request.json()
        if _time(silence["endsAt"]) <= datetime.now(UTC):
            return web.json_response("end time can't be in the past", status=400)
        if all(_fits(matcher, "") for matcher in silence["matchers"]):
            return web.json_response("at least one matcher must not match the empty string", status=400)
        id_ = str(uuid.uuid4())
        self.silences[id_] = silence
        return web.json_response({"silenceID": id_})

    async def _expire(self, request: web.Request) -> web.Response:
        silence = self.silences.get(request.match_info["id"])
        if silence is None:
            return web.Response(status=404)
        silence["endsAt"] = datetime.now(UTC).isoformat()
        return web.Response()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _fits(matcher: dict[str, Any], value: str) -> bool:
    found = re.fullmatch(matcher["value"], value) is not None if matcher["isRegex"] else matcher["value"] == value
    return bool(found == matcher.get("isEqual", True))
