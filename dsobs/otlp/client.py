"""One OTLP request, and what its answer means (https://opentelemetry.io/docs/specs/otlp/#otlphttp-response)."""

import zlib
from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import unquote

import aiohttp

from dsobs.config import Secret, SecretError
from dsobs.config.otlp import OtlpReceiver
from dsobs.tls import tls_of

PATHS = {"metrics": "/v1/metrics", "traces": "/v1/traces", "logs": "/v1/logs"}
_MOST_ANSWER_BYTES = 64 * 1024
_MOST_DETAIL = 200
_RETRYABLE = frozenset({429, 502, 503, 504})
"""Of the specification; every other error is final there."""
_TYPE = "application/x-protobuf"


class Fate(Enum):
    """What became of a request."""

    TAKEN = "taken"
    RETRY = "retry"
    """It may be taken later as it is."""
    REFUSED = "refused"
    """It never will."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a receiver said to one request."""

    status: int | None
    """As in HTTP. None: no connection, no answer in time, or a file or secret of the settings can't be used."""
    detail: str = ""
    """For people, one line without secrets; also a warning of a receiver that took everything."""
    retry_after: float | None = None
    """Seconds, where the receiver gave them."""
    rejected: int = 0
    """Of what was in the request, how much was refused for good; the rest was taken."""

    @property
    def fate(self) -> Fate:
        """What follows from it."""
        if self.status is None or self.status in _RETRYABLE:
            return Fate.RETRY
        return Fate.TAKEN if 200 <= self.status < 300 else Fate.REFUSED


class HeadersError(ValueError):
    """The headers of the settings are not of the form NAME=VALUE,NAME=VALUE; the text does not repeat them."""


def parse_headers(text: str) -> dict[str, str]:
    """Headers as in OTEL_EXPORTER_OTLP_HEADERS: pairs with commas between, values percent-encoded. HeadersError.

    https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables
    """
    found = {}
    for number, pair in enumerate(text.split(","), 1):
        if not pair.strip():
            continue
        name, equals, value = pair.partition("=")
        value = unquote(value.strip())
        if not equals or not name.strip().isascii() or not name.strip() or any(c in value for c in "\r\n\0"):
            raise HeadersError(f"pair {number} is no NAME=VALUE; write NAME=VALUE,NAME=VALUE, values percent-encoded")
        found[name.strip()] = value
    return found


class OtlpClient:
    """Sends to one receiver. Secrets and certificates are read for each request, so that they may rotate."""

    def __init__(self, settings: OtlpReceiver, session: aiohttp.ClientSession) -> None:
        self.settings = settings
        self._session = session

    async def send(self, signal: str, message: Any) -> Reply:
        """POSTs one request of `signal` (metrics, traces, logs), a protobuf Export…ServiceRequest. Never raises but for
        cancellation."""
        url = self.settings.endpoint + PATHS[signal]
        try:
            headers, tls = self._headers(self.settings.headers), None
            if url.startswith("https:"):
                tls = tls_of(self.settings.ca_file, self.settings.cert_file, self.settings.key_file)
        except (SecretError, HeadersError) as error:
            return Reply(None, f"headers: {error}")
        except OSError as error:
            return Reply(None, f"TLS: {error}")
        body = message.SerializeToString()
        if self.settings.compress:
            body = _gzip(body)
            headers["Content-Encoding"] = "gzip"
        try:
            async with self._session.post(
                url,
                data=body,
                headers={"User-Agent": "dsobs", **headers, "Content-Type": _TYPE},
                timeout=aiohttp.ClientTimeout(total=self.settings.timeout),
                allow_redirects=False,
                ssl=tls if tls is not None else True,
            ) as response:
                raw = await _first(response.content, _MOST_ANSWER_BYTES)
                return _reply(signal, response.status, response.headers, raw)
        except TimeoutError:
            return Reply(None, f"{url}: no answer within {self.settings.timeout:g} s")
        except aiohttp.ClientConnectorError as error:
            return Reply(None, f"{url}: no connection: {error.os_error.strerror or type(error).__name__}")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Reply(None, f"{url}: {type(error).__name__}")

    @staticmethod
    def _headers(secret: Secret | None) -> dict[str, str]:
        return parse_headers(secret.reveal()) if secret is not None else {}


async def _first(content: aiohttp.StreamReader, most: int) -> bytes:
    raw = b""
    while len(raw) < most and (chunk := await content.read(most - len(raw))):
        raw += chunk
    return raw


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(level=1, wbits=31)
    return packer.compress(body) + packer.flush()


def _reply(signal: str, status: int, headers: Any, raw: bytes) -> Reply:
    if not 200 <= status < 300:
        return Reply(status, f"HTTP {status}: {_status_text(raw)}".removesuffix(": "), _seconds(headers))
    if not raw or not headers.get("Content-Type", "").startswith(_TYPE):
        return Reply(status)
    answer = _answers(signal).FromString(raw)
    partial = answer.partial_success
    rejected = {
        "metrics": lambda: partial.rejected_data_points,
        "traces": lambda: partial.rejected_spans,
        "logs": lambda: partial.rejected_log_records,
    }[signal]()
    return Reply(status, _short(partial.error_message), rejected=rejected)


def _answers(signal: str) -> Any:
    # Of the extra `otlp`, without which nothing is sent.
    if signal == "metrics":
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

        return ExportMetricsServiceResponse
    if signal == "traces":
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        return ExportTraceServiceResponse
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

    return ExportLogsServiceResponse


def _status_text(raw: bytes) -> str:
    """What a google.rpc.Status says. The status of a span has its message in the same place."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.trace.v1.trace_pb2 import Status

    try:
        text: str = Status.FromString(raw).message
    except DecodeError:
        text = raw.decode("utf-8", "replace")
    return _short("".join(c if c.isprintable() else " " for c in text))


def _short(text: str) -> str:
    return " ".join(text.split())[:_MOST_DETAIL]


def _seconds(headers: Any) -> float | None:
    try:
        return max(0.0, float(headers["Retry-After"]))
    except (KeyError, ValueError):
        return None
