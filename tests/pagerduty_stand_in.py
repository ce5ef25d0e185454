"""A stand-in for PagerDuty's Events API v2 on loopback. It is not PagerDuty: it holds what the published schema says.

Required fields, lengths and the size of an event are checked (400), the routing key's length too; 202 else. Incidents
are kept by dedup key: a trigger on an open one joins it, a resolve without an open one is ignored, a trigger after a
resolve opens a new one. It fails on purpose: `script` gives answers to come, `down()` and `up()` take it off its port
and back.
"""

import asyncio
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.stand_in import StandIn

MAX_BYTES = 512 * 1024
SEVERITIES = {"critical", "error", "warning", "info"}


@dataclass
class StandInIncident:
    """What a person would see under one dedup key, from trigger to resolve."""

    dedup_key: str
    summary: str
    triggers: int = 1
    open: bool = True


@dataclass
class Fault:
    """An answer out of the ordinary."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    commit: bool = False
    """Act on the event all the same: the answer is what gets lost."""
    hang_up: bool = False
    """Close the connection without an answer."""


class PagerDutyStandIn(StandIn):
    """`async with PagerDutyStandIn() as pagerduty: … pagerduty.url …`."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []
        """Events acted on, as they came."""
        self.incidents: list[StandInIncident] = []
        self.refused: list[str] = []
        """Why events were answered 400."""
        self.script: deque[Fault | int] = deque()
        """Answers to the next requests; after them, what the schema says."""
        self.always: Fault | int | None = None
        """Answer to every request while set, after `script`."""
        self.hold: asyncio.Event | None = None
        """While set to an event, requests wait for it before they are looked at."""
        self.hold_answers: asyncio.Event | None = None
        """While set to an event, requests are acted on, and their answers wait for it."""
        self.requests = 0
        self._changed = asyncio.Condition()

    @property
    def url(self) -> str:
        """Where events go."""
        return f"{super().url}/v2/enqueue"

    def application(self) -> web.Application:
        app = web.Application(client_max_size=4 * MAX_BYTES)
        app.router.add_post("/v2/enqueue", self._enqueue)
        return app

    async def wait_for(self, condition: Callable[[], bool], seconds: float = 90.0) -> None:
        """Until the condition holds, looked at whenever a request comes or was acted on; TimeoutError after so long."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    def open_incidents(self) -> dict[str, StandInIncident]:
        """By dedup key."""
        return {incident.dedup_key: incident for incident in self.incidents if incident.open}

    def seen(self, dedup_key: str) -> list[str]:
        """The actions that came for a key, in their order."""
        return [event["event_action"] for event in self.events if event["dedup_key"] == dedup_key]

    async def _enqueue(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests += 1
        async with self._changed:
            self._changed.notify_all()
        if self.hold is not None:
            await self.hold.wait()
        answer = self._answer(request, body)
        async with self._changed:
            self._changed.notify_all()
        if self.hold_answers is not None:
            await self.hold_answers.wait()
        return answer

    def _answer(self, request: web.Request, body: bytes) -> web.StreamResponse:
        fault = self.script.popleft() if self.script else self.always
        if isinstance(fault, int):
            fault = Fault(fault)
        if fault is not None and not fault.commit:
            return self._faulty(request, fault)
        problems, event = problems_of(body)
        if problems:
            self.refused.append("; ".join(problems))
            return web.json_response(
                {"status": "invalid event", "message": "Event object is invalid", "errors": problems}, status=400
            )
        self._act(event)
        if fault is not None:
            return self._faulty(request, fault)
        return web.json_response(
            {"status": "success", "message": "Event processed", "dedup_key": event["dedup_key"]}, status=202
        )

    def _faulty(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.hang_up and request.transport is not None:
            request.transport.abort()
        return web.json_response({"status": "fault"}, status=fault.status, headers=fault.headers)

    def _act(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        key = event["dedup_key"]
        incident = self.open_incidents().get(key)
        if event["event_action"] == "resolve":
            if incident is not None:
                incident.open = False
        elif event["event_action"] == "trigger":
            if incident is not None:
                incident.triggers += 1
            else:
                self.incidents.append(StandInIncident(key, event["payload"]["summary"]))


def problems_of(body: bytes) -> tuple[list[str], dict[str, Any]]:
    """Where an event breaks the published schema, and the event."""
    if len(body) > MAX_BYTES:
        return [f"event is {len(body)} bytes, more than {MAX_BYTES}"], {}
    try:
        event = json.loads(body)
    except ValueError as error:
        return [f"not JSON: {error}"], {}
    if not isinstance(event, dict):
        return ["not an object"], {}
    problems: list[str] = []

    def text(where: dict[str, Any], name: str, longest: int, *, required: bool) -> None:
        value = where.get(name)
        if value is None and not required:
            return
        if not isinstance(value, str) or not 0 < len(value) <= longest:
            problems.append(f"'{name}' must be 1 to {longest} characters, is {value!r:.60}")

    routing_key = event.get("routing_key")
    if not isinstance(routing_key, str) or len(routing_key) != 32:
        problems.append("'routing_key' must have 32 characters")
    action = event.get("event_action")
    if action not in ("trigger", "acknowledge", "resolve"):
        problems.append(f"'event_action' is {action!r}")
    text(event, "dedup_key", 255, required=action != "trigger")
    text(event, "client", 1024, required=False)
    text(event, "client_url", 2048, required=False)
    links = event.get("links", [])
    if not all(isinstance(link, dict) and str(link.get("href")).startswith(("http://", "https://")) for link in links):
        problems.append("'links' must be objects whose 'href' is an address")
    payload = event.get("payload")
    if action == "trigger" and not isinstance(payload, dict):
        problems.append("'payload' is missing")
    if isinstance(payload, dict):
        text(payload, "summary", 1024, required=True)
        text(payload, "source", 1024, required=True)
        if payload.get("severity") not in SEVERITIES:
            problems.append(f"'severity' is {payload.get('severity')!r}")
        for name in ("timestamp", "component", "group", "class"):
            text(payload, name, 1024, required=False)
        if not isinstance(payload.get("custom_details", {}), dict):
            problems.append("'custom_details' must be an object")
    unknown = set(event) - {
        "routing_key", "event_action", "dedup_key", "client", "client_url", "links", "images", "payload",
    }  # fmt: skip
    if unknown:
        problems.append(f"unknown fields: {', '.join(sorted(unknown))}")
    return problems, event
