"""The kill switch that is a file."""

import os
from pathlib import Path

import pytest

from dsobs.sidecar.kill_file import KillFile


def test_it_is_on_while_the_file_is_there(tmp_path: Path) -> None:
    switch, path = KillFile(), tmp_path / "kill"
    assert switch.on(path) is None
    path.touch()
    assert switch.on(path) == f"file {path}"
    path.unlink()
    assert switch.on(path) is None
    assert switch.on(tmp_path / "no" / "folder" / "kill") is None


def test_one_that_can_not_be_looked_for_counts_as_on_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o700)
    tmp_path.chmod(0o755)
    folder.chmod(0o000)
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)  # root may search any folder
    try:
        switch = KillFile()
        for _ in range(3):
            assert "Permission denied" in (switch.on(folder / "kill") or "")
    finally:
        os.seteuid(uid)
        folder.chmod(0o700)
    assert len(caplog.records) == 1
    assert "counts as on" in caplog.text
    assert switch.on(folder / "kill") is None


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_no_file_can_have_counts_as_on(tmp_path: Path, name: str) -> None:
    assert "can't be looked for" in (KillFile().on(tmp_path / name) or "")
