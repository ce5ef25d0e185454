"""vLLM's log as a file: several processes write it, it stays within its bounds, stdout stays as it is."""

import ast
import fcntl
import json
import logging
import logging.config
import os
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

from dsobs.manifests import engine_log, sidecar
from dsobs.manifests.engine_log import RotatingFile

WRITER = """
import logging, runpy, sys
handler = runpy.run_path(sys.argv[1])["RotatingFile"](sys.argv[2], int(sys.argv[3]), 3)
logger = logging.Logger("vllm.x")
logger.addHandler(handler)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[4])):
    logger.info("%s line %d %s", sys.argv[5], number, "x" * 50)
"""


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("vllm.engine", logging.INFO, "/x/core.py", 7, message, args, None)


def lines(folder: Path) -> list[dict[str, object]]:
    files = sorted(folder.glob("vllm.log*"), reverse=True)
    return [json.loads(line) for file in files if file.suffix != ".lock" for line in file.read_bytes().splitlines()]


def writers(folder: Path, count: int, each: int, max_bytes: int) -> list[subprocess.Popen[str]]:
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                WRITER,
                engine_log.__file__,
                str(folder / "vllm.log"),
                str(max_bytes),
                str(each),
                f"w{i}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    return started


def go(started: list[subprocess.Popen[str]]) -> None:
    for one in started:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()


def end(started: list[subprocess.Popen[str]]) -> None:
    for one in started:
        one.communicate(timeout=60)
        assert one.returncode == 0


def test_line_says_what_dsobs_reads(tmp_path: Path) -> None:
    handler = RotatingFile(str(tmp_path / "vllm.log"), 10_000, 3)
    try:
        raise ValueError("bad é")
    except ValueError:
        handler.handle(logging.LogRecord("vllm.a", logging.ERROR, "/x/a.py", 3, "it %s", ("failed",), sys.exc_info()))
    handler.close()
    (line,) = lines(tmp_path)
    assert line["levelname"] == "ERROR"
    assert (line["name"], line["message"], line["pid"], line["lineno"]) == ("vllm.a", "it failed", os.getpid(), 3)
    assert str(line["exc_info"]).endswith("ValueError: bad é\n")
    assert str(line["timestamp"]).endswith("Z")


def test_several_processes_lose_and_tear_no_line_while_all_of_it_fits(tmp_path: Path) -> None:
    started = writers(tmp_path, 3, 300, 10_000_000)
    go(started)
    end(started)
    found = [str(line["message"]).split(" xx")[0] for line in lines(tmp_path)]
    assert sorted(found) == sorted(f"w{i} line {n}" for i in range(3) for n in range(300))


def test_files_stay_within_their_bound_and_hold_the_newest_lines(tmp_path: Path) -> None:
    started = writers(tmp_path, 3, 1000, 20_000)
    go(started)
    end(started)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["vllm.log", "vllm.log.1", "vllm.log.2", "vllm.log.lock"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * 20_000 * 5 / 4
    assert lines(tmp_path)
    assert "line 999 " in (tmp_path / "vllm.log").read_text() + (tmp_path / "vllm.log.1").read_text()


def test_process_that_is_stopped_in_the_middle_of_rotating_stops_no_other(tmp_path: Path) -> None:
    lock = tmp_path / "vllm.log.lock"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
            "print('held', flush=True); time.sleep(60)",
            str(lock),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        started = writers(tmp_path, 1, 1000, 20_000)
        go(started)
        end(started)
        assert (tmp_path / "vllm.log").stat().st_size <= 20_000 * 5 / 4
        holder.kill()
        holder.wait()


def test_what_was_left_out_is_counted_once_there_is_room(tmp_path: Path) -> None:
    handler = RotatingFile(str(tmp_path / "vllm.log"), 4_000, 2)
    blocked = os.open(tmp_path / "vllm.log.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(blocked, fcntl.LOCK_EX)
    for number in range(40):
        handler.handle(record("line %d %s", number, "x" * 100))
    os.close(blocked)
    handler.handle(record("at last"))
    handler.close()
    kept = sum("line" in str(line["message"]) for line in lines(tmp_path)) - 1
    assert [line["message"] for line in lines(tmp_path)][-2:] == [
        f"dsobs: {40 - kept} lines are missing here",
        "at last",
    ]


def test_long_record_is_cut_and_marked(tmp_path: Path) -> None:
    handler = RotatingFile(str(tmp_path / "vllm.log"), 64_000, 2)
    handler.handle(record("%s", "y" * 100_000))
    handler.close()
    (line,) = lines(tmp_path)
    assert (line["message"], line["cut"]) == ("y" * 1000, True)


def test_folder_that_can_not_be_written_to_costs_the_engine_nothing(tmp_path: Path) -> None:
    handler = RotatingFile(str(tmp_path / "nowhere" / "vllm.log"), 10_000, 2)
    handler.handle(record("a"))
    handler.handle(record("%d", "no number"))
    handler.close()
    assert list(tmp_path.iterdir()) == []


def test_file_is_readable_for_another_user_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        handler = RotatingFile(str(tmp_path / "vllm.log"), 10_000, 2)
        handler.handle(record("a"))
        handler.close()
    finally:
        os.umask(before)
    assert (tmp_path / "vllm.log").stat().st_mode & 0o777 == 0o644


@pytest.fixture
def config(tmp_path: Path) -> dict[str, object]:
    """The configuration that a manifest carries, at other places."""
    (tmp_path / "engine_log.py").write_text(sidecar.log_code())
    text = sidecar.logging_config(None, ())
    text = text.replace(sidecar.LOGGING_PATH, str(tmp_path)).replace(sidecar.LOG_FILE, str(tmp_path / "vllm.log"))
    made: dict[str, object] = json.loads(text)
    return made


def test_configuration_leaves_stdout_as_vllm_would_write_it(
    config: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vllm = types.ModuleType("vllm.logger")
    vllm.__dict__["DEFAULT_LOGGING_CONFIG"] = {
        "version": 1,
        "formatters": {"vllm": {"format": "(own) %(levelname)s %(message)s"}},
        "handlers": {
            "vllm": {
                "class": "logging.StreamHandler",
                "formatter": "vllm",
                "level": "INFO",
                "stream": "ext://sys.stdout",
            }
        },
        "loggers": {"vllm": {"handlers": ["vllm"], "level": "INFO", "propagate": False}},
    }
    monkeypatch.setitem(sys.modules, "vllm.logger", vllm)
    logging.config.dictConfig(config)
    try:
        logging.getLogger("vllm.core").info("hello %s", "you")
        logging.getLogger("vllm.core").debug("not this")
        logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', "1.2.3.4:5", "GET", "/", "1.1", 200)
    finally:
        for name in ("vllm", "uvicorn", "uvicorn.access", "uvicorn.error"):
            logger = logging.getLogger(name)
            for handler in list(logger.handlers):
                handler.close()
                logger.removeHandler(handler)
            logger.propagate = True
            logger.setLevel(logging.NOTSET)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "(own) INFO hello you"
    assert '1.2.3.4:5 - "GET / HTTP/1.1" 200' in out
    assert [line["message"] for line in lines(tmp_path)] == ["hello you", '1.2.3.4:5 - "GET / HTTP/1.1" 200']


def test_handler_needs_no_newer_python_than_the_oldest_that_vllm_ran_on() -> None:
    compile(sidecar.log_code(), "engine_log.py", "exec", dont_inherit=True)
    newer = ("match ", "tomllib", "strict=", "datetime.UTC", "itertools.batched", "except*")
    assert not [word for word in newer if word in sidecar.log_code()]
    ast.parse(sidecar.log_code(), feature_version=(3, 8))
    assert textwrap.dedent(sidecar.log_code()) == sidecar.log_code()
