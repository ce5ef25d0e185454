"""`dsobs logs ship` and `dsobs logs status`: what they say and how they end."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dsobs.cli import main
from dsobs.cli.exit_codes import ExitCode

NOBODY = "http://127.0.0.1:1"
DENIED = os.strerror(errno.EACCES)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "app.log"
    path.write_text("line 1\nline 2\n")
    return path


def dsobs(*words: object) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: counters are a process's."""
    return subprocess.run(
        [sys.executable, "-m", "dsobs.cli", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )


def without_rights(*words: object) -> "subprocess.CompletedProcess[str]":
    """As one whom files can be closed to: root is only without its capabilities."""
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    command = [*prefix, sys.executable, "-m", "dsobs.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def ship(log: object, to: object, state: Path, *more: object) -> "subprocess.CompletedProcess[str]":
    return dsobs("logs", "ship", "--from", log, "--to", to, "--state", state, "--once", *more)


def test_once_ships_all_that_is_there_and_nothing_twice(log: Path, tmp_path: Path) -> None:
    first = ship(f"plain:{log}", tmp_path / "out.ndjson", tmp_path / "state")
    assert (first.returncode, first.stderr) == (0, "dsobs: 2 records sent\n")
    again = ship(f"plain:{log}", tmp_path / "out.ndjson", tmp_path / "state")
    assert (again.returncode, again.stderr) == (0, "dsobs: 0 records sent\n")
    found = [json.loads(line)["message"] for line in (tmp_path / "out.ndjson").read_text().splitlines()]
    assert found == ["line 1", "line 2"]


def test_status_says_how_far_each_file_is(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ship(f"plain:{log}", tmp_path / "out.ndjson", tmp_path / "state")
    log.write_text("line 1\nline 2\nline 3\n")
    assert main(["logs", "status", "--state", str(tmp_path / "state"), "--json"]) == 0
    file, live = map(json.loads, capsys.readouterr().out.splitlines())
    assert file == {"file": str(log), "acknowledged_bytes": 14, "behind_bytes": 7}
    assert live["process"] is None
    assert main(["logs", "status", "--state", str(tmp_path / "state")]) == 0
    assert "nobody ships now" in capsys.readouterr().out


def test_status_of_a_directory_without_state_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "status", "--state", str(tmp_path)]) == ExitCode.FAILED
    assert "nothing was shipped with this state directory" in capsys.readouterr().err


def test_an_unreadable_file_is_told_and_the_others_are_shipped(log: Path, tmp_path: Path) -> None:
    loop = tmp_path / "b.log"
    loop.symlink_to(loop)
    done = ship(f"plain:{tmp_path}/*.log", tmp_path / "out.ndjson", tmp_path / "state")
    assert done.returncode == ExitCode.FAILED
    assert "2 records sent" in done.stderr
    assert done.stderr.endswith(f"dsobs: {loop} can't be read: {os.strerror(40)}\n")


def test_a_pattern_that_finds_nothing_is_told(tmp_path: Path) -> None:
    done = ship(tmp_path / "*.nothing", tmp_path / "out.ndjson", tmp_path / "state")
    assert done.returncode == ExitCode.FAILED
    assert "no file matches; look at --from" in done.stderr
    done = ship(f"plain:{tmp_path}", tmp_path / "out.ndjson", tmp_path / "state")
    assert done.returncode == ExitCode.FAILED
    assert f"dsobs: {tmp_path} is a folder; write {tmp_path}/*.log" in done.stderr


def test_a_folder_that_may_not_be_looked_into_is_told(log: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    for name in ("*.log", "app.log"):
        done = without_rights("logs", "ship", "--from", closed / name, "--to", log, "--state", tmp_path, "--once")
        assert done.returncode == ExitCode.FAILED
        assert done.stderr.endswith(f"dsobs: {closed if '*' in name else closed / name} can't be read: {DENIED}\n")
        assert len(done.stderr.splitlines()) == 2
    done = without_rights("logs", "status", "--state", closed)
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, f"dsobs: {closed}/logs.db: {DENIED}\n")


def test_a_state_directory_that_can_not_be_made_is_one_line(log: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = ship(log, tmp_path / "out.ndjson", tmp_path / "file/state")
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == f"dsobs: {tmp_path}/file/state: {os.strerror(errno.ENOTDIR)}\n"


def test_a_last_line_without_its_end_is_sent_and_told(log: Path, tmp_path: Path) -> None:
    log.write_text("line 1\nline 2")
    done = ship(f"plain:{log}", tmp_path / "out.ndjson", tmp_path / "state")
    assert "2 records sent" in done.stderr
    assert f"{log}: its last line of 6 bytes has no end; it was sent as it stands" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "http://me:secret@host"], "holds a user name or password"),
        (["--to", "http://host", "--index", "No Index"], "'No Index' is no index name; write small letters"),
        (["--to", "file.ndjson", "--index", "name"], "--index is for Elasticsearch, and --to is a file"),
        (["--to", "file.ndjson", "--from", ""], "'' is no file name pattern"),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line(
    words: list[str], said: str, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [] if "--from" in words else ["--from", str(log)]
    assert main(["logs", "ship", *files, "--state", str(tmp_path / "state"), *words]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert "secret@" not in line


def test_what_was_left_out_or_lost_is_told_by_its_reason(log: Path, tmp_path: Path) -> None:
    log.write_text("line 1\n" + 2000 * "x" + "\n")
    words = ["--set", "logs.transform.drop=message = 'line 1'", "--set", "logs.max_line_bytes=1024"]
    done = ship(f"plain:{log}", tmp_path / "out.ndjson", tmp_path / "state", *words)
    assert (done.returncode, done.stderr.splitlines()) == (
        ExitCode.DONE,
        ["dsobs: 1 records sent", "dsobs: 1 records left out by logs.transform: drop", "dsobs: 976 bytes lost: cut"],
    )


def test_a_file_is_the_same_from_wherever_it_is_named(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ship(f"plain:{log}", tmp_path / "out.ndjson", tmp_path / "state").returncode == ExitCode.DONE
    monkeypatch.chdir(tmp_path)
    assert "0 records sent" in ship("plain:app.log", tmp_path / "out.ndjson", tmp_path / "state").stderr
    ship("plain:app.log", tmp_path / "again.ndjson", tmp_path / "another")
    first, second = (
        [json.loads(line)["_id"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("out.ndjson", "again.ndjson")
    )
    assert first == second


@pytest.mark.parametrize("words", [["ship", "--rate", "-5"], ["search", "--limit", "-3"], ["search", "--limit", "all"]])
def test_a_number_below_zero_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", *words]) == ExitCode.USAGE
    assert f"{words[2]!r} is no whole number from 0 on" in capsys.readouterr().err


def test_no_files_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "ship", "--to", "out.ndjson"]) == ExitCode.USAGE
    assert "give --from GLOB" in capsys.readouterr().err


def test_an_unknown_format_names_those_there_are(log: Path, tmp_path: Path) -> None:
    done = ship(f"nonsense:{log}", tmp_path / "out.ndjson", tmp_path / "state")
    assert done.returncode == ExitCode.USAGE
    assert "nonsense" in done.stderr
    assert "plain" in done.stderr


def test_a_host_where_nobody_listens_ends_with_its_reason_and_loses_nothing(log: Path, tmp_path: Path) -> None:
    done = ship(f"plain:{log}", NOBODY, tmp_path / "state")
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr.splitlines() == [
        f"dsobs: {NOBODY}: Connection refused; trying again",
        "dsobs: 0 records sent",
        f"dsobs: {NOBODY}: Connection refused; nothing is lost, run it again",
    ]
    then = ship(f"plain:{log}", tmp_path / "out.ndjson", tmp_path / "state")
    assert "2 records sent" in then.stderr


def test_two_that_ship_with_one_state_directory_are_refused(log: Path, tmp_path: Path) -> None:
    first = subprocess.Popen(
        [
            *(sys.executable, "-m", "dsobs.cli", "logs", "ship", "--from", f"plain:{log}"),
            *("--to", str(tmp_path / "out.ndjson"), "--state", str(tmp_path / "state")),
        ]
    )
    try:
        while not (tmp_path / "out.ndjson").exists():
            assert first.poll() is None
        second = ship(f"plain:{log}", tmp_path / "out.ndjson", tmp_path / "state")
        assert second.returncode == ExitCode.FAILED
        assert f"is in use by process {first.pid}; stop that one" in second.stderr
        assert main(["logs", "status", "--state", str(tmp_path / "state")]) == 0
    finally:
        first.terminate()
        assert first.wait(20) == 0
    # The kernel let go of it.
    assert ship(f"plain:{log}", tmp_path / "out.ndjson", tmp_path / "state").returncode == 0
