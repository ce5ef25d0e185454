"""A receiver of OTLP over HTTP on loopback, made of the official protobufs: it parses each request, keeps it, and
answers as it is told."""

import gzip
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from tests.stand_in import StandIn

TYPE = "application/x-protobuf"
_KINDS: dict[str, tuple[Any, Any]] = {
    "metrics": (metrics.ExportMetricsServiceRequest, metrics.ExportMetricsServiceResponse),
    "traces": (traces.ExportTraceServiceRequest, traces.ExportTraceServiceResponse),
    "logs": (logs.ExportLogsServiceRequest, logs.ExportLogsServiceResponse),
}


@dataclass
class Fate:
    """What one request is answered."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class OtlpReceiver(StandIn):
    """`async with OtlpReceiver() as receiver: … receiver.url …`."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[Any] = []
        self.traces: list[Any] = []
        self.logs: list[Any] = []
        """Requests that were taken, parsed."""
        self.headers: list[Mapping[str, str]] = []
        """Of every request."""
        self.script: deque[Fate] = deque()
        """What happens to requests to come."""
        self.always: Fate | None = None

    def application(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/{signal}", self._take)
        return app

    async def _take(self, request: web.Request) -> web.Response:
        self.headers.append(dict(request.headers))
        body = await request.read()
        fate = self.script.popleft() if self.script else self.always or Fate()
        if fate.status != 200:
            return web.Response(status=fate.status, body=fate.body, headers=fate.headers, content_type=TYPE)
        assert request.content_type == TYPE
        signal = request.match_info["signal"]
        kind, answer = _KINDS[signal]
        # aiohttp has unpacked what was compressed.
        assert not body.startswith(gzip.compress(b"")[:2])
        getattr(self, signal).append(kind.FromString(body))
        return web.Response(body=fate.body or answer().SerializeToString(), content_type=TYPE)

    # What tests look at.

    def spans(self) -> list[Any]:
        """All of them, in the order in which they came."""
        return [s for r in self.traces for rs in r.resource_spans for scope in rs.scope_spans for s in scope.spans]

    def records(self) -> list[tuple[dict[str, Any], Any]]:
        """(attributes of the resource, log record)."""
        return [
            (attributes(group.resource.attributes), record)
            for request in self.logs
            for group in request.resource_logs
            for scope in group.scope_logs
            for record in scope.log_records
        ]

    def metric(self, name: str) -> Any:
        """Its newest reading as JSON, None if it never came; AssertionError if one request has it twice."""
        for request in reversed(self.metrics):
            found = [
                m
                for rm in request.resource_metrics
                for scope in rm.scope_metrics
                for m in scope.metrics
                if m.name == name
            ]
            assert len(found) < 2
            if found:
                return MessageToDict(found[0])
        return None


def attributes(pairs: Any) -> dict[str, Any]:
    """Of a resource, span, record or point."""
    return {pair.key: value_of(pair.value) for pair in pairs}


def value_of(value: AnyValue) -> Any:
    """As Python has it."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(one) for one in value.array_value.values]
    if kind == "kvlist_value":
        pairs: list[KeyValue] = list(value.kvlist_value.values)
        return attributes(pairs)
    return getattr(value, kind) if kind is not None else None
