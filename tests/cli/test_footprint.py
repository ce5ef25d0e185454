"""What `dsobs run` keeps in memory, as far as that can be claimed without a scale."""

import ctypes
import json
import subprocess
import sys

import pytest

from dsobs.cli import footprint

UNUSED = (
    *("pydantic.v1", "pynvml", "rich", "jsonschema", "aiohttp.web", "prometheus_client.parser"),
    *("dsobs.demo", "dsobs.simulator", "jinja2", "dsobs.api.page.writing", "re2", "dsobs.runtimes.kubernetes"),
)


def test_run_imports_nothing_that_it_does_not_use() -> None:
    program = (
        "import json, sys\n"
        "from dsobs import cli, sidecar\n"
        "from dsobs.api import application, server, connection\n"
        "from dsobs.cli import run\n"
        "from dsobs.config import Config\n"
        "application.create(sidecar.Sidecar(Config()), None)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert set(UNUSED) & set(json.loads(done.stdout)) == set()


@pytest.mark.parametrize("work", [footprint.one_heap, footprint.give_back])
def test_a_c_library_without_these_functions_is_fine(work: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert callable(work)
    work()


def test_what_was_freed_goes_back_to_the_system() -> None:
    program = (
        "from pathlib import Path\n"
        "from dsobs.cli import footprint\n"
        "def resident(): return int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "footprint.one_heap()\n"
        "kept = []\n"
        # Below malloc's threshold for maps of their own, with one kept above them so that the heap can't shrink.
        "freed = [bytes(60_000) for _ in range(400)]; kept.append(bytes(60_000))\n"
        "freed.clear(); before = resident()\n"
        "footprint.give_back()\n"
        "print(before - resident())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 15 * 2**20
