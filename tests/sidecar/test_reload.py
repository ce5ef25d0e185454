"""Files that change, looked at as often as a test says."""

import os
from pathlib import Path

import pytest

from dsobs.sidecar.reload import FileWatch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "dsobs.yaml"
    file.write_text("a: 1\n")
    return file


def test_files_that_stay_the_same_are_no_change(file: Path) -> None:
    watch = FileWatch(lambda: [file])
    assert [watch.changed() for _ in range(3)] == [False] * 3


def test_a_change_counts_once_it_is_settled_and_until_it_was_read(file: Path) -> None:
    watch = FileWatch(lambda: [file])
    file.write_text("a: 12\n")
    assert [watch.changed(), watch.changed(), watch.changed()] == [False, True, True]
    watch.used(watch.look())
    assert [watch.changed(), watch.changed()] == [False, False]


def test_a_file_that_is_still_being_written_is_not_read(file: Path) -> None:
    watch = FileWatch(lambda: [file])
    for n in range(5):
        file.write_text("a: " + "1" * n)
        assert not watch.changed()
    assert watch.changed()


def test_a_file_put_in_anothers_place_is_a_change_though_time_and_size_are_the_same(file: Path) -> None:
    watch = FileWatch(lambda: [file])
    state = file.stat()
    other = file.with_name("other")
    other.write_text("a: 2\n")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.rename(file)
    assert [watch.changed(), watch.changed()] == [False, True]


def test_the_links_of_a_configmap_are_followed(tmp_path: Path) -> None:
    def put(version: str, text: str) -> None:
        """As kubelet does it: a folder for each version, and a link to it that is replaced by rename."""
        (tmp_path / version).mkdir()
        (tmp_path / version / "dsobs.yaml").write_text(text)
        (tmp_path / "..data_tmp").symlink_to(version)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    put("..1", "a: 1\n")
    file = tmp_path / "dsobs.yaml"
    file.symlink_to("..data/dsobs.yaml")
    watch = FileWatch(lambda: [file])
    assert not watch.changed()
    put("..2", "a: 2\n")
    assert [watch.changed(), watch.changed()] == [False, True]


def test_a_file_that_goes_is_a_change_and_one_that_settings_name_anew_is_none(file: Path, tmp_path: Path) -> None:
    files = [file]
    watch = FileWatch(lambda: files)
    more = tmp_path / "more.yaml"
    more.write_text("")
    files.append(more)
    assert [watch.changed(), watch.changed()] == [False, False]
    more.unlink()
    assert [watch.changed(), watch.changed()] == [False, True]
