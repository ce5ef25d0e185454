"""`dsobs silence`, up to what it asks for."""

import os
import pwd
from typing import Any

import pytest

from dsobs.cli import control_api, main
from dsobs.cli.exit_codes import ExitCode


def test_a_user_that_the_system_does_not_know_can_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container that runs with a number of its own."""
    asked: list[Any] = []

    def ask(_config: object, method: str, path: str, **request: Any) -> dict[str, Any]:
        asked.append((method, path, request["json"]["createdBy"]))
        return {"id": "s1", "endsAt": 0.0}

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(control_api, "ask", ask)
    assert main(["silence", "add", "alertname=EngineHung"]) == ExitCode.DONE
    assert asked == [("POST", "/silences", f"uid {os.getuid()}")]
    assert "s1" in capsys.readouterr().out
