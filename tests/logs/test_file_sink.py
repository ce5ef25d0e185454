"""Records as JSON lines on this machine."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest

from dsobs.config.logs import LogFileSink, Logs
from dsobs.logs import metrics
from dsobs.logs.sinks import SinkSettings
from dsobs.logs.sinks.file import FileSink
from tests.logs.shipping import append, delete, lines, move, named, records, settings, ship_once, shipping, until


def modes(state: Path) -> dict[str, int]:
    """What others than the owner may do with each file."""
    return {name: (state / name).stat().st_mode & 0o077 for name in ("records.ndjson", "logs.db", "lock")}


async def test_records_are_lines_with_index_and_id_in_front(tmp_path: Path) -> None:
    append(tmp_path / "app.log", lines(1, 2))
    await ship_once(settings(None, tmp_path / "app.log"), tmp_path / "state")
    found = records(tmp_path / "state")
    assert [record["message"] for record in found] == ["line 1", "line 2"]
    assert list(found[0])[:2] == ["_index", "_id"]
    assert found[0]["_index"] == "logs-dsobs.plain-default"
    assert found[0]["_id"] != found[1]["_id"]


@pytest.mark.fault(5)
async def test_files_are_rotated_within_their_bound_and_what_goes_is_counted(tmp_path: Path) -> None:
    before = metrics.REGISTRY.get_sample_value("dsobs_log_lost_bytes_total", {"reason": "file_sink_full"}) or 0.0
    small = LogFileSink(max_bytes=1024 * 1024, files=2)
    for part in range(4):
        append(tmp_path / "app.log", lines(*range(part * 3000, part * 3000 + 3000)))
        await ship_once(settings(None, tmp_path / "app.log", file=small), tmp_path / "state")
    files = list((tmp_path / "state").glob("records.ndjson*"))
    assert sorted(path.name for path in files) == ["records.ndjson", "records.ndjson.1"]
    assert sum(path.stat().st_size for path in files) <= 1024 * 1024
    assert records(tmp_path / "state")[-1]["message"] == "line 11999"
    after = metrics.REGISTRY.get_sample_value("dsobs_log_lost_bytes_total", {"reason": "file_sink_full"}) or 0.0
    assert after > before


async def test_half_a_line_that_a_crash_left_is_cut_off(tmp_path: Path) -> None:
    append(tmp_path / "app.log", lines(1))
    await ship_once(settings(None, tmp_path / "app.log"), tmp_path / "state")
    append(tmp_path / "state" / "records.ndjson", b'{"_index":"logs","_id":"torn')
    append(tmp_path / "app.log", lines(2))
    await ship_once(settings(None, tmp_path / "app.log"), tmp_path / "state")
    assert [record["message"] for record in records(tmp_path / "state")] == ["line 1", "line 2"]


async def test_only_the_owner_may_read_what_was_logged(tmp_path: Path) -> None:
    append(tmp_path / "app.log", lines(1))
    await ship_once(settings(None, tmp_path / "app.log"), tmp_path / "state")
    assert modes(tmp_path / "state") == {"records.ndjson": 0, "logs.db": 0, "lock": 0}


@pytest.mark.fault(4)
async def test_a_file_that_can_not_grow_holds_shipping_and_each_record_is_in_it_once_afterwards(tmp_path: Path) -> None:
    log, state = tmp_path / "app.log", tmp_path / "state"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    append(log, lines(*range(3000)))
    try:
        # The kernel writes a part, and refuses the rest; the databases of the state directory stay below.
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
        async with shipping(settings(None, log), state) as shipper:
            told = ("sink", f"{state}/records.ndjson: {os.strerror(errno.EFBIG)}")
            await until(lambda: shipper.status().trouble == told)
            assert (state / "records.ndjson").stat().st_size == 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            await until(lambda: shipper.status().trouble is None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [record["message"] for record in records(state)] == named(*range(3000))


async def test_a_file_that_was_deleted_or_put_elsewhere_is_begun_anew(tmp_path: Path) -> None:
    log, state = tmp_path / "app.log", tmp_path / "state"
    append(log, lines(1))
    async with shipping(settings(None, f"plain:{log}"), state):
        await until(lambda: (state / "records.ndjson").exists() and bool(records(state)))
        delete(state / "records.ndjson")
        append(log, lines(2))
        await until(lambda: (state / "records.ndjson").exists() and bool(records(state)))
        move(state / "records.ndjson", tmp_path / "taken.ndjson")
        append(log, lines(3))
        await until(lambda: (state / "records.ndjson").exists() and bool(records(state)))
        assert [record["message"] for record in records(state)] == ["line 3"]


async def test_a_file_of_another_kind_is_left_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    append(other, "half a line")
    sink = FileSink(SinkSettings(Logs(file=LogFileSink(path=other)), tmp_path))
    answer = await sink.send("logs", [b'{"create":{"_id":"k"}}\n{"message":"x"}\n'], 1)
    assert (answer.status, answer.detail) == (None, f"{other}: it holds other things than records; give another file")
    assert other.read_text() == "half a line"
    await sink.close()


async def test_what_a_shipper_writes_is_no_log_of_its_own(tmp_path: Path) -> None:
    append(tmp_path / "app.log", lines(1, 2))
    wanted = settings(None, tmp_path / "*", file=LogFileSink(path=tmp_path / "out.ndjson"))
    for _ in range(2):
        await ship_once(wanted, tmp_path)
    assert [json.loads(line)["message"] for line in (tmp_path / "out.ndjson").read_text().splitlines()] == [
        "line 1",
        "line 2",
    ]
