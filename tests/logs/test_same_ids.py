"""A record has the same id and goes to the same stream after a restart, a rename, and a loss of the state."""

import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from dsobs.logs.checkpoint import read_checkpoints
from dsobs.state import StateDb
from tests.elasticsearch_stand_in import ElasticsearchStandIn
from tests.logs.shipping import QUICK, append, lines, move, named, settings, ship_once, shipping, until

PATIENT = replace(QUICK, flush=3600.0)
"""A record that may go on is held for ever."""
HEAD = "(EngineCore pid=7) {} 11-24 08:00:00 [core.py:1] {}\n"
TRACE = ("Traceback (most recent call last):\n", '  File "a.py", line 1\n', "    raise\n", "ValueError: broken\n")


@pytest.fixture
async def server() -> AsyncIterator[ElasticsearchStandIn]:
    async with ElasticsearchStandIn() as stand_in:
        yield stand_in


@pytest.mark.parametrize("cut", range(len(TRACE) + 1))
@pytest.mark.fault(11)
async def test_a_stop_in_the_middle_of_a_record_of_several_lines_leaves_it_whole(
    server: ElasticsearchStandIn, tmp_path: Path, cut: int
) -> None:
    log = tmp_path / "app.log"
    trace = [HEAD.format("ERROR", "failed"), *(f"(EngineCore pid=7) {line}" for line in TRACE)]
    append(log, HEAD.format("INFO", "before") + "".join(trace[:cut]))
    wanted = settings(server.url, f"auto:{log}")
    async with shipping(wanted, tmp_path / "state", pace=PATIENT):
        await until(lambda: server.messages() == ["before"])
    append(log, "".join(trace[cut:]) + HEAD.format("INFO", "after"))
    async with shipping(wanted, tmp_path / "state", pace=PATIENT):
        await until(lambda: len(server.documents) == 3)
    whole = next(doc for doc in server.documents.values() if doc["message"] == "failed")
    assert whole["error.stack_trace"] == "".join(TRACE).rstrip()
    assert server.duplicates == 0
    await ship_once(wanted, tmp_path / "lost and made anew")
    assert (server.duplicates, len(server.documents)) == (3, 3)


async def test_a_file_that_is_renamed_while_dsobs_is_stopped_keeps_its_ids(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log, older = tmp_path / "app.log", tmp_path / "older"
    append(log, lines(1))
    wanted = settings(server.url, tmp_path / "*.log")
    await ship_once(wanted, tmp_path / "state")
    shutil.copytree(tmp_path / "state", older)
    append(log, lines(2, 3))
    await ship_once(wanted, tmp_path / "state")
    move(log, tmp_path / "renamed.log")
    append(tmp_path / "renamed.log", lines(4))
    # As after a power loss that took the last transaction: lines 2 and 3 are sent again.
    await ship_once(wanted, older)
    assert sorted(server.messages()) == named(1, 2, 3, 4)
    assert server.duplicates == 2


async def test_a_file_stays_in_its_stream_when_what_came_later_speaks_for_another(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, "warming up\n")
    wanted = settings(server.url, f"auto:{log}", index="")
    async with shipping(wanted, tmp_path / "state"):
        await until(lambda: len(server.documents) == 1)
        append(log, HEAD.format("INFO", "x"))
        await until(lambda: len(server.documents) == 2)
    append(log, HEAD.format("INFO", "y"))
    async with shipping(wanted, tmp_path / "state"):
        await until(lambda: len(server.documents) == 3)
    assert {index for index, _ in server.documents} == {"logs-dsobs.plain-default"}
    (kept,) = read_checkpoints(tmp_path / "state" / "logs.db")
    assert kept.decided == ":/plain/lines"


async def test_a_file_stays_in_its_stream_when_its_name_speaks_for_another(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    append(log, "".join(f"text {n}\n" for n in range(300)))
    wanted = settings(server.url, f"auto:{tmp_path}/*.log", index="")
    await ship_once(wanted, tmp_path / "state")
    move(log, tmp_path / "vllm.log")
    append(tmp_path / "vllm.log", "text 300\n")
    await ship_once(wanted, tmp_path / "state")
    assert {index for index, _ in server.documents} == {"logs-dsobs.plain-default"}
    assert (len(server.documents), server.duplicates) == (301, 0)


async def test_a_state_of_an_older_dsobs_that_kept_less_is_gone_on_with(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log, state = tmp_path / "app.log", tmp_path / "state"
    append(log, lines(1, 2))
    await ship_once(settings(server.url, log), state)
    db = StateDb(state / "logs.db")
    db.transact(lambda connection: connection.execute("DROP TABLE readings"))
    db.close()
    append(log, lines(3))
    await ship_once(settings(server.url, log), state)
    assert sorted(server.messages()) == named(1, 2, 3)
    assert server.duplicates == 0
