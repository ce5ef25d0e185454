"""The FastAPI application. It reads from a `Source`; what changes something needs the control token.

Endpoints take the request whole. A parameter that FastAPI is to read makes it import pydantic.v1 (fastapi._compat),
which is 2 MiB that nothing here uses.
"""

import asyncio
import hmac
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, ValidationError
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException

from dsobs.api import queries
from dsobs.api.answers import answer, error_answer, plain
from dsobs.api.exposition import Renderer
from dsobs.api.limits import BodyLimit, RequestLimit
from dsobs.api.page.routes import add_page
from dsobs.api.queries import Window
from dsobs.config import ReloadError, Secret, SecretError, parse_duration
from dsobs.model.samples import Page, Sample
from dsobs.model.status import Charts, Status
from dsobs.silences import MatcherError, Silence
from dsobs.state import StateError

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_KINDS = {401: "unauthorized", 403: "forbidden", 404: "not_found", 503: "unavailable"}


class Source(Protocol):
    """What the sidecar gives to the API."""

    def window(self) -> Window:
        """What can be asked for in PromQL."""
        ...

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

    def alert_views(self) -> list[dict[str, Any]]:
        """Pending and firing, in the form of Prometheus' /api/v1/alerts."""
        ...

    def rule_groups(self) -> list[dict[str, Any]]:
        """In the form of Prometheus' /api/v1/rules."""
        ...

    def status(self) -> Status:
        """The server as the status page shows it."""
        ...

    def charts(self) -> Charts:
        """The last 30 minutes of the key indicators."""
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

    async def clear_gpu(self, card: str) -> int:
        """Somebody says that the card of this UUID is well: how many faults of it stood."""
        ...

    async def switch(self, *, killed: bool) -> None:
        """Sets or clears the API's kill switch."""
        ...

    async def reload(self) -> dict[str, list[str]]:
        """Reads the settings again: names of those that `changed` and that `need_restart`; ReloadError if it can't."""
        ...


class NewSilence(BaseModel):
    """The body of `POST /api/v1/silences`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    matchers: list[str]
    """Such as `alertname=EngineHung`."""
    duration: str | StrictFloat
    """Such as `2h`, or seconds."""
    created_by: str = Field(default="", alias="createdBy", max_length=200)
    comment: str = Field(default="", max_length=1000)


class KillSwitch(BaseModel):
    """The query of `PUT /api/v1/kill-switch`."""

    on: bool


def _silence(silence: Silence) -> dict[str, Any]:
    return {
        "id": silence.id,
        "matchers": [str(matcher) for matcher in silence.matchers],
        "startsAt": silence.starts_at,
        "endsAt": silence.ends_at,
        "createdBy": silence.created_by,
        "comment": silence.comment,
    }


_TRUTHS = {"": False, **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True)}
_TRUTHS |= dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False)
"""As Go's strconv.ParseBool reads them."""
_RULE_TYPES = {"": ("alerting", "recording"), "alert": ("alerting",), "record": ("recording",)}


def _wanted(groups: list[dict[str, Any]], asked: QueryParams) -> list[dict[str, Any]]:
    """The rules that are asked for, as Prometheus has it; HTTPException for an unknown type.

    https://prometheus.io/docs/prometheus/latest/querying/api/#rules
    """
    kind = asked.get("type", "").lower()
    if kind not in _RULE_TYPES:
        raise HTTPException(400, f"type {kind[:40]!r} is none; write alert or record")
    if (given := asked.get("exclude_alerts", "")) not in _TRUTHS:
        raise HTTPException(400, f"exclude_alerts {given[:40]!r} is neither true nor false")
    exclude = _TRUTHS[given]
    names, files, titles = (asked.getlist(f"{name}[]") for name in ("rule_name", "file", "rule_group"))
    narrows = bool(kind or names)
    found = []
    for group in groups:
        if (files and group["file"] not in files) or (titles and group["name"] not in titles):
            continue
        rules = [
            rule | {"alerts": None} if exclude and rule["type"] == "alerting" else rule
            for rule in group["rules"]
            if rule["type"] in _RULE_TYPES[kind] and (not names or rule["name"] in names)
        ]
        if rules or not narrows:
            found.append({**group, "rules": rules})
    return found


def _problems(error: ValidationError) -> str:
    """What pydantic found, as a line for people."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors())


def create(source: Source, control_token: Secret | None) -> FastAPI:
    """The application over `source`; without a token the control endpoints answer 403."""
    app = FastAPI(title="dsobs", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit)
    app.add_middleware(RequestLimit)
    queries.add(app, source.window)
    renderer = Renderer()

    def reads(path: str) -> Callable[[Endpoint], Endpoint]:
        return app.api_route(path, methods=["GET", "HEAD"])

    async def control(request: Request) -> None:
        if control_token is None:
            raise HTTPException(403, "control is off: set api.control_token")
        try:
            expected = await asyncio.to_thread(control_token.reveal)
        except SecretError as error:
            raise HTTPException(503, str(error)) from error
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Headers come decoded as Latin-1: these are the bytes that were sent.
        same = hmac.compare_digest(given.strip().encode("latin-1"), expected.encode())
        if scheme.lower() != "bearer" or not same:
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    app.state.live = add_page(app, source)

    @reads("/metrics")
    async def metrics(request: Request) -> Response:
        samples, page = source.metric_samples(), source.native_page()
        accept, accept_encoding = (request.headers.get(name, "") for name in ("accept", "accept-encoding"))
        # In a thread: a large page of the engine's own metrics must not hold the event loop.
        body, headers = await asyncio.to_thread(renderer.render, samples, page, accept, accept_encoding)
        return Response(body, headers=headers)

    @reads("/livez")
    async def livez() -> Response:
        return plain(source.alive())

    @reads("/readyz")
    async def readyz() -> Response:
        return plain(source.prepared())

    @reads("/api/v1/alerts")
    async def alerts() -> Response:
        return answer({"alerts": source.alert_views()})

    @reads("/api/v1/rules")
    async def rules(request: Request) -> Response:
        return answer({"groups": _wanted(source.rule_groups(), request.query_params)})

    @reads("/api/v1/status")
    async def status() -> Response:
        return answer(source.status())

    @reads("/api/v1/incidents")
    async def incidents() -> Response:
        return answer(await source.incidents(None))

    @reads("/api/v1/incidents/{incident}")
    async def incident_by_id(request: Request) -> Response:
        incident = request.path_params["incident"]
        found = await source.incidents(incident)
        if not found:
            raise HTTPException(404, f"no incident begins with {incident[:40]!r}")
        return answer(found)

    @reads("/api/v1/silences")
    async def list_silences() -> Response:
        return answer([_silence(silence) for silence in source.active_silences()])

    @app.post("/api/v1/silences", dependencies=[Depends(control)])
    async def add_silence(request: Request) -> Response:
        # Read here, not by FastAPI: nobody is told about the body before the token was looked at.
        try:
            new = NewSilence.model_validate_json(await request.body())
            seconds = parse_duration(new.duration)
        except ValidationError as error:
            return error_answer(400, "bad_data", _problems(error))
        except ValueError as error:
            return error_answer(400, "bad_data", f"duration: {error}")
        assert isinstance(seconds, float | int)
        return answer(_silence(await source.silence(new.matchers, seconds, new.created_by, new.comment)), 201)

    @app.delete("/api/v1/silences/{id_}", dependencies=[Depends(control)])
    async def expire(request: Request) -> Response:
        if not await source.expire_silence(request.path_params["id_"]):
            raise HTTPException(404, "no active silence of that id")
        return answer()

    @app.delete("/api/v1/gpu-faults/{card}", dependencies=[Depends(control)])
    async def clear_gpu(request: Request) -> Response:
        cleared = await source.clear_gpu(request.path_params["card"])
        if not cleared:
            raise HTTPException(404, "no fault of that card stands; /api/v1/status has those that do")
        return answer({"cleared": cleared})

    @app.put("/api/v1/kill-switch", dependencies=[Depends(control)])
    async def kill_switch(request: Request) -> Response:
        try:
            on = KillSwitch.model_validate(dict(request.query_params)).on
        except ValidationError as error:
            return error_answer(400, "bad_data", _problems(error))
        await source.switch(killed=on)
        return answer({"killed": on})

    @app.post("/-/reload", dependencies=[Depends(control)])
    async def reload() -> Response:
        return answer(await source.reload())

    @app.exception_handler(ReloadError)
    async def bad_settings(_: Request, error: ReloadError) -> Response:
        return error_answer(400, "bad_data", str(error))

    @app.exception_handler(MatcherError)
    async def bad_matcher(_: Request, error: MatcherError) -> Response:
        return error_answer(400, "bad_data", str(error))

    @app.exception_handler(StateError)
    async def no_state(_: Request, error: StateError) -> Response:
        return error_answer(503, "unavailable", str(error))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> Response:
        return error_answer(error.status_code, _KINDS.get(error.status_code, "bad_data"), error.detail, error.headers)

    @app.exception_handler(Exception)
    async def own_error(_: Request, error: Exception) -> Response:
        # The server logs the traceback.
        return error_answer(500, "internal", f"{type(error).__name__}; see dsobs's log")

    return app
