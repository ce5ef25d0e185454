"""The image's first process keeps `dsobs run` running, and ends when it is told to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

KEEP = Path(__file__).parents[2] / "deploy" / "image" / "keep.py"


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """In the place of dsobs: says who it is, ends by SIGTERM with 7, and at once where `fail` is there."""
    path = tmp_path / "dsobs"
    path.write_text(
        f"#!{sys.executable} -IS\n"
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "signal.signal(signal.SIGHUP, lambda *_: os.write(1, b'again\\n'))\n"
        "print(os.getpid(), *sys.argv[1:], flush=True)\n"
        f"if os.path.exists({str(tmp_path / 'fail')!r}): sys.exit(2)\n"
        "while True: time.sleep(1)\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def kept(command: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-ISB", str(KEEP), str(command), "run", "--x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process
        process.kill()


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def test_dsobs_that_is_killed_is_started_again_and_the_container_stays(kept: subprocess.Popen[str]) -> None:
    first, *words = line(kept)
    assert words == ["run", "--x"]
    os.kill(int(first), signal.SIGKILL)
    second = line(kept)[0]
    assert second != first
    assert kept.poll() is None
    kept.terminate()
    assert kept.wait(timeout=20) == 7
    assert kept.stderr is not None
    assert kept.stderr.read() == "dsobs was killed by signal 9; it is started again in 1 s\n"


def test_reload_reaches_dsobs_and_ends_nothing(kept: subprocess.Popen[str]) -> None:
    line(kept)
    kept.send_signal(signal.SIGHUP)
    assert line(kept) == ["again"]
    assert kept.poll() is None


def test_one_that_does_not_start_is_tried_at_longer_and_longer_intervals(
    kept: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "fail").touch()
    os.kill(int(line(kept)[0]), signal.SIGKILL)
    line(kept)
    line(kept)
    assert kept.stderr is not None
    assert [kept.stderr.readline().rpartition("in ")[2] for _ in range(3)] == ["1 s\n", "2 s\n", "4 s\n"]
    begun = time.monotonic()
    kept.terminate()
    assert kept.wait(timeout=20) == 2
    assert time.monotonic() - begun < 3


def test_other_commands_take_its_place(command: Path, tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    process = subprocess.Popen(
        [sys.executable, "-ISB", str(KEEP), str(command), "--version"], stdout=subprocess.PIPE, text=True
    )
    with process:
        assert line(process) == [str(process.pid), "--version"]
        assert process.wait(timeout=20) == 2
