"""The status page over a real socket, without a browser: what is sent, what can't be injected, and what it costs."""

import asyncio
import html.parser
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from urllib.parse import urljoin

import aiohttp
import orjson
import pytest

from dsobs.api import connection
from dsobs.api.page import live
from dsobs.api.page.live import Live
from dsobs.api.page.writing import STATIC, Writer, static
from dsobs.api.server import serve
from dsobs.model.status import State, Status
from tests.api.conftest import Client, MemorySource, Open
from tests.prefix_proxy import prefix_proxy
from tests.status_scenes import HOSTILE, SCENES, SECRET

DEADLINE = 60.0


class Elements(html.parser.HTMLParser):
    """Every element with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def scenes() -> dict[str, Status]:
    return {name: make()[0] for name, make in SCENES.items()}


def written(status: Status) -> str:
    writer = Writer()
    parts, _ = writer.parts(status)
    return writer.page(status, parts, run="r", number=1).decode()


async def told_events(content: Any) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    kind = ""
    async for line in content:
        text = line.decode().rstrip("\n")
        if text.startswith("event: "):
            kind = text.removeprefix("event: ")
        elif text.startswith("data: "):
            yield kind, json.loads(text.removeprefix("data: "))


# What is written.


@pytest.mark.parametrize("name", SCENES)
def test_each_state_is_written_in_less_than_150_kb(scenes: dict[str, Status], name: str) -> None:
    page = written(scenes[name])
    assert f'<span class="state {scenes[name].state.value}">' in page
    assert len(page.encode()) < 150_000
    assert SECRET not in page


def test_names_labels_and_log_lines_of_others_are_text_and_nothing_else(scenes: dict[str, Status]) -> None:
    page = written(scenes["500-alerts"])
    elements = Elements()
    elements.feed(page)
    tags = {tag for tag, _ in elements.found}
    assert "img" not in tags
    assert all(attributes.get("src") for tag, attributes in elements.found if tag == "script")
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    links = [attributes["href"] for tag, attributes in elements.found if tag in ("a", "link")]
    assert all(link is not None and link.startswith(("#", "static/", "api/v1/")) for link in links)
    assert HOSTILE not in page
    assert "{{7*7}}" in page
    assert "javascript:alert(3)" in page


def test_unknown_is_written_as_unknown_and_never_as_zero_or_healthy(scenes: dict[str, Status]) -> None:
    for name in ("unknown", "empty"):
        page = written(scenes[name])
        values = re.findall(r'<p class="value">([^<\n]*)', page)
        assert set(values) == {"unknown"}
        assert 'class="state healthy"' not in page


def test_only_parts_that_changed_are_written_anew(scenes: dict[str, Status]) -> None:
    writer = Writer()
    status = scenes["healthy"]
    parts, changed = writer.parts(status)
    assert changed == set(parts)
    assert writer.parts(replace(status, at=status.at + 1))[1] == set()
    assert writer.parts(replace(status, headline="other"))[1] == {"health"}


def test_files_of_others_are_those_that_are_noted() -> None:
    import hashlib

    noted = dict(re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", static("VENDORED.md").decode(), re.MULTILINE))
    assert set(noted) == {name for name in STATIC if "min" in name}
    for name, digest in noted.items():
        assert hashlib.sha256(static(name)).hexdigest() == digest, name
    assert sum(len(static(name)) for name in STATIC) < 100_000


# What is served.


async def test_page_and_files_are_served_with_a_strict_policy(client: Client, source: MemorySource) -> None:
    async with client.get("/") as response:
        page = await response.text()
        policy = response.headers["Content-Security-Policy"]
        assert response.headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    addresses = re.findall(r'(?:href|src)="(static/[^"]+)"', page)
    assert len(addresses) == len(STATIC)
    for address in addresses:
        async with client.get(f"/{address}") as response:
            assert response.status == 200
            assert "immutable" in response.headers["Cache-Control"]
            assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_behind_a_proxy_with_a_path_all_addresses_lead_there_and_events_come_at_once(
    source: MemorySource, scenes: dict[str, Status]
) -> None:
    source.shown = scenes["500-alerts"]
    async with (
        serve(source, "127.0.0.1:0", None) as (host, port),
        prefix_proxy(f"http://{host}:{port}") as proxied,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(proxied) as response:
            page = await response.text()
        script = static("page.js").decode()
        asked = re.findall(r'(?:href|src)="([^"#]+)"', page) + re.findall(r'fetch\("([^"]+)"', script)
        (events,) = re.findall(r"EventSource\(`([^?`]+)\?", script)
        assert {"api/v1/alerts", "status/charts"} <= set(asked)
        for address in asked:
            if not address.startswith("http"):
                async with session.get(urljoin(proxied, address)) as response:
                    assert response.status == 200, address
        async with asyncio.timeout(DEADLINE), session.get(urljoin(proxied, events)) as stream:
            assert stream.status == 200
            kinds = []
            async for kind, _ in told_events(stream.content):
                kinds.append(kind)
                if kind == "beat":
                    break
            assert kinds == ["part"] * 8 + ["beat"]


@pytest.mark.parametrize("name", ["VENDORED.md", "..%2fwriting.py", "none.js"])
async def test_no_other_file_is_served(client: Client, name: str) -> None:
    async with client.get(f"/static/x/{name}") as response:
        assert response.status == 404


async def test_charts_are_one_grid_for_all_indicators(client: Client, source: MemorySource) -> None:
    source.shown, source.charted = SCENES["healthy"]()
    async with client.get("/status/charts") as response:
        told = await response.json()
    assert told["count"] == 121
    assert {len(line) for lines in told["series"].values() for line in lines.values()} == {121}


async def test_a_viewer_is_sent_what_changed_since_its_page_and_then_each_change(
    client: Client, source: MemorySource, scenes: dict[str, Status]
) -> None:
    source.shown = scenes["healthy"]
    async with client.get("/") as response:
        page = await response.text()
    match = re.search(r'data-run="(\w+)" data-number="(\d+)"', page)
    assert match is not None
    async with asyncio.timeout(DEADLINE), client.get(f"/status/events?run={match[1]}&since={match[2]}") as stream:
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        events = told_events(stream.content)
        kind, told = await anext(events)
        assert (kind, told["state"]) == ("beat", "healthy")
        source.shown = replace(scenes["healthy"], state=State.FAULTY, headline="It is down.")
        kind, told = await anext(events)
        while kind == "beat":
            kind, told = await anext(events)
        assert (kind, told["id"]) == ("part", "health")
        assert "It is down." in told["html"]


async def test_a_viewer_of_another_run_is_sent_all_parts(client: Client, source: MemorySource) -> None:
    names = set()
    async with asyncio.timeout(DEADLINE), client.get("/status/events?run=other&since=7") as stream:
        async for kind, told in told_events(stream.content):
            if kind == "beat":
                break
            names.add(told["id"])
    assert names == {"health", "alerts", "indicators", "repair", "incidents", "unknown", "log", "settings"}


async def test_all_viewers_share_one_look_and_nobody_looking_costs_none(source: MemorySource) -> None:
    looks = 0
    status = source.shown

    class Counted(MemorySource):
        def status(self) -> Status:
            nonlocal looks
            looks += 1
            return status

    shared = Live(Counted(), seconds=0.01)
    streams = [shared.events("", 0, lambda: None) for _ in range(5)]
    async with asyncio.timeout(DEADLINE):
        numbers = [[await anext(stream) for _ in range(4)] for stream in streams]
        assert all(b'"number":' in told[-1] for told in numbers)
        # Five viewers that took turns were all given what is the newest: not five times as many looks.
        assert looks <= 25
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        assert shared.viewers == 0
        turning = shared._turning
        assert turning is not None
        await turning
    after = looks
    await asyncio.sleep(0)
    assert looks == after


async def test_a_look_that_fails_ends_no_stream_and_is_logged_once(
    source: MemorySource, caplog: pytest.LogCaptureFixture
) -> None:
    status = source.shown
    answers: list[Exception | Status] = [ValueError("a mistake"), ValueError("a mistake"), status]

    class Failing(MemorySource):
        def status(self) -> Status:
            answer = answers.pop(0) if len(answers) > 1 else status
            if isinstance(answer, Exception):
                raise answer
            return answer

    stream = Live(Failing(), seconds=0.01).events("", 0, lambda: None)
    async with asyncio.timeout(DEADLINE):
        await anext(stream)
        assert b"event: beat" in await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
    assert [record.message for record in caplog.records] == ["the status page can't be written"]


async def test_more_viewers_than_there_may_be_are_told_so(
    client: Client, source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_VIEWERS", 1)
    async with asyncio.timeout(DEADLINE), client.get("/status/events") as first:
        await first.content.readline()
        async with client.get("/status/events") as second:
            assert second.status == 503
            assert second.headers["Retry-After"] == "30"
        async with client.get("/") as page:
            assert page.status == 200


async def test_a_stream_that_is_read_outlasts_the_look_at_idle_connections(
    source: MemorySource, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.Connection, "look_seconds", 0.3)
    monkeypatch.setattr(live.Live.__init__, "__defaults__", (0.1,))
    beats = 0
    async with opened(None) as session, asyncio.timeout(DEADLINE), session.get("/status/events") as stream:
        async for kind, _ in told_events(stream.content):
            beats += kind == "beat"
            if beats == 12:
                break
    assert beats == 12


async def test_the_server_ends_each_stream_by_itself_and_cuts_none_off(source: MemorySource) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE):
        async with serve(source, "127.0.0.1:0", None) as (host, port):
            stream = await session.get(f"http://{host}:{port}/status/events")
            await stream.content.readline()
            reading = asyncio.create_task(stream.content.read())
        # One that the server's own time limit cuts off ends in an error: its last chunk is missing.
        await reading
        stream.close()


async def test_the_status_is_the_same_model_as_the_page(client: Client, source: MemorySource) -> None:
    source.shown = SCENES["hung"]()[0]
    async with client.get("/api/v1/status") as response:
        assert (await response.json())["data"] == orjson.loads(orjson.dumps(source.shown))
