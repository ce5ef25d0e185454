"""What a site wrote while it was offline, sent on when the link is back (issue: edge)."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dsobs.cli import main
from dsobs.cli.exit_codes import ExitCode
from dsobs.config.logs import Edge, LogFileSink, Logs
from dsobs.logs import forward, metrics
from dsobs.logs.edge import open_shipper
from dsobs.logs.forward import Forwarder, parse, runs
from dsobs.logs.search import sink_files
from dsobs.logs.sinks import SinkSettings
from dsobs.logs.sinks.file import FileSink
from dsobs.logs.status import Status
from dsobs.logs.tail import file_id
from tests.elasticsearch_stand_in import ElasticsearchStandIn, Fault
from tests.logs.shipping import PATIENCE, QUICK, append, lines, records, settings, ship_once, until

INDEX = "logs-dsobs.vllm-default"


def file_sink(folder: Path, *, max_bytes: int = 4 * 1024 * 1024, files: int = 8) -> FileSink:
    return FileSink(SinkSettings(Logs(file=LogFileSink(max_bytes=max_bytes, files=files)), folder))


def body(*numbers: int, size: int = 0) -> list[bytes]:
    return [
        b'{"create":{"_id":"k-%d"}}\n%b\n'
        % (number, orjson.dumps({"@timestamp": "2026-11-24T08:00:00Z", "message": f"line {number}", "x": "x" * size}))
        for number in numbers
    ]


async def write(sink: FileSink, *numbers: int, size: int = 0, index: str = INDEX) -> None:
    assert (await sink.send(index, body(*numbers, size=size), len(numbers))).status == 200


def forwarder(server: ElasticsearchStandIn, folder: Path, **more: Any) -> Forwarder:
    state = folder / "forward"
    state.mkdir(exist_ok=True)
    index = more.pop("index", "")
    wanted = settings(server.url, index=index, bulk_bytes=more.pop("bulk_bytes", 64 * 1024))
    return Forwarder(SinkSettings(wanted, state), folder / "records.ndjson", pace=QUICK, **more)


async def forward_once(server: ElasticsearchStandIn, folder: Path, **more: Any) -> None:
    await asyncio.wait_for(forwarder(server, folder, once=True, **more).run(), PATIENCE)


@contextlib.asynccontextmanager
async def forwarding(server: ElasticsearchStandIn, folder: Path, **more: Any) -> AsyncIterator[Forwarder]:
    one = forwarder(server, folder, **more)
    task = asyncio.create_task(one.run())
    try:
        yield one
    finally:
        one.stop()
        await asyncio.wait_for(task, PATIENCE)


def arrived(server: ElasticsearchStandIn) -> list[int]:
    return [int(document["message"].split()[1]) for document in server.documents.values()]


def looked(one: Forwarder) -> bool:
    """It knows the files as they are."""
    return {kept.where for kept in one._files} == {file_id(path.stat()) for path in sink_files(one.path)}


async def test_days_of_files_arrive_in_order_under_the_ids_that_they_have(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    sink = file_sink(tmp_path)
    for first in range(0, 900, 100):
        await write(sink, *range(first, first + 100), size=1000)
    await sink.close()
    assert len(sink_files(sink.path)) > 1
    await forward_once(server, tmp_path)
    assert arrived(server) == list(range(900))
    assert set(server.documents) == {(INDEX, f"k-{number}") for number in range(900)}
    assert server.most_in_flight == 1


async def test_what_was_forwarded_is_not_sent_again_after_a_restart(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    sink = file_sink(tmp_path)
    await write(sink, *range(100), size=1000)
    await forward_once(server, tmp_path)
    before = len(server.requests)
    await forward_once(server, tmp_path)
    assert len(server.requests) == before
    await write(sink, *range(100, 400), size=1000)
    await sink.close()
    await forward_once(server, tmp_path)
    assert arrived(server) == list(range(400))
    assert server.duplicates == 0


async def test_a_lost_state_sends_everything_again_and_nothing_arrives_twice(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    sink = file_sink(tmp_path)
    await write(sink, *range(100))
    await sink.close()
    await forward_once(server, tmp_path)
    for file in (tmp_path / "forward").iterdir():
        file.unlink()
    await forward_once(server, tmp_path)
    assert (arrived(server), server.duplicates) == (list(range(100)), 100)


async def test_a_link_that_comes_and_goes_loses_nothing(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    sink = file_sink(tmp_path, max_bytes=64 * 1024 * 1024)
    await server.down()
    async with forwarding(server, tmp_path) as one:
        await write(sink, *range(50), size=5000)
        await until(lambda: one.status().trouble is not None)
        await server.up()
        await until(lambda: len(server.documents) == 50)
        server.script.extend([Fault(503), Fault(commit=True, hang_up=True), Fault(429)])
        await write(sink, *range(50, 100), size=5000)
        await until(lambda: len(server.documents) == 100)
        await until(lambda: one.status().acknowledged_bytes == one.status().total_bytes)
    await sink.close()
    assert arrived(server) == list(range(100))


async def test_files_that_are_rotated_meanwhile_are_followed(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    sink = file_sink(tmp_path)
    async with forwarding(server, tmp_path):
        for number in range(0, 2000, 100):
            await write(sink, *range(number, number + 100), size=1000)
            await until(lambda number=number: len(server.documents) == number + 100)  # type: ignore[misc]
    await sink.close()
    assert arrived(server) == list(range(2000))


@pytest.mark.fault(5)
async def test_what_the_disk_budget_takes_is_given_up_and_counted(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    lost = metrics.LOST.labels("disk_budget")
    before = lost._value.get()
    sink = file_sink(tmp_path, max_bytes=1024 * 1024, files=4)
    await server.down()
    async with forwarding(server, tmp_path) as one:
        for number in range(0, 2000, 100):
            await write(sink, *range(number, number + 100), size=1000)
            await until(lambda: looked(one))
        assert len(sink_files(sink.path)) == one.status().files == 4
        await server.up()
        await until(lambda: 1999 in arrived(server))
    await sink.close()
    size = len(b'{"_index":"%b","_id":"k-1000",' % INDEX.encode()) + len(body(1000, size=1000)[0].split(b"\n")[1])
    gone = 2000 - len(server.documents)
    assert gone > 500
    assert lost._value.get() - before == pytest.approx(gone * size, rel=0.02)


async def test_the_rate_is_kept(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    sink = file_sink(tmp_path)
    await write(sink, *range(300), size=1000)
    await sink.close()
    began = time.monotonic()
    await forward_once(server, tmp_path, most_bytes_per_second=300_000)
    size = (tmp_path / "records.ndjson").stat().st_size
    # The last request is not waited for, and the first goes at once.
    assert time.monotonic() - began >= (size - 2 * 262_144) / 300_000
    assert len(server.requests) > 1
    assert arrived(server) == list(range(300))


async def test_each_record_goes_to_the_data_stream_of_its_line_or_to_the_index_that_is_set(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    sink = file_sink(tmp_path)
    for number, index in enumerate((INDEX, "logs-dsobs.json-default", INDEX)):
        await write(sink, number, index=index)
    await sink.close()
    await forward_once(server, tmp_path)
    assert [index for index, _ in server.documents] == [INDEX, "logs-dsobs.json-default", INDEX]
    for file in (tmp_path / "forward").iterdir():
        file.unlink()
    server.documents.clear()
    await forward_once(server, tmp_path, index="deepseek-logs")
    assert {index for index, _ in server.documents} == {"deepseek-logs"}


async def test_lines_that_are_no_records_are_counted_and_hold_nothing_up(
    server: ElasticsearchStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = metrics.LOST.labels("no_record")
    before = lost._value.get()
    sink = file_sink(tmp_path)
    await write(sink, 1)
    with sink.path.open("ab") as file:
        file.write(b'{"message":"no id"}\n\xff\n')
    await write(sink, 2)
    await sink.close()
    sink.path.with_name("records.ndjson.1").write_bytes(sink.path.read_bytes()[:40])
    monkeypatch.setattr(forward, "BLOCK_BYTES", 16)
    await forward_once(server, tmp_path)
    assert arrived(server) == [1, 2]
    assert lost._value.get() - before == len(b'{"message":"no id"}\n\xff\n') + 40


async def test_lines_that_the_sink_took_back_are_read_anew(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    sink = file_sink(tmp_path)
    await write(sink, 1)
    size = sink.path.stat().st_size
    async with forwarding(server, tmp_path):
        await write(sink, 2, size=100)
        await until(lambda: len(server.documents) == 2)
        os.truncate(sink.path, size)
        await write(sink, *range(3, 9))
        await until(lambda: len(server.documents) == 8)
    await sink.close()
    assert arrived(server) == list(range(1, 9))


async def test_from_a_log_to_the_file_and_from_there_to_elasticsearch_the_ids_are_those_of_the_straight_way(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    log = tmp_path / "app.log"
    log.write_text("".join(f"line {number}\n" for number in range(20)))
    await ship_once(settings(None, log), tmp_path / "site")
    await forward_once(server, tmp_path / "site")
    assert arrived(server) == list(range(20))
    await ship_once(settings(server.url, log, index=INDEX.replace("vllm", "plain")), tmp_path / "straight")
    assert (len(server.documents), server.duplicates) == (20, 20)


async def test_an_edge_site_ships_to_its_file_while_the_link_is_away_and_forwards_when_it_is_back(
    server: ElasticsearchStandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "app.log"
    log.write_text("")
    await server.down()
    told: list[Status] = []
    wanted = settings(server.url, log, index="", edge=Edge(enabled=True))
    one = open_shipper(wanted, tmp_path / "state", pace=QUICK, on_tick=told.append)
    task = asyncio.create_task(one.run())
    append(log, lines(*range(30)))
    await until(lambda: len(records(tmp_path / "state")) == 30)
    await until(lambda: told[-1].trouble is not None and told[-1].acknowledged_bytes == told[-1].total_bytes)
    assert told[-1].trouble is not None
    assert told[-1].trouble[0] == "sink"
    size = (tmp_path / "state" / "records.ndjson").stat().st_size
    await until(lambda: metrics.FORWARD_WAITING._value.get() == size)
    assert main(["logs", "status", "--state", str(tmp_path / "state")]) == ExitCode.FAILED
    shown = capsys.readouterr().out.splitlines()
    assert f"{log}" in shown[1]
    assert shown[2].split()[1:] == ["0", str(size)]
    assert "forwards" in shown[4]
    assert shown[5].startswith(f"held up: {server.url}: ")
    await server.up()
    await until(lambda: arrived(server) == list(range(30)))
    append(log, lines(30))
    await until(lambda: arrived(server) == list(range(31)))
    await until(lambda: told[-1].trouble is None)
    await until(lambda: metrics.FORWARD_WAITING._value.get() == 0)
    one.stop()
    await asyncio.wait_for(task, PATIENCE)
    assert {index for index, _ in server.documents} == {"logs-dsobs.plain-default"}
    assert {(one["_index"], one["_id"]) for one in records(tmp_path / "state")} == set(server.documents)


async def test_the_command_ships_a_file_that_dsobs_wrote_under_its_ids(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    sink = file_sink(tmp_path)
    await write(sink, *range(30))
    await sink.close()
    words = ["--from", f"records:{sink.path}", "--to", server.url, "--state", str(tmp_path / "s"), "--once"]
    for said in (b"dsobs: 30 records sent\n", b"dsobs: 0 records sent\n"):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "dsobs.cli", "logs", "ship", *words), stderr=asyncio.subprocess.PIPE
        )
        _, err = await asyncio.wait_for(process.communicate(), PATIENCE)
        assert (process.returncode, err) == (0, said)
    assert set(server.documents) == {(INDEX, f"k-{number}") for number in range(30)}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--from", "records:/no/file", "--to", "http://127.0.0.1:9"], 1, "/no/file is not there; look at --from"),
        (
            ["--from", "records:/no/file", "--to", "/tmp/x"],
            2,
            "records:FILE goes alone, to an Elasticsearch; give one --from and --to URL",
        ),
        (["--from", "/no/file", "--rate", "1"], 2, "--rate is for --from records:FILE; leave it out"),
    ],
)
def test_what_can_not_be_forwarded_is_one_line(
    words: list[str], status: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["logs", "ship", "--once", "--state", str(tmp_path), *words]) == status
    assert capsys.readouterr().err == f"dsobs: {said}\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b'{"_index":"a"}',
        b'{"_index":"a","_id":"b"}',
        b'{"_index":"a","_id":"b","m":',
        b'{"_id":"b","_index":"a","m":1}',
        b'{"_index":"a","x":1,"_id":"b","m":1}',
    ],
)
def test_a_line_that_the_sink_did_not_write_is_no_record(line: bytes) -> None:
    assert parse(line) is None


def test_neighbours_with_the_same_index_go_together() -> None:
    def line(index: str) -> bytes:
        return b'{"_index":"%b","_id":"i","m":1}' % index.encode()

    lines = [line("a"), line("a"), b"bad", line("a"), line("bb")]
    assert [(index, len(bodies), size) for index, bodies, size in runs(lines)] == [
        ("a", 2, 62),
        (None, 0, 4),
        ("a", 1, 31),
        ("bb", 1, 32),
    ]
    assert [index for index, _, _ in runs(lines, "x")] == ["x", None, "x"]
