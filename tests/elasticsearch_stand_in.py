"""A stand-in for Elasticsearch's bulk API on loopback: what a real server can't be made to do, and quickly.

It keeps documents by index and id, answers `create` with 201 or 409, and fails as it is told: `script` gives what
happens to requests to come, `judge` to single records. tests/real/test_elasticsearch.py holds it to the real one.
"""

import asyncio
import gzip
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.stand_in import StandIn

Judge = Callable[[dict[str, Any]], dict[str, Any] | None]
"""From a document to what its item says instead of 201: `{"status": 400, "error": {…}}`, or None."""


@dataclass
class Fault:
    """What happens to one request."""

    status: int = 200
    body: bytes | None = None
    """The answer; None: an error of the status."""
    headers: dict[str, str] | None = None
    commit: bool = False
    """The records are taken all the same: the answer is what gets lost."""
    hang_up: bool = False
    """The connection is closed in the middle of the answer."""
    hang: bool = False
    """There is no answer."""


class ElasticsearchStandIn(StandIn):
    """`async with ElasticsearchStandIn() as elasticsearch: … elasticsearch.url …`."""

    def __init__(self) -> None:
        super().__init__()
        self.documents: dict[tuple[str, str], dict[str, Any]] = {}
        """(index, id) → document."""
        self.requests: list[tuple[str, int, dict[str, str]]] = []
        """(index, records, headers) of each request, refused ones too."""
        self.duplicates = 0
        """Items answered 409."""
        self.script: deque[Fault] = deque()
        self.always: Fault | None = None
        """Every request's fate while set, after `script`."""
        self.judge: Judge | None = None
        self.max_body = 100 * 1024 * 1024
        self.product = "Elasticsearch"
        self.in_flight = self.most_in_flight = 0
        self.delay = 0.0
        """Seconds before an answer."""

    def messages(self, index: str | None = None) -> list[Any]:
        """`message` of the documents, by id."""
        return [doc.get("message") for (where, _), doc in sorted(self.documents.items()) if index in (None, where)]

    def application(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/{index}/_bulk", self._bulk)
        return app

    async def _bulk(self, request: web.Request) -> web.StreamResponse:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        index = request.match_info["index"]
        lines = body.split(b"\n")[:-1]
        self.requests.append((index, len(lines) // 2, dict(request.headers)))
        if self.delay:
            await asyncio.sleep(self.delay)
        fault = self.script.popleft() if self.script else self.always
        if fault is None and len(body) > self.max_body:
            fault = Fault(413)
        items = [] if fault is not None and not fault.commit else [self._take(index, *pair) for pair in _pairs(lines)]
        headers = {"X-Elastic-Product": self.product}
        if fault is None:
            taken = all(item["create"]["status"] == 201 for item in items)
            return web.json_response({"errors": not taken, "items": items}, headers=headers)
        return await self._fail(fault, request, {**headers, **(fault.headers or {})})

    async def _fail(self, fault: Fault, request: web.Request, headers: dict[str, str]) -> web.StreamResponse:
        if fault.hang:
            await asyncio.Event().wait()
        if fault.hang_up:
            assert request.transport is not None
            response = web.StreamResponse(status=fault.status, headers={**headers, "Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"errors":false,"items":[{"create":{"status":201}},')
            request.transport.close()
            return response
        said = {"error": {"type": "scripted_exception", "reason": "scripted"}, "status": fault.status}
        body = json.dumps(said).encode() if fault.body is None else fault.body
        return web.Response(status=fault.status, body=body, headers=headers, content_type="application/json")

    def _take(self, index: str, action: bytes, document: bytes) -> dict[str, Any]:
        id_ = json.loads(action)["create"]["_id"]
        fields = json.loads(document)
        said = self.judge(fields) if self.judge is not None else None
        if said is None and (index, id_) in self.documents:
            self.duplicates += 1
            said = {"status": 409, "error": {"type": "version_conflict_engine_exception", "reason": "is there"}}
        if said is None:
            self.documents[index, id_] = fields
            said = {"status": 201}
        elif said["status"] < 300:
            self.documents[index, id_] = fields
        return {"create": said}


def _pairs(lines: list[bytes]) -> "zip[tuple[bytes, bytes]]":
    return zip(lines[0::2], lines[1::2], strict=True)
