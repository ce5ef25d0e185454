"""The FastAPI application. It reads from a `Source`; what changes something needs the control token."""

import hmac
import math
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

from fastapi import Body, Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse

from dsobs.api.exposition import render
from dsobs.config import Secret, SecretError, parse_duration
from dsobs.model.alert import Alert
from dsobs.model.samples import Page, Sample
from dsobs.silences import MatcherError, Silence
from dsobs.state import StateError

MAX_BODY = 64 * 1024


class Source(Protocol):
    """What the sidecar gives to the API."""

    def metric_samples(self) -> Sequence[Sample]:
        """Canonical signals as they stand, and ALERTS."""
        ...

    def native_page(self) -> Page | None:
        """The engine's own page where it is passed through."""
        ...

    def alive(self) -> str | None:
        """None if dsobs's loops turn, else what stands still."""
        ...

    def prepared(self) -> str | None:
        """None once the first turn is done, else what is awaited."""
        ...

    def current_alerts(self) -> list[Alert]:
        """Pending and firing."""
        ...

    def rule_groups(self) -> list[dict[str, Any]]:
        """In the form of Prometheus' /api/v1/rules."""
        ...

    def status(self) -> dict[str, Any]:
        """The engine, the guards and what is unknown, for people."""
        ...

    async def incidents(self, incident: str | None) -> list[dict[str, Any]]:
        """Ledger lines grouped by incident, newest incident first; only one if an id or its beginning is given."""
        ...

    def active_silences(self) -> list[Silence]:
        """Those that have not ended."""
        ...

    async def silence(self, matchers: list[str], seconds: float, created_by: str, comment: str) -> Silence:
        """Makes one."""
        ...

    async def expire_silence(self, id_: str) -> bool:
        """Ends one."""
        ...

    async def switch(self, *, killed: bool) -> None:
        """Sets or clears the API's kill switch."""
        ...


def _silence(silence: Silence) -> dict[str, Any]:
    return {
        "id": silence.id,
        "matchers": [str(matcher) for matcher in silence.matchers],
        "startsAt": silence.starts_at,
        "endsAt": silence.ends_at,
        "createdBy": silence.created_by,
        "comment": silence.comment,
    }


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else repr(value)


def create(source: Source, control_token: Secret | None) -> FastAPI:
    """The application over `source`; without a token the control endpoints answer 403."""
    app = FastAPI(title="dsobs", docs_url=None, redoc_url=None)

    def control(authorization: Annotated[str, Header()] = "") -> None:
        if control_token is None:
            raise HTTPException(403, "control is off: set api.control_token")
        try:
            expected = control_token.reveal()
        except SecretError as error:
            raise HTTPException(503, str(error)) from error
        given = authorization.removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    @app.get("/metrics")
    async def metrics(
        accept: Annotated[str, Header()] = "", accept_encoding: Annotated[str, Header()] = ""
    ) -> Response:
        body, headers = render(source.metric_samples(), source.native_page(), accept, accept_encoding)
        return Response(body, headers=headers)

    @app.get("/livez")
    async def livez() -> Response:
        return _told(source.alive())

    @app.get("/readyz")
    async def readyz() -> Response:
        return _told(source.prepared())

    @app.get("/api/v1/alerts")
    async def alerts() -> dict[str, Any]:
        found = [
            {
                "labels": dict(alert.labels),
                "annotations": dict(alert.annotations),
                "state": alert.state.value,
                "activeAt": _time(alert.active_at),
                "value": _number(alert.value),
            }
            for alert in source.current_alerts()
        ]
        return {"status": "success", "data": {"alerts": found}}

    @app.get("/api/v1/rules")
    async def rules() -> dict[str, Any]:
        return {"status": "success", "data": {"groups": source.rule_groups()}}

    @app.get("/api/v1/status")
    async def status() -> dict[str, Any]:
        return {"status": "success", "data": source.status()}

    @app.get("/api/v1/incidents")
    async def incidents() -> dict[str, Any]:
        return {"status": "success", "data": await source.incidents(None)}

    @app.get("/api/v1/incidents/{incident}")
    async def incident_by_id(incident: str) -> dict[str, Any]:
        found = await source.incidents(incident)
        if not found:
            raise HTTPException(404, f"no incident begins with {incident[:40]!r}")
        return {"status": "success", "data": found}

    @app.get("/api/v1/silences")
    async def list_silences() -> dict[str, Any]:
        return {"status": "success", "data": [_silence(s) for s in source.active_silences()]}

    @app.post("/api/v1/silences", dependencies=[Depends(control)], status_code=201)
    async def add_silence(
        matchers: Annotated[list[str], Body()],
        duration: Annotated[str, Body()],
        created_by: Annotated[str, Body(alias="createdBy", max_length=200)] = "",
        comment: Annotated[str, Body(max_length=1000)] = "",
    ) -> dict[str, Any]:
        seconds = parse_duration(duration)
        assert isinstance(seconds, float | int)
        return {"status": "success", "data": _silence(await source.silence(matchers, seconds, created_by, comment))}

    @app.delete("/api/v1/silences/{id_}", dependencies=[Depends(control)])
    async def expire(id_: str) -> dict[str, Any]:
        if not await source.expire_silence(id_):
            raise HTTPException(404, "no active silence of that id")
        return {"status": "success"}

    @app.put("/api/v1/kill-switch", dependencies=[Depends(control)])
    async def kill_switch(on: Annotated[bool, Query()]) -> dict[str, Any]:
        await source.switch(killed=on)
        return {"status": "success", "data": {"killed": on}}

    @app.exception_handler(ValueError)
    async def bad_value(_: Request, error: ValueError) -> Response:
        return _error(400, "bad_data", str(error))

    @app.exception_handler(MatcherError)
    async def bad_matcher(_: Request, error: MatcherError) -> Response:
        return _error(400, "bad_data", str(error))

    @app.exception_handler(StateError)
    async def no_state(_: Request, error: StateError) -> Response:
        return _error(503, "unavailable", str(error))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        kinds = {404: "not_found", 401: "unauthorized", 403: "forbidden"}
        return _error(error.status_code, kinds.get(error.status_code, "unavailable"), str(error.detail), error.headers)

    return app


def _error(status: int, kind: str, text: str, headers: Any = None) -> JSONResponse:
    """An error in the form of Prometheus' HTTP API."""
    return JSONResponse({"status": "error", "errorType": kind, "error": text}, status, headers)


def _told(problem: str | None) -> Response:
    return Response(
        "ok\n" if problem is None else problem + "\n", 200 if problem is None else 503, media_type="text/plain"
    )


def _time(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
