import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dsobs.cli import COMMANDS, build_parser, main
from dsobs.cli.exit_codes import MEANINGS, CommandError, ExitCode
from tests.generated import differing

RECORDING = Path(__file__).parents[1] / "data" / "h100-vllm-0.23" / "scenario.jsonl.gz"
DSOBS = [sys.executable, "-m", "dsobs.cli"]


def test_version_is_said_without_loading_anything_heavy() -> None:
    code = (
        "import sys; from dsobs.cli import main; status = main(['--version']); "
        "heavy = {'pydantic', 'rich', 'aiohttp', 'asyncio', 'orjson', 'yaml'} & set(sys.modules); "
        "print(sorted(heavy), status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    version, rest = done.stdout.splitlines()
    assert version.startswith("dsobs 0.")
    assert rest == "[] 0"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_parser_of_a_command_loads_nothing_heavy(command: str) -> None:
    code = (
        f"import sys; from dsobs.cli import build_parser; build_parser([{command!r}]); "
        "print(sorted({'pydantic', 'rich', 'aiohttp', 'fastapi', 'prometheus_client'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_command_and_an_unknown_one_are_usage_errors_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.USAGE
    assert main(["confg"]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "confg" in captured.err


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == ExitCode.DONE
    listed = capsys.readouterr().out
    assert all(command in listed for command in COMMANDS)
    assert build_parser().prog == "dsobs"


def test_every_exit_status_has_a_meaning() -> None:
    assert set(MEANINGS) == set(ExitCode)


def interrupted(_: object) -> int:
    raise KeyboardInterrupt


def refused(_: object) -> int:
    raise CommandError("the server is away; start it", ExitCode.UNREACHABLE)


def test_ctrl_c_is_130_and_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("dsobs.cli.config.run_schema", interrupted)
    assert main(["config", "schema"]) == 128 + signal.SIGINT
    assert capsys.readouterr() == ("", "")


def test_what_the_user_can_mend_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dsobs.cli.config.run_schema", refused)
    assert main(["config", "schema"]) == ExitCode.UNREACHABLE
    assert capsys.readouterr() == ("", "dsobs: the server is away; start it\n")


@pytest.mark.parametrize("words", [["config", "schema"], ["replay", str(RECORDING)]])
def test_a_reader_that_goes_away_ends_it_without_a_word(words: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run([*DSOBS, *words], stdout=write_end, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (ExitCode.PIPE_CLOSED, b"")


def test_generated_files_are_as_generated() -> None:
    assert differing() == []
