"""How `python -m tests.real` runs lanes. Not marked real: it takes seconds."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.real import lanes

TESTS = """\
import pytest

@pytest.mark.real("vllm")
def test_of_one_lane():
    print("said by the one that passes")

@pytest.mark.real("servers")
def test_that_fails():
    assert False, "because"

@pytest.mark.real("servers")
def test_that_is_skipped():
    pytest.skip("no server")

@pytest.fixture
def broken():
    yield
    raise RuntimeError("teardown")

@pytest.mark.real("servers")
def test_whose_end_fails(broken):
    pass

def test_that_is_not_real():
    raise RuntimeError("not to be run")
"""


def run(folder: Path, script: str) -> "subprocess.CompletedProcess[str]":
    file = folder / "test_made_up.py"
    file.write_text(script)
    words = f"from tests.real import lanes; raise SystemExit(lanes.run({{'vllm': 0, 'servers': 5}}, [{str(file)!r}]))"
    command = [sys.executable, "-c", words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=lanes.ROOT, timeout=120)


def test_lanes_tell_all_that_did_not_pass_and_a_skipped_test_has_failed(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS)
    assert done.returncode == 1
    failed = sorted(line.rpartition("::")[2] for line in done.stdout.splitlines() if line.startswith("FAILED servers"))
    assert failed == ["test_that_fails", "test_that_is_skipped", "test_whose_end_fails"]
    assert "AssertionError: because" in done.stdout
    assert "said by the one that passes" not in done.stdout
    assert "not to be run" not in done.stdout
    assert "1 passed in " in done.stdout.splitlines()[-1]


def test_lanes_that_pass_say_one_line_for_each_test(tmp_path: Path) -> None:
    script = TESTS.replace("assert False", "assert True").replace("pytest.skip", "print").replace("raise ", "")
    done = run(tmp_path, script)
    assert done.returncode == 0, done.stdout
    assert len([line for line in done.stdout.splitlines() if " passed " in line and "::" in line]) == 4
    assert done.stdout.splitlines()[-1].startswith("4 passed in ")


def test_lane_without_tests_has_failed(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS.replace('"servers"', '"kubernetes"'))
    assert done.returncode == 1
    assert "FAILED servers: status 5" in done.stdout


@pytest.mark.parametrize("mark", ["pytest.mark.real", "pytest.mark.real()", 'pytest.mark.real("no-such-lane")'])
def test_real_test_without_a_lane_is_refused(tmp_path: Path, mark: str) -> None:
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_collection_modifyitems\n")
    file = tmp_path / "test_made_up.py"
    file.write_text(f"import pytest\n\n@{mark}\ndef test_x() -> None:\n    pass\n")
    words = [sys.executable, "-m", "pytest", *lanes.PYTEST, "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=lanes.ROOT, timeout=120)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"test_x: mark it pytest.mark.real(LANE) with one of {', '.join(lanes.LANES)}" in done.stderr


WAITING = """\
import pathlib, time
import pytest

@pytest.fixture
def server():
    pathlib.Path(__file__).with_name("started").touch()
    yield
    pathlib.Path(__file__).with_name("ended").touch()

@pytest.mark.real("vllm")
def test_that_waits(server):
    time.sleep(100)
"""


def test_terminated_run_ends_what_its_tests_have_started(tmp_path: Path) -> None:
    file = tmp_path / "test_made_up.py"
    file.write_text(WAITING)
    words = f"from tests.real import lanes; raise SystemExit(lanes.run({{'vllm': 0}}, [{str(file)!r}]))"
    with subprocess.Popen([sys.executable, "-c", words], cwd=lanes.ROOT, stdout=subprocess.PIPE, text=True) as driver:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        driver.terminate()
        said, _ = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert (tmp_path / "ended").exists()
    assert f"FAILED vllm: status {int(pytest.ExitCode.INTERRUPTED)}" in said


ORDER = """\
import pathlib, time
import pytest

@pytest.mark.real("seconds")
def test_first():
    time.sleep(0.5)
    pathlib.Path(__file__).with_name("ended").touch()

@pytest.mark.real("cluster")
def test_then():
    assert pathlib.Path(__file__).with_name("ended").exists()
"""


def test_lane_begins_after_the_one_that_it_follows(tmp_path: Path) -> None:
    file = tmp_path / "test_made_up.py"
    file.write_text(ORDER)
    words = (
        f"from tests.real import lanes; raise SystemExit(lanes.run({{'cluster': 0, 'seconds': 0}}, [{str(file)!r}]))"
    )
    command = [sys.executable, "-c", words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=lanes.ROOT, timeout=120)
    assert done.returncode == 0, done.stdout
    assert "2 passed in " in done.stdout.splitlines()[-1]
