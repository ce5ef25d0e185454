"""`dsobs logs setup` and the roles of `dsobs logs export`, with real Elasticsearch 8 and 9, users and roles on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from dsobs.cli import main
from dsobs.config.logs import Elasticsearch as ElasticsearchSettings
from dsobs.config.secret import Secret
from dsobs.logs.indices.roles import READER, SETUP, WRITER, roles
from tests.logs.shipping import settings, ship_once
from tests.real.elasticsearch import Elasticsearch

pytestmark = pytest.mark.real("servers")
INDEX = "deepseek-logs"
STREAM = "logs-dsobs.json-default"
DOCUMENT = {"@timestamp": "2026-11-24T08:00:00Z", "message": "m"}


@pytest_asyncio.fixture(scope="module", params=["9.2.0", "8.19.5"], loop_scope="module")
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Elasticsearch]:
    made = roles(ElasticsearchSettings(urls=("http://127.0.0.1:9200",), index=INDEX))
    async with Elasticsearch(request.param, roles=made) as running:
        yield running


def user(name: str) -> tuple[str, str]:
    return name, f"{name}-secret"


async def command(
    server: Elasticsearch, capsys: pytest.CaptureFixture[str], who: tuple[str, str], *words: str
) -> tuple[int, list[str], str]:
    """Exit status, lines of stdout, stderr of `dsobs logs setup` with two kinds of index."""
    given = {"urls": server.url, "index": INDEX, "user": who[0], "password": "env:TEST_PASSWORD"}
    flags = [part for name, value in given.items() for part in ("--set", f"logs.elasticsearch.{name}={value}")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEST_PASSWORD", who[1])
        status = await asyncio.to_thread(main, ["logs", "setup", *flags, *words])
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


async def version_of_state(server: Elasticsearch) -> Any:
    return (await server.must("GET", "/_cluster/state/version"))["version"]


@pytest.mark.asyncio(loop_scope="module")
async def test_the_setup_role_installs_all_and_the_second_time_changes_nothing(
    server: Elasticsearch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = await command(server, capsys, user(SETUP))
    assert (status, err) == (0, "")
    assert len([line for line in out if " created" in line]) == 4
    before = await version_of_state(server)
    status, out, err = await command(server, capsys, user(SETUP))
    assert (status, err) == (0, "")
    assert len([line for line in out if " unchanged" in line]) == 4
    assert await version_of_state(server) == before


@pytest.mark.asyncio(loop_scope="module")
async def test_another_retention_is_put_and_nothing_else(
    server: Elasticsearch, capsys: pytest.CaptureFixture[str]
) -> None:
    await command(server, capsys, user(SETUP))
    for retention in ("7d", "30d"):
        status, out, _ = await command(
            server, capsys, user(SETUP), "--set", f"logs.elasticsearch.retention={retention}"
        )
        assert status == 0
        assert [line.split()[2] for line in out if " updated" in line] == ["dsobs-logs@settings"]
    kept = await server.must("GET", "/_component_template/dsobs-logs@settings")
    template = kept["component_templates"][0]["component_template"]["template"]
    assert template["lifecycle"]["data_retention"] == "30d"


@pytest.mark.asyncio(loop_scope="module")
async def test_the_failure_store_can_be_turned_on(server: Elasticsearch, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = await command(server, capsys, user(SETUP), "--set", "logs.elasticsearch.failure_store=true")
    assert (status, err, len(out)) == (0, "", 5)
    await command(server, capsys, user(SETUP))


@pytest.mark.asyncio(loop_scope="module")
async def test_the_writer_role_ships_and_may_do_nothing_else(
    server: Elasticsearch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    await command(server, capsys, user(SETUP))
    log = tmp_path / "app.log"
    log.write_text("".join(f'{{"@timestamp":"2026-11-24T08:00:00Z","message":"m {n}","n":{n}}}\n' for n in range(50)))
    for index in ("", INDEX):
        wanted = settings(server.url, f"json:{log}", index=index, user=WRITER, password=Secret(f"{WRITER}-secret"))
        for state in ("a", "b"):
            # The second time the state is lost: everything is there already.
            shipper = await ship_once(wanted, tmp_path / f"{index}{state}")
            assert shipper.status().trouble is None
        found = await server.documents(index or STREAM)
        assert sorted(one["n"] for one in found) == list(range(50))
    mapping = await server.must("GET", f"/{STREAM}/_mapping")
    fields = next(iter(mapping.values()))["mappings"]["properties"]
    assert (fields["@timestamp"]["type"], fields["message"]["type"], fields["n"]["type"]) == ("date", "text", "long")
    refused = {
        (method, path): (await server.ask(method, path, body, user=user(WRITER)))[0]
        for method, path, body in (
            ("PUT", "/logs-other-default/_create/1", DOCUMENT),
            ("POST", f"/{STREAM}/_search", None),
            ("POST", f"/{INDEX}/_delete_by_query", {"query": {"match_all": {}}}),
            ("DELETE", f"/{INDEX}", None),
            ("POST", f"/{STREAM}/_rollover", None),
            ("PUT", "/_index_template/dsobs-logs", {"index_patterns": ["x"]}),
            ("GET", "/_cluster/health", None),
            ("GET", "/_security/role", None),
        )
        if not (path.endswith("_delete_by_query") or path == "/_security/role")
    }
    assert set(refused.values()) == {403}, refused


@pytest.mark.asyncio(loop_scope="module")
async def test_the_reader_role_searches_and_writes_nothing(
    server: Elasticsearch, capsys: pytest.CaptureFixture[str]
) -> None:
    await command(server, capsys, user(SETUP))
    status, _ = await server.ask("PUT", f"/{STREAM}/_create/reader", DOCUMENT)
    assert status in (201, 409)
    assert (await server.ask("POST", f"/{STREAM}/_search", {}, user=user(READER)))[0] == 200
    assert (await server.ask("PUT", f"/{STREAM}/_create/2", DOCUMENT, user=user(READER)))[0] == 403
    assert (await server.ask("POST", f"/{STREAM}/_search", {}, user=user(SETUP)))[0] == 403
    assert (await server.ask("PUT", f"/{STREAM}/_create/3", DOCUMENT, user=user(SETUP)))[0] == 403


@pytest.mark.asyncio(loop_scope="module")
async def test_an_index_that_is_there_already_is_left_as_it_is_and_said(
    server: Elasticsearch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (await server.ask("PUT", "/logs-plain-index"))[0] == 200
    status, out, _ = await command(
        server, capsys, ("admin", "admin-secret"), "--set", "logs.elasticsearch.index=logs-plain-index"
    )
    assert status == 0
    assert out[-1].endswith("logs-plain-index is an index, no data stream; its mappings and lifecycle stay as they are")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_wrong_password_and_a_missing_right_are_one_line_each(
    server: Elasticsearch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command(server, capsys, (SETUP, "wrong")) == (
        1,
        [],
        "dsobs: user and password, key or token are refused (401): check logs.elasticsearch.user and password, api_key "
        "or bearer_token\n",
    )
    status, out, err = await command(server, capsys, user(WRITER))
    assert (status, out) == (1, [])
    assert err.startswith(
        "dsobs: component template dsobs-logs@mappings: the right for it is missing (403); use a user"
    )
    assert err.count("\n") == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_server_without_lifecycle_management_says_so(
    server: Elasticsearch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = await command(
        server, capsys, ("admin", "admin-secret"), "--set", "logs.elasticsearch.lifecycle=ilm"
    )
    assert status == 1
    assert err.startswith("dsobs: lifecycle policy dsobs-logs: refused with 400: no handler found for uri")
