import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from dsobs.runtimes.control_folder import (
    RESTART_SECONDS,
    ControlFolder,
    FolderBusyError,
    Kind,
    Request,
    expiry,
    liveness_probe,
    parsed,
    readiness_probe,
    readiness_script,
    startup_probe,
    unusable,
)
from tests.runtimes import probe_cases

SHELLS = {name: words for name, words in probe_cases.SHELLS.items() if shutil.which(words[0])}
"""Those of this machine; the test of all of them is tests/real/test_probe_shells.py."""
INCIDENT = "20261123T171656Z-3f9c"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "control"
    path.mkdir()
    return path


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return SHELLS[request.param]


@pytest.mark.parametrize("kind", Kind)
def test_only_a_whole_request_with_its_expiry_ahead_holds(shell: tuple[str, ...], folder: Path, kind: Kind) -> None:
    probe_cases.check_contents(shell, folder, kind)


@pytest.mark.parametrize("kind", Kind)
def test_what_is_no_file_means_alive_and_does_not_block(shell: tuple[str, ...], folder: Path, kind: Kind) -> None:
    probe_cases.check_what_is_no_file(shell, folder, kind)


def test_image_without_a_date_that_tells_seconds_is_alive(shell: tuple[str, ...], folder: Path) -> None:
    binary = shutil.which(shell[0])
    assert binary is not None
    probe_cases.check_images_without_date(shell, folder, Kind.RESTART, binary)


def test_without_a_request_the_probe_starts_no_other_program(shell: tuple[str, ...], folder: Path) -> None:
    binary = shutil.which(shell[0])
    assert binary is not None
    assert probe_cases.run((binary, *shell[1:]), probe_cases.script(Kind.RESTART, folder), {"PATH": "/nowhere"}) == 0


def test_python_reads_a_request_as_the_probes_do() -> None:
    now = int(time.time())
    for content in probe_cases.HOLDING.values():
        text = content if isinstance(content, bytes) else content(now, 60)
        request = parsed(text.decode())
        assert request is not None
        assert now < request.expires_at <= now + 60
    for name, content in probe_cases.NOT_HOLDING.items():
        text = content if isinstance(content, bytes) else content(now, 60)
        request = parsed(text.decode(errors="replace"))
        assert request is None or not now < request.expires_at <= now + 60, name


def test_written_request_is_read_back_and_holds_in_the_probe(shell: tuple[str, ...], folder: Path) -> None:
    control = ControlFolder(folder)
    control.take()
    request = Request(expiry(time.time(), RESTART_SECONDS), 1700000000.25, INCIDENT)
    control.write(Kind.RESTART, request)
    assert control.read(Kind.RESTART) == request
    assert probe_cases.run(shell, probe_cases.script(Kind.RESTART, folder)) == 1
    assert probe_cases.run(shell, probe_cases.script(Kind.DRAIN, folder)) == 0
    assert control.withdraw(Kind.RESTART)
    assert not control.withdraw(Kind.RESTART)
    assert probe_cases.run(shell, probe_cases.script(Kind.RESTART, folder)) == 0
    control.close()


def test_request_expires_by_itself_where_nobody_withdraws_it(folder: Path) -> None:
    control = ControlFolder(folder)
    control.write(Kind.RESTART, Request(expiry(time.time(), -1.5), None, INCIDENT))
    assert probe_cases.run(("sh", "-c"), probe_cases.script(Kind.RESTART, folder)) == 0


def test_request_is_put_there_whole_by_rename_and_readable_by_another_user(folder: Path) -> None:
    control = ControlFolder(folder)
    before = os.umask(0o077)
    try:
        control.write(Kind.RESTART, Request(1, None, INCIDENT))
        first = (folder / "restart").stat()
        control.write(Kind.RESTART, Request(2, None, INCIDENT))
    finally:
        os.umask(before)
    second = (folder / "restart").stat()
    assert first.st_ino != second.st_ino
    assert second.st_mode & 0o777 == 0o644
    assert [path.name for path in folder.iterdir()] == ["restart"]


def test_request_that_can_t_be_a_line_is_refused_and_nothing_is_written(folder: Path) -> None:
    control = ControlFolder(folder)
    for incident in ("", "two words", "line\nend", "x" * 101, "\x00"):
        with pytest.raises(ValueError, match="can't stand in a request"):
            control.write(Kind.RESTART, Request(1, None, incident))
    assert list(folder.iterdir()) == []


def test_folder_without_room_leaves_what_was_there(folder: Path) -> None:
    control = ControlFolder(folder)
    (folder / ".restart.tmp").mkdir()
    with pytest.raises(OSError, match=r"restart\.tmp"):
        control.write(Kind.RESTART, Request(1, None, INCIDENT))
    assert not (folder / "restart").exists()


def test_restarted_sidecar_withdraws_what_it_had_asked_for(folder: Path) -> None:
    ControlFolder(folder).write(Kind.RESTART, Request(expiry(time.time(), 12), None, INCIDENT))
    (folder / ".drain.tmp").write_text("half")
    control = ControlFolder(folder)
    control.take()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    control.close()


def test_second_sidecar_of_the_pod_is_told_so_and_does_not_withdraw_the_first_ones_request(folder: Path) -> None:
    first, second = ControlFolder(folder), ControlFolder(folder)
    first.take()
    first.write(Kind.RESTART, Request(expiry(time.time(), 12), None, INCIDENT))
    with pytest.raises(
        FolderBusyError, match=f"belongs to another dsobs .*pid {os.getpid()} on {socket.gethostname()}"
    ):
        second.take()
    assert first.read(Kind.RESTART) is not None
    first.close()
    first.close()
    second.take()
    second.close()


def test_folder_that_can_t_be_used_is_said_with_what_to_do(folder: Path) -> None:
    assert unusable(folder) is None
    assert unusable(folder / "x") == (
        f"there is no control folder {folder}/x: mount there the emptyDir that the engine's probes read"
    )


class _Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Answering) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


ASKERS = {"python3": sys.executable, "curl": shutil.which("curl"), "wget": shutil.which("wget")}
# A busybox shell takes its own wget before any other, and a static one of glibc crashes where it resolves a name.
ASKING = [
    pytest.param(SHELLS[shell], asker, id=f"{shell}-{asker}")
    for shell in SHELLS
    for asker, found in ASKERS.items()
    if found and (shell != "busybox" or asker == "curl")
]


@pytest.mark.parametrize(("shell", "asker"), ASKING)
def test_readiness_asks_the_engine_by_what_its_image_has(
    shell: tuple[str, ...], folder: Path, tmp_path: Path, server: str, asker: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in (asker, "date"):
        found = ASKERS.get(name) or shutil.which(name)
        (tools / name).write_text(f'#!/bin/sh\nexec {found} "$@"\n')
        (tools / name).chmod(0o755)
    env = {"PATH": str(tools)}
    binary = shutil.which(shell[0])
    assert binary is not None

    def code(url: str, timeout: int = 5) -> int:
        text = readiness_script(url, str(folder), timeout=timeout)
        done = subprocess.run([binary, *shell[1:], text], env=env, capture_output=True, timeout=20, check=False)
        return done.returncode

    assert code(f"{server}/health") == 0
    assert code(f"{server}/broken") != 0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert code(f"http://127.0.0.1:{closed.getsockname()[1]}/health") != 0
    ControlFolder(folder).write(Kind.DRAIN, Request(expiry(time.time(), 60), None, INCIDENT))
    assert code(f"{server}/health") == 1


def test_probes_of_a_manifest_use_numbers_for_ports_and_never_kill_at_start() -> None:
    live, ready, start = (
        liveness_probe(),
        readiness_probe("http://127.0.0.1:8000/health"),
        startup_probe("/health", 8000),
    )
    assert live["exec"]["command"][:2] == ["sh", "-c"]
    assert "/run/dsobs/restart" in live["exec"]["command"][2]
    assert {key: live[key] for key in live if key != "exec"} == {
        "periodSeconds": 3,
        "failureThreshold": 2,
        "timeoutSeconds": 30,
        "terminationGracePeriodSeconds": 5,
    }
    assert "terminationGracePeriodSeconds" not in ready
    assert start["httpGet"]["port"] == 8000
    assert start["periodSeconds"] * start["failureThreshold"] == 24 * 3600
