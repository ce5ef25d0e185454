"""Between dsobs and a real Elasticsearch: passes bulk requests on, or fails as it is told, before or after the server
has taken the records."""

import aiohttp
from aiohttp import web

from tests.elasticsearch_stand_in import ElasticsearchStandIn

_PASSED_ON = ("authorization", "content-type", "accept")
"""Not the encoding: what aiohttp gives is uncompressed."""


class FaultProxy(ElasticsearchStandIn):
    """As the stand-in, but that the server at `upstream` keeps the documents."""

    def __init__(self, upstream: str) -> None:
        super().__init__()
        self.upstream = upstream
        self.failed = 0
        """Requests that had a fault."""
        self._session: aiohttp.ClientSession | None = None

    async def down(self) -> None:
        """Refuses connections from now on; legal twice."""
        await super().down()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.match_info["index"], body.count(b"\n") // 2, dict(request.headers)))
        fault = self.script.popleft() if self.script else self.always
        if fault is not None:
            self.failed += 1
        status, data, headers = 0, b"", {"X-Elastic-Product": self.product}
        if fault is None or fault.commit:
            status, data = await self._pass_on(request, body)
            self.duplicates += data.count(b'"status":409')
        if fault is not None:
            return await self._fail(fault, request, headers)
        return web.Response(status=status, body=data, headers=headers, content_type="application/json")

    async def _pass_on(self, request: web.Request, body: bytes) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        async with self._session.post(self.upstream + request.path_qs, data=body, headers=headers) as answer:
            return answer.status, await answer.read()
