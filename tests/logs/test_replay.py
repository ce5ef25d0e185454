"""Dead letters, sent again by `dsobs logs replay --dead-letters`."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from dsobs.cli import main
from dsobs.logs import replay as replays
from dsobs.logs.dead_letters import DeadLetters
from dsobs.logs.replay import reasons, replay, waiting
from dsobs.logs.sinks import Refusal, SinkSettings
from dsobs.logs.sinks.elasticsearch import ElasticsearchSink
from tests.elasticsearch_stand_in import ElasticsearchStandIn, Fault
from tests.logs.shipping import settings

NOW = 1795507200.0
BAD = Refusal(400, "document_parsing_exception", "failed to parse field [x]")


def letters(folder: Path, *numbers: int, index: str = "logs") -> None:
    records = [b'{"create":{"_id":"k-%d"}}\n{"message":"line %d"}\n' % (number, number) for number in numbers]
    DeadLetters(folder).add(index, [(record, BAD) for record in records], NOW)


async def again(server: ElasticsearchStandIn, folder: Path) -> replays.Replayed:
    sink = ElasticsearchSink(SinkSettings(settings(server.url), folder))
    try:
        return await replay(folder, sink, NOW)
    finally:
        await sink.close()


def judge(document: dict[str, Any]) -> dict[str, Any] | None:
    bad = {"status": 400, "error": {"type": "document_parsing_exception", "reason": "again"}}
    return bad if document["message"] == "line 2" else None


async def test_letters_arrive_under_their_ids_and_in_their_index(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    letters(tmp_path, 1, 2)
    letters(tmp_path, 3, index="other")
    done = await again(server, tmp_path)
    assert (done.sent, done.refused, done.left) == (3, 0, 0)
    assert set(server.documents) == {("logs", "k-1"), ("logs", "k-2"), ("other", "k-3")}
    assert waiting(tmp_path) == []


async def test_what_is_refused_again_stays_a_letter(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    server.judge = judge
    letters(tmp_path, 1, 2, 3)
    done = await again(server, tmp_path)
    assert (done.sent, done.refused) == (2, 1)
    kept = [orjson.loads(line) for line in (tmp_path / "dead-letters.ndjson").read_bytes().splitlines()]
    assert [(one["document"]["message"], one["reason"]) for one in kept] == [("line 2", "again")]


async def test_what_is_there_already_is_no_second_document(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    letters(tmp_path, 1)
    await again(server, tmp_path)
    letters(tmp_path, 1, 2)
    done = await again(server, tmp_path)
    assert (done.sent, done.duplicates, len(server.documents)) == (1, 1, 2)


async def test_a_server_that_goes_away_in_the_middle_leaves_the_rest(
    server: ElasticsearchStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "BATCH_RECORDS", 2)
    server.judge = judge
    letters(tmp_path, 1, 2, 3, 4, 5)
    server.script.extend([Fault(200, commit=True, body=b'{"items":[]}')])
    done = await again(server, tmp_path)
    assert (done.left, server.messages()) == (5, ["line 1"])
    assert "does not say" in done.trouble
    letters(tmp_path, 6)
    done = await again(server, tmp_path)
    assert (done.sent, done.duplicates, done.refused, done.left) == (4, 1, 1, 0)
    assert server.messages() == [f"line {number}" for number in (1, 3, 4, 5, 6)]
    assert reasons(tmp_path) == {("logs", "document_parsing_exception"): 1}


async def test_what_was_decided_before_the_server_went_away_is_not_tried_again(
    server: ElasticsearchStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "BATCH_RECORDS", 2)
    sent = 0

    def one_batch(_: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal sent
        sent += 1
        return (
            {"status": 429, "error": {"type": "es_rejected_execution_exception", "reason": "full"}}
            if sent > 2
            else None
        )

    server.judge = one_batch
    letters(tmp_path, 1, 2, 3)
    done = await again(server, tmp_path)
    assert (done.sent, done.left, done.trouble) == (2, 1, "es_rejected_execution_exception: full")
    server.judge = None
    done = await again(server, tmp_path)
    assert (done.sent, done.duplicates) == (1, 0)


async def test_letters_too_large_together_are_sent_one_by_one(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    server.max_body = 100
    letters(tmp_path, 1, 2, 3)
    assert (await again(server, tmp_path)).sent == 3


async def test_a_line_that_is_no_letter_is_set_aside(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    letters(tmp_path, 1)
    with (tmp_path / "dead-letters.ndjson").open("ab") as file:
        file.write(b"{}\n")
    done = await again(server, tmp_path)
    assert (done.sent, done.unreadable) == (1, 1)
    assert (tmp_path / "dead-letters.unreadable").read_bytes() == b"{}\n"


async def test_half_a_letter_that_a_crash_left_spoils_no_other(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    letters(tmp_path, 1)
    path = tmp_path / "dead-letters.ndjson"
    with path.open("ab") as file:
        file.write(path.read_bytes()[:-20])
    letters(tmp_path, 2)
    done = await again(server, tmp_path)
    assert (done.sent, done.unreadable) == (2, 0)


def test_the_command_takes_the_state_directory_of_logs_ship(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    letters(tmp_path, 1)
    assert main(["logs", "replay", "--dead-letters", "--show", "--state", str(tmp_path)]) == 0
    assert "1        logs   document_parsing_exception" in capsys.readouterr().out


def test_the_command_shows_how_many_there_are_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs" / "forward").mkdir(parents=True)
    letters(tmp_path / "logs", 1, 2)
    letters(tmp_path / "logs" / "forward", 3)
    assert main(["logs", "replay", "--dead-letters", "--show", "--state-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "letters  index  why",
        "3        logs   document_parsing_exception",
    ]


def test_the_command_says_that_the_server_is_not_there_and_keeps_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").mkdir()
    letters(tmp_path / "logs", 1)
    words = ["--set", "logs.elasticsearch.urls=http://127.0.0.1:9", "--state-dir", str(tmp_path)]
    assert main(["logs", "replay", "--dead-letters", *words]) == 3
    out, err = capsys.readouterr()
    assert out == "0 sent, 0 were there already, 0 refused again, 1 left\n"
    assert err.startswith("dsobs: http://127.0.0.1:9: ")
    assert err.endswith("; what was not sent is kept\n")
    assert reasons(tmp_path / "logs") == {("logs", "document_parsing_exception"): 1}
