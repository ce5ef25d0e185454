"""The last lines of both logs: read only when asked for, never with secrets, prompts or colours."""

import asyncio
import logging

import pytest

from dsobs.model.clock import ManualClock
from dsobs.model.observation import Unknown
from dsobs.model.runtime import Runtime
from dsobs.sidecar.log_tails import LogTails, shown
from tests.contracts.fake_runtime import FakeRuntime


class Talking(FakeRuntime):
    """Its engine writes; how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    async def log_tail(self, lines: int) -> list[str] | Unknown:
        self.asked += 1
        return [f"line {n}" for n in range(lines + 5)]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("\x1b[0;36m(APIServer pid=1)\x1b[0m INFO ready", "(APIServer pid=1) INFO ready"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer [bearer]"),
        ("started with --api-key=SUPERSECRETVALUE", "started with --api-key=[api_key]"),
        ("request r1: prompt: 'my diary', params", "request r1: prompt: [prompt], params"),
        ("user a.b@example.org asked", "user [email] asked"),
        ("x" * 600, "x" * 499 + "…"),
    ],
)
def test_a_line_is_shown_without_colours_secrets_prompts_and_excess(line: str, told: str) -> None:
    assert shown(line) == told


async def test_the_engines_log_is_asked_for_only_while_somebody_looks_and_at_most_each_5_s() -> None:
    clock, runtime = ManualClock(1000.0), Talking()
    found: Runtime | Unknown = runtime
    tails = LogTails(lambda: found, clock, 10)
    assert runtime.asked == 0
    assert tails.read()[0].unknown == "not read yet"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    engine = tails.read()[0]
    assert (engine.unknown, len(engine.lines), engine.lines[-1]) == ("", 10, "line 14")
    for _ in range(3):
        tails.read()
        await asyncio.sleep(0)
    assert runtime.asked == 1
    clock.advance(5.0)
    tails.read()
    await asyncio.sleep(0)
    assert runtime.asked == 2
    await tails.close()


async def test_without_a_runtime_the_engines_log_is_unknown_with_the_reason() -> None:
    tails = LogTails(lambda: Unknown("no runtime configured"), ManualClock(1000.0), 10)
    tails.read()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert tails.read()[0].unknown == "no runtime configured"
    await tails.close()


async def test_of_its_own_log_so_many_lines_are_kept_and_0_keeps_and_shows_none() -> None:
    tails = LogTails(lambda: Unknown("none"), ManualClock(1000.0), 3)
    tails.begin()
    log = logging.getLogger("dsobs.test")
    for n in range(5):
        log.warning("line %d password=hunter22", n)
    own = tails.read()[1]
    assert [line.partition(" ")[2] for line in own.lines] == [f"WARNING line {n} password=[api_key]" for n in (2, 3, 4)]
    tails.configure(0)
    log.warning("another")
    assert {tail.unknown for tail in tails.read()} == {"not shown (api.log_lines)"}
    assert not [handler for handler in logging.getLogger("dsobs").handlers if type(handler).__name__ == "OwnLog"]
    await tails.close()
