"""One prefill far longer than the threshold, alone on a real vLLM: tokens stand still for a minute, and it is no hang.

LONG_TESTS=1 takes a model three times as deep: minutes of it, and steps that are longer than the least threshold.
"""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from dsobs.collectors.engines.vllm import Vllm
from dsobs.recorder.flight import FlightRecorder
from dsobs.series.exposition import Parser
from dsobs.signals.progress import readings_by_engine
from tests.acceptance.scene import Scene, scene
from tests.real.vllm import SCRIPT, install

pytestmark = pytest.mark.real("vllm")
LONG = os.environ.get("LONG_TESTS") == "1"
SHAPE = "48x1024" if LONG else "16x1024"
PROMPTS = (15_000, 28_000)
"""Tokens; the second where a fast machine is through with the first before it has stood still for long enough."""
LEAST_STANDSTILL_SECONDS = 30.0
MIDDLE_SECONDS = LEAST_STANDSTILL_SECONDS + 5.0
"""dsobs looks once a second, or less often where the machine is at work."""
OUTPUT = ("steps", "prompt_tokens", "generation_tokens", "finished")
SIGNALS = (*OUTPUT, "kv_usage", "running", "waiting", "prefix_queries", "preemptions")


async def ask(here: Scene, prompt: int, seconds: float) -> int | None:
    """A request of so many prompt tokens and one of output: its status, None for a time-out."""
    body = {"model": "deepseek-r1-7b", "prompt": [5] * prompt, "max_tokens": 1}
    limit = aiohttp.ClientTimeout(total=seconds)
    try:
        async with here.session.post(f"{here.url}/v1/completions", json=body, timeout=limit) as answer:
            if answer.status == 200:
                assert (await answer.json())["usage"]["prompt_tokens"] == prompt
            return answer.status
    except TimeoutError:
        return None


def readings(state: Path) -> Iterator[tuple[float, dict[str, float]]]:
    """(Time, progress signals) of each page in dsobs's own flight recorder."""
    parser, adapter = Parser(), Vllm()
    for record in FlightRecorder(state / "flight", 0).recent(0.0):
        if "failure" not in record:
            for values in readings_by_engine(adapter.canonical(parser.parse(record["metrics"]))).values():
                yield record["t"], values


def longest_standstill(state: Path, signals: tuple[str, ...]) -> float:
    """Seconds for which none of the signals moved with a request running."""
    longest, since, before = 0.0, 0.0, None
    for at, values in readings(state):
        now = tuple(values.get(name) for name in signals)
        if now != before or not values["running"]:
            before, since = now, at
        longest = max(longest, at - since)
    return longest


async def test_first_requests_and_then_a_prefill_of_15000_tokens_in_chunks_of_512_are_left_alone(
    tmp_path: Path,
) -> None:
    await asyncio.to_thread(install)
    async with scene(tmp_path) as here:
        flags = ("--max-model-len", "30000", "--max-num-batched-tokens", "512", "--no-enable-prefix-caching")
        command = ("bash", str(SCRIPT), "serve", "{port}", *flags)
        await here.start_engine(*command, ready=400.0, environ={"VLLM_CPU_MODEL": SHAPE})
        await here.start_dsobs()
        # The first request after the start, with no warm-up.
        assert await ask(here, 5, 240.0) == 200
        for prompt in PROMPTS:
            begun = time.monotonic()
            prefill = asyncio.ensure_future(ask(here, prompt, 1800.0))
            await asyncio.wait([prefill], timeout=MIDDLE_SECONDS)
            # What a naive detector would take as its proof.
            unanswered = not prefill.done() and await ask(here, 1, 3.0) is None
            was_in_the_middle = unanswered and not prefill.done()
            assert await prefill == 200
            took = time.monotonic() - begun
            if was_in_the_middle:
                break
        assert was_in_the_middle, f"the last prefill took {took:.0f} s only"
        await here.turns(5)
        here.left_alone()
        probes = here.happened("probe-sent"), here.happened("probe-timeout")
    tokens, anything = (longest_standstill(tmp_path / "state", names) for names in (OUTPUT, SIGNALS))
    print(f"prefill {took:.0f} s; tokens stood still {tokens:.0f} s, every signal {anything:.0f} s; probes {probes}")
    assert tokens > LEAST_STANDSTILL_SECONDS
