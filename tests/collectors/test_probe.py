import asyncio
import json
from collections.abc import Mapping

import aiohttp
import pytest

from dsobs.collectors.engines.vllm import Vllm
from dsobs.collectors.probe import REQUEST_ID_PREFIX, Prober
from dsobs.config.models import Target
from dsobs.config.secret import Secret
from dsobs.model.clock import ManualClock
from dsobs.model.observation import ProbeOutcome
from tests.collectors.conftest import Behaviour, Serve, Served, http, saying

MODELS = {"data": [{"id": "lora", "parent": "m"}, {"id": "m", "parent": None}]}
COMPLETION = {
    "choices": [{"finish_reason": "length", "text": "x"}],
    "usage": {"prompt_tokens": 4, "completion_tokens": 1},
}
EMBEDDING = {"data": [{"embedding": [0.0]}], "usage": {"prompt_tokens": 4}}
UNSUPPORTED = http('{"error":{"message":"The model does not support this API"}}', "501 Not Implemented")
NO_MODEL = http('{"error":{"message":"The model `m` does not exist."}}', "404 Not Found")


def said(value: Mapping[str, object]) -> bytes:
    return http(json.dumps(value), content_type="application/json")


def routes(answers: Mapping[str, bytes | None]) -> Behaviour:
    """By path; None: silence."""

    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        answer = answers.get(line.split(" ")[1], http('{"detail":"Not Found"}', "404 Not Found"))
        if answer is None:
            await asyncio.Event().wait()
        else:
            writer.write(answer)

    return behave


def prober(session: aiohttp.ClientSession, served: Served, timeout: float = 3.0, key: Secret | None = None) -> Prober:
    return Prober(session, Target(url=served.url, api_key=key), Vllm(), ManualClock(50.0), timeout)


def paths(served: Served) -> list[str]:
    return [line.split(" ")[1] for line, _, _ in served.requests]


async def test_an_answer_is_proof_of_life_and_says_what_it_added(serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(routes({"/v1/models": said(MODELS), "/v1/completions": said(COMPLETION)}))
    subject = prober(session, served, key=Secret("sk-1"))
    probe = await subject.probe(None)
    assert (probe.outcome, probe.status, probe.engine, probe.model) == (ProbeOutcome.ANSWERED, 200, None, "m")
    assert (probe.prompt_tokens, probe.generated_tokens, probe.finish_reason) == (4, 1, "length")
    assert probe.latency_seconds is not None
    assert 0 < probe.latency_seconds < 3
    _, headers, body = served.requests[1]
    assert headers["x-request-id"].startswith(REQUEST_ID_PREFIX)
    assert headers["authorization"] == "Bearer sk-1"
    assert "x-data-parallel-rank" not in headers
    assert json.loads(body) == {"model": "m", "max_tokens": 1, "temperature": 0, "prompt": "ping"}


async def test_the_model_and_the_form_that_worked_are_remembered(serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(
        routes({"/v1/models": said(MODELS), "/v1/completions": UNSUPPORTED, "/v1/chat/completions": UNSUPPORTED,
                "/v1/embeddings": said(EMBEDDING)})
    )  # fmt: skip
    subject = prober(session, served)
    assert (await subject.probe(None)).outcome is ProbeOutcome.ANSWERED
    assert (await subject.probe(None)).outcome is ProbeOutcome.ANSWERED
    forms = ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"]
    assert paths(served) == ["/v1/models", *forms, "/v1/embeddings"]
    ids = [headers["x-request-id"] for _, headers, _ in served.requests[1:]]
    assert len(set(ids)) == 2


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "422 Unprocessable", "501 Not Implemented"])
async def test_a_model_that_can_not_complete_is_asked_to_chat(
    status: str, serve: Serve, session: aiohttp.ClientSession
) -> None:
    served = await serve(
        routes({"/v1/models": said(MODELS), "/v1/completions": http("{}", status),
                "/v1/chat/completions": said(COMPLETION)})
    )  # fmt: skip
    assert (await prober(session, served).probe(None)).outcome is ProbeOutcome.ANSWERED


async def test_a_replaced_model_is_found_again(serve: Serve, session: aiohttp.ClientSession) -> None:
    answers: dict[str, bytes | None] = {"/v1/models": said(MODELS), "/v1/completions": said(COMPLETION)}

    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        path = line.split(" ")[1]
        model = json.loads(body)["model"] if body else ""
        stale = model == "m" and "new" in str(answers["/v1/models"])
        writer.write(NO_MODEL if stale else answers.get(path) or NO_MODEL)

    served = await serve(behave)
    subject = prober(session, served)
    assert (await subject.probe(None)).model == "m"
    answers["/v1/models"] = said({"data": [{"id": "new", "parent": None}]})
    again = await subject.probe(None)
    assert (again.outcome, again.model) == (ProbeOutcome.ANSWERED, "new")
    assert paths(served).count("/v1/models") == 2


INCONCLUSIVE = [
    "401 Unauthorized",
    "403 Forbidden",
    "404 Not Found",
    "429 Too Many",
    "503 Unavailable",
    "400 Bad",
    "302 Found",
]


@pytest.mark.parametrize("status", INCONCLUSIVE)
@pytest.mark.parametrize("where", ["models", "forms"])
async def test_refusals_prove_neither_life_nor_death(
    status: str, where: str, serve: Serve, session: aiohttp.ClientSession
) -> None:
    answer = http("{}", status, "Location: http://evil.example/\r\n" if status.startswith("3") else "")
    forms = dict.fromkeys(("/v1/completions", "/v1/chat/completions", "/v1/embeddings"), answer)
    served = await serve(routes({"/v1/models": answer if where == "models" else said(MODELS), **forms}))
    probe = await prober(session, served).probe(None)
    assert probe.outcome is ProbeOutcome.INCONCLUSIVE
    assert probe.status == int(status[:3])


@pytest.mark.parametrize("where", ["/v1/models", "/v1/completions"])
@pytest.mark.parametrize("status", ["500 Internal Server Error", "502 Bad Gateway", "504 Gateway Timeout"])
async def test_a_server_that_says_it_is_broken_is_an_error(
    status: str, where: str, serve: Serve, session: aiohttp.ClientSession
) -> None:
    served = await serve(routes({"/v1/models": said(MODELS), where: http("x", status)}))
    probe = await prober(session, served).probe(None)
    assert (probe.outcome, probe.status) == (ProbeOutcome.ERROR, int(status[:3]))
    assert probe.detail == f"{where}: status {status[:3]}"


@pytest.mark.parametrize("where", ["/v1/models", "/v1/completions"])
async def test_accepted_and_no_answer_is_a_timeout_within_the_deadline(
    where: str, serve: Serve, session: aiohttp.ClientSession
) -> None:
    served = await serve(routes({"/v1/models": said(MODELS), where: None}))
    loop = asyncio.get_running_loop()
    started = loop.time()
    probe = await prober(session, served, timeout=0.2).probe("3")
    assert loop.time() - started < 10.0
    assert probe.outcome is ProbeOutcome.TIMEOUT
    assert probe.engine == ("3" if where == "/v1/completions" else None)


async def test_nobody_listens_is_refused(session: aiohttp.ClientSession, unused_tcp_port: int) -> None:
    served = Served()
    served.url = f"http://127.0.0.1:{unused_tcp_port}"
    assert (await prober(session, served).probe(None)).outcome is ProbeOutcome.REFUSED


@pytest.mark.parametrize(
    "models", [b'{"data": []}', b'{"data": [{"id": 3}]}', b"[]", b"<html>", b'{"data": "m"}', b'{"data": [{"id": ""}]}']
)
async def test_no_model_is_inconclusive(models: bytes, serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(routes({"/v1/models": http(models)}))
    probe = await prober(session, served).probe(None)
    assert (probe.outcome, probe.detail) == (ProbeOutcome.INCONCLUSIVE, "/v1/models names no model")
    assert paths(served) == ["/v1/models"]


@pytest.mark.parametrize("body", ["", "<html>", "[]", "null"])
async def test_200_without_a_json_object_is_no_proof(body: str, serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(routes({"/v1/models": said(MODELS), "/v1/completions": http(body)}))
    assert (await prober(session, served).probe(None)).outcome is ProbeOutcome.INCONCLUSIVE


async def test_closed_without_an_answer_is_inconclusive(serve: Serve, session: aiohttp.ClientSession) -> None:
    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.close()

    assert (await prober(session, await serve(behave)).probe(None)).outcome is ProbeOutcome.INCONCLUSIVE


async def test_a_kept_connection_that_the_server_had_closed_is_sent_once_more(
    serve: Serve, session: aiohttp.ClientSession
) -> None:
    async def behave(line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> None:
        if len(served.requests) == 2:
            writer.close()
        else:
            writer.write(said(MODELS) if "models" in line else said(COMPLETION))

    served = await serve(behave)
    assert (await prober(session, served).probe(None)).outcome is ProbeOutcome.ANSWERED
    assert paths(served) == ["/v1/models", "/v1/completions", "/v1/completions"]


async def test_a_secret_that_is_not_there_sends_nothing(serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(saying(said(MODELS)))
    probe = await prober(session, served, key=Secret("env:DSOBS_TEST_NO_SUCH_KEY")).probe(None)
    assert probe.outcome is ProbeOutcome.INCONCLUSIVE
    assert "DSOBS_TEST_NO_SUCH_KEY" in probe.detail
    assert served.requests == []


async def test_a_rank_is_named_where_the_form_addresses_it(serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(routes({"/v1/models": said(MODELS), "/v1/completions": said(COMPLETION)}))
    assert (await prober(session, served).probe("3")).engine == "3"
    assert served.requests[-1][1]["x-data-parallel-rank"] == "3"
    embedding = await serve(routes({"/v1/models": said(MODELS), "/v1/embeddings": said(EMBEDDING)}))
    probe = await prober(session, embedding).probe("3")
    assert (probe.outcome, probe.engine) == (ProbeOutcome.ANSWERED, None)


async def test_one_is_in_flight(serve: Serve, session: aiohttp.ClientSession) -> None:
    served = await serve(routes({"/v1/models": said(MODELS), "/v1/completions": said(COMPLETION)}))
    subject = prober(session, served)
    probes = await asyncio.gather(*(subject.probe(None) for _ in range(4)))
    assert {probe.outcome for probe in probes} == {ProbeOutcome.ANSWERED}
    assert served.most_at_once == 1
