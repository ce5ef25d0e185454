"""Lines from a pipe: kept until they are acknowledged, read no faster than that, and the same records after a kill."""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsobs.cli import main
from dsobs.cli.exit_codes import ExitCode
from dsobs.logs import spool as spools
from dsobs.logs.ship import Shipper
from dsobs.logs.spool import Spool
from tests.elasticsearch_stand_in import ElasticsearchStandIn, Fault
from tests.logs.shipping import PATIENCE, QUICK, lines, named, records, settings, until

MIB = 1024 * 1024


@dataclass
class Pipe:
    """A pipe that is shipped, and who ships it."""

    write_end: int
    spool: Spool
    shipper: Shipper
    task: "asyncio.Task[None]"

    def write(self, text: str | bytes) -> None:
        """All of it; waits for a reader."""
        os.write(self.write_end, text.encode() if isinstance(text, str) else text)

    async def end(self) -> None:
        """The writer ends; until the shipper has ended too."""
        os.close(self.write_end)
        self.write_end = -1
        await asyncio.wait_for(self.task, PATIENCE)


@contextlib.asynccontextmanager
async def piped(
    url: str | None, state: Path, *, max_bytes: int = 64 * MIB, format_: str = "plain", **more: Any
) -> AsyncIterator[Pipe]:
    read_end, write_end = os.pipe()
    spool = Spool(read_end, state / spools.FOLDER, max_bytes)
    wanted = settings(url, f"{format_}:{state / spools.FOLDER}/*.lines", **more)
    shipper = Shipper(wanted, state, pace=QUICK, spool=spool)
    pipe = Pipe(write_end, spool, shipper, asyncio.create_task(shipper.run()))
    try:
        await until(lambda: pipe.task.done() or shipper.running)
        yield pipe
    finally:
        shipper.stop()
        await asyncio.wait_for(pipe.task, PATIENCE)
        os.close(read_end)
        if pipe.write_end >= 0:
            os.close(pipe.write_end)


def arrived(server: ElasticsearchStandIn) -> list[str]:
    """By their numbers."""
    return sorted(server.messages(), key=lambda text: int(text.split()[1]))


def segments(state: Path) -> list[Path]:
    return sorted((state / spools.FOLDER).iterdir())


async def test_what_comes_arrives_and_the_end_of_the_pipe_is_the_end(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    async with piped(server.url, tmp_path) as pipe:
        pipe.write(lines(1, 2))
        await until(lambda: len(server.documents) == 2)
        assert not pipe.task.done()
        pipe.write(lines(3) + "line 4")
        await pipe.end()
    assert arrived(server) == named(1, 2, 3, 4)
    assert segments(tmp_path) == []
    # The folder that they were kept in says nothing about where they are from.
    assert all("log.file.path" not in document for document in server.documents.values())


async def test_nothing_at_all_ends_at_once(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    async with piped(server.url, tmp_path) as pipe:
        await pipe.end()
    assert server.documents == {}
    assert segments(tmp_path) == []


async def test_the_same_lines_in_two_runs_are_records_of_their_own(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    for _ in range(2):
        async with piped(server.url, tmp_path) as pipe:
            pipe.write(lines(1, 1))
            await pipe.end()
    assert arrived(server) == named(1, 1, 1, 1)
    assert server.duplicates == 0


async def test_many_equal_lines_are_each_a_record_over_all_segments(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    block = "the same line\n" * 4000
    async with piped(server.url, tmp_path, max_bytes=MIB) as pipe:
        for _ in range(40):
            await asyncio.to_thread(pipe.write, block)
        await pipe.end()
    assert len(server.documents) == 160_000
    assert server.duplicates == 0


async def test_records_keep_their_order_over_all_segments(tmp_path: Path) -> None:
    async with piped(None, tmp_path, max_bytes=MIB) as pipe:
        for start in range(0, 100_000, 5000):
            await asyncio.to_thread(pipe.write, lines(*range(start, start + 5000)))
        await pipe.end()
    assert [one["message"] for one in records(tmp_path)] == named(*range(100_000))


async def test_while_the_server_is_away_the_writer_waits_and_then_all_arrives(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    server.always = Fault(503)
    written = 0

    def write() -> None:
        nonlocal written
        for start in range(0, 200_000, 1000):
            pipe.write(lines(*range(start, start + 1000)))
            written = start + 1000

    async with piped(server.url, tmp_path, max_bytes=MIB) as pipe:
        writer = threading.Thread(target=write)
        writer.start()
        await until(lambda: pipe.spool.held_bytes >= MIB)
        await asyncio.sleep(10 * QUICK.scan)
        assert pipe.spool.held_bytes <= MIB + 256 * 1024
        # What is written beyond that stands in the pipe.
        assert len(lines(*range(written))) <= MIB + 256 * 1024 + fcntl.fcntl(pipe.write_end, fcntl.F_GETPIPE_SZ)
        server.always = None
        await asyncio.to_thread(writer.join)
        await pipe.end()
    assert arrived(server) == named(*range(200_000))


async def test_what_was_not_acknowledged_goes_on_in_the_next_run_under_the_same_ids(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    # The server takes them, and its answer is lost: they are there, and nobody knows.
    server.always = Fault(503, commit=True)
    async with piped(server.url, tmp_path) as pipe:
        pipe.write(lines(1, 2, 3))
        await until(lambda: len(server.documents) == 3)
    assert len(segments(tmp_path)) == 1
    ids = set(server.documents)
    server.always = None
    before = server.duplicates
    async with piped(server.url, tmp_path) as pipe:
        pipe.write(lines(4))
        await pipe.end()
    assert arrived(server) == named(1, 2, 3, 4)
    assert ids < set(server.documents)
    assert server.duplicates - before >= 3
    assert segments(tmp_path) == []


async def test_a_moved_or_lost_checkpoint_makes_no_record_twice(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    server.always = Fault(503, commit=True)
    async with piped(server.url, tmp_path / "a") as pipe:
        pipe.write(lines(1, 2, 3))
        await until(lambda: len(server.documents) == 3)
    server.always = None
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b/logs.db").unlink()
    async with piped(server.url, tmp_path / "b") as pipe:
        await pipe.end()
    assert arrived(server) == named(1, 2, 3)


async def test_what_the_pipe_holds_at_a_stop_is_kept(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    async with piped(server.url, tmp_path) as pipe:
        pipe.shipper.stop()
        pipe.write(lines(1, 2))
        await asyncio.wait_for(pipe.task, PATIENCE)
    async with piped(server.url, tmp_path) as pipe:
        await pipe.end()
    assert arrived(server) == named(1, 2)


async def test_a_line_without_end_fills_no_spool(server: ElasticsearchStandIn, tmp_path: Path) -> None:
    async with piped(server.url, tmp_path, max_bytes=MIB, max_line_bytes=1024) as pipe:
        for _ in range(64):
            await asyncio.to_thread(pipe.write, b"x" * 64 * 1024)
        pipe.write("\n" + lines(1))
        await pipe.end()
    assert "line 1" in server.messages()
    assert segments(tmp_path) == []


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 256 KiB at `folder`."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def test_on_a_full_disk_the_writer_waits_and_nothing_is_lost(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    with small_disk(tmp_path / spools.FOLDER):
        filler = tmp_path / spools.FOLDER / "filler"
        filler.write_bytes(b"x" * 200 * 1024)
        server.always = Fault(503)
        async with piped(server.url, tmp_path) as pipe:
            writing = asyncio.create_task(asyncio.to_thread(pipe.write, lines(*range(12_000))))
            await until(lambda: pipe.shipper.status().trouble is not None and bool(pipe.spool.trouble))
            assert "No space left on device" in pipe.spool.trouble
            filler.unlink()
            server.always = None
            await writing
            await pipe.end()
    assert arrived(server) == named(*range(12_000))


async def test_sigkill_at_any_moment_loses_nothing_that_was_read_and_makes_nothing_twice(
    server: ElasticsearchStandIn, tmp_path: Path
) -> None:
    server.delay = 0.01
    words = (
        *(sys.executable, "-m", "dsobs.cli", "logs", "ship", "--from", "plain:-", "--to", server.url),
        *("--index", "logs", "--state", str(tmp_path), "--spool-bytes", str(2 * MIB)),
        *("--set", "logs.elasticsearch.bulk_records=500"),
    )
    reader, writer = os.pipe()
    # One that reads keeps what is in the pipe for the next: only what a killed process had in hand is its to lose.
    for part in range(4):
        process = await asyncio.create_subprocess_exec(*words, stdin=reader)
        os.set_blocking(writer, False)
        wanted = 5000 * (part + 1)
        start = 5000 * part
        text = lines(*range(start, wanted)).encode()
        while text:
            with contextlib.suppress(BlockingIOError):
                text = text[os.write(writer, text) :]
            await asyncio.sleep(0)
        await until(lambda wanted=wanted: len(server.documents) > wanted - 3000, 30)  # type: ignore[misc]
        process.send_signal(signal.SIGKILL)
        await process.wait()
    os.close(writer)
    last = await asyncio.create_subprocess_exec(*words, stdin=reader)
    os.close(reader)
    assert await asyncio.wait_for(last.wait(), PATIENCE) == 0
    assert arrived(server) == named(*range(20_000))
    assert segments(tmp_path) == []


# The command.


def ship(text: str, *words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "dsobs.cli", "logs", "ship", *map(str, words)],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_pipe_to_stdout_is_a_filter(tmp_path: Path) -> None:
    done = ship('{"level":"error","message":"m"}\n', "--from", "-", "--to", "-", "--state", tmp_path)
    assert (done.returncode, done.stderr) == (0, "dsobs: 1 records sent\n")
    assert '"_index":"logs-dsobs.json-default"' in done.stdout
    assert '"log.level":"error"' in done.stdout


def test_a_server_that_is_not_there_is_told_and_what_was_read_goes_on_later(tmp_path: Path) -> None:
    nobody = "http://127.0.0.1:1"
    done = ship("line 1\n", "--from", "plain:-", "--to", nobody, "--state", tmp_path, "--once")
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr.splitlines() == [
        f"dsobs: {nobody}: Connection refused; trying again",
        "dsobs: 0 records sent",
        f"dsobs: 7 bytes of stdin are kept in {tmp_path}/stdin; they go on when it is run again with this --state, for "
        "which --from - </dev/null is enough",
        f"dsobs: {nobody}: Connection refused; nothing is lost, run it again",
    ]
    done = ship("", "--from", "plain:-", "--to", tmp_path / "out.ndjson", "--state", tmp_path)
    assert (done.returncode, done.stderr) == (0, "dsobs: 1 records sent\n")
    assert '"message":"line 1"' in (tmp_path / "out.ndjson").read_text()


def test_a_reader_of_stdout_that_goes_is_told(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dsobs.cli", "logs", "ship", "--from", "-", "--to", "-", "--state", str(tmp_path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(b"line 1\n")
    process.stdin.flush()
    assert process.wait(30) == ExitCode.FAILED
    assert process.stderr.read().decode().splitlines()[-1] == (
        "dsobs: stdout is closed by its reader; nothing is lost, run it again"
    )
    process.stdin.close()
    process.stderr.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "-", "--from", "a.log"], "--from - goes alone; ship the files in a process of their own"),
        (["--from", "a.log", "--spool-bytes", "5000000"], "--spool-bytes is for --from -; leave it out"),
        (["--from", "-", "--spool-bytes", "5"], "--spool-bytes: write 1048576 or more"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["logs", "ship", "--to", "out.ndjson", "--state", str(tmp_path), *words]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
