"""Records as JSON lines on this machine."""

from pathlib import Path

import pytest

from dsobs.config.logs import LogFileSink
from dsobs.logs import metrics
from tests.logs.shipping import append, lines, records, settings, ship_once


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
