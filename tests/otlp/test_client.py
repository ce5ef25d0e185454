"""One request and its answer."""

import ssl
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from dsobs.config import Secret
from dsobs.config.otlp import OtlpReceiver as Settings
from dsobs.otlp.client import Fate, HeadersError, OtlpClient, Reply, parse_headers
from tests.certificates import Authority
from tests.otlp_receiver import Fate as Answer
from tests.otlp_receiver import OtlpReceiver


async def send(settings: Settings) -> Reply:
    async with aiohttp.ClientSession() as session:
        return await OtlpClient(settings, session).send("traces", ExportTraceServiceRequest())


async def test_request_is_compressed_protobuf_with_the_headers_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTLP_HEADERS", "api-key=s%3Dcret,x-tenant=a")
    async with OtlpReceiver() as receiver:
        reply = await send(Settings(endpoint=receiver.url, headers=Secret("env:OTLP_HEADERS")))
    assert reply.fate is Fate.TAKEN
    (headers,) = receiver.headers
    assert (headers["api-key"], headers["x-tenant"], headers["Content-Encoding"]) == ("s=cret", "a", "gzip")
    assert receiver.traces == [ExportTraceServiceRequest()]


@pytest.mark.parametrize(
    ("status", "fate"),
    [(400, Fate.REFUSED), (401, Fate.REFUSED), (404, Fate.REFUSED), (413, Fate.REFUSED), (500, Fate.REFUSED)]
    + [(status, Fate.RETRY) for status in (429, 502, 503, 504)],
)
async def test_statuses_mean_what_the_specification_says(status: int, fate: Fate) -> None:
    async with OtlpReceiver() as receiver:
        receiver.always = Answer(status, Status(message="because\nof this").SerializeToString(), {"Retry-After": "7"})
        reply = await send(Settings(endpoint=receiver.url))
    assert (reply.fate, reply.detail, reply.retry_after) == (fate, f"HTTP {status}: because of this", 7.0)


async def test_text_of_what_is_no_receiver_of_otlp_is_told_in_one_line() -> None:
    async with OtlpReceiver() as receiver:
        receiver.always = Answer(404, b"<html>\n<h1>not found</h1>")
        assert (await send(Settings(endpoint=receiver.url))).detail == "HTTP 404: <html> <h1>not found</h1>"


async def test_part_that_was_rejected_is_counted() -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 3
    answer.partial_success.error_message = "too old"
    async with OtlpReceiver() as receiver:
        receiver.always = Answer(body=answer.SerializeToString())
        reply = await send(Settings(endpoint=receiver.url))
    assert (reply.fate, reply.rejected, reply.detail) == (Fate.TAKEN, 3, "too old")


async def test_nobody_there_is_to_be_tried_again() -> None:
    async with OtlpReceiver() as receiver:
        url = receiver.url
    reply = await send(Settings(endpoint=url))
    assert (reply.fate, reply.status) == (Fate.RETRY, None)
    assert reply.detail == f"{url}/v1/traces: no connection: Connect call failed ('127.0.0.1', {receiver.port})"


async def test_missing_secret_and_bad_headers_are_named_without_their_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(endpoint="http://127.0.0.1:1", headers=Secret(f"file:{tmp_path}/none"))
    assert "none: No such file" in (await send(settings)).detail
    monkeypatch.setenv("OTLP_HEADERS", "hush")
    reply = await send(Settings(endpoint="http://127.0.0.1:1", headers=Secret("env:OTLP_HEADERS")))
    assert reply.detail == "headers: pair 1 is no NAME=VALUE; write NAME=VALUE,NAME=VALUE, values percent-encoded"


async def test_client_is_known_by_its_certificate_and_trusts_the_named_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    server, client = authority.sign("server"), authority.sign("client")
    async with OtlpReceiver() as receiver:
        await receiver.down()
        receiver.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
        receiver.tls.load_cert_chain(server.certificate, server.key)
        receiver.tls.verify_mode = ssl.CERT_REQUIRED
        receiver.port = 0
        await receiver.up()
        trusting = Settings(endpoint=receiver.url, ca_file=authority.certificate)
        stranger = await send(trusting)
        known = await send(trusting.model_copy(update={"cert_file": client.certificate, "key_file": client.key}))
        doubting = await send(Settings(endpoint=receiver.url))
    assert (stranger.fate, known.fate, doubting.fate) == (Fate.RETRY, Fate.TAKEN, Fate.RETRY)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,10}", fullmatch=True), st.text(max_size=20), max_size=4))
def test_headers_that_are_percent_encoded_come_back(headers: dict[str, str]) -> None:
    from urllib.parse import quote

    text = ",".join(f"{name}={quote(value, safe='')}" for name, value in headers.items())
    if any(c in value for value in headers.values() for c in "\r\n\0"):
        with pytest.raises(HeadersError):
            parse_headers(text)
    else:
        assert parse_headers(text) == headers
