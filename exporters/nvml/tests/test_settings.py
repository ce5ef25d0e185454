"""What the exporter is told, and the process that it is."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from dsobs_nvml.exporter import records_of
from dsobs_nvml.settings import OPTIONS, SettingsError, parser, settings_of

RECORDING = Path(__file__).parents[3] / "tests/data/h100-vllm-0.23/scenario.jsonl.gz"


def test_defaults_serve_on_the_loopback_and_ask_nobody_else() -> None:
    settings = settings_of([], {})
    assert settings.listen == ("127.0.0.1", 9941)
    assert (settings.textfile, settings.devices, settings.dcgm_names, settings.interval) == (None, (), False, 1.0)
    assert settings.hostname == socket.gethostname()


def test_flags_go_before_variables_and_variables_before_defaults(tmp_path: Path) -> None:
    environ = {
        "DSOBS_NVML_LISTEN": "0.0.0.0:1",
        "DSOBS_NVML_DCGM_NAMES": "true",
        "DSOBS_NVML_TEXTFILE": str(tmp_path / "gpu.prom"),
        "NODE_NAME": "node-7",
        # What Kubernetes sets for a Service of this name.
        "DSOBS_NVML_PORT": "tcp://10.0.0.1:9941",
        "DSOBS_NVML_SERVICE_HOST": "10.0.0.1",
    }
    settings = settings_of(["--listen", "[::1]:9941", "--devices", "0, GPU-a"], environ)
    assert settings.listen == ("::1", 9941)
    assert settings.dcgm_names
    assert settings.textfile == tmp_path / "gpu.prom"
    assert settings.devices == ("0", "GPU-a")
    assert settings.hostname == "node-7"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--listen", "9941"], "--listen: '9941' is no address and port; write 127.0.0.1:9941, or none"),
        (["--listen", "a:70000"], "--listen: 'a:70000' is no address and port; write 127.0.0.1:9941, or none"),
        (["--interval", "0"], "--interval: '0' is no number of seconds from 0.2 to 3600; write 1"),
        (["--interval", "nan"], "--interval: 'nan' is no number of seconds from 0.2 to 3600; write 1"),
        (
            ["--devices", "0,gpu"],
            "--devices: 'gpu' is neither an index nor a UUID; write 0 or GPU-… or MIG-…, with commas between",
        ),
        (
            ["--textfile", "/tmp/gpu.txt"],
            "--textfile: '/tmp/gpu.txt' does not end in .prom, so that node_exporter would not read it",
        ),
        (
            ["--textfile", "/nowhere/gpu.prom"],
            "--textfile: there is no folder /nowhere; make it, and give it to node_exporter",
        ),
        (["--recording", "/nowhere"], "--recording: there is no file /nowhere"),
        (["--log-level", "loud"], "--log-level: 'loud' is none of debug, info, warning, error"),
        (
            ["--listen", "none"],
            "--listen: is none, and there is no --textfile: nothing would be served; give one of them",
        ),
    ],
)
def test_bad_settings_say_what_to_write(flags: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as told:
        settings_of(flags, {})
    assert str(told.value) == message


def test_all_that_is_wrong_is_told_at_once_with_where_it_stands() -> None:
    with pytest.raises(SettingsError) as told:
        settings_of(["--interval", "x"], {"DSOBS_NVML_LISTEN": "x", "DSOBS_NVML_DCGM_NAMES": "maybe"})
    assert [line.partition(":")[0] for line in str(told.value).splitlines()] == [
        "DSOBS_NVML_LISTEN",
        "--interval",
        "DSOBS_NVML_DCGM_NAMES",
    ]


def test_every_option_is_in_the_help() -> None:
    text = parser().format_help()
    assert all(option.flag in text for option in OPTIONS)


@pytest.mark.parametrize("text", ["", "{}\n{", "[1"])
def test_a_recording_that_is_none_is_refused_or_empty(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recording.jsonl"
    path.write_text(text, encoding="utf-8")
    if text:
        with pytest.raises(SettingsError, match="can't be read"):
            records_of(path)
    else:
        assert records_of(path) == []


def command(*flags: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "dsobs_nvml", *flags]


def test_bad_settings_end_the_process_with_2() -> None:
    ended = subprocess.run(command("--interval", "x"), capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (
        2,
        "dsobs-nvml: --interval: 'x' is no number of seconds from 0.2 to 3600; write 1\n",
    )


def test_a_port_that_is_taken_ends_the_process_with_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = subprocess.run(command("--listen", address), capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert "Address already in use" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_cleanly(tmp_path: Path, number: int) -> None:
    path = tmp_path / "gpu.prom"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ["--listen", f"127.0.0.1:{port}", "--recording", str(RECORDING), "--textfile", str(path)]
    environ = {**os.environ, "DSOBS_NVML_POD_RESOURCES": "off", "DSOBS_NVML_TEXTFILE_INTERVAL": "1"}
    with subprocess.Popen(command(*flags), stderr=subprocess.PIPE, text=True, env=environ) as process:
        end = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.02)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            assert b"dsobs_gpu_memory_total_bytes" in answer.read()
        process.send_signal(number)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 0
    assert told.splitlines()[-1].endswith("INFO ended")
    assert not path.exists()


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        settings_of(["--version"], {})
    assert ended.value.code == 0
    assert re.fullmatch(r"dsobs-nvml \d+\.\d+\.\d+\n", capsys.readouterr().out)
