import io
import json
import math
from pathlib import Path

import pytest

from dsobs.cli.output import print_error, print_json, print_table
from dsobs.config import Secret


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_is_aligned_text_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    print_table(("name", "state"), [("a", 1), ("longer", "firing")], file=out)
    assert out.getvalue() == "name    state\na       1\nlonger  firing\n"


def test_a_table_without_rows_is_its_headings() -> None:
    out = io.StringIO()
    print_table(("name", "state"), [], file=out)
    assert out.getvalue() == "name  state\n"


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    print_table(("name",), [("[red]a",)], file=coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    print_table(("name",), [("[red]a",)], file=plain)
    assert "\x1b[" in coloured.getvalue()
    assert "[red]a" in plain.getvalue()
    assert "\x1b[3" not in plain.getvalue()


def test_control_characters_never_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    out = Terminal()
    print_table(("name",), [("a\x1b]0;b\x07\n",)], file=out)
    print_error("a\x1b[2J\nb")
    assert "\x1b]" not in out.getvalue()
    assert capsys.readouterr().err == "dsobs: a\\x1b[2J\\nb\n"


def test_json_is_one_line_without_secrets_and_without_nan() -> None:
    out = io.StringIO()
    print_json({"path": Path("/a"), "key": Secret("hunter2"), "value": math.nan, "text": "a\nb"}, file=out)
    assert out.getvalue().count("\n") == 1
    assert json.loads(out.getvalue()) == {"path": "/a", "key": "********", "value": None, "text": "a\nb"}
