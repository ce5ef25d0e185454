import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from dsobs.notifiers.post import post_json, redacted
from dsobs.tls import system_tls

OPENSSL = shutil.which("openssl") or ""


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """A server's context whose certificate the system (and nobody else) trusts."""
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    system_tls.cache_clear()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    yield context
    system_tls.cache_clear()


@pytest.mark.skipif(not OPENSSL, reason="no openssl to make a certificate")
async def test_https_receiver_is_checked_against_the_systems_certificates_not_the_engines(
    certificate: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def accept(request: web.Request) -> web.Response:
        return web.Response(status=202)

    application = web.Application()
    application.router.add_post("/", accept)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=certificate).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}/"
    trusts_nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusts_nobody)) as session:
        assert (await post_json(session, url, b"{}")).status == 202
        monkeypatch.delenv("SSL_CERT_FILE")
        system_tls.cache_clear()
        stranger = await post_json(session, url, b"{}")
        assert (stranger.status, stranger.arrived) == (None, False)
    await runner.cleanup()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://user:secret@hooks.example.org/T0/secret?token=secret", "https://hooks.example.org"),
        ("http://[::1]:8080/secret", "http://::1:8080"),
        ("http://host:notaport/secret", "?"),
        ("secret", "?://?"),
    ],
)
def test_only_scheme_and_host_of_an_address_are_told(url: str, told: str) -> None:
    assert redacted(url) == told
