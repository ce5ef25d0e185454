"""dsobs's HTTP server over a real socket."""

import asyncio
import gzip
import hmac
import io
import math
import socket
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_fd_to_metric_families as parse_openmetrics

from dsobs.api import connection, limits
from dsobs.api.limits import MAX_BODY
from dsobs.api.server import ListenError, bind, serve
from dsobs.config import Secret
from dsobs.model.samples import Page, Sample, labels
from dsobs.state import StateError
from tests.api.conftest import Client, MemorySource, Open

DEADLINE = 60.0


async def problem(response: Any) -> tuple[int, str, str]:
    """(status, errorType, error) of an error in Prometheus' form, and nothing beside them."""
    told = await response.json()
    assert set(told) == {"status", "errorType", "error"}
    assert told["status"] == "error"
    return response.status, told["errorType"], told["error"]


# Metrics and health.


async def test_metrics_are_served_in_text_by_default_and_openmetrics_on_request(
    client: Client, source: MemorySource
) -> None:
    source.samples = [Sample(labels("dsobs_engine_up"), 1.0), Sample(labels("dsobs_engine_prompt_tokens_total"), 5.0)]
    async with client.get("/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "dsobs_engine_up 1.0\n" in await response.text()
    async with client.get("/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"}) as response:
        assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        page = io.StringIO(await response.text())
    families = {family.name for family in parse_openmetrics(page)}  # type: ignore[no-untyped-call]
    assert {"dsobs_engine_up", "dsobs_engine_prompt_tokens"} <= families


async def test_metrics_are_compressed_for_those_who_ask(source: MemorySource, opened: Open) -> None:
    async with opened(None) as session:
        async with session.get("/metrics", headers={"Accept-Encoding": "identity"}) as response:
            assert "Content-Encoding" not in response.headers
        session._auto_decompress = False
        async with session.get("/metrics", headers={"Accept-Encoding": "gzip"}) as response:
            assert response.headers["Content-Encoding"] == "gzip"
            assert b"dsobs_loop_ticks" in gzip.decompress(await response.read())


async def test_native_metrics_are_passed_through_where_there_are_any(client: Client, source: MemorySource) -> None:
    source.page = Page([Sample(labels("vllm:num_requests_running", engine="0"), 3.0)], {}, {})
    async with client.get("/metrics") as response:
        text = await response.text()
    assert '# TYPE vllm:num_requests_running untyped\nvllm:num_requests_running{engine="0"} 3.0\n' in text


async def test_livez_is_503_and_says_which_loop_stands_still(client: Client, source: MemorySource) -> None:
    async with client.get("/livez") as response:
        assert (response.status, await response.text()) == (200, "ok\n")
    source.standing = "the main loop stands still for 40 s"
    async with client.get("/livez") as response:
        assert (response.status, await response.text()) == (503, "the main loop stands still for 40 s\n")


async def test_readyz_is_503_until_the_first_turn(client: Client, source: MemorySource) -> None:
    source.awaited = "the first turn is not done"
    async with client.get("/readyz") as response:
        assert (response.status, await response.text()) == (503, "the first turn is not done\n")
    source.awaited = None
    async with client.get("/readyz") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "path", ["/metrics", "/livez", "/readyz", "/api/v1/alerts", "/api/v1/rules", "/api/v1/status", "/api/v1/silences"]
)
async def test_head_has_the_headers_and_no_body(client: Client, path: str) -> None:
    async with client.head(path) as response:
        assert response.status == 200
        assert int(response.headers["Content-Length"]) > 0
        assert await response.read() == b""


# What is read.


async def test_alerts_are_passed_on(client: Client, source: MemorySource) -> None:
    source.alerts = [{"labels": {"alertname": "EngineHung"}, "state": "firing", "value": "1.25e+01"}]
    async with client.get("/api/v1/alerts") as response:
        assert await response.json() == {"status": "success", "data": {"alerts": source.alerts}}


async def test_rules_and_status_are_passed_on(client: Client, source: MemorySource) -> None:
    source.groups = [{"name": "g", "rules": []}]
    source.shown = replace(source.shown, engine="vllm", view={"stall": math.nan})
    async with client.get("/api/v1/rules") as response:
        assert await response.json() == {"status": "success", "data": {"groups": [{"name": "g", "rules": []}]}}
    async with client.get("/api/v1/status") as response:
        told = (await response.json())["data"]
    assert (told["engine"], told["view"], told["state"]) == ("vllm", {"stall": None}, "unknown")


async def test_rules_are_narrowed_as_prometheus_does_it(client: Client, source: MemorySource) -> None:
    def rule(name: str, kind: str = "alerting") -> dict[str, object]:
        return {"name": name, "type": kind, "alerts": []}

    source.groups = [
        {"name": "one", "file": "a.yaml", "rules": [rule("A"), rule("r", "recording")]},
        {"name": "two", "file": "b.yaml", "rules": [rule("B")]},
        {"name": "three", "file": "b.yaml", "rules": []},
    ]

    async def asked(query: str) -> list[tuple[str, list[str]]]:
        async with client.get(f"/api/v1/rules?{query}") as response:
            groups = (await response.json())["data"]["groups"]
        return [(group["name"], [rule["name"] for rule in group["rules"]]) for group in groups]

    assert await asked("type=alert") == [("one", ["A"]), ("two", ["B"])]
    assert await asked("type=record") == [("one", ["r"])]
    assert await asked("rule_name[]=B&rule_name[]=r") == [("one", ["r"]), ("two", ["B"])]
    assert await asked("file[]=b.yaml") == [("two", ["B"]), ("three", [])]
    assert await asked("rule_group[]=one&type=alert") == [("one", ["A"])]
    async with client.get("/api/v1/rules?exclude_alerts=true&type=record") as response:
        (group,) = (await response.json())["data"]["groups"]
    assert [one["name"] for one in group["rules"]] == ["r"]
    async with client.get("/api/v1/rules?exclude_alerts=true&type=alert&rule_group[]=one") as response:
        (group,) = (await response.json())["data"]["groups"]
    assert group["rules"] == [rule("A") | {"alerts": None}]
    async with client.get("/api/v1/rules?exclude_alerts=perhaps") as response:
        assert (await problem(response))[::2] == (400, "exclude_alerts 'perhaps' is neither true nor false")
    async with client.get("/api/v1/rules?type=x") as response:
        assert (await problem(response))[::2] == (400, "type 'x' is none; write alert or record")


async def test_an_incident_is_found_by_the_beginning_of_its_id(client: Client, source: MemorySource) -> None:
    source.found = [{"id": "20260101-abc", "entries": []}, {"id": "20260102-def", "entries": []}]
    async with client.get("/api/v1/incidents") as response:
        assert len((await response.json())["data"]) == 2
    async with client.get("/api/v1/incidents/20260102") as response:
        assert (await response.json())["data"] == [source.found[1]]
    async with client.get("/api/v1/incidents/2025") as response:
        assert await problem(response) == (404, "not_found", "no incident begins with '2025'")


# Errors.


@pytest.mark.parametrize("path", ["/nothing", "/docs", "/redoc", "/openapi.json", "/api/v1/", "/api/v1/targets"])
async def test_unknown_paths_and_documentation_pages_are_not_there(client: Client, path: str) -> None:
    async with client.get(path) as response:
        assert (await problem(response))[:2] == (404, "not_found")


async def test_a_method_that_is_not_there_is_told_which_are(client: Client) -> None:
    async with client.post("/metrics") as response:
        assert (await problem(response))[:2] == (405, "bad_data")
        assert "GET" in response.headers["Allow"]


async def test_an_error_of_dsobs_is_logged_and_told_without_its_details(
    client: Client, source: MemorySource, caplog: pytest.LogCaptureFixture
) -> None:
    source.samples = [Sample(labels("dsobs_engine_up"), "secret")]  # type: ignore[arg-type]
    async with client.get("/metrics") as response:
        status, kind, text = await problem(response)
    assert (status, kind) == (500, "internal")
    assert "secret" not in text
    assert "Exception in ASGI application" in caplog.text


# Control.


async def test_control_is_403_without_a_configured_token(opened: Open, source: MemorySource) -> None:
    async with opened(None) as session:
        for request in (
            session.post("/api/v1/silences", json={"matchers": ["a=b"], "duration": "1h"}),
            session.post("/api/v1/silences", data=b"no json", headers={"Authorization": "Bearer x"}),
            session.delete("/api/v1/silences/1"),
            session.put("/api/v1/kill-switch", params={"on": "true"}),
            session.delete("/api/v1/gpu-faults/GPU-a"),
        ):
            async with request as response:
                assert await problem(response) == (403, "forbidden", "control is off: set api.control_token")
    assert not source.kept
    assert not source.killed


@pytest.mark.parametrize("given", [None, "", "Bearer ", "Bearer wrong", "Basic a-control-tökén", "a-control-tökén"])
async def test_control_is_401_with_no_or_another_token(client: Client, source: MemorySource, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    async with client.put("/api/v1/kill-switch", params={"on": "true"}, headers=headers) as response:
        assert await problem(response) == (401, "unauthorized", "a bearer token is needed")
        assert response.headers["WWW-Authenticate"] == "Bearer"
    # Whoever has no token learns nothing about the body.
    async with client.post("/api/v1/silences", data=b"{", headers=headers) as response:
        assert response.status == 401
    assert not source.killed


async def test_tokens_are_compared_in_constant_time(
    client: Client, bearer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    genuine = hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return genuine(a, b)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    for headers in (bearer, {"Authorization": "Basic x"}, {}):
        async with client.put("/api/v1/kill-switch", params={"on": "true"}, headers=headers):
            pass
    assert len(compared) == 3
    assert compared[0][0] == compared[0][1]


async def test_a_secret_that_can_not_be_read_closes_control(opened: Open) -> None:
    async with (
        opened(Secret("file:/nowhere/token")) as session,
        session.put("/api/v1/kill-switch", params={"on": "true"}, headers={"Authorization": "Bearer x"}) as response,
    ):
        status, kind, text = await problem(response)
    assert (status, kind) == (503, "unavailable")
    assert text.startswith("secret file /nowhere/token")


async def test_the_scheme_of_the_token_may_be_written_in_any_case(client: Client, bearer: dict[str, str]) -> None:
    headers = {"Authorization": bearer["Authorization"].replace("Bearer", "bearer")}
    async with client.put("/api/v1/kill-switch", params={"on": "true"}, headers=headers) as response:
        assert response.status == 200


async def test_a_card_that_is_said_to_be_well_is_cleared_once(
    client: Client, source: MemorySource, bearer: dict[str, str]
) -> None:
    source.faults["GPU-a"] = 2
    async with client.delete("/api/v1/gpu-faults/GPU-a") as response:
        assert response.status == 401
    async with client.delete("/api/v1/gpu-faults/GPU-a", headers=bearer) as response:
        assert (await response.json())["data"] == {"cleared": 2}
    async with client.delete("/api/v1/gpu-faults/GPU-a", headers=bearer) as response:
        assert (await problem(response))[:2] == (404, "not_found")


async def test_kill_switch_goes_on_and_off(client: Client, source: MemorySource, bearer: dict[str, str]) -> None:
    for position in (True, False):
        params = {"on": str(position).lower()}
        async with client.put("/api/v1/kill-switch", params=params, headers=bearer) as response:
            assert (await response.json())["data"] == {"killed": position}
        assert source.killed is position


@pytest.mark.parametrize("params", [{}, {"on": "perhaps"}])
async def test_kill_switch_without_a_position_changes_nothing(
    client: Client, source: MemorySource, bearer: dict[str, str], params: dict[str, str]
) -> None:
    source.killed = True
    async with client.put("/api/v1/kill-switch", params=params, headers=bearer) as response:
        status, kind, text = await problem(response)
    assert (status, kind) == (400, "bad_data")
    assert text.startswith("on: ")
    assert source.killed


async def test_a_silence_is_made_listed_and_ended(client: Client, source: MemorySource, bearer: dict[str, str]) -> None:
    body = {"matchers": ["alertname=EngineHung", 'model_name=~"r1-.*"'], "duration": "2h", "createdBy": "me"}
    async with client.post("/api/v1/silences", json=body, headers=bearer) as response:
        assert response.status == 201
        made = (await response.json())["data"]
    assert made == {
        "id": made["id"],
        "matchers": ['alertname="EngineHung"', 'model_name=~"r1-.*"'],
        "startsAt": 1000.0,
        "endsAt": 8200.0,
        "createdBy": "me",
        "comment": "",
    }
    async with client.get("/api/v1/silences") as response:
        assert (await response.json())["data"] == [made]
    async with client.delete(f"/api/v1/silences/{made['id']}", headers=bearer) as response:
        assert (response.status, await response.json()) == (200, {"status": "success", "data": None})
    async with client.delete(f"/api/v1/silences/{made['id']}", headers=bearer) as response:
        assert await problem(response) == (404, "not_found", "no active silence of that id")


async def test_a_duration_may_be_seconds(client: Client, source: MemorySource, bearer: dict[str, str]) -> None:
    body = {"matchers": ["a=b"], "duration": 90}
    async with client.post("/api/v1/silences", json=body, headers=bearer) as response:
        assert response.status == 201
    assert source.kept[0].ends_at == 1090.0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "body: Invalid JSON"),
        (b"{", "body: Invalid JSON"),
        (b"\xff", "body: Invalid JSON"),
        (b"[" * 60000, "body: Invalid JSON"),
        (b"[]", "body: Input should be an object"),
        (b"{}", "matchers: Field required; duration: Field required"),
        (b'{"matchers": "a=b", "duration": "1h"}', "matchers: Input should be a valid array"),
        (b'{"matchers": ["a=b"], "duration": "soon"}', "duration: 'soon' is no duration"),
        (b'{"matchers": ["a=b"], "duration": "-1h"}', "duration: '-1h' is no duration"),
        (b'{"matchers": ["a=b"], "duration": -1}', "a silence lasts more than 0 s"),
        (b'{"matchers": ["a=b"], "duration": "inf"}', "a silence lasts more than 0 s"),
        (b'{"matchers": ["a=b"], "duration": "nan"}', "a silence lasts more than 0 s"),
        (b'{"matchers": ["a=b"], "duration": "1y"}', "a silence lasts more than 0 s"),
        (b'{"matchers": [], "duration": "1h"}', "a silence needs at least one matcher"),
        (b'{"matchers": ["nonsense"], "duration": "1h"}', "'nonsense' is no matcher"),
        (b'{"matchers": ["a=~("], "duration": "1h"}', "'a=~(': bad regular expression"),
        (b'{"matchers": ["a=b"], "duration": "1h", "until": 3}', "until: Extra inputs are not permitted"),
        (b'{"matchers": ["a=b"], "duration": "1h", "comment": "' + b"x" * 1001 + b'"}', "comment: "),
        (b'{"matchers": ["a=b"], "duration": "1h", "comment": "\\ud800"}', "body: Invalid JSON"),
    ],
)
async def test_a_bad_body_is_named_and_makes_no_silence(
    client: Client, source: MemorySource, bearer: dict[str, str], body: bytes, told: str
) -> None:
    async with client.post("/api/v1/silences", data=body, headers=bearer) as response:
        status, kind, text = await problem(response)
    assert (status, kind) == (400, "bad_data")
    assert told in text
    assert not source.kept


async def test_a_silence_that_can_not_be_kept_is_503(
    client: Client, source: MemorySource, bearer: dict[str, str]
) -> None:
    source.full = True
    body = {"matchers": ["a=b"], "duration": "1h"}
    async with client.post("/api/v1/silences", json=body, headers=bearer) as response:
        assert await problem(response) == (503, "unavailable", "state.db: database or disk is full")


async def test_a_switch_that_can_not_be_kept_says_so(
    client: Client, source: MemorySource, bearer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*, killed: bool) -> None:
        raise StateError("the switch holds until dsobs ends")

    monkeypatch.setattr(source, "switch", refuse)
    async with client.put("/api/v1/kill-switch", params={"on": "true"}, headers=bearer) as response:
        assert await problem(response) == (503, "unavailable", "the switch holds until dsobs ends")


# Bounds.


async def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """All that comes back on one connection until the server closes it."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(sent)
        return await asyncio.wait_for(reader.read(), DEADLINE)
    finally:
        writer.close()
        await writer.wait_closed()


HEAD = b"POST /api/v1/silences HTTP/1.1\r\nHost: x\r\n"


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(source: MemorySource) -> None:
    async with serve(source, "127.0.0.1:0", Secret("x")) as address:
        answer = await exchange(address, HEAD + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"error":"the body is larger than 65536 bytes"' in answer


async def test_a_body_of_unsaid_length_is_cut_off_at_the_limit(source: MemorySource) -> None:
    chunk = b"%x\r\n%s\r\n" % (32768, b"x" * 32768)
    async with serve(source, "127.0.0.1:0", Secret("x")) as address:
        answer = await exchange(address, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + chunk + b"1\r\nx\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_of_the_limit_is_read(client: Client, bearer: dict[str, str]) -> None:
    async with client.post("/api/v1/silences", data=b" " * MAX_BODY, headers=bearer) as response:
        assert response.status == 400


async def test_a_body_that_does_not_come_is_given_up(source: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.BodyLimit.__init__, "__defaults__", (MAX_BODY, 0.05))
    async with serve(source, "127.0.0.1:0", Secret("x")) as address:
        answer = await exchange(address, HEAD + b"Content-Length: 10\r\n\r\nhalf")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"error":"the body was not sent within 0.05 s"' in answer


async def test_half_a_request_is_cut_off(source: MemorySource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.Connection, "look_seconds", 0.05)
    async with serve(source, "127.0.0.1:0", None) as address:
        for sent in (b"", b"GET /metrics HTTP/1.1\r\nHo"):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(sent)
            with pytest.raises((ConnectionError, EOFError)):
                await asyncio.wait_for(reader.readexactly(1), DEADLINE)
            writer.close()


async def test_a_client_that_never_reads_is_cut_off_and_holds_up_nobody(
    source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.Connection, "look_seconds", 0.2)
    lost = asyncio.Event()
    genuine = connection.Connection.connection_lost

    def spy(self: connection.Connection, exc: Exception | None) -> None:
        genuine(self, exc)
        if self.cycle.scope["path"] == "/metrics":
            lost.set()

    monkeypatch.setattr(connection.Connection, "connection_lost", spy)
    source.samples = [Sample(labels("dsobs_engine_awake", engine=f"{n}{'x' * 2000}"), 1.0) for n in range(4000)]
    async with serve(source, "127.0.0.1:0", None) as address:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, address)
            await loop.sock_sendall(deaf, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
            answer = await exchange(address, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            await asyncio.wait_for(lost.wait(), DEADLINE)


async def test_the_server_ends_while_a_client_does_not_read(source: MemorySource) -> None:
    source.samples = [Sample(labels("dsobs_engine_awake", engine=f"{n}{'x' * 2000}"), 1.0) for n in range(4000)]
    with socket.socket() as deaf:
        async with asyncio.timeout(DEADLINE), serve(source, "127.0.0.1:0", None) as address:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(deaf, address)
            await loop.sock_sendall(deaf, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await loop.sock_recv(deaf, 12)) == b"HTTP/1.1 200"


KEEP = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


async def test_idle_connections_lock_nobody_out_and_the_longest_idle_gives_way(
    source: MemorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection.Connection, "max_connections", 100)
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    async with serve(source, "127.0.0.1:0", None) as address, asyncio.timeout(DEADLINE):
        for _ in range(120):
            reader, writer = await asyncio.open_connection(*address)
            idle.append((reader, writer))
            writer.write(KEEP)
            assert await reader.readuntil(b"ok\n")
        for path in (b"/livez", b"/readyz", b"/metrics"):
            assert (await exchange(address, LAST % path)).startswith(b"HTTP/1.1 200 ")
        gone = [number for number, (reader, _) in enumerate(idle) if reader.at_eof() or reader.exception()]
        assert gone == list(range(len(gone)))
        assert 20 <= len(gone) <= 23
        for _, writer in idle:
            writer.close()


async def test_requests_under_way_are_bounded_and_health_checks_are_answered_all_the_same(
    source: MemorySource, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, full = asyncio.Event(), asyncio.Barrier(4)

    async def incidents(incident: str | None) -> list[dict[str, Any]]:
        await full.wait()
        await held.wait()
        return []

    monkeypatch.setattr(source, "incidents", incidents)
    monkeypatch.setattr(limits.RequestLimit.__init__, "__defaults__", (3,))
    async with opened(None) as session, asyncio.timeout(DEADLINE):
        tasks = [asyncio.ensure_future(session.get("/api/v1/incidents")) for _ in range(3)]
        await full.wait()
        async with session.get("/api/v1/status") as refused:
            assert refused.headers["Retry-After"] == "1"
            assert await problem(refused) == (503, "unavailable", "3 requests are under way; try again in a second")
        for path in ("/livez", "/readyz"):
            async with session.get(path) as response:
                assert response.status == 200
        held.set()
        assert [(await task).status for task in tasks] == [200] * 3
        async with session.get("/api/v1/status") as response:
            assert response.status == 200


# Listening.


async def test_a_port_in_use_is_named_with_the_setting(source: MemorySource) -> None:
    async with serve(source, "127.0.0.1:0", None) as (host, port):
        with pytest.raises(ListenError) as raised:
            bind(f"{host}:{port}")
    assert str(raised.value) == f"can't listen on {host}:{port}: Address already in use; set api.listen"


def test_an_address_that_is_not_here_is_named() -> None:
    with pytest.raises(ListenError, match=r"can't listen on 192\.0\.2\.1:0: .*; set api\.listen"):
        bind("192.0.2.1:0")


async def test_the_address_is_free_again_afterwards(source: MemorySource) -> None:
    async with serve(source, "127.0.0.1:0", None) as (host, port):
        pass
    async with serve(source, f"{host}:{port}", None) as (_, again):
        assert again == port


async def test_reload_says_what_changed_and_what_needs_a_restart(client: Client, bearer: dict[str, str]) -> None:
    async with client.post("/-/reload") as refused:
        assert refused.status == 401
    async with client.post("/-/reload", headers=bearer) as done:
        assert (done.status, (await done.json())["data"]) == (
            200,
            {"changed": ["remediation.mode"], "need_restart": ["api.listen"]},
        )


async def test_reload_of_settings_that_cannot_be_used_names_every_problem(
    client: Client, source: MemorySource, bearer: dict[str, str]
) -> None:
    source.bad_settings = "dsobs.yaml:2: is no number\ndsobs.yaml:7: there is no such setting"
    async with client.post("/-/reload", headers=bearer) as refused:
        assert (refused.status, (await refused.json())["error"]) == (400, source.bad_settings)
