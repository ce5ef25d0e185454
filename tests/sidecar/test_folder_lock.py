"""One dsobs to a state folder."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsobs.sidecar.folder_lock import LOCK_FILE, FolderInUseError, folder_lock

HOLD = "import sys,pathlib\nfrom dsobs.sidecar.folder_lock import folder_lock\n"
HOLD += "with folder_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds `folder`."""
    words = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_folder_that_is_held_is_refused_with_the_pid_that_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process, pytest.raises(FolderInUseError) as raised, folder_lock(tmp_path):
        pass
    assert f"{tmp_path} is in use by another dsobs: pid {process.pid} on {socket.gethostname()};" in str(raised.value)


def test_a_folder_is_free_again_once_its_holder_was_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with folder_lock(tmp_path):
            assert (tmp_path / LOCK_FILE).read_text().startswith(f"pid {os.getpid()} on ")


def test_a_folder_is_made_and_can_be_held_again_after_an_orderly_end(tmp_path: Path) -> None:
    for _ in range(2):
        with folder_lock(tmp_path / "new" / "state"):
            pass


def test_a_folder_that_can_not_be_written_to_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with folder_lock(tmp_path / "file"), folder_lock(tmp_path / "file"):
        pass


def test_a_second_dsobs_on_the_folder_does_not_start(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dsobs.cli", "run", "--set", f"state.directory={tmp_path}"]
    with holder(tmp_path) as process:
        done = subprocess.run(
            [*words, "--set", "api.listen=127.0.0.1:0"], capture_output=True, text=True, timeout=90, check=False
        )
    assert done.returncode == 2
    assert f"in use by another dsobs: pid {process.pid} " in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE]
