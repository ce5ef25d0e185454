"""`dsobs status` beside a real server: what is printed, and what scripts are told."""

import asyncio
import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from dsobs.api.server import serve
from dsobs.cli import main
from dsobs.cli.exit_codes import CommandError, ExitCode
from dsobs.cli.status import code_of, read
from dsobs.model.status import State
from tests.api.conftest import MemorySource
from tests.status_scenes import HOSTILE, SCENES


@contextmanager
def served(source: MemorySource) -> Iterator[str]:
    """In a loop of its own, as the command has one."""
    ready, address, done = threading.Event(), [""], asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with serve(source, "127.0.0.1:0", None) as (host, port):
            address[0] = f"{host}:{port}"
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield address[0]
    finally:
        loops[0].call_soon_threadsafe(done.set)
        thread.join(20)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (State.HEALTHY, 0),
        (State.DEGRADED, 1),
        (State.FAULTY, 1),
        (State.STARTING, 4),
        (State.STOPPED, 4),
        (State.UNKNOWN, 4),
    ],
)
def test_only_what_is_known_to_be_healthy_is_0(state: State, code: int) -> None:
    assert code_of(state) == code


def test_one_screen_has_state_evidence_alerts_indicators_and_repair(capsys: pytest.CaptureFixture[str]) -> None:
    source = MemorySource()
    source.shown = SCENES["hung"]()[0]
    with served(source) as address:
        assert main(["status", "--listen", address]) == ExitCode.FAILED
        printed = capsys.readouterr().out
        words = " ".join(printed.split())
        assert all(
            word in words
            for word in ("FAULTY", "EngineHung", "KV cache in use", "3 of 3 restarts left", "not answered")
        )
        assert len(printed.splitlines()) <= 45
        assert main(["status", "--json", "--listen", address]) == ExitCode.FAILED
        assert json.loads(capsys.readouterr().out) == orjson.loads(orjson.dumps(source.shown))


def test_who_looks_needs_none_of_the_secrets_that_dsobs_runs_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the shell of the engineer on call, with the settings file of the service."""
    monkeypatch.delenv("CONTROL_TOKEN", raising=False)
    source = MemorySource()
    source.shown = SCENES["healthy"]()[0]
    with served(source) as address:
        settings = tmp_path / "dsobs.yaml"
        settings.write_text(f"api: {{listen: '{address}', control_token: env:CONTROL_TOKEN}}\n")
        assert main(["status", "--config", str(settings)]) == ExitCode.DONE
        assert main(["silence", "list", "--config", str(settings)]) == ExitCode.DONE
        capsys.readouterr()
        assert main(["silence", "kill-switch", "on", "--config", str(settings)]) == ExitCode.USAGE
        assert "CONTROL_TOKEN is not set" in capsys.readouterr().err


def test_text_of_others_moves_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    source = MemorySource()
    status = SCENES["500-alerts"]()[0]
    source.shown = replace(status, headline=f"\x1b[2J[bold]{HOSTILE}")
    with served(source) as address:
        assert main(["status", "--listen", address]) == ExitCode.FAILED
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert f"\\x1b[2J[bold]{HOSTILE}" in printed


def test_no_dsobs_is_3_and_says_where_it_was_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--listen", "127.0.0.1:9"]) == ExitCode.UNREACHABLE
    assert "no dsobs answers at 127.0.0.1:9 (api.listen)" in capsys.readouterr().err


def test_another_version_is_named_and_no_state_is_guessed() -> None:
    told = orjson.loads(orjson.dumps(SCENES["empty"]()[0]))
    assert read({**told, "something_new": 1}).state is State.UNKNOWN
    del told["guards"]
    with pytest.raises(CommandError, match=r"guards: Field required") as raised:
        read(told)
    assert raised.value.code == ExitCode.UNREACHABLE


def test_watch_shows_a_dsobs_that_went_away_as_unknown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsobs.cli.status.time.sleep", stop)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["status", "--watch", "--listen", "127.0.0.1:9"]) == ExitCode.INTERRUPTED
    assert "UNKNOWN  no dsobs answers" in capsys.readouterr().out
