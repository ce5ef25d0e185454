"""The last lines of both logs: read only when asked for, never with secrets, prompts or colours."""

import asyncio
import logging
import os
from pathlib import Path

import pytest

from dsobs.config.logs import Logs
from dsobs.model.clock import ManualClock
from dsobs.model.observation import Unknown
from dsobs.model.runtime import Runtime
from dsobs.sidecar.log_tails import EngineTail, LogTails, engine_tail, shown
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
    tails = LogTails(lambda: found, clock, 10, Logs())
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
    tails = LogTails(lambda: Unknown("no runtime configured"), ManualClock(1000.0), 10, Logs())
    tails.read()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert tails.read()[0].unknown == "no runtime configured"
    await tails.close()


async def test_of_its_own_log_so_many_lines_are_kept_and_0_keeps_and_shows_none() -> None:
    tails = LogTails(lambda: Unknown("none"), ManualClock(1000.0), 3, Logs())
    tails.begin()
    log = logging.getLogger("dsobs.test")
    for n in range(5):
        log.warning("line %d password=hunter22", n)
    own = tails.read()[1]
    assert [line.partition(" ")[2] for line in own.lines] == [f"WARNING line {n} password=[api_key]" for n in (2, 3, 4)]
    tails.configure(0, Logs())
    log.warning("another")
    assert {tail.unknown for tail in tails.read()} == {"not shown (api.log_lines)"}
    assert not [handler for handler in logging.getLogger("dsobs").handlers if type(handler).__name__ == "OwnLog"]
    await tails.close()


NOBODY = Unknown("no supervisor, and nobody else keeps the output of a process")


async def test_where_no_runtime_keeps_the_log_the_newest_file_that_is_shipped_is_read(tmp_path: Path) -> None:
    old, new = tmp_path / "a.log", tmp_path / "b.log"
    old.write_text("old\n")
    new.write_bytes(b"first\n" + b"x" * 300_000 + b"\n\xff\nlast\n")
    os.utime(old, (1000.0, 1000.0))
    logs = Logs(files=(f"plain:{tmp_path}/*.log",))
    assert await engine_tail(NOBODY, logs, 2) == EngineTail(("\ufffd", "last"), str(new))
    left_out = logs.model_copy(update={"exclude": (str(new),)})
    assert await engine_tail(NOBODY, left_out, 2) == EngineTail(("old",), str(old))
    assert await engine_tail(Talking(), logs, 2) == EngineTail(("line 5", "line 6"), "")
    found: Runtime | Unknown = NOBODY
    tails = LogTails(lambda: found, ManualClock(1000.0), 10, logs)
    tails.read()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()}, timeout=60)
    told = tails.read()[0]
    assert (told.lines[-1], told.file, told.unknown) == ("last", str(new), "")
    await tails.close()


async def test_where_there_is_no_file_either_both_are_said(tmp_path: Path) -> None:
    assert await engine_tail(NOBODY, Logs(), 5) == NOBODY
    (tmp_path / "folder.log").mkdir()
    told = await engine_tail(NOBODY, Logs(files=(f"{tmp_path}/*.log",)), 5)
    assert told == Unknown(f"{NOBODY.reason}; no file of logs.files can be read either")
