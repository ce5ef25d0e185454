"""Answers in the form of Prometheus' HTTP API: https://prometheus.io/docs/prometheus/latest/querying/api/#format-overview"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.responses import Response

JSON = "application/json"


def answer(data: Any = None, status: int = 200, *, warnings: Sequence[str] = ()) -> Response:
    """A success with `data`. Numbers that JSON can't hold are null."""
    told = {"status": "success", "data": data} | ({"warnings": list(warnings)} if warnings else {})
    return Response(orjson.dumps(told, default=str), status, media_type=JSON)


def error_answer(status: int, kind: str, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error of this kind; `text` is for people."""
    # A client's own words may be part of it, and need not be valid Unicode.
    told = {"status": "error", "errorType": kind, "error": text.encode(errors="replace").decode()}
    return Response(orjson.dumps(told), status, dict(headers or {}), JSON)


def plain(problem: str | None) -> Response:
    """What a health check is told: 200 if there is no problem, else 503 with it."""
    text = "ok" if problem is None else problem
    return Response(text + "\n", 200 if problem is None else 503, media_type="text/plain")
