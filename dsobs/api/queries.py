"""Prometheus' query API over the store, so that what speaks to Prometheus can speak to a sidecar.

https://prometheus.io/docs/prometheus/latest/querying/api/ — query, query_range, series, labels, label values, metadata
and build information, by GET and POST. A query works in slices beside the main loop; two are evaluated at a time.
"""

import asyncio
import contextlib
import math
import platform
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request, Response

from dsobs import __version__, promql, telemetry
from dsobs.api.answers import JSON, answer, error_answer
from dsobs.api.exposition import ALERT_SERIES
from dsobs.api.points import encoded
from dsobs.config import parse_duration
from dsobs.model.signals import SIGNALS
from dsobs.promql import Limits
from dsobs.series.store import Series, Store

LANGUAGE = "3.0.0"
"""The Prometheus whose language and API this is; Grafana looks at it to see what it may ask."""
AT_ONCE = 2
_STEPS = 11_000


class Window(NamedTuple):
    """What can be queried."""

    store: Store
    now: float
    """Unix seconds."""
    limits: Limits
    """Of one query."""


class _BadParameterError(ValueError):
    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f'invalid parameter "{name}": {problem}')


class _Parameters:
    """Of a request: its query and, of a POST, its form."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    @classmethod
    async def of(cls, request: Request) -> "_Parameters":
        pairs: list[tuple[str, str]] = []
        if request.method == "POST":
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            body = await request.body()
            if body and kind != "application/x-www-form-urlencoded":
                raise _BadParameterError("Content-Type", f"{kind[:40]!r}; send application/x-www-form-urlencoded")
            try:
                pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=1000)
            except ValueError as error:
                raise _BadParameterError("body", str(error)) from error
        return cls([*pairs, *request.query_params.multi_items()])

    def text(self, name: str) -> str:
        return self._values.get(name, [""])[0]

    def all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def time(self, name: str, default: float | None) -> float:
        """Unix seconds, from such or from RFC 3339."""
        text = self.text(name)
        if not text and default is not None:
            return default
        with contextlib.suppress(ValueError):
            number = float(text)
            if math.isfinite(number) and abs(number) < 1e12:
                return number
        with contextlib.suppress(ValueError):
            found = datetime.fromisoformat(text)
            if found.tzinfo is not None and "T" in text.upper():
                return found.astimezone(UTC).timestamp()
        raise _BadParameterError(name, f'cannot parse "{text[:60]}" to a valid timestamp')

    def duration(self, name: str, default: float | None) -> float:
        """Seconds, from such or from words such as 1m30s."""
        text = self.text(name)
        if not text and default is not None:
            return default
        with contextlib.suppress(ValueError):
            found = parse_duration(text)
            if isinstance(found, float | int) and math.isfinite(found) and abs(found) < 1e11:
                return float(found)
        raise _BadParameterError(name, f'cannot parse "{text[:60]}" to a valid duration')

    def limit(self) -> int:
        """0: none."""
        text = self.text("limit")
        if not text:
            return 0
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise _BadParameterError("limit", f'"{text[:60]}"; it has to be a whole number of 0 or more')
        return int(text)

    def span(self, window: Window) -> tuple[int, int]:
        """From `start` to `end` in milliseconds; all that there is where they are not given."""
        start, end = self.time("start", 0.0), self.time("end", window.now + 1.0)
        return round(start * 1000), round(end * 1000)


def _parse_error(name: str, expression: str, error: promql.PromqlError) -> _BadParameterError:
    """As Prometheus tells it, with line and column where they are known."""
    if error.position is None:
        return _BadParameterError(name, f"parse error: {error}")
    before = expression[: error.position]
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return _BadParameterError(name, f"{line}:{column}: parse error: {error}")


def _selected(parameters: _Parameters, window: Window, *, needed: bool = False) -> Iterator[Series]:
    """The series that `match[]` names, each once; all without one."""
    start, end = parameters.span(window)
    selectors = parameters.all("match[]")
    if needed and not selectors:
        raise ValueError("no match[] parameter provided")
    seen = set()
    for selector in selectors or ['{__name__!=""}']:
        try:
            selection = promql.selection(selector)
        except promql.PromqlError as error:
            raise _parse_error("match[]", selector, error) from error
        for series in selection.series(window.store, start, end):
            if series.labels not in seen:
                seen.add(series.labels)
                yield series


def _cut(found: Sequence[Any], limit: int) -> Response:
    if limit and len(found) > limit:
        return answer(found[:limit], warnings=["results truncated due to limit"])
    return answer(found)


def _metadata(parameters: _Parameters) -> dict[str, list[dict[str, str]]]:
    """Type, meaning and unit of what dsobs exports, by name."""
    told = {one.name: (one.type, one.help, one.unit) for one in SIGNALS.values()}
    told |= {name: ("gauge", text, "") for name, text in ALERT_SERIES.items()}
    for family in telemetry.REGISTRY.collect():
        ending = "_total" if family.type == "counter" else ""
        told[family.name + ending] = (family.type, family.documentation, family.unit)
    wanted = parameters.text("metric")
    names = [wanted] if wanted in told else [] if wanted else sorted(told)
    # Here, other than elsewhere, Prometheus takes a limit of 0 at its word.
    limit = parameters.limit() if parameters.text("limit") else None
    fields = ("type", "help", "unit")
    return {name: [dict(zip(fields, told[name], strict=True))] for name in names[:limit]}


class _Queries:
    """Evaluates, a few at a time."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(AT_ONCE)

    @contextlib.asynccontextmanager
    async def _place(self, limits: Limits) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(limits.seconds):
                await self._places.acquire()
        except TimeoutError:
            text = f"{AT_ONCE} other queries took {limits.seconds:g} s; ask for less at a time"
            raise promql.QueryTimeoutError(text) from None
        try:
            yield
        finally:
            self._places.release()

    async def instant(self, parameters: _Parameters, window: Window) -> Response:
        """`query`."""
        at, limit = parameters.time("time", window.now), parameters.limit()
        limits = _limits(parameters, window)
        expression = parameters.text("query")
        async with self._place(limits):
            try:
                result = await promql.instant_query(expression, window.store, at, limits)
            except promql.PromqlError as error:
                raise _parse_error("query", expression, error) from error
            return Response(await promql.unhurried(encoded(result, at, limit)), media_type=JSON)

    async def range(self, parameters: _Parameters, window: Window) -> Response:
        """`query_range`."""
        start, end = parameters.time("start", None), parameters.time("end", None)
        if end < start:
            raise _BadParameterError("end", "end timestamp must not be before start time")
        step = parameters.duration("step", None)
        if step <= 0:
            problem = "zero or negative query resolution step widths are not accepted. Try a positive integer"
            raise _BadParameterError("step", problem)
        if (end - start) / step > _STEPS:
            raise ValueError(
                "exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution "
                "(?step=XX)"
            )
        limits, limit = _limits(parameters, window), parameters.limit()
        expression = parameters.text("query")
        async with self._place(limits):
            try:
                query = promql.compile(expression)
            except promql.PromqlError as error:
                raise _parse_error("query", expression, error) from error
            found = await promql.unhurried(query.slices(window.store, start, end, step, limits))
            result = promql.Result("matrix", found)
            return Response(await promql.unhurried(encoded(result, end, limit)), media_type=JSON)


def _limits(parameters: _Parameters, window: Window) -> Limits:
    if parameters.text("lookback_delta"):
        raise _BadParameterError("lookback_delta", "it is always 5m here; leave it out")
    asked = parameters.duration("timeout", window.limits.seconds)
    return replace(window.limits, seconds=min(window.limits.seconds, max(0.0, asked)))


def _build() -> Mapping[str, str]:
    return {
        "version": f"{LANGUAGE}+dsobs.{__version__}",
        "revision": "",
        "branch": "",
        "buildUser": "",
        "buildDate": "",
        "goVersion": f"python{platform.python_version()}",
    }


def add(app: FastAPI, window: Callable[[], Window]) -> None:
    """Adds the endpoints; `window` gives what can be queried as it stands."""
    queries = _Queries()

    @app.api_route("/api/v1/query", methods=["GET", "HEAD", "POST"])
    async def query(request: Request) -> Response:
        return await _told(queries.instant, request, window())

    @app.api_route("/api/v1/query_range", methods=["GET", "HEAD", "POST"])
    async def query_range(request: Request) -> Response:
        return await _told(queries.range, request, window())

    @app.api_route("/api/v1/series", methods=["GET", "HEAD", "POST"])
    async def series(request: Request) -> Response:
        async def found(parameters: _Parameters, window: Window) -> Response:
            labels = sorted(series.labels for series in _selected(parameters, window, needed=True))
            return _cut([dict(one) for one in labels], parameters.limit())

        return await _told(found, request, window())

    @app.api_route("/api/v1/labels", methods=["GET", "HEAD", "POST"])
    async def labels(request: Request) -> Response:
        async def found(parameters: _Parameters, window: Window) -> Response:
            names = {name for series in _selected(parameters, window) for name, _ in series.labels}
            return _cut(sorted(names), parameters.limit())

        return await _told(found, request, window())

    @app.api_route("/api/v1/label/{name}/values", methods=["GET", "HEAD"])
    async def values(request: Request) -> Response:
        async def found(parameters: _Parameters, window: Window) -> Response:
            wanted = request.path_params["name"]
            pairs = (pair for series in _selected(parameters, window) for pair in series.labels)
            return _cut(sorted({value for name, value in pairs if name == wanted}), parameters.limit())

        return await _told(found, request, window())

    @app.api_route("/api/v1/metadata", methods=["GET", "HEAD"])
    async def metadata(request: Request) -> Response:
        async def found(parameters: _Parameters, _: Window) -> Response:
            return answer(_metadata(parameters))

        return await _told(found, request, window())

    @app.api_route("/api/v1/status/buildinfo", methods=["GET", "HEAD"])
    async def buildinfo() -> Response:
        return answer(_build())


async def _told(ask: Any, request: Request, window: Window) -> Response:
    """The answer, or what is wrong in Prometheus' words for it."""
    try:
        response: Response = await ask(await _Parameters.of(request), window)
        return response
    except promql.QueryTimeoutError as error:
        return error_answer(503, "timeout", str(error))
    except promql.EvaluationError as error:
        return error_answer(422, "execution", str(error))
    except ValueError as error:
        return error_answer(400, "bad_data", str(error))
