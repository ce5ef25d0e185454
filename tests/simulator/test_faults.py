"""What the simulator can do beyond the contract: other ways to fail, several engines, keys, embeddings."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dsobs.simulator.load import Load
from dsobs.simulator.options import parse
from dsobs.simulator.process import SimulatorProcess, free_port
from tests.contracts.engine_contract import PATIENCE, client, complete, scrape, stopped, until

ASK = {"prompt": "why", "max_tokens": 2}


@pytest.fixture(scope="module")
def plain() -> Iterator[SimulatorProcess]:
    """A server that no test harms."""
    with SimulatorProcess("--model-name", "first", "second", "--decode-step-seconds", "0.001") as process:
        yield process


async def ended(pid: int) -> None:
    """Waits until a process that is nobody's child here is gone (or a zombie of init's)."""
    await becomes(pid, {"Z", ""})


async def becomes(pid: int, states: set[str]) -> None:
    """Waits until a process is in one of these states of /proc."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if state(pid) in states:
                return
            await asyncio.sleep(0.02)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_port_is_closed_while_the_model_loads_and_the_log_says_the_cache_size() -> None:
    # It may have loaded already where the test stands still at the wrong moment.
    for seconds in ("0.5", "3", "12"):
        port = free_port()
        with SimulatorProcess("--load-seconds", seconds, port=port, wait=False) as process:
            assert process.wait_for_line("Starting to load model", 60)
            with socket.socket() as sock:
                refused = sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
            process.wait_ready(60)
            assert any("Available KV cache memory: 56.13 GiB" in line for line in process.lines)
            with socket.socket() as sock:
                sock.connect(("127.0.0.1", port))
        if refused:
            break
    assert refused


@pytest.mark.parametrize("code", ["0", "7"])
async def test_exit_code_after_a_crash_is_the_one_asked_for(code: str) -> None:
    with SimulatorProcess("--crash-exit-code", code, "--crash-exit-seconds", "0") as process:
        os.kill(process.core_pids[0], signal.SIGKILL)
        async with client(process.url) as session, session.post("/v1/completions", json=ASK) as answer:
            assert answer.status == 500
        assert await asyncio.to_thread(process.wait_exit, 60) == int(code)


async def test_server_that_fails_to_exit_answers_503_and_500() -> None:
    with SimulatorProcess("--survive-crash", "--crash-exit-seconds", "0") as process:
        os.kill(process.core_pids[0], signal.SIGKILL)
        async with client(process.url) as session:
            for _ in range(2):
                async with session.post("/v1/completions", json=ASK) as answer:
                    assert answer.status == 500
            async with session.get("/health") as answer:
                assert answer.status == 503
        assert process.exit_code is None


@pytest.mark.parametrize("still", [False, True], ids=["running", "stopped"])
async def test_core_dies_with_its_server(*, still: bool) -> None:
    with SimulatorProcess() as process:
        (core,) = process.core_pids
        if still:
            os.kill(core, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGKILL)
        await ended(core)


async def test_orphan_core_outlives_its_server_if_asked() -> None:
    with SimulatorProcess("--orphan-core") as process:
        (core,) = process.core_pids
        os.kill(process.pid, signal.SIGKILL)
        assert await asyncio.to_thread(process.wait_exit, 60) == -signal.SIGKILL
        # It waits for work: at first it may still have to notice that nobody is there.
        await becomes(core, {"S"})
    await ended(core)


def test_terminated_server_ends_with_0_though_its_core_is_stopped() -> None:
    with SimulatorProcess() as process:
        os.kill(process.core_pids[0], signal.SIGSTOP)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait_exit(10) == 0


@pytest.mark.parametrize(("timeout", "tokens"), [("0", False), ("20", True)])
async def test_terminated_server_finishes_what_it_has_only_where_it_is_given_time(
    timeout: str, *, tokens: bool
) -> None:
    with SimulatorProcess("--shutdown-timeout", timeout, "--decode-step-seconds", "0.02") as process:
        async with client(process.url) as session:
            asked = asyncio.create_task(complete(session, {"prompt": "why", "max_tokens": 40}))
            await until(session, lambda v: v("num_requests_running") == 1)
            os.kill(process.pid, signal.SIGTERM)
            (answer,) = await asyncio.gather(asked, return_exceptions=True)
        assert isinstance(answer, dict) is tokens, answer
        assert process.wait_exit(10) == 0


async def test_one_of_two_engines_hangs_and_the_other_goes_on() -> None:
    with SimulatorProcess("--data-parallel-size", "2") as process:
        cores = process.core_pids
        assert len(cores) == 2
        async with client(process.url) as session:
            with stopped(cores[1]):
                for _ in range(2):
                    await complete(session, dict(ASK), **{"X-data-parallel-rank": "0"})
                hung = asyncio.create_task(complete(session, dict(ASK), **{"X-data-parallel-rank": "1"}))
                page = await until(session, lambda v: v("generation_tokens_total", engine="0") == 4)
                assert page("generation_tokens_total", engine="1") == 0
                assert not hung.done()
            await hung


async def test_api_key_guards_v1_only() -> None:
    with SimulatorProcess("--api-key", "sk-1") as process:
        async with client(process.url) as session:
            for path, status in (("/v1/models", 401), ("/health", 200), ("/metrics", 200)):
                async with session.get(path) as answer:
                    assert answer.status == status
            async with session.get("/v1/models", headers={"Authorization": "Bearer sk-1"}) as answer:
                assert answer.status == 200


async def test_embedding_model_embeds_and_knows_no_completions() -> None:
    with SimulatorProcess("--task", "embed") as process:
        async with client(process.url) as session:
            async with session.post("/v1/completions", json=ASK) as answer:
                assert (answer.status, await answer.json()) == (404, {"detail": "Not Found"})
            async with session.post("/v1/embeddings", json={"input": ["why", "now"]}) as answer:
                assert answer.status == 200
                assert len((await answer.json())["data"]) == 2
            page = await until(session, lambda v: v("request_success_total", finished_reason="stop") == 2)
            assert (page("prompt_tokens_total"), page("generation_tokens_total")) == (2, 0)


async def test_every_served_name_works_and_the_first_labels_the_metrics(plain: SimulatorProcess) -> None:
    async with client(plain.url) as session:
        before = await scrape(session)
        for name in ("first", "second"):
            assert (await complete(session, {**ASK, "model": name}))["model"] == name
        total = before("generation_tokens_total") + 4
        await until(session, lambda v: v("generation_tokens_total", model_name="first") == total)


async def test_n_sequences_are_one_request_to_the_client(plain: SimulatorProcess) -> None:
    async with client(plain.url) as session:
        before = await scrape(session)
        answer = await complete(session, {**ASK, "prompt": ["why", "now"], "n": 2})
        choices = answer["choices"]
        assert isinstance(choices, list)
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        page = await until(session, lambda v: v("request_success_total") - before("request_success_total") == 4)
    assert page("request_params_n_sum") - before("request_params_n_sum") == 4
    name = "request_max_num_generation_tokens_count"
    assert page(name) - before(name) == 2


async def test_stop_string_ends_the_answer_and_the_work(plain: SimulatorProcess) -> None:
    async with client(plain.url) as session:
        answer = await complete(session, {"prompt": "why", "max_tokens": 5000, "stop": ["e", "a", "n"]})
        choices = answer["choices"]
        assert isinstance(choices, list)
        assert choices[0]["finish_reason"] == "stop"
        await until(session, lambda v: v("num_requests_running") == 0)


async def test_load_asks_until_it_is_stopped(plain: SimulatorProcess) -> None:
    load = Load(plain.url, clients=3, prompt_tokens=(1, 4), max_tokens=(1, 4))
    async with client(plain.url) as session:
        before = await scrape(session)
        task = asyncio.create_task(load.run(PATIENCE))
        await until(session, lambda v: v("request_success_total") - before("request_success_total") >= 10)
        load.stopped.set()
        await task
    assert load.done >= 7
    assert load.failed == 0


async def test_load_counts_refused_requests_as_failed() -> None:
    load = Load(f"http://127.0.0.1:{free_port()}", clients=1)
    await load.run(0.3)
    assert load.done == 0
    assert load.failed >= 1


def test_second_server_on_a_port_says_so() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        command = [sys.executable, "-m", "dsobs.simulator", "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}: Address already in use" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --port"),
        (["--port", "70000"], "--port must be 0 to 65535, got 70000"),
        (["--port", "1", "--decode-step-seconds", "-1"], "--decode-step-seconds must not be negative, got -1.0"),
        (["--port", "1", "--max-num-seqs", "0"], "--max-num-seqs must be more than 0, got 0"),
        (["--port", "1", "--num-gpu-blocks", "10"], "give at least 2049, or a smaller --max-model-len"),
        (["--port", "1", "--vllm-version", "0.9"], "invalid choice: '0.9'"),
        (["--port", "1", "--crash-exit-code", "256"], "--crash-exit-code must be 0 to 255, got 256"),
    ],
)
def test_senseless_options_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_nan_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--port", "1", "--decode-step-seconds", "nan"])
    assert "--decode-step-seconds must be a number" in capsys.readouterr().err
