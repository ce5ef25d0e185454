import asyncio
import gzip
import time
import tracemalloc

import aiohttp
import pytest

from dsobs.collectors.exchange import open_session
from dsobs.collectors.health import HealthCheck
from dsobs.collectors.scrape import Scraper
from dsobs.config.models import Target
from dsobs.model.clock import ManualClock
from dsobs.model.observation import Failure
from dsobs.model.samples import Sample, labels
from tests.collectors import pages
from tests.collectors.conftest import Behaviour, Serve, Served, http, saying

PAGE = "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1.0\n"
DEADLINE = 0.3


def scraper(session: aiohttp.ClientSession, served: Served, timeout: float = 5.0, limit: int = 1 << 20) -> Scraper:
    target = Target(url=served.url, scrape_timeout=timeout, max_page_bytes=limit)
    return Scraper(session, target, "/metrics", ManualClock(1000.0))


async def never(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def close_at_once(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def reset_at_once(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


def dribble(data: bytes) -> Behaviour:
    """A byte at each turn of a slow clock: what one a second is to a deadline of seconds."""

    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        tick = asyncio.Event()
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            asyncio.get_running_loop().call_later(0.06, tick.set)
            await tick.wait()
            tick.clear()

    return behave


async def endless_chunks(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"# a comment that goes on\n" * 400
    while not writer.is_closing():
        writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        await writer.drain()


async def test_a_page_is_read_with_its_times(serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(saying(http(PAGE)))
    scrape = await scraper(session, served).scrape()
    assert scrape.ok
    assert scrape.page is not None
    assert scrape.page.samples == [Sample(labels("vllm:num_requests_running"), 1.0)]
    assert (scrape.text, scrape.status, scrape.at) == (PAGE, 200, 1000.0)
    assert scrape.connected
    assert scrape.answered
    assert 0 < scrape.duration_seconds < 5
    (line, headers, _), *_ = served.requests
    assert line == "GET /metrics HTTP/1.1"
    assert headers["accept"].startswith("text/plain;version=0.0.4")
    assert "authorization" not in headers


async def test_a_kept_connection_is_used_again_and_counts_as_connected(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    answers = [http(PAGE), http(PAGE), None]

    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        answer = answers.pop(0)
        if answer is None:
            await asyncio.Event().wait()
        else:
            writer.write(answer)

    served = await serve(behave)
    subject = scraper(session, served, timeout=DEADLINE)
    assert (await subject.scrape()).ok
    assert (await subject.scrape()).ok
    third = await subject.scrape()
    assert served.connections == 1
    assert (third.failure, third.connected, third.answered) == (Failure.TIMEOUT, True, False)


async def test_a_kept_connection_that_the_server_had_closed_is_no_failure(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        if len(served.requests) == 2:
            writer.close()
        else:
            writer.write(http(PAGE))

    served = await serve(behave)
    subject = scraper(session, served)
    assert (await subject.scrape()).ok
    assert (await subject.scrape()).ok
    assert served.connections == 2


CASES: dict[str, tuple[Behaviour, Failure, bool, str]] = {
    "never answers": (never, Failure.TIMEOUT, False, "accepted, and not one byte answered by the deadline"),
    "one byte now and then": (dribble(http(PAGE)), Failure.TIMEOUT, True, "the answer was not whole by the deadline"),
    "stops in the body": (
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n# a"),
        Failure.TIMEOUT,
        True,
        "the answer was not whole by the deadline",
    ),
    "closes at once": (close_at_once, Failure.CLOSED, False, "closed before it answered"),
    "resets at once": (reset_at_once, Failure.CLOSED, False, "closed before it answered"),
    "status 500": (saying(http("boom", "500 Internal Server Error")), Failure.HTTP_STATUS, True, "status 500"),
    "status 204": (saying(b"HTTP/1.1 204 No Content\r\n\r\n"), Failure.HTTP_STATUS, True, "status 204"),
    "no HTTP": (saying(b"\x00\x01 garbage garbage\r\n\r\n"), Failure.UNPARSABLE, True, "the answer is not HTTP"),
    "garbage": (saying(http(b"{]}= 1 2 3 sk-secret\n")), Failure.UNPARSABLE, True, "the body is no metrics page"),
    "binary": (saying(http(bytes(range(256)))), Failure.UNPARSABLE, True, "the body is not UTF-8"),
    "nothing": (saying(http("")), Failure.UNPARSABLE, True, "the page is empty"),
    "HTML": (
        saying(http("<html>", content_type="text/html; charset=utf-8")),
        Failure.UNPARSABLE,
        True,
        "the body is HTML: is this address the engine's?",
    ),
    "redirect": (
        saying(http("", "302 Found", "Location: https://user:sk-secret@evil.example/steal?key=sk-secret\r\n")),
        Failure.REDIRECT,
        True,
        "302 to host evil.example, not followed",
    ),
    "redirect within": (
        saying(http("", "307 Temporary Redirect", "Location: /metrics/\r\n")),
        Failure.REDIRECT,
        True,
        "307 to another path of this host, not followed",
    ),
    "announces too much": (
        saying(b"HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n"),
        Failure.TOO_LARGE,
        True,
        "52428800 bytes announced, the limit is 1048576",
    ),
    "endless": (endless_chunks, Failure.TOO_LARGE, True, "more than 1048576 bytes"),
    "damaged gzip": (
        saying(http(gzip.compress(PAGE.encode())[:-12] + b"x" * 12, headers="Content-Encoding: gzip\r\n")),
        Failure.UNPARSABLE,
        True,
        "the compressed body is damaged",
    ),
    "unknown encoding": (
        saying(http(b"abc", headers="Content-Encoding: br\r\n")),
        Failure.UNPARSABLE,
        True,
        "a content encoding that was not asked for",
    ),
}


@pytest.mark.parametrize("name", CASES)
async def test_bad_input_is_bounded_and_named(name: str, serve: Serve, session: aiohttp.ClientSession) -> None:
    behave, failure, answered, detail = CASES[name]
    served = await serve(behave)
    # Patience for what is answered: a test that stands still for a moment sees no time-out then.
    subject = scraper(session, served, timeout=DEADLINE if failure is Failure.TIMEOUT else 30.0)
    started = time.monotonic()
    scrape = await subject.scrape()
    assert time.monotonic() - started < DEADLINE + 10
    assert (scrape.failure, scrape.detail) == (failure, detail)
    assert scrape.connected
    assert scrape.answered is answered
    assert scrape.page is None
    assert all("evil" not in line for line, _, _ in served.requests)


async def test_cut_off_in_the_middle_of_the_body_is_unreachable(serve: Serve, session: aiohttp.ClientSession) -> None:
    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(http(PAGE)[:-5])
        writer.close()

    scrape = await scraper(session, await serve(behave)).scrape()
    assert (scrape.failure, scrape.detail) == (Failure.UNREACHABLE, "closed in the middle of the body")
    assert scrape.answered


async def test_nobody_listens_is_refused(serve: Serve, session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    served = Served()
    served.url = f"http://127.0.0.1:{unused_tcp_port}"
    scrape = await scraper(session, served).scrape()
    assert (scrape.failure, scrape.connected, scrape.answered) == (Failure.REFUSED, False, False)
    assert scrape.status is None


async def test_a_name_that_does_not_resolve_is_unreachable(session: aiohttp.ClientSession) -> None:
    served = Served()
    served.url = "http://does-not-exist.invalid:1"
    scrape = await scraper(session, served).scrape()
    assert (scrape.failure, scrape.connected) == (Failure.UNREACHABLE, False)


async def test_a_full_backlog_is_a_timeout_that_was_not_accepted(session: aiohttp.ClientSession) -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        try:
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())
                fillers.append(filler)
            served = Served()
            served.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            scrape = await scraper(session, served, timeout=DEADLINE).scrape()
        finally:
            for filler in fillers:
                filler.close()
    assert (scrape.failure, scrape.connected, scrape.answered) == (Failure.TIMEOUT, False, False)
    assert scrape.detail == "the connection was not accepted by the deadline"


async def test_fifty_megabytes_cost_no_more_memory_than_the_limit(serve: Serve, session: aiohttp.ClientSession) -> None:
    line = b"some_metric_name 1.0\n" * 3000
    sent = 0

    async def behave(request: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")
        while sent < 50_000_000:
            writer.write(line)
            await writer.drain()
            sent += len(line)

    subject = scraper(session, await serve(behave), limit=1 << 20)
    tracemalloc.start()
    try:
        scrape = await subject.scrape()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert scrape.failure is Failure.TOO_LARGE
    assert sent < 10_000_000, "it was not read further"
    assert peak < 6 * (1 << 20)


async def test_a_page_with_a_flood_of_series_is_not_parsed(serve: Serve, session: aiohttp.ClientSession) -> None:
    lines = [f'vllm:num_requests_running{{model_name="m{n}",engine="0"}} 1\n' for n in range(40_000)]
    body = "# HELP vllm:num_requests_running Requests.\n" + "".join(lines)
    scrape = await scraper(session, await serve(saying(http(body))), limit=8 << 20).scrape()
    assert (scrape.failure, scrape.page, scrape.text) == (Failure.TOO_MANY_SERIES, None, None)
    assert scrape.detail == "40000 series, the limit is 20000 (target.max_series)"
    few = "# HELP x X.\n# TYPE x gauge\nx 1\n" * 3
    served = await serve(saying(http(few)))
    narrow = Scraper(session, Target(url=served.url, max_series=2), "/metrics", ManualClock(50.0))
    assert (await narrow.scrape()).failure is Failure.TOO_MANY_SERIES


async def test_a_gzip_bomb_is_never_unpacked(serve: Serve, session: aiohttp.ClientSession) -> None:
    bomb = gzip.compress(b"\n" * 200_000_000, compresslevel=1)
    assert len(bomb) < 1 << 20
    served = await serve(saying(http(bomb, headers="Content-Encoding: gzip\r\n")))
    subject = scraper(session, served, limit=1 << 20)
    tracemalloc.start()
    try:
        scrape = await subject.scrape()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (scrape.failure, scrape.detail) == (Failure.TOO_LARGE, "more than 1048576 bytes")
    assert peak < 6 * (1 << 20)


async def test_a_compressed_page_is_read(serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(saying(http(gzip.compress(pages.busy().encode()), headers="Content-Encoding: gzip\r\n")))
    scrape = await scraper(session, served).scrape()
    assert scrape.ok
    assert scrape.text == pages.busy()


async def test_a_page_of_exactly_the_limit_is_read_and_one_byte_more_is_not(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    page = PAGE + "#" * (2048 - len(PAGE) - 1) + "\n"
    for body, ok in ((page, True), (page + "\n", False)):
        for answer in (http(body), http(gzip.compress(body.encode()), headers="Content-Encoding: gzip\r\n")):
            assert (await scraper(session, await serve(saying(answer)), limit=2048).scrape()).ok is ok


async def test_one_is_in_flight(serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(saying(http(PAGE, headers="Connection: close\r\n")))
    subject = scraper(session, served)
    scrapes = await asyncio.gather(*(subject.scrape() for _ in range(5)))
    assert all(scrape.ok for scrape in scrapes)
    assert served.most_at_once == 1


async def test_cancelled_it_stops_and_leaves_nothing_behind(serve: Serve, session: aiohttp.ClientSession) -> None:
    asked = asyncio.Event()

    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        asked.set()
        if len(served.requests) == 1:
            await asyncio.Event().wait()
        writer.write(http(PAGE))

    served = await serve(behave)
    subject = scraper(session, served)
    task = asyncio.ensure_future(subject.scrape())
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await subject.scrape()).ok


async def test_a_session_that_nobody_watches_is_refused() -> None:
    served = Served()
    served.url = "http://127.0.0.1:1"
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TypeError, match="open_session"):
            await scraper(session, served).scrape()


@pytest.mark.parametrize(
    ("behave", "status", "failure"),
    [
        (saying(http("")), 200, None),
        (saying(http("", "503 Service Unavailable")), 503, Failure.HTTP_STATUS),
        (saying(http("", "301 Moved", "Location: http://evil.example/\r\n")), 301, Failure.REDIRECT),
        (never, None, Failure.TIMEOUT),
    ],
    ids=["200", "503", "redirect", "silent"],
)
async def test_health_says_what_came(
    behave: Behaviour, status: int | None, failure: Failure | None, serve: Serve, session: aiohttp.ClientSession
) -> None:
    served = await serve(behave)
    health = await HealthCheck(session, Target(url=served.url + "/", scrape_timeout=DEADLINE), ManualClock(7.0)).check()
    assert (health.status, health.failure, health.at, health.ok) == (status, failure, 7.0, status == 200)
    assert all(line == "GET /health HTTP/1.1" for line, _, _ in served.requests)


async def test_a_scrape_of_a_busy_page_costs_little(serve: Serve) -> None:
    served = await serve(saying(http(pages.busy())))
    async with open_session(Target()) as session:
        subject = scraper(session, served)
        await subject.scrape()
        best = float("inf")
        for _ in range(30):
            started = time.process_time()
            await subject.scrape()
            best = min(best, time.process_time() - started)
    assert best < 0.004, "both sides of the socket and the parser; the aim for the client's transport is 1.5 ms"
