"""Elasticsearch 8 and 9, by the `elasticsearch` package's client: one attempt a call, no retries of its own.

The client is version 8's, whose compatibility headers both servers understand; OpenSearch and others are refused by it.
"""

import asyncio
import base64
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, urlsplit

import aiohttp
import orjson
from elastic_transport import (
    AiohttpHttpNode,
    ConnectionError,  # noqa: A004 - the transport's
    ConnectionTimeout,
    HttpHeaders,
    NodeConfig,
    SerializationError,
    Serializer,
    TlsError,
    TransportError,
)
from elastic_transport._models import DEFAULT, ApiResponseMeta, DefaultType
from elastic_transport._node import NodeApiResponse
from elasticsearch import ApiError, AsyncElasticsearch, UnsupportedProductError
from isal import igzip

from dsobs.config.logs import Elasticsearch
from dsobs.config.secret import SecretError
from dsobs.logs.sinks import Answer, Refusal, SinkSettings

_CHUNK_BYTES = 256 * 1024
_REASON_CHARACTERS = 500
_BULK = "?filter_path=errors,items.*.status,items.*.error,items.*.failure_store"
_TAKEN = {"status": 201}
_ALL_BEGIN, _ALL_ITEM, _ALL_END = b'{"errors":false,"items":[', b'{"create":{"status":201}}', b"]}"
"""An answer of nothing but such items, byte by byte: nothing in it needs to be taken apart."""
NO_BULK = "no_bulk_api"
"""As `Answer.type`: there is no bulk API at the address."""
_JSON = "application/json"


class Node(AiohttpHttpNode):
    """One server: bodies go out in chunks, no redirect is followed (it would take the credentials elsewhere)."""

    proxy: str | None = None

    async def perform_request(  # type: ignore[override]
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        headers: HttpHeaders | None = None,
        request_timeout: DefaultType | float | None = DEFAULT,
    ) -> NodeApiResponse:
        """One request; raises what the transport knows."""
        if self.session is None:
            self._create_aiohttp_session()
        assert self.session is not None
        sent = self._headers.copy()
        sent.update(headers or {})
        if body is not None:
            sent["content-length"] = str(len(body))
        timeout = self.config.request_timeout if isinstance(request_timeout, DefaultType) else request_timeout
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with self.session.request(
                method,
                self.base_url + target,
                data=None if body is None else _chunks(body),
                headers=sent,
                timeout=aiohttp.ClientTimeout(total=timeout),
                allow_redirects=False,
                proxy=self.proxy,
            ) as response:
                data = await response.read()
        except TimeoutError as error:
            raise ConnectionTimeout(f"no answer within {timeout:g} s", errors=(error,)) from error
        except (ssl.SSLError, aiohttp.ClientSSLError) as error:
            raise TlsError(_why(error), errors=(error,)) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            why = _why(error)
            if self.config.scheme == "https" and _is_hang_up(error):
                # With TLS 1.3 that is all that one may see of a client certificate that is missing or refused.
                why += "; if it asks for a client certificate, look at logs.elasticsearch.cert_file"
            raise ConnectionError(why, errors=(error,)) from error
        meta = ApiResponseMeta(
            node=self.config,
            duration=loop.time() - began,
            http_version="1.1",
            status=response.status,
            headers=HttpHeaders(response.headers),
        )
        return NodeApiResponse(meta, data)


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(view), _CHUNK_BYTES):
        yield cast("bytes", view[start : start + _CHUNK_BYTES])


def _why(error: BaseException) -> str:
    """Without addresses: they may hold secrets."""
    inner = getattr(error, "os_error", None) or error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        inner = error.certificate_error
    if isinstance(inner.__cause__, ssl.SSLError):
        # An alert that came later than the handshake, wrapped as an error of reading.
        inner = inner.__cause__
    if isinstance(inner, ssl.SSLError):
        return _why_tls(inner)
    if isinstance(inner, socket.gaierror):
        return inner.strerror or "its name can't be looked up"
    number = getattr(inner, "errno", None)
    return os.strerror(number) if number else getattr(inner, "strerror", None) or type(error).__name__


def _is_hang_up(error: BaseException) -> bool:
    if isinstance(error.__cause__, ssl.SSLError):
        return False
    return isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError | BrokenPipeError) or (
        getattr(error, "errno", None) in (errno.ECONNRESET, errno.EPIPE)
    )


_TLS_ADVICE = {
    "WRONG_VERSION_NUMBER": "no TLS is spoken there; write http://",
    "HTTP_REQUEST": "no TLS is spoken there; write http://",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server asks for a client certificate; set logs.elasticsearch.cert_file",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the server says that the client certificate has expired; renew "
    "logs.elasticsearch.cert_file",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the server does not take the client certificate; look at "
    "logs.elasticsearch.cert_file",
    "TLSV1_ALERT_UNKNOWN_CA": "the server does not know who signed the client certificate; look at "
    "logs.elasticsearch.cert_file",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the server does not take the client certificate; look at "
    "logs.elasticsearch.cert_file",
}
_SELF_SIGNED, _NO_ISSUER = (18, 19), (2, 20, 21)
"""As OpenSSL numbers what it finds."""


def _why_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (*_SELF_SIGNED, *_NO_ISSUER):
            return (
                f"TLS: the server's certificate is not trusted ({error.verify_message}); set logs.elasticsearch.ca_file"
            )
        # Such as: certificate has expired; Hostname mismatch, certificate is not valid for 'es'.
        return f"TLS: the server's certificate: {error.verify_message.rstrip('.')}"
    return f"TLS: {_TLS_ADVICE.get(error.reason or '', error.reason or 'failed')}"


@dataclass(frozen=True, slots=True)
class _AllTaken:
    """What an answer says in which so many records were taken, each as a document of its own."""

    count: int


def _all_taken(data: bytes) -> int:
    """How many records `data` says were taken, if it says just that of each of them; else 0."""
    items = len(data) - len(_ALL_BEGIN) - len(_ALL_END) + 1
    count, rest = divmod(items, len(_ALL_ITEM) + 1)
    if rest or count < 1 or not data.startswith(_ALL_BEGIN):
        return 0
    return count if data == b"%b%b%b" % (_ALL_BEGIN, b",".join([_ALL_ITEM] * count), _ALL_END) else 0


class Raw(Serializer):
    """Passes bodies as they are, and reads answers with orjson."""

    mimetype = _JSON

    def dumps(self, data: Any) -> bytes:
        return cast("bytes", data)

    def loads(self, data: bytes) -> Any:
        if taken := _all_taken(data):
            return _AllTaken(taken)
        try:
            return orjson.loads(data) if data else {}
        except ValueError as error:
            raise SerializationError("the answer is not JSON", errors=(error,)) from error


class ElasticsearchSink:
    """The cluster of `logs.elasticsearch`."""

    def __init__(self, settings: SinkSettings) -> None:
        assert settings.logs.elasticsearch is not None
        self._settings = settings.logs.elasticsearch
        self._client: AsyncElasticsearch | None = None
        self._files: tuple[tuple[int, int], ...] = ()
        self._headers: dict[str, str] | None = None

    async def send(self, index: str, body: Sequence[bytes], count: int) -> Answer:
        """One attempt of one bulk request."""
        where = _hosts(self._settings)
        data = b"".join(body)
        try:
            client = await self._connected()
            headers = dict(self._credentials())
            if self._settings.compress:
                data = await asyncio.to_thread(igzip.compress, data, 1)
                headers["content-encoding"] = "gzip"
            headers |= {"accept": _JSON, "content-type": "application/x-ndjson"}
            response = await client.perform_request(
                "POST", f"/{quote(index, safe='')}/_bulk{_BULK}", headers=headers, body=data
            )
        except UnsupportedProductError:
            return Answer(
                400, type="unsupported_product", detail=f"{where} is not Elasticsearch (OpenSearch is not supported)"
            )
        except ApiError as error:
            return self._refused(error, where)
        except (SecretError, OSError) as error:
            return Answer(401, type="credentials", detail=str(error))
        except TransportError as error:
            return Answer(None, detail=f"{where}: {error.message}")
        return read_answer(response.body, count, where)

    def _refused(self, error: ApiError, where: str) -> Answer:
        if error.status_code in (401, 403):
            # They may have been changed since they were read.
            self._headers = None
        type_, reason = _error(error.body)
        if error.status_code == 401:
            reason = (
                "user and password, key or token are refused: check logs.elasticsearch.user and password, api_key or "
                "bearer_token"
            )
        elif not type_ and error.status_code in (400, 405):
            # Whoever answered has not looked at the records: a proxy, a wrong path, another port.
            type_ = NO_BULK
            reason = f"{reason.partition(' for uri')[0] or 'not by Elasticsearch'}; check logs.elasticsearch.urls"
        after = error.meta.headers.get("retry-after") or ""
        return Answer(
            error.status_code,
            type=type_,
            detail=f"{where} answered {error.status_code}{f': {reason}' if reason else ''}",
            retry_after=float(after) if after.isdigit() else None,
        )

    # Connecting.

    def _credentials(self) -> Mapping[str, str]:
        if self._headers is None:
            self._headers = authorization(self._settings)
        return self._headers

    async def _connected(self) -> AsyncElasticsearch:
        files = _stamps(self._settings)
        if self._client is None or files != self._files:
            # Certificates may rotate.
            await self.close()
            self._client, self._files = connect(self._settings), files
        return self._client

    async def close(self) -> None:
        """Closes the connections; legal twice."""
        if self._client is not None:
            await self._client.close()
            self._client = None


def connect(settings: Elasticsearch) -> AsyncElasticsearch:
    """A client of these servers that makes single attempts; OSError names a certificate file that can't be used."""
    # It warns of each attempt that fails; what is told of failures, and how often, is decided in delivery.
    logging.getLogger("elastic_transport.node_pool").setLevel(logging.ERROR)
    proxy = settings.proxy.reveal() if settings.proxy is not None else None
    node = type("Node", (Node,), {"proxy": proxy})
    tls = _tls(settings) if any(url.startswith("https:") for url in settings.urls) else None
    raw = Raw()
    return AsyncElasticsearch(
        [_node_config(url, tls, settings) for url in settings.urls],
        node_class=node,
        max_retries=0,
        retry_on_timeout=False,
        retry_on_status=(),
        request_timeout=settings.timeout,
        serializers={
            "application/json": raw,
            "application/vnd.elasticsearch+json": raw,
            "application/x-ndjson": raw,
            "application/vnd.elasticsearch+x-ndjson": raw,
        },
    )


def _node_config(url: str, tls: ssl.SSLContext | None, settings: Elasticsearch) -> NodeConfig:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    return NodeConfig(
        scheme=parts.scheme,
        host=parts.hostname or "",
        port=parts.port or (443 if secure else 80),
        path_prefix=parts.path.rstrip("/"),
        connections_per_node=settings.max_in_flight,
        ssl_context=tls if secure else None,
        headers=HttpHeaders({"user-agent": "dsobs"}),
    )


def authorization(settings: Elasticsearch) -> dict[str, str]:
    """The header that proves who asks, read anew; SecretError."""
    if settings.api_key is not None:
        return {"authorization": f"ApiKey {settings.api_key.reveal()}"}
    if settings.bearer_token is not None:
        return {"authorization": f"Bearer {settings.bearer_token.reveal()}"}
    if settings.user:
        password = settings.password.reveal() if settings.password is not None else ""
        pair = base64.b64encode(f"{settings.user}:{password}".encode()).decode()
        return {"authorization": f"Basic {pair}"}
    return {}


def _tls(settings: Elasticsearch) -> ssl.SSLContext:
    files = (settings.ca_file, settings.cert_file, settings.key_file)
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (ssl.SSLError, OSError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise OSError(f"{', '.join(str(path) for path in files if path)}: {why}") from error
    return context


def _stamps(settings: Elasticsearch) -> tuple[tuple[int, int], ...]:
    stamps = []
    for path in (settings.ca_file, settings.cert_file, settings.key_file):
        with contextlib.suppress(OSError):
            if path is not None:
                status = Path(path).stat()
                stamps.append((status.st_mtime_ns, status.st_ino))
    return tuple(stamps)


def _hosts(settings: Elasticsearch) -> str:
    return ", ".join(f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in settings.urls)


# Answers.


def read_answer(answer: Any, count: int, where: str) -> Answer:
    """What `Raw` read of the answer of `where` to a bulk request of `count` records."""
    if answer == _AllTaken(count):
        return Answer(200)
    items = answer.get("items") if isinstance(answer, dict) else None
    if not isinstance(items, list) or len(items) != count:
        return Answer(None, detail=f"{where}: the answer does not say what became of each of {count} records")
    refused: dict[int, Refusal] = {}
    quarantined = 0
    try:
        for number, item in enumerate(items):
            said = item["create"]
            if said == _TAKEN:
                continue
            status = int(said["status"])
            if status >= 300:
                type_, reason = _error(said)
                refused[number] = Refusal(status, type_, reason)
            elif said.get("failure_store") == "used":
                quarantined += 1
    except (KeyError, TypeError, ValueError):
        return Answer(None, detail=f"{where}: the answer does not say what became of each of {count} records")
    return Answer(200, refused, quarantined)


def _error(said: Any) -> tuple[str, str]:
    """Type and reason of an error, of the root cause where there is one."""
    error = said.get("error") if isinstance(said, dict) else None
    if isinstance(error, str):
        return "", error[:_REASON_CHARACTERS]
    if not isinstance(error, dict):
        return "", ""
    reason = str(error.get("reason", ""))
    cause = error.get("caused_by")
    if isinstance(cause, dict) and cause.get("reason"):
        reason += f": {cause['reason']}"
    return str(error.get("type", "")), " ".join(reason.split())[:_REASON_CHARACTERS]
