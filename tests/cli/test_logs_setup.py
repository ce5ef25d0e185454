"""`dsobs logs setup` and `export` where no Elasticsearch answers as one."""

import asyncio
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from dsobs.cli import main


def flags(url: str, *more: str) -> list[str]:
    return ["logs", "setup", "--set", f"logs.elasticsearch.urls={url}", *more]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (
            ["logs", "setup"],
            2,
            "no Elasticsearch is configured; set logs.elasticsearch.urls (--set logs.elasticsearch.urls="
            "http://127.0.0.1:9200)",
        ),
        (
            flags("http://127.0.0.1:9", "--set", "logs.elasticsearch.index=Deep Seek"),
            2,
            "--set logs.elasticsearch.index: 'Deep Seek' is no index name; write small letters, digits, - and _, such "
            "as deepseek-logs",
        ),
        (
            flags("http://127.0.0.1:9200", "--set", "logs.elasticsearch.api_key=file:/no/key"),
            2,
            "secret file /no/key: No such file or directory",
        ),
        (
            flags("https://127.0.0.1:9200", "--set", "logs.elasticsearch.ca_file=/no/ca.pem"),
            2,
            "logs.elasticsearch: /no/ca.pem: No such file or directory",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == status
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"dsobs: {said}\n")


@pytest.mark.parametrize("status", [200, 404])
async def test_opensearch_is_refused_before_anything_is_put(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.method)
        return web.json_response({"component_templates": []}, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        assert await asyncio.to_thread(main, flags(url)) == 1
    finally:
        await runner.cleanup()
    assert capsys.readouterr().err == (
        f"dsobs: {url} is not Elasticsearch: its answers lack X-Elastic-Product. OpenSearch is not supported: the "
        "client refuses it\n"
    )
    assert asked == ["GET"]


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://no-host.invalid:9200"])
def test_a_host_that_is_not_there_is_one_line(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(host)) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"dsobs: {host}: ")
    assert err.endswith("; check logs.elasticsearch.urls, and that Elasticsearch runs there\n")
    assert err.count("\n") == 1


def test_export_gives_each_path_with_its_body(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["logs", "export", "--set", "logs.elasticsearch.urls=http://127.0.0.1:9200"]) == 0
    assert list(orjson.loads(capsys.readouterr().out)) == [
        "_security/role/dsobs_logs_writer",
        "_security/role/dsobs_logs_reader",
        "_security/role/dsobs_logs_setup",
        "_component_template/dsobs-logs@mappings",
        "_component_template/dsobs-logs@settings",
        "_index_template/dsobs-logs",
    ]
    assert main(["logs", "export", "roles"]) == 0
    assert list(orjson.loads(capsys.readouterr().out)) == [
        "dsobs_logs_writer",
        "dsobs_logs_reader",
        "dsobs_logs_setup",
    ]
