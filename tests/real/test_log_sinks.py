"""Real Elasticsearch over TLS: the contract of sinks, wrong and right certificates, and JSON that it refuses."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from dsobs.config.logs import Elasticsearch as Settings
from dsobs.config.logs import Logs
from dsobs.config.secret import Secret
from dsobs.logs.sinks import Sink, SinkSettings, open_sink
from tests.certificates import OPENSSL, Authority
from tests.contracts.sink_contract import SinkContract, Taken
from tests.logs.shipping import append, lines, named, settings, ship_once, shipping, until
from tests.real.elasticsearch import ADMIN, Elasticsearch
from tests.real.test_elasticsearch import TEMPLATE, VERSIONS, all_taken

pytestmark = [pytest.mark.real("servers"), pytest.mark.skipif(not OPENSSL, reason="no openssl to make a certificate")]
TIME = '"@timestamp":"2026-11-24T08:00:00Z"'


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"), "ca")


@pytest_asyncio.fixture(scope="module", params=VERSIONS, loop_scope="module")
async def started(request: pytest.FixtureRequest, authority: Authority) -> AsyncIterator[Elasticsearch]:
    pair = authority.sign(f"server-{request.param}")
    files = {"ca": authority.certificate, "certificate": pair.certificate, "key": pair.key}
    async with Elasticsearch(request.param, tls=files) as running:
        await running.must("PUT", "/_index_template/logs", TEMPLATE)
        await running.close_session()
        yield running
        await running.close_session()


@pytest_asyncio.fixture
async def server(started: Elasticsearch) -> AsyncIterator[Elasticsearch]:
    """With a data stream of this test's own, and a session of its own loop."""
    started.stream = f"logs-{uuid.uuid4().hex[:12]}"
    yield started
    await started.close_session()


def as_admin(server: Elasticsearch, log: object, **more: Any) -> Any:
    return settings(server.url, log, index=server.stream, user=ADMIN[0], password=ADMIN[1], **more)


class TestContract(SinkContract):
    @pytest.fixture(autouse=True)
    def other_side(self, server: Elasticsearch, authority: Authority) -> None:
        self.server, self.authority = server, authority
        self.index, self.other = f"{server.stream}-a", f"{server.stream}-b"

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Sink]:
        self.password = Secret(ADMIN[1])
        self.elastic = Settings(
            urls=(self.server.url,), user=ADMIN[0], password=self.password, ca_file=self.authority.certificate
        )
        self.made = open_sink("elasticsearch", SinkSettings(Logs(elasticsearch=self.elastic), Path("/nonexistent")))
        yield self.made

    async def taken(self) -> list[Taken]:
        found = []
        for index in (self.index, self.other):
            status, _ = await self.server.ask("POST", f"/{index}/_refresh")
            for document in await self.server.documents(index) if status == 200 else ():
                document.pop("_index")
                found.append(Taken(index, document.pop("_id"), document))
        return found

    async def go(self) -> None:
        # Others need the server: it goes for this sink.
        await self.made.close()
        self.made._settings = self.elastic.model_copy(update={"urls": ("https://127.0.0.1:1",)})  # type: ignore[attr-defined]


async def test_a_ca_that_did_not_sign_it_is_told_and_nothing_is_lost(
    server: Elasticsearch, authority: Authority, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(1, 2))
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority(tmp_path / "other", "other").certificate.read_bytes())
    async with shipping(as_admin(server, tmp_path / "app.log", ca_file=ca), tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert shipper.delivery.trouble is not None
        assert "TLS: the server's certificate is not trusted" in shipper.delivery.trouble[1]
        # The file is replaced, and used without a restart.
        ca.write_bytes(authority.certificate.read_bytes())
        await until(lambda: all_taken(shipper, tmp_path / "app.log"))
    assert sorted(doc["message"] for doc in await server.documents(server.stream)) == named(1, 2)


async def test_a_name_that_is_not_the_servers_is_told_and_nothing_is_lost(
    server: Elasticsearch, authority: Authority, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(1))
    url = server.url.replace("127.0.0.1", "localhost")
    wrong = as_admin(server, tmp_path / "app.log", ca_file=authority.certificate, urls=(url,))
    async with shipping(wrong, tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert shipper.delivery.trouble is not None
        assert "Hostname mismatch, certificate is not valid for 'localhost'" in shipper.delivery.trouble[1]
    await ship_once(as_admin(server, tmp_path / "app.log", ca_file=authority.certificate), tmp_path / "state")
    assert [doc["message"] for doc in await server.documents(server.stream)] == named(1)


async def test_an_expired_client_certificate_is_told_and_a_good_one_is_taken(
    server: Elasticsearch, authority: Authority, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(1))
    names = f"{server.version}-client"
    for pair, said in ((authority.sign(f"old-{names}", expired=True), True), (authority.sign(names), False)):
        wanted = as_admin(
            server,
            tmp_path / "app.log",
            ca_file=authority.certificate,
            cert_file=pair.certificate,
            key_file=pair.key,
        )
        if said:
            async with shipping(wanted, tmp_path / "state") as shipper:
                await until(lambda: shipper.delivery.trouble is not None)
                assert shipper.delivery.trouble is not None
                assert "logs.elasticsearch.cert_file" in shipper.delivery.trouble[1]
        else:
            await ship_once(wanted, tmp_path / "state")
    assert [doc["message"] for doc in await server.documents(server.stream)] == named(1)


async def test_a_host_that_is_away_is_taken_over_by_another(
    server: Elasticsearch, authority: Authority, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(1))
    both = ("https://127.0.0.1:1", server.url)
    wanted = as_admin(server, tmp_path / "app.log", ca_file=authority.certificate, urls=both)
    async with shipping(wanted, tmp_path / "state") as shipper:
        await until(lambda: shipper.status().acknowledged_bytes > 0)
    assert [doc["message"] for doc in await server.documents(server.stream)] == named(1)


ODD = {
    "key twice": '"a":1,"a":2',
    "message twice": '"message":"message twice"',
    "inner key twice": '"o":{"x":1,"x":2}',
    "deep": '"d":' + '{"k":' * 150 + "1" + "}" * 150,
    "empty key": '"":1',
    "dots": '".":1',
    "spaces": '" ":1',
}
"""Sent as text with a note, whatever the template."""
REFUSED = {"no number": '"number":"x"', "too large": '"number":18446744073709551616'}
"""Dead letters: another template would take them."""


async def test_json_that_it_refuses_is_kept_as_text_or_as_a_dead_letter_and_its_file_goes_on(
    server: Elasticsearch, authority: Authority, tmp_path: Path
) -> None:
    for name, text in {**ODD, **REFUSED, "end": '"number":1'}.items():
        append(tmp_path / "app.log", f'{{{TIME},"message":"{name}",{text}}}\n')
    wanted = as_admin(server, f"json:{tmp_path / 'app.log'}", ca_file=authority.certificate)
    shipper = await ship_once(wanted, tmp_path / "state")
    assert shipper.status().trouble is None
    documents = {doc["message"]: doc for doc in await server.documents(server.stream)}
    assert set(documents) == {*ODD, "end"}
    for name, text in ODD.items():
        assert documents[name]["error.message"].startswith("its fields can't be indexed, and are kept in")
        assert text in documents[name]["event.original"]
    letters = [orjson.loads(line) for line in (tmp_path / "state/dead-letters.ndjson").read_bytes().splitlines()]
    assert {letter["document"]["message"] for letter in letters} == set(REFUSED)
    assert all("number" in letter["reason"] for letter in letters)


async def test_a_path_that_is_not_elasticsearchs_holds_shipping_and_refuses_no_record(
    server: Elasticsearch, authority: Authority, tmp_path: Path
) -> None:
    append(tmp_path / "app.log", lines(1))
    url = f"{server.url}/not-there"
    wrong = as_admin(server, tmp_path / "app.log", ca_file=authority.certificate, urls=(url,))
    async with shipping(wrong, tmp_path / "state") as shipper:
        await until(lambda: shipper.delivery.trouble is not None)
        assert shipper.delivery.trouble == (
            "index",
            f"{server.url} answered 400: no handler found; check logs.elasticsearch.urls",
        )
    assert not (tmp_path / "state/dead-letters.ndjson").exists()
    await ship_once(as_admin(server, tmp_path / "app.log", ca_file=authority.certificate), tmp_path / "state")
    assert [doc["message"] for doc in await server.documents(server.stream)] == named(1)
