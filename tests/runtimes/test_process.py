"""What is the process runtime's own: a process that nobody supervises, and supervisors that come and go."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dsobs.config.models import RuntimeSettings, Target
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RuntimeRefused
from dsobs.runtimes import select
from dsobs.runtimes.process import ProcessRuntime, open_runtime
from tests.contracts.runtime_contract import ENGINE, until
from tests.runtimes.supervised import Supervised

SERVER = """
import os, socket, sys
sock = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
sock.bind((sys.argv[1], 0)); sock.listen()
os.set_inheritable(sock.fileno(), True)
if os.fork() == 0:
    import time; time.sleep(1000)
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""
"""A listener whose child has inherited the socket, as vLLM's API servers do."""


@contextmanager
def listener(address: str = "127.0.0.1") -> Iterator[tuple[subprocess.Popen[str], int]]:
    words = [sys.executable, "-c", SERVER, address]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server, int(server.stdout.readline())
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def runtime_at(port: int, folder: Path, proc: Path = Path("/proc")) -> ProcessRuntime:
    settings = RuntimeSettings(supervisor_socket=folder / "s.sock", timeout=1.0)
    return ProcessRuntime(settings, Target(url=f"http://127.0.0.1:{port}"), proc=proc)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
async def test_listening_process_is_found_with_its_children_and_only_looked_at(address: str, tmp_path: Path) -> None:
    with listener(address) as (server, port):
        runtime = runtime_at(port, tmp_path)
        view = await runtime.view()
        assert isinstance(view, RuntimeView)
        assert view.running
        assert view.pids[0] == server.pid
        assert len(view.pids) == 2
        assert view.cpu_seconds is not None
        assert view.started_at is not None
        assert "secret" not in view.name
        assert not runtime.can_restart
        with pytest.raises(RuntimeRefused, match="dsobs supervise"):
            await runtime.restart(grace_seconds=1.0, expect_started_at=None)
        assert isinstance(await runtime.log_tail(5), Unknown)


async def test_engine_of_another_supervisor_is_not_restarted_for_the_one_on_the_targets_port(
    supervised: Supervised, caplog: pytest.LogCaptureFixture
) -> None:
    supervised.script(ENGINE)
    others = supervised.status()["started_at"]
    with listener() as (server, port):
        runtime = runtime_at(port, supervised.socket.parent)
        view = await runtime.view()
        assert isinstance(view, RuntimeView)
        # What is told is of the process that serves the target.
        assert (view.pids[0], runtime.can_restart) == (server.pid, False)
        assert view.look_only is not None
        assert f"pid {server.pid}" in view.look_only
        assert "runtime.supervisor_socket" in view.look_only
        assert view.look_only in caplog.text
        with pytest.raises(RuntimeRefused, match="did not start"):
            await runtime.restart(grace_seconds=1.0, expect_started_at=None)
        assert isinstance(await runtime.log_tail(5), Unknown)
        # A proxy before the engine looks the same: then somebody says so.
        settings = RuntimeSettings(name="process", supervisor_socket=supervised.socket, timeout=5.0)
        trusting = ProcessRuntime(settings, Target(url=f"http://127.0.0.1:{port}"))
        view = await trusting.view()
        assert isinstance(view, RuntimeView)
        assert (view.started_at, trusting.can_restart) == (others, True)
    assert supervised.status()["started_at"] == others


async def test_engine_that_listens_on_the_targets_port_is_its_supervisors(supervised: Supervised) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    server = (
        f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('up', flush=True); time.sleep(99)"
    )
    # The server itself is a child of what the supervisor starts.
    supervised.script(f'{sys.executable} -c "{server}"; true')
    supervised.wait_for_line("up")
    runtime = runtime_at(port, supervised.socket.parent)
    view = await runtime.view()
    assert isinstance(view, RuntimeView)
    assert (view.look_only, runtime.can_restart) == (None, True)
    assert view.started_at == supervised.status()["started_at"]


async def test_start_of_a_process_does_not_move_with_the_wall_clock(tmp_path: Path) -> None:
    with listener() as (_, port):
        times = iter([1e9, 1e9 + 3600, 1e9 - 3600])
        settings = RuntimeSettings(supervisor_socket=tmp_path / "s.sock")
        runtime = ProcessRuntime(settings, Target(url=f"http://localhost:{port}"), clock=lambda: next(times))
        starts = {view.started_at for _ in range(3) if isinstance(view := await runtime.view(), RuntimeView)}
        assert len(starts) == 1


async def test_process_that_is_gone_is_not_running_and_its_successor_is_found(tmp_path: Path) -> None:
    with listener() as (_, port):
        runtime = runtime_at(port, tmp_path)
        assert isinstance(await runtime.view(), RuntimeView)
    gone = await until(runtime.view, lambda seen: isinstance(seen, RuntimeView) and not seen.running)
    assert isinstance(gone, RuntimeView)
    assert gone.ended_at is not None
    assert (gone.planned_stop, gone.exit_code) == (None, None)
    assert await runtime.view() == gone


async def test_nobody_on_the_port_is_unknown(tmp_path: Path) -> None:
    # Bound, so that nobody else takes it meanwhile, and not listened on.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        view = await runtime_at(port, tmp_path).view()
    assert isinstance(view, Unknown)
    assert f"nobody listens on port {port}" in view.reason


def proc_with_listener(folder: Path, comm: str = "engine") -> Path:
    """A /proc in which port 8000 (0x1F40) is listened on by a process whose descriptors are to be added."""
    (folder / "net").mkdir(parents=True)
    (folder / "net" / "tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0\n"
    )
    (folder / "50" / "fd").mkdir(parents=True)
    (folder / "50" / "stat").write_text(f"50 ({comm}) S 1 50 50 0 -1 0 0 0 0 0 7 3 0 0 20 0 1 0 900 0 0\n")
    (folder / "50" / "comm").write_text(f"{comm}\n")
    (folder / "50" / "cmdline").write_bytes(b"/bin/engine\0serve\0")
    return folder


async def test_process_of_another_container_is_unknown(tmp_path: Path) -> None:
    view = await runtime_at(8000, tmp_path, proc=proc_with_listener(tmp_path / "proc")).view()
    assert view == Unknown(
        f"no supervisor at {tmp_path}/s.sock; the process on port 8000 can't be seen: it is in another container"
    )


async def test_process_of_another_user_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = proc_with_listener(tmp_path / "proc")

    def iterdir(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("dsobs.runtimes.process.Path.iterdir", iterdir)
    view = await runtime_at(8000, tmp_path, proc=proc).view()
    assert isinstance(view, Unknown)
    assert view.reason.endswith("can't be seen: it belongs to another user")


async def test_docker_proxy_is_not_taken_for_the_engine(tmp_path: Path) -> None:
    proc = proc_with_listener(tmp_path / "proc", comm="docker-proxy")
    (proc / "50" / "fd" / "3").symlink_to("socket:[4711]")
    view = await runtime_at(8000, tmp_path, proc=proc).view()
    assert isinstance(view, Unknown)
    assert "set runtime.name: docker" in view.reason


async def test_process_whose_name_holds_a_parenthesis_is_read(tmp_path: Path) -> None:
    proc = proc_with_listener(tmp_path / "proc", comm="a) R 1 (b")
    (proc / "50" / "fd" / "3").symlink_to("socket:[4711]")
    view = await runtime_at(8000, tmp_path, proc=proc).view()
    assert isinstance(view, RuntimeView)
    assert (view.pids, view.name) == ((50,), "engine serve")
    assert view.cpu_seconds == 10 / os.sysconf("SC_CLK_TCK")


async def test_supervisor_that_comes_later_is_found(supervised: Supervised, tmp_path: Path) -> None:
    with listener() as (_, port):
        runtime = runtime_at(port, tmp_path)
        await runtime.view()
        assert not runtime.can_restart
    supervised.script(ENGINE)
    view = await runtime.view()
    assert isinstance(view, RuntimeView)
    assert view.running
    assert view.name == "sh"
    assert runtime.can_restart


async def test_engine_outlives_a_killed_supervisor_and_is_still_seen(supervised: Supervised, tmp_path: Path) -> None:
    supervised.script(ENGINE)
    runtime = runtime_at(9, tmp_path)
    before = await runtime.view()
    supervised.living()
    supervised.signal(signal.SIGKILL)
    await supervised.ends()
    after = await runtime.view()
    assert isinstance(before, RuntimeView)
    assert isinstance(after, RuntimeView)
    assert after.running
    assert (after.started_at, after.pids[0]) == (before.started_at, before.pids[0])
    assert not runtime.can_restart
    os.kill(after.pids[0], signal.SIGKILL)
    gone = await until(runtime.view, lambda seen: isinstance(seen, RuntimeView) and not seen.running)
    assert isinstance(gone, RuntimeView)
    assert gone.planned_stop is None


async def test_last_word_of_a_supervisor_that_was_never_asked_is_said_to_be_that(
    supervised: Supervised, tmp_path: Path
) -> None:
    """Since it ended another engine may have been started without one, which nobody sees while it loads."""
    supervised.script(ENGINE, "--restart", "never")
    asked, late = runtime_at(9, tmp_path), runtime_at(9, tmp_path)
    supervised.living()
    assert isinstance(await asked.view(), RuntimeView)
    supervised.signal(signal.SIGTERM)
    await supervised.ends()
    for runtime, last_word in ((asked, False), (late, True)):
        view = await runtime.view()
        assert isinstance(view, RuntimeView)
        assert (view.running, view.last_word) == (False, last_word)


async def test_last_word_of_another_boot_is_forgotten(supervised: Supervised, tmp_path: Path) -> None:
    supervised.script("exit 1", "--restart", "never")
    await supervised.ends()
    runtime = runtime_at(9, tmp_path)
    assert isinstance(await runtime.view(), RuntimeView)
    supervised.move_to_another_boot()
    assert isinstance(await runtime.view(), Unknown)


@pytest.mark.parametrize(
    "answer", [b"", b"garbage\n", b"[]\n", b'{"ok": true}\n', b'{"ok": false, "error": "failed"}\n']
)
async def test_answer_that_makes_no_sense_is_unknown_and_an_unknown_outcome(answer: bytes, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s.sock"):
        runtime = runtime_at(9, tmp_path)
        assert isinstance(await runtime.view(), Unknown)
        assert isinstance(await runtime.log_tail(1), Unknown)
        if answer != b'{"ok": true}\n':
            with pytest.raises(OSError, match="supervisor"):
                await runtime.restart(grace_seconds=0.0, expect_started_at=None)


async def test_auto_is_a_process_and_none_is_unknown(tmp_path: Path) -> None:
    settings = RuntimeSettings(supervisor_socket=tmp_path / "s.sock")
    assert isinstance(await select(settings, Target()), ProcessRuntime)
    assert isinstance(await select(settings.model_copy(update={"name": "none"}), Target()), Unknown)
    assert isinstance(await open_runtime(settings, Target(url="http://10.0.0.1:8000")), Unknown)
    with pytest.raises(LookupError, match="docker, kubernetes, process"):
        await select(settings.model_copy(update={"name": "podman"}), Target())
