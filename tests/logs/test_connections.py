"""TLS, client certificates, credentials that rotate, proxies and several hosts: one line each, and nothing is lost."""

import asyncio
import base64
import contextlib
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest

from dsobs.config.secret import Secret
from tests.certificates import OPENSSL, Authority, Pair
from tests.elasticsearch_stand_in import ElasticsearchStandIn, Fault
from tests.logs.shipping import append, lines, named, settings, ship_once, shipping, until

tls = pytest.mark.skipif(not OPENSSL, reason="no openssl to make a certificate")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"), "ca")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    append(tmp_path / "app.log", lines(1, 2))
    return tmp_path / "app.log"


def served(pair: Pair, clients: Authority | None = None) -> ssl.SSLContext:
    """A server's side. `clients`: who signs the certificates that clients must have."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(clients.certificate)
    return context


@contextlib.asynccontextmanager
async def server_with(context: ssl.SSLContext) -> AsyncIterator[ElasticsearchStandIn]:
    server = ElasticsearchStandIn()
    server.tls = context
    async with server:
        yield server


async def trouble_of(wanted: Any, state: Path) -> str:
    """What is said, in one line, of what keeps records from being sent."""
    async with shipping(wanted, state) as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert shipper.delivery.trouble is not None
        text = shipper.delivery.trouble[1]
    assert "\n" not in text
    return text


async def arrives(server: ElasticsearchStandIn, wanted: Any, state: Path) -> None:
    """Nothing was lost by what went before."""
    await ship_once(wanted, state)
    assert sorted(server.messages()) == named(1, 2)
    assert not (state / "dead-letters.ndjson").exists()


@tls
@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("server", {}, "TLS: the server's certificate is not trusted (unable to get local issuer certificate); set "
         "logs.elasticsearch.ca_file"),
        ("old", {"expired": True}, "TLS: the server's certificate: certificate has expired"),
        ("elsewhere", {"host": "DNS:es.example.org"}, "TLS: the server's certificate: IP address mismatch, certificate "
         "is not valid for '127.0.0.1'"),
    ],
)  # fmt: skip
async def test_a_server_that_is_not_who_it_should_be_gets_nothing_and_is_told(
    authority: Authority, log: Path, tmp_path: Path, name: str, more: dict[str, Any], said: str
) -> None:
    other = Authority(tmp_path / "other", "other")
    pair = (other if name == "server" else authority).sign(name, **more)
    good = authority.sign(f"good-{name}")
    async with server_with(served(pair)) as server:
        wanted = settings(server.url, log, ca_file=authority.certificate)
        assert await trouble_of(wanted, tmp_path / "state") == f"{server.url}: {said}"
        assert server.requests == []
        await server.down()
        server.tls = served(good)
        await server.up()
        await arrives(server, wanted, tmp_path / "state")


@tls
async def test_a_client_certificate_is_shown_and_one_that_is_renewed_is_used_at_once(
    authority: Authority, log: Path, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path / "other", "other").sign("stranger")
    old, good = authority.sign("old-client", expired=True), authority.sign("client")
    certificate, key = tmp_path / "client.pem", tmp_path / "client.key"
    async with server_with(served(authority.sign("server-of-clients"), authority)) as server:
        trusted = {"ca_file": authority.certificate}
        # With TLS 1.3 a server says what it thinks of a client's certificate when that has begun to send: whether its
        # word or its hanging up is seen is a matter of chance, and both are told with the setting.
        text = await trouble_of(settings(server.url, log, **trusted), tmp_path / "state")
        assert text.endswith("logs.elasticsearch.cert_file")
        with_one = settings(server.url, log, **trusted, cert_file=certificate, key_file=key)
        for pair in (old, stranger):
            shutil.copy(pair.certificate, certificate)
            shutil.copy(pair.key, key)
            assert (await trouble_of(with_one, tmp_path / "state")).endswith("logs.elasticsearch.cert_file")
        assert server.requests == []
        async with shipping(with_one, tmp_path / "state") as shipper:
            await until(lambda: shipper.delivery.trouble is not None)
            shutil.copy(good.key, key)
            shutil.copy(good.certificate, certificate)
            await until(lambda: shipper.delivery.trouble is None)
        await arrives(server, with_one, tmp_path / "state")


@tls
async def test_a_certificate_file_that_is_not_there_is_told_and_used_once_it_is(
    authority: Authority, log: Path, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    async with server_with(served(authority.sign("server-2"))) as server:
        wanted = settings(server.url, log, ca_file=ca)
        async with shipping(wanted, tmp_path / "state") as shipper:
            await until(lambda: shipper.delivery.trouble is not None)
            assert shipper.delivery.trouble == ("authorization", f"{ca}: No such file or directory")
            shutil.copy(authority.certificate, ca)
            await until(lambda: shipper.delivery.trouble is None)
        await arrives(server, wanted, tmp_path / "state")


@tls
async def test_http_at_an_https_port_and_the_other_way_round_are_told(
    authority: Authority, log: Path, tmp_path: Path
) -> None:
    async with ElasticsearchStandIn() as server:
        url = server.url.replace("http:", "https:")
        text = await trouble_of(settings(url, log), tmp_path / "state")
        assert text == f"{url}: TLS: no TLS is spoken there; write http://"
        await arrives(server, settings(server.url, log), tmp_path / "state")
    async with server_with(served(authority.sign("server-3"))) as server:
        await trouble_of(settings(server.url.replace("https:", "http:"), log), tmp_path / "state-2")
        await arrives(server, settings(server.url, log, ca_file=authority.certificate), tmp_path / "state-2")


@pytest.mark.parametrize(
    ("more", "header"),
    [
        ({"api_key": "{}"}, "ApiKey {}"),
        ({"bearer_token": "{}"}, "Bearer {}"),
        ({"user": "dsobs", "password": "{}"}, "Basic dsobs:{}"),
    ],
)
async def test_a_secret_that_rotates_is_read_again_when_it_is_refused(
    more: dict[str, str], header: str, log: Path, tmp_path: Path
) -> None:
    def expected(secret: str) -> str:
        kind, _, text = header.format(secret).partition(" ")
        return f"{kind} {base64.b64encode(text.encode()).decode() if kind == 'Basic' else text}"

    secret = tmp_path / "secret"
    secret.write_text("first\n")
    given = {name: Secret(f"file:{secret}") if value == "{}" else value for name, value in more.items()}
    async with ElasticsearchStandIn() as server:
        async with shipping(settings(server.url, log, **given), tmp_path / "state") as shipper:
            await until(lambda: len(server.documents) == 2)
            server.always = Fault(401)
            append(log, lines(3))
            await until(lambda: shipper.delivery.trouble is not None)
            assert shipper.delivery.trouble == (
                "authorization",
                f"{server.url} answered 401: user and password, key or token are refused: check "
                "logs.elasticsearch.user and password, api_key or bearer_token",
            )
            secret.write_text("second\n")
            await until(lambda: server.requests[-1][2]["Authorization"] == expected("second"))
            server.always = None
            await until(lambda: len(server.documents) == 3)
        assert server.requests[0][2]["Authorization"] == expected("first")


async def test_another_host_takes_over_and_the_first_is_used_again(tmp_path: Path) -> None:
    async with ElasticsearchStandIn() as first, ElasticsearchStandIn() as second:
        wanted = settings(None, tmp_path / "app.log")
        both = settings(first.url, tmp_path / "app.log").elasticsearch
        assert both is not None
        wanted = wanted.model_copy(
            update={"elasticsearch": both.model_copy(update={"urls": (first.url, second.url), "timeout": 5.0})}
        )
        async with shipping(wanted, tmp_path / "state"):
            await first.down()
            for number in range(20):
                append(tmp_path / "app.log", lines(number))
                await until(lambda number=number: len(second.documents) == number + 1, 30)  # type: ignore[misc]
            await second.down()
            await first.up()
            append(tmp_path / "app.log", lines(20))
            await until(lambda: first.messages() == named(20), 30)
    assert sorted(second.messages(), key=lambda text: int(text.split()[1])) == named(*range(20))


class Proxy:
    """An HTTP proxy that asks for a password."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool]] = []
        """First line, and whether the password was right."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first = head.split(b"\r\n")[0].decode()
        known = f"Basic {base64.b64encode(b'me:secret').decode()}" in head.decode()
        self.asked.append((first, known))
        if not known:
            writer.write(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            await writer.drain()
            writer.close()
            return
        method, target, _ = first.split(" ")
        host = target if method == "CONNECT" else target.split("/")[2]
        name, _, port = host.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(name, int(port))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            far_writer.write(head)
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer), return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


async def test_a_proxy_with_a_password_is_used_and_a_wrong_password_is_told(log: Path, tmp_path: Path) -> None:
    async with Proxy() as proxy, ElasticsearchStandIn() as server:
        address = tmp_path / "proxy"
        address.write_text(f"http://me:wrong@127.0.0.1:{proxy.port}")
        wanted = settings(server.url, log, proxy=Secret(f"file:{address}"))
        async with shipping(wanted, tmp_path / "state") as shipper:
            await until(lambda: shipper.delivery.trouble is not None)
            assert shipper.delivery.trouble is not None
            reason, text = shipper.delivery.trouble
            assert (reason, "wrong" in text) == ("authorization", False)
            assert "407" in text
        assert server.requests == []
        address.write_text(f"http://me:secret@127.0.0.1:{proxy.port}")
        await arrives(server, wanted, tmp_path / "state")
    assert proxy.asked[-1] == (f"POST {server.url}/logs/_bulk" + proxy.asked[-1][0].partition("_bulk")[2], True)


@tls
async def test_a_proxy_in_front_of_https_sees_no_record(authority: Authority, log: Path, tmp_path: Path) -> None:
    async with Proxy() as proxy, server_with(served(authority.sign("server-4"))) as server:
        address = Secret(f"http://me:secret@127.0.0.1:{proxy.port}")
        await arrives(server, settings(server.url, log, proxy=address, ca_file=authority.certificate), tmp_path / "s")
        assert proxy.asked == [(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1", True)]
