"""`dsobs supervise` as a real process over small engines."""

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsobs.supervisor import command, output, processes
from tests.contracts.runtime_contract import ENGINE, STUBBORN
from tests.runtimes.supervised import ROOT, Supervised

ORPHAN = 'setsid sh -c "trap : TERM HUP; sleep 1000 & wait; sleep 1000" & sleep 1000 & echo ready; wait'
"""A grandchild in a session of its own, that ignores what can be ignored."""


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", 139), ("kill -9 $$", 137)]
)
def test_exit_code_is_the_engines_and_128_plus_the_signal(supervised: Supervised, script: str, code: int) -> None:
    supervised.script(script, "--restart", "never")
    assert supervised.exit_code() == code
    assert supervised.last_state()["exit_code"] == code
    assert supervised.last_state()["planned_stop"] is None


@pytest.mark.parametrize(("command", "code"), [("/nowhere/engine", 127), ("/etc/passwd", 126)])
def test_command_that_cannot_be_started_ends_at_once(supervised: Supervised, command: str, code: int) -> None:
    supervised.start(command)
    assert supervised.exit_code() == code
    assert command in supervised.output.read_text()


def test_missing_command_and_unknown_option_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--socket", "x"], ["--stop-grace", "-1", "--", "true"], ["--unknown", "--", "true"]):
        with pytest.raises(SystemExit) as end:
            command.supervise(words)
        assert end.value.code == 2
    assert "the command is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "wanted"), [("--stop-grace", "number of seconds"), ("--log-max-bytes", "number of bytes")]
)
@pytest.mark.parametrize("value", ["soon", "-1", "nan"])
def test_an_option_that_is_no_number_is_said_in_words(
    option: str, wanted: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command.supervise([f"{option}={value}", "--", "true"])
    assert end.value.code == 2
    assert f"argument {option}: '{value}' is no {wanted}; write " in capsys.readouterr().err


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_stop_signal_is_forwarded_recorded_and_final(supervised: Supervised, signo: signal.Signals) -> None:
    supervised.script(f'trap "echo stopping; exit 3" {signo.name[3:]}; echo ready; sleep 1000 & while :; do wait; done')
    supervised.wait_for_line("ready")
    supervised.living()
    supervised.signal(signo)
    assert supervised.exit_code() == 3
    state = supervised.last_state()
    assert state["planned_stop"].startswith(f"{signo.name} from pid {os.getpid()} (")
    assert state["planned_stop"].endswith("forwarded by dsobs supervise")
    assert (state["phase"], state["running"], state["restart_count"]) == ("done", False, 0)
    assert "stopping" in supervised.output.read_text()
    assert not supervised.living()
    assert not supervised.socket.exists()


def test_stop_signal_ignored_by_the_engine_kills_it_after_the_grace(supervised: Supervised) -> None:
    supervised.script(STUBBORN, "--stop-grace", "0.5")
    supervised.wait_for_line("ready")
    supervised.living()
    begun = time.monotonic()
    supervised.signal(signal.SIGTERM)
    assert supervised.exit_code() == 137
    assert 0.45 <= time.monotonic() - begun < 25  # By default it is 30 s.
    assert not supervised.living()


def test_other_signals_reach_the_engine_and_stop_nothing(supervised: Supervised) -> None:
    supervised.script('trap "echo one" USR1; trap "echo two" USR2; echo ready; sleep 1000 & while :; do wait; done')
    supervised.wait_for_line("ready")
    supervised.signal(signal.SIGUSR1)
    supervised.wait_for_line("one")
    supervised.signal(signal.SIGUSR2)
    supervised.wait_for_line("two")
    assert supervised.status()["running"]
    assert supervised.status()["planned_stop"] is None


def test_engine_ended_by_a_forwarded_signal_is_planned_and_restarted(supervised: Supervised) -> None:
    supervised.script("echo ready; exec sleep 1000")
    supervised.wait_for_line("ready")
    supervised.signal(signal.SIGUSR1)
    supervised.wait_for_line("ready", 2)
    status = supervised.status()
    assert status["planned_stop"].startswith("SIGUSR1 from pid")
    assert (status["running"], status["restart_count"], status["signal"]) == (True, 1, signal.SIGUSR1)


def test_hangup_that_ends_the_engine_ends_the_supervisor(supervised: Supervised) -> None:
    supervised.script("echo ready; exec sleep 1000")
    supervised.wait_for_line("ready")
    supervised.signal(signal.SIGHUP)
    assert supervised.exit_code() == 129
    assert supervised.last_state()["planned_stop"].startswith("SIGHUP from pid")


def test_crash_kills_orphans_of_other_sessions_before_the_next_start(supervised: Supervised) -> None:
    supervised.script(ORPHAN)
    supervised.wait_for_line("ready")
    supervised.wait(lambda: len(supervised.living()) == 4)
    old = supervised.living()
    os.kill(supervised.status()["pid"], signal.SIGKILL)
    supervised.wait(lambda: supervised.status()["phase"] == "waiting")
    assert not supervised.living()
    supervised.wait_for_line("ready", 2)
    assert not old & supervised.living()
    assert supervised.status()["planned_stop"] is None


@pytest.mark.parametrize(
    ("policy", "code", "again"), [("always", 0, True), ("on-failure", 0, False), ("on-failure", 1, True)]
)
def test_policy_decides_what_follows_an_end(supervised: Supervised, policy: str, code: int, again: bool) -> None:
    supervised.script(f"echo begun; exit {code}", "--restart", policy)
    if again:
        supervised.wait_for_line("begun", 2)
        assert supervised.status()["restart_count"] >= 1
    else:
        assert supervised.exit_code() == code


def test_back_off_doubles_between_crashes(supervised: Supervised) -> None:
    supervised.script("exit 1")
    supervised.wait(lambda: len(supervised.status()["history"]) == 3)
    first, second, third = supervised.status()["history"]
    assert 1.0 <= second - first < 1.9
    assert 2.0 <= third - second < 2.9


def test_restart_during_the_back_off_starts_at_once(supervised: Supervised) -> None:
    supervised.script(
        'if [ -e "$0.once" ]; then echo ready; exec sleep 1000; fi; exit 1'.replace("$0", str(supervised.socket))
    )
    supervised.wait(lambda: supervised.status()["phase"] == "waiting")
    Path(f"{supervised.socket}.once").touch()
    assert supervised.ask(op="restart", id="a", grace_seconds=1)["ok"]
    supervised.wait_for_line("ready")


def test_repeated_request_is_answered_alike_and_done_once(supervised: Supervised) -> None:
    supervised.script(ENGINE)
    request = {"op": "restart", "id": "a", "grace_seconds": 2, "expect_started_at": supervised.status()["started_at"]}
    first = supervised.ask(**request)
    again = supervised.ask(**request)
    assert first["ok"]
    assert again == first | {"repeated": True}
    assert supervised.status()["restart_count"] == 1


def test_request_is_remembered_over_a_restart_of_the_supervisor(supervised: Supervised) -> None:
    supervised.script(ENGINE)
    first = supervised.ask(op="restart", id="a", grace_seconds=2)
    supervised.signal(signal.SIGTERM)
    supervised.exit_code()
    supervised.script(ENGINE)
    assert supervised.ask(op="restart", id="a", grace_seconds=2) == first | {"repeated": True}
    status = supervised.status()
    assert (status["restart_count"], len(status["history"])) == (2, 3)
    assert status["planned_stop"].startswith("SIGTERM from pid")


def test_second_restart_while_one_is_under_way_is_refused(supervised: Supervised) -> None:
    supervised.script(STUBBORN)
    supervised.wait_for_line("ready")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(supervised.socket))
        client.sendall(b'{"version": 1, "op": "restart", "id": "a", "grace_seconds": 1}\n')
        supervised.wait(lambda: supervised.status()["phase"] == "stopping")
        answer = supervised.ask(op="restart", id="b", grace_seconds=1)
        assert (answer["error"], answer["detail"]) == ("refused", "another restart is under way")
        client.settimeout(20)
        assert b'"ok": true' in client.recv(4096)


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b"[]",
        b'{"version": 2, "op": "status"}',
        b'{"version": 1, "op": "dance"}',
        b'{"version": 1, "op": "restart"}',
        b'{"version": 1, "op": "restart", "id": "a", "grace_seconds": -1}',
        b'{"version": 1, "op": "restart", "id": "a", "grace_seconds": 1, "expect_started_at": "now"}',
        b'{"version": 1, "op": "log_tail", "lines": "all"}',
        b"\xff\xfe",
    ],
)
def test_bad_request_is_refused_and_harms_nothing(supervised: Supervised, line: bytes) -> None:
    supervised.script(ENGINE)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(supervised.socket))
        client.sendall(line + b"\n")
        assert b'"error": "bad_request"' in client.recv(4096)
    assert supervised.status()["restart_count"] == 0


def test_clients_that_never_finish_a_line_do_not_keep_others_out(supervised: Supervised) -> None:
    supervised.script(ENGINE)
    clients = [socket.socket(socket.AF_UNIX) for _ in range(40)]
    try:
        for client in clients:
            client.connect(str(supervised.socket))
            client.send(b"{")
            assert supervised.status()["running"]
    finally:
        for client in clients:
            client.close()


def test_engine_survives_a_killed_supervisor_and_is_ended_before_the_next_one_starts_its_own(
    supervised: Supervised,
) -> None:
    supervised.script(ENGINE)
    supervised.wait_for_line("ready")
    old = supervised.living()
    supervised.signal(signal.SIGKILL)
    supervised.exit_code()
    assert supervised.living() == old
    supervised.script(ENGINE)
    supervised.wait_for_line("ready")
    assert not old & supervised.living()
    assert len(supervised.status()["history"]) == 2


def test_second_supervisor_on_a_socket_is_refused(supervised: Supervised) -> None:
    supervised.script(ENGINE)
    words = [sys.executable, "-m", "dsobs.supervisor", "--socket", str(supervised.socket), "--", "true"]
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert second.returncode == 125
    assert "another supervisor owns" in second.stderr
    assert supervised.status()["running"]


def test_unreadable_state_is_set_aside(supervised: Supervised) -> None:
    Path(f"{supervised.socket}.state").write_text("{")
    supervised.script(ENGINE)
    assert supervised.status()["running"]
    assert Path(f"{supervised.socket}.state.unreadable").read_text() == "{"


def test_socket_is_for_its_owner_alone(supervised: Supervised) -> None:
    supervised.script(ENGINE)
    assert stat.S_IMODE(supervised.socket.stat().st_mode) == 0o600


def test_output_passes_through_unchanged_and_in_order(supervised: Supervised) -> None:
    supervised.script(
        r"i=0; while [ $i -lt 300 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf '\377x'",
        "--restart",
        "never",
    )
    assert supervised.exit_code() == 0
    expected = b"".join(b"out %d\nerr %d\n" % (i, i) for i in range(300)) + b"\xffx"
    assert supervised.output.read_bytes().startswith(expected)


def test_stdout_and_stderr_stay_apart_where_they_are_apart(supervised: Supervised, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        command = ("/bin/sh", "-c", "echo to out; echo to err >&2")
        supervised.start(*command, options=("--restart", "never"), stdout=out, stderr=err)
        assert supervised.exit_code() == 0
    assert (tmp_path / "out").read_text() == "to out\n"
    assert "to err\n" in (tmp_path / "err").read_text()


def test_engine_runs_on_while_nobody_reads_and_what_is_dropped_is_counted(supervised: Supervised) -> None:
    read_end, write_end = os.pipe()
    try:
        script = "head -c 4000000 /dev/zero | tr '\\0' x; echo; echo done; sleep 1000"
        supervised.start("/bin/sh", "-c", script, stdout=write_end, stderr=write_end)
        supervised.wait_for_line("done")
        # A pipe's worth is written, the queue is full, the rest is counted.
        assert supervised.status()["dropped_bytes"]["stdout"] > 4_000_000 - 2 * output.QUEUE_BYTES - (1 << 20)
    finally:
        os.close(write_end)
        os.close(read_end)


def test_reader_that_goes_away_does_not_end_the_engine(supervised: Supervised) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    supervised.start(
        "/bin/sh",
        "-c",
        "while echo line; do read -r _ < /dev/null; [ -e stop ] || sleep 0.01; done",
        stdout=write_end,
        stderr=write_end,
    )
    os.close(write_end)
    supervised.wait(lambda: supervised.status()["dropped_bytes"]["stdout"] > 50)
    assert supervised.status()["restart_count"] == 0


def test_log_tail_is_bounded_in_lines_and_bytes(supervised: Supervised) -> None:
    supervised.script(
        "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; "
        "head -c 200000 /dev/zero | tr '\\0' x; echo; echo done; sleep 1000"
    )
    supervised.wait_for_line("done")
    lines = supervised.ask(op="log_tail", lines=100000)["lines"]
    assert len(lines) <= output.RING_LINES
    assert max(len(line) for line in lines) <= output.RING_LINE_BYTES
    assert "2999" in lines
    assert "0" not in lines


def test_log_file_holds_whole_lines_and_is_rotated_by_rename(supervised: Supervised, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    script = "i=0; while [ $i -lt 2000 ]; do echo line number $i; i=$((i+1)); done"
    supervised.script(script, "--restart", "never", "--log-file", str(log), "--log-max-bytes", "10000")
    assert supervised.exit_code() == 0
    for file in (log, Path(f"{log}.1")):
        lines = file.read_text().splitlines()
        assert all(line.startswith(("line number ", "dsobs supervise: ")) for line in lines)
        assert file.stat().st_size < 10_100
    assert "line number 1999" in log.read_text()


def test_status_names_the_log_file_in_full(supervised: Supervised, tmp_path: Path) -> None:
    log = os.path.relpath(tmp_path / "engine.log", ROOT)
    supervised.script("sleep 1000", "--log-file", log)
    assert supervised.status()["log_file"] == str(tmp_path / "engine.log")


def test_status_counts_cpu_of_children_and_never_goes_back(supervised: Supervised) -> None:
    burn = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
    supervised.script(f"sh -c '{burn}'; echo burnt; sleep 1000")
    seen = []

    def burnt() -> bool:
        seen.append(supervised.status()["cpu_seconds"])
        return "burnt" in supervised.ask(op="log_tail", lines=9)["lines"]

    supervised.wait(burnt)
    seen.append(supervised.status()["cpu_seconds"])
    assert seen == sorted(seen)
    assert seen[-1] > 0


def test_engine_keeps_the_environment_and_gets_unblocked_signals(supervised: Supervised) -> None:
    supervised.script("grep -E '^Sig(Blk|Ign)' /proc/self/status; env | grep ^MARK; sleep 1000", "--restart", "never")
    supervised.wait(lambda: len(supervised.ask(op="log_tail", lines=9)["lines"]) >= 2)
    blocked, ignored = supervised.ask(op="log_tail", lines=9)["lines"][:2]
    assert int(blocked.split()[1], 16) == 0
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_it_is_reaper_and_exit_code_keeper_as_pid_1(tmp_path: Path) -> None:
    script = "(sleep 0.2 & ) ; kill -TERM 1; sleep 1000"
    words = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m", "dsobs.supervisor"]
    words += ["--socket", str(tmp_path / "s.sock"), "--stop-grace", "5", "--", "/bin/sh", "-c", script]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    if "Operation not permitted" in result.stderr:
        pytest.skip("PID namespaces need root")
    assert result.returncode == 143, result.stderr
    assert "SIGTERM from pid" in result.stderr


def test_it_imports_only_the_standard_library_and_little_memory(supervised: Supervised) -> None:
    supervised.script(ENGINE)
    assert supervised.process is not None
    status = Path(f"/proc/{supervised.process.pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident < 15 * 1024
    code = (
        "import sys, dsobs.supervisor; "
        "names = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names); "
        "print(sorted(name for name in names if not name.startswith('_')), "
        "sorted(name for name in sys.modules if name.startswith('dsobs')))"
    )
    loaded = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=90, check=True
    )
    assert loaded.stdout == "['dsobs'] ['dsobs', 'dsobs.supervisor']\n"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/usr/bin/vllm", "serve", "org/model", "--api-key", "secret"], "vllm serve org/model"),
        (
            ["python", "-m", "vllm.entrypoints.openai.api_server", "--api-key", "secret"],
            "python -m vllm.entrypoints.openai.api_server",
        ),
        (["sh", "-c", "secret"], "sh"),
        ([], ""),
    ],
)
def test_command_name_shows_no_options(command: list[str], name: str) -> None:
    assert processes.command_name(command) == name
