"""Whether an engine says that it is paused."""

import asyncio

import aiohttp
import pytest

from dsobs.collectors.engines.vllm import Vllm
from dsobs.collectors.pause import PauseQuestion
from dsobs.config.models import Target
from dsobs.model.observation import Paused
from tests.collectors.conftest import Serve, http, saying


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (http('{"is_paused":true}'), Paused.YES),
        (http('{"is_paused":false}'), Paused.NO),
        (http('{"detail":"Not Found"}', "404 Not Found"), Paused.NOT_THERE),
        (http('{"detail":"Method Not Allowed"}', "405 Method Not Allowed"), Paused.NOT_THERE),
        (http('{"error":"no"}', "500 Internal Server Error"), Paused.UNKNOWN),
        (http('{"is_paused":"yes"}'), Paused.UNKNOWN),
        (http("[true]"), Paused.UNKNOWN),
        (http("<html>"), Paused.UNKNOWN),
    ],
)
async def test_what_is_said_of_a_pause(
    serve: Serve, session: aiohttp.ClientSession, answer: bytes, told: Paused
) -> None:
    served = await serve(saying(answer))
    assert await PauseQuestion(session, Target(url=served.url)).ask(Vllm()) is told
    ((line, _, _),) = served.requests
    assert line == "GET /is_paused HTTP/1.1"


async def test_a_core_that_does_not_answer_is_not_known_to_be_paused(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    async def silent(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    served = await serve(silent)
    target = Target(url=served.url, scrape_timeout=0.1)
    assert await PauseQuestion(session, target).ask(Vllm()) is Paused.UNKNOWN
