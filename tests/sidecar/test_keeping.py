"""What is kept on disk, and what is known of it where nothing can be written."""

from functools import partial
from pathlib import Path

import pytest

from dsobs import silences
from dsobs.sidecar.keeping import STATE_FILE, Keeping
from dsobs.state import StateDb, StateError, copied


def _refuses(path: Path, *_: object) -> StateDb:
    raise StateError(f"{path}: unable to open database file")


async def test_silences_of_the_last_run_are_known_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Keeping(tmp_path)
    made = silences.new(["alertname=EngineHung"], 1000.0, 3600.0, "me", "why")
    await before.write(partial(silences.save, silence=made))
    before.close()
    monkeypatch.setattr("dsobs.sidecar.keeping.StateDb", _refuses)
    after = Keeping(tmp_path)
    assert after.db is None
    assert after.recall(partial(silences.load, now=1001.0)) == [made]
    with pytest.raises(StateError, match="unable to open database file"):
        await after.write(partial(silences.save, silence=made))


async def test_what_was_committed_and_not_yet_moved_into_the_file_is_known_too(tmp_path: Path) -> None:
    running = Keeping(tmp_path)
    made = silences.new(["alertname=EngineHung"], 1000.0, 3600.0, "me", "why")
    await running.write(partial(silences.save, silence=made))
    assert (tmp_path / f"{STATE_FILE}-wal").stat().st_size > 0
    with copied(tmp_path / STATE_FILE) as connection:
        assert silences.load(connection, 1001.0) == [made]
    running.close()


def test_a_folder_that_is_none_can_not_be_recalled(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="Not a directory"):
        Keeping(tmp_path / "file").recall(lambda connection: connection.execute("SELECT 1"))
