"""The image's first process keeps `dsobs run` running by `dsobs supervise`; other commands take its place."""

import os
import subprocess
from pathlib import Path

import pytest

START = Path(__file__).parents[2] / "deploy" / "image" / "start.sh"


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH whose `dsobs` says its words and which process it is."""
    command = tmp_path / "dsobs"
    command.write_text('#!/bin/sh\necho "$$" "$@"\nexit 7\n')
    command.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def started(path: str, *words: str) -> tuple[list[str], bool, int]:
    """Words that `dsobs` got, whether it took the first process's place, and the exit status."""
    process = subprocess.Popen(
        ["sh", str(START), *words], stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path}
    )
    said, _ = process.communicate(timeout=90)
    pid, *got = said.split()
    return got, int(pid) == process.pid, process.returncode


def test_run_belongs_to_the_supervisor(path: str) -> None:
    got, in_place, _ = started(path, "run", "--set", "log.level=debug")
    assert got[0] == "supervise"
    assert got[got.index("--") :] == ["--", "dsobs", "run", "--set", "log.level=debug"]
    assert in_place


@pytest.mark.parametrize("words", [["config", "check", "dsobs.yaml"], ["--version"]])
def test_other_commands_take_its_place_and_their_exit_status_is_the_containers(path: str, words: list[str]) -> None:
    assert started(path, *words) == (words, True, 7)


def test_supervisor_takes_the_words_of_the_image(path: str) -> None:
    from dsobs.supervisor.command import options_parser

    got, _, _ = started(path, "run")
    options = options_parser().parse_args(got[1 : got.index("--")])
    # Started again whatever its exit status, and stopped by nobody but who stops the container.
    assert (options.restart, options.stop_grace) == ("always", float("inf"))
