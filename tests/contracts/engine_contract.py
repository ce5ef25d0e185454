"""What dsobs relies on in an inference server: the simulator passes it, and real vLLM does.

A subclass gives the class-scoped fixture `server`, started in dev mode with `--max-num-batched-tokens 512`, with
a `--max-model-len` of 16,384 or more, and a prefill that takes half a second or more for 12,000 tokens. The last test
kills it.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from dsobs.simulator.metrics import TOKEN_HISTOGRAMS, token_bounds
from dsobs.simulator.process import ServerProcess

DATA = Path(__file__).parent.parent / "data"
PATIENCE = 60.0
PROMPT = [5, 9, 17, 33, 65, 129, 257]
LONG_PROMPT_TOKENS = 12_000
ALL_TOKENS = list(range(2, 512))
"""The simulator's vocabulary, and that of the model of tests/real/vllm-cpu.sh."""

Json = dict[str, object]


@dataclass
class ServedModel:
    """A running server under test."""

    process: ServerProcess
    model: str
    captured_page: str
    """Text of a page of the real server of that version."""

    @property
    def url(self) -> str:
        return self.process.url


@dataclass
class Shape:
    """What a page says about one family, apart from the values."""

    type: str
    help: str
    label_names: set[frozenset[str]] = field(default_factory=set)
    label_values: dict[str, set[str]] = field(default_factory=dict)
    sample_names: set[str] = field(default_factory=set)


_SAMPLE = re.compile(r"([^\s{]+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_PROCESS_SPECIFIC = ("http_", "vllm:sleep_mode_operation")
"""Families whose series depend on which requests have come."""
_VALUES_OF_ITS_OWN = ("vllm:cache_config_info", "python_info")


def shapes(page: str) -> dict[str, Shape]:
    """Families of a page by name, in its order."""
    found: dict[str, Shape] = {}
    current = Shape("", "")
    for line in page.splitlines():
        if line.startswith("# HELP "):
            name, _, text = line[7:].partition(" ")
            current = found[name] = Shape("", text)
        elif line.startswith("# TYPE "):
            current.type = line.split()[3]
        else:
            match = _SAMPLE.match(line)
            assert match, line
            labels = dict(_LABEL.findall(match[2] or ""))
            current.label_names.add(frozenset(labels))
            current.sample_names.add(match[1])
            for label, value in labels.items():
                current.label_values.setdefault(label, set()).add(value)
    return found


class Values:
    """A page's values, added up over the series that match."""

    def __init__(self, page: str) -> None:
        self.text = page
        self._samples = [
            (match[1], match[2] or "", float(match[3]))
            for line in page.splitlines()
            if not line.startswith("#") and (match := _SAMPLE.match(line))
        ]

    def __call__(self, name: str, **labels: str) -> float:
        full = name if name.startswith(("process_", "http_")) else "vllm:" + name
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        values = [
            value for sample, text, value in self._samples if sample == full and all(pair in text for pair in wanted)
        ]
        assert values, f"no sample {full} {labels}"
        return sum(values)


@asynccontextmanager
async def client(url: str, **headers: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A session whose requests end after PATIENCE."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(url, timeout=timeout, headers=headers) as session:
        yield session


async def scrape(session: aiohttp.ClientSession) -> Values:
    """The metrics page now."""
    async with session.get("/metrics") as answer:
        assert answer.status == 200
        return Values(await answer.text())


async def until(session: aiohttp.ClientSession, holds: Callable[[Values], bool]) -> Values:
    """The first page that satisfies `holds`; fails after PATIENCE."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if holds(values := await scrape(session)):
                return values
            await asyncio.sleep(0.02)


async def complete(session: aiohttp.ClientSession, body: Json, **headers: str) -> Json:
    """The answer to a completion that succeeds."""
    async with session.post("/v1/completions", json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        value = await answer.json()
    assert isinstance(value, dict)
    return value


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still inside."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def gone(awaitable: Awaitable[object]) -> None:
    """Waits for the end of a cancelled task."""
    with pytest.raises(asyncio.CancelledError):
        await awaitable


def begun_at(pid: int) -> float:
    """When a process started, Unix seconds; the kernel tells when it was booted to a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return int(booted.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def name_of(pid: int) -> str:
    """The name the kernel shows, 15 characters at most."""
    return Path(f"/proc/{pid}/comm").read_text().strip()


def progress(values: Values) -> tuple[float, ...]:
    """What an engine core's work moves."""
    names = ("generation_tokens_total", "prompt_tokens_total", "iteration_tokens_total_count", "kv_cache_usage_perc")
    return tuple(values(name) for name in (*names, "num_requests_running", "num_requests_waiting"))


LONG_ANSWERS = (300, 1200, 4800, 15_000)
"""Tokens. One that is over before it is stopped, on a fast machine or in a stalled test, is asked for anew."""


@asynccontextmanager
async def at_work(session: aiohttp.ClientSession, body: Json) -> AsyncIterator["asyncio.Task[Json]"]:
    """A request that the engine has begun to answer when the context begins."""
    before = await scrape(session)
    task = asyncio.create_task(complete(session, body))
    await until(session, lambda v: v("generation_tokens_total") > before("generation_tokens_total"))
    try:
        yield task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])


async def standstill(session: aiohttp.ClientSession) -> Values:
    """The first page on which half a second has moved nothing: what was in the pipe has arrived by then."""
    async with asyncio.timeout(PATIENCE):
        values = await scrape(session)
        while True:
            await asyncio.sleep(0.5)
            before, values = values, await scrape(session)
            if progress(values) == progress(before):
                return values


class EngineContract:
    """The suite."""

    def body(self, server: ServedModel, tokens: int, **more: object) -> Json:
        return {"model": server.model, "prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True, **more}

    async def test_page_has_the_families_of_the_captured_page(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            now = shapes((await scrape(session)).text)
            async with session.get("/v1/models") as answer:
                max_model_len = (await answer.json())["data"][0]["max_model_len"]
        then = shapes(server.captured_page)
        for name in TOKEN_HISTOGRAMS:
            then[name].label_values["le"] = set(token_bounds(max_model_len))
        fixed = {name for name in then if not name.startswith(_PROCESS_SPECIFIC)}
        assert fixed <= set(now)
        assert [name for name in now if name in fixed] == [name for name in then if name in fixed]
        for name in fixed:
            assert (now[name].type, now[name].help) == (then[name].type, then[name].help)
            assert now[name].sample_names == then[name].sample_names
            assert now[name].label_names == then[name].label_names, name
            if name not in _VALUES_OF_ITS_OWN:
                assert now[name].label_values == then[name].label_values, name

    async def test_http_families_appear_with_the_first_request_that_counts(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            await complete(session, self.body(server, 1))
            before = await until(session, lambda v: v("http_requests_total", handler="/v1/completions") >= 1)
            await complete(session, self.body(server, 1))
            labels = {"handler": "/v1/completions", "method": "POST"}
            after = await until(
                session,
                lambda v: (
                    v("http_requests_total", status="2xx", **labels)
                    > before("http_requests_total", status="2xx", **labels)
                ),
            )
        now, then = shapes(after.text), shapes(server.captured_page)
        for name in (name for name in then if name.startswith("http_")):
            assert (now[name].type, now[name].help) == (then[name].type, then[name].help)
        count = "http_request_duration_seconds_count"
        assert after(count, **labels) == before(count, **labels) + 1
        assert 'handler="/metrics"' not in after.text
        assert 'handler="/health"' not in after.text

    async def test_a_request_moves_each_counter_by_its_own_amount(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            before = await scrape(session)
            answer = await complete(session, self.body(server, 5))
            counted = before("request_success_total")
            after = await until(
                session,
                lambda v: (
                    v("request_success_total") > counted
                    and v("num_requests_running") == 0
                    and v("kv_cache_usage_perc") == 0
                ),
            )
        assert answer["usage"] is not None
        moved = {
            "prompt_tokens_total": 7,
            "generation_tokens_total": 5,
            "prefix_cache_queries_total": 7,
            "time_to_first_token_seconds_count": 1,
            "inter_token_latency_seconds_count": 4,
            "e2e_request_latency_seconds_count": 1,
            "request_queue_time_seconds_count": 1,
            "request_prefill_time_seconds_count": 1,
            "request_decode_time_seconds_count": 1,
            "request_inference_time_seconds_count": 1,
            "request_time_per_output_token_seconds_count": 1,
            "request_prompt_tokens_sum": 7,
            "request_generation_tokens_sum": 5,
            "request_prefill_kv_computed_tokens_sum": 7,
            "request_max_num_generation_tokens_sum": 5,
            "request_params_max_tokens_sum": 5,
            "request_params_n_sum": 1,
            "iteration_tokens_total_count": 5,
            "iteration_tokens_total_sum": 12,
            "num_preemptions_total": 0,
        }
        assert {name: after(name) - before(name) for name in moved} == moved
        for reason, times in {"length": 1, "stop": 0, "abort": 0, "error": 0}.items():
            name = "request_success_total"
            assert after(name, finished_reason=reason) - before(name, finished_reason=reason) == times
        e2e = after("e2e_request_latency_seconds_sum") - before("e2e_request_latency_seconds_sum")
        ttft = after("time_to_first_token_seconds_sum") - before("time_to_first_token_seconds_sum")
        assert 0 < ttft <= e2e < PATIENCE

    async def test_one_token_is_answered(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            answer = await complete(session, self.body(server, 1))
        usage = answer["usage"]
        assert isinstance(usage, dict)
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (7, 1, 8)

    async def test_stop_token_finishes_with_stop(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            before = await scrape(session)
            answer = await complete(session, self.body(server, 50, stop_token_ids=ALL_TOKENS))
            counted = before("request_success_total")
            after = await until(session, lambda v: v("request_success_total") > counted)
        choices = answer["choices"]
        assert isinstance(choices, list)
        assert choices[0]["finish_reason"] == "stop"
        name = "request_success_total"
        assert after(name, finished_reason="stop") - before(name, finished_reason="stop") == 1

    @pytest.mark.parametrize("chat", [False, True], ids=["completion", "chat"])
    async def test_streaming_streams_and_ends_with_usage_and_done(self, server: ServedModel, *, chat: bool) -> None:
        path = "/v1/completions"
        more: Json = {}
        if chat:
            path = "/v1/chat/completions"
            more = {"messages": [{"role": "user", "content": "why"}]}
        shares: list[float] = []
        # A first token may be late, and tokens may come together, for reasons that are not the server's: the best of up
        # to four answers, each longer than the one before.
        for tokens in (30, 90, 300, 900):
            body = self.body(server, tokens, stream=True, stream_options={"include_usage": True}, **more)
            if chat:
                del body["prompt"]
            events: list[str] = []
            arrived: list[float] = []
            begun = time.monotonic()
            async with client(server.url) as session, session.post(path, json=body) as answer:
                assert answer.status == 200
                assert answer.headers["Content-Type"].startswith("text/event-stream")
                async for line in answer.content:
                    text = line.decode().strip()
                    if text:
                        events.append(text.removeprefix("data: "))
                        arrived.append(time.monotonic())
            assert events[-1] == "[DONE]"
            last = json.loads(events[-2])
            assert last["choices"] == []
            assert last["usage"]["completion_tokens"] == tokens
            assert json.loads(events[-3])["choices"][0]["finish_reason"] == "length"
            if len(events) >= 10:
                shares.append((arrived[-1] - arrived[0]) / (arrived[-1] - begun))
            if max(shares, default=0.0) > 1 / 3:
                break
        # Of the time that it takes, tokens come for more than a third, and in ten pieces or more.
        assert max(shares, default=0.0) > 1 / 3

    async def test_unknown_model_is_404_and_counts_no_request(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            before = await scrape(session)
            async with session.post("/v1/completions", json={**self.body(server, 1), "model": "other"}) as answer:
                assert answer.status == 404
                problem = (await answer.json())["error"]
            after = await scrape(session)
        assert problem["type"] == "NotFoundError"
        assert problem["message"] == f"The model `other` does not exist. Valid aliases: {server.model}."
        assert after("prompt_tokens_total") == before("prompt_tokens_total")

    @pytest.mark.parametrize("change", [{"max_tokens": 0}, {"max_tokens": 10**6}, {"prompt": None}])
    async def test_nonsense_is_400(self, server: ServedModel, change: Mapping[str, object]) -> None:
        async with (
            client(server.url) as session,
            session.post("/v1/completions", json={**self.body(server, 1), **change}) as answer,
        ):
            assert answer.status == 400
            assert (await answer.json())["error"]["type"] == "BadRequestError"

    async def test_rank_out_of_range_is_400(self, server: ServedModel) -> None:
        headers = {"X-data-parallel-rank": "7"}
        async with (
            client(server.url) as session,
            session.post("/v1/completions", json=self.body(server, 1), headers=headers) as answer,
        ):
            assert answer.status == 400
            assert (await answer.json())["error"]["message"] == "data_parallel_rank 7 is out of range [0, 1)."

    async def test_request_id_of_the_client_is_kept(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            answer = await complete(session, self.body(server, 1), **{"X-Request-Id": "dsobs-probe-1"})
        assert answer["id"] == "cmpl-dsobs-probe-1"

    async def test_models_names_the_served_model(self, server: ServedModel) -> None:
        async with client(server.url) as session, session.get("/v1/models") as answer:
            models = (await answer.json())["data"]
        assert [model["id"] for model in models] == [server.model]
        assert models[0]["max_model_len"] >= LONG_PROMPT_TOKENS

    async def test_embeddings_are_unknown_to_a_generating_model(self, server: ServedModel) -> None:
        body = {"model": server.model, "input": "why"}
        async with client(server.url) as session, session.post("/v1/embeddings", json=body) as answer:
            assert answer.status == 404
            assert await answer.json() == {"detail": "Not Found"}

    async def test_process_start_time_is_that_of_the_api_server(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            values = await scrape(session)
        assert values("process_start_time_seconds") == pytest.approx(begun_at(server.process.pid), abs=2)

    @pytest.mark.parametrize("stream", [False, True])
    async def test_leaving_client_frees_the_engine_and_counts_nothing_finished(
        self, server: ServedModel, *, stream: bool
    ) -> None:
        async with client(server.url) as session:
            before = await scrape(session)

            async def ask() -> None:
                async with session.post("/v1/completions", json=self.body(server, 8000, stream=stream)) as answer:
                    await answer.read()

            task = asyncio.create_task(ask())
            await until(session, lambda v: v("generation_tokens_total") > before("generation_tokens_total"))
            task.cancel()
            await gone(task)
            after = await until(session, lambda v: v("num_requests_running") == 0 and v("kv_cache_usage_perc") == 0)
        assert after("request_success_total") == before("request_success_total")
        assert after("time_to_first_token_seconds_count") == before("time_to_first_token_seconds_count") + 1

    async def test_chunked_prefill_moves_nothing_but_kv_usage(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            # Another prompt each time, of which nothing is cached. On a fast machine, or where the test stands still,
            # one may be over before three of its steps were seen.
            for attempt in range(8):
                prompt = [3 + attempt + i * 7 % 490 for i in range(LONG_PROMPT_TOKENS)]
                usages = await self.one_prefill(session, server, prompt)
                if len(usages) >= 3:
                    break
        assert len(usages) >= 3

    async def one_prefill(self, session: aiohttp.ClientSession, server: ServedModel, prompt: list[int]) -> set[float]:
        """The values of the KV usage that were seen in its middle, while nothing else moved."""
        before = await scrape(session)
        task = asyncio.create_task(complete(session, {"model": server.model, "prompt": prompt, "max_tokens": 1}))
        usages: set[float] = set()
        moved: set[tuple[float, ...]] = set()
        while not task.done():
            values = await scrape(session)
            if values("num_requests_running") == 1 and values("prompt_tokens_total") == before("prompt_tokens_total"):
                usages.add(values("kv_cache_usage_perc"))
                moved.add(
                    (
                        values("iteration_tokens_total_count"),
                        values("generation_tokens_total"),
                        values("prefix_cache_queries_total"),
                    )
                )
            await asyncio.sleep(0.02)
        await task
        after = await until(
            session,
            lambda v: v("num_requests_running") == 0 and v("prompt_tokens_total") > before("prompt_tokens_total"),
        )
        assert len(moved) <= 1
        assert after("prompt_tokens_total") - before("prompt_tokens_total") == LONG_PROMPT_TOKENS
        assert after("iteration_tokens_total_count") - before("iteration_tokens_total_count") == 1
        return usages

    async def test_sleep_shows_in_the_sleep_state_and_requests_wait(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            awake = await scrape(session)
            assert awake("engine_sleep_state", sleep_state="awake") == 1
            async with session.post("/sleep?level=0") as answer:
                assert answer.status == 200
            async with session.get("/is_sleeping") as answer:
                assert await answer.json() == {"is_sleeping": True}
            asleep = await scrape(session)
            assert asleep("engine_sleep_state", sleep_state="awake") == 0
            task = asyncio.create_task(complete(session, self.body(server, 1)))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(task), 0.5)
            async with session.post("/wake_up") as answer:
                assert answer.status == 200
            await task
            assert (await scrape(session))("engine_sleep_state", sleep_state="awake") == 1

    async def test_pause_keeps_requests_where_they_are_until_resume(self, server: ServedModel) -> None:
        async with client(server.url) as session:
            async with session.get("/is_paused") as answer:
                assert await answer.json() == {"is_paused": False}
            for tokens in LONG_ANSWERS:
                async with at_work(session, self.body(server, tokens)) as task:
                    try:
                        async with session.post("/pause?mode=keep") as answer:
                            assert (answer.status, await answer.json()) == (200, {"status": "paused"})
                        async with session.get("/is_paused") as answer:
                            assert await answer.json() == {"is_paused": True}
                        paused = await standstill(session)
                        if task.done():
                            continue
                        with pytest.raises(TimeoutError):
                            await asyncio.wait_for(asyncio.shield(task), 0.5)
                        assert progress(await scrape(session)) == progress(paused)
                        assert paused("num_requests_running") == 1
                        assert paused("engine_sleep_state", sleep_state="awake") == 1
                    finally:
                        async with session.post("/resume") as answer:
                            assert (answer.status, await answer.json()) == (200, {"status": "resumed"})
                    await task
                    return
        pytest.fail("each answer was over before the pause")

    async def test_a_stopped_core_does_not_say_whether_it_is_paused(self, server: ServedModel) -> None:
        (core,) = server.process.core_pids
        async with client(server.url) as session:
            with stopped(core), pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5), session.get("/is_paused"):
                    pass
            async with session.get("/is_paused") as answer:
                assert await answer.json() == {"is_paused": False}

    async def test_stopped_core_keeps_health_at_200_and_freezes_the_numbers(self, server: ServedModel) -> None:
        (core,) = server.process.core_pids
        async with client(server.url) as session:
            for tokens in LONG_ANSWERS:
                async with at_work(session, self.body(server, tokens)) as task:
                    with stopped(core):
                        frozen = progress(await standstill(session))
                        if task.done():
                            continue
                        # It does not wait for the core; what else the machine does may hold up one answer or another.
                        assert min([await self.healthy_after(session) for _ in range(5)]) < 0.5
                        probe = asyncio.create_task(complete(session, self.body(server, 1)))
                        with pytest.raises(TimeoutError):
                            await asyncio.wait_for(asyncio.shield(probe), 0.7)
                        later = await scrape(session)
                        assert later("num_requests_running") == 1
                        assert progress(later) == frozen
                    answers = await asyncio.gather(task, probe)
                    assert [answer["object"] for answer in answers] == ["text_completion"] * 2
                    return
        pytest.fail("each answer was over before the core was stopped")

    async def healthy_after(self, session: aiohttp.ClientSession) -> float:
        """Seconds until /health says 200."""
        begun = time.monotonic()
        async with session.get("/health") as answer:
            assert answer.status == 200
        return time.monotonic() - begun

    async def test_core_stopped_while_idle_shows_no_outstanding_request(self, server: ServedModel) -> None:
        (core,) = server.process.core_pids
        async with client(server.url) as session:
            await until(session, lambda v: v("num_requests_running") == 0)
            with stopped(core):
                probe = asyncio.create_task(complete(session, self.body(server, 1)))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(probe), 0.5)
                values = await scrape(session)
                assert values("num_requests_running") == values("num_requests_waiting") == 0
            await probe

    async def test_killed_core_fails_requests_then_the_server_exits_and_refuses(self, server: ServedModel) -> None:
        (core,) = server.process.core_pids
        assert name_of(core) == "VLLM::EngineCor"

        streaming = asyncio.Event()

        async def ask(session: aiohttp.ClientSession, *, stream: bool) -> tuple[int, str]:
            async with session.post("/v1/completions", json=self.body(server, 16_000, stream=stream)) as answer:
                if stream:
                    streaming.set()
                return answer.status, await answer.text()

        async with client(server.url) as session:
            before = await scrape(session)
            tasks = [asyncio.create_task(ask(session, stream=stream)) for stream in (False, True)]
            await asyncio.wait_for(streaming.wait(), PATIENCE)
            await until(
                session,
                lambda v: (
                    v("num_requests_running") == 2
                    and v("generation_tokens_total") > before("generation_tokens_total") + 2
                ),
            )
            os.kill(core, signal.SIGKILL)
            (status, text), (stream_status, stream_text) = await asyncio.gather(*tasks)
            assert status == 500
            assert json.loads(text)["error"]["type"] == "InternalServerError"
            assert stream_status == 200
            assert '"code":500' in stream_text.replace(" ", "")
            code = await asyncio.to_thread(server.process.wait_exit, PATIENCE)
            assert code == self.crash_exit_code, code
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get("/health")

    crash_exit_code: int = 0
    """vLLM 0.32 ends as after a normal shutdown; an exit code of 0 says nothing about a crash."""
