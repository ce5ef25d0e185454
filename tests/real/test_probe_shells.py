"""The probes' scripts in every shell that an engine's image may have as `sh`, installed where it is missing."""

import shutil
from pathlib import Path

import pytest

from dsobs.runtimes.control_folder import Kind
from tests.real import apt
from tests.runtimes import probe_cases

pytestmark = pytest.mark.real("seconds")
PACKAGES = {"dash": "dash", "bash": "bash", "busybox": "busybox-static"}


@pytest.mark.parametrize("shell", probe_cases.SHELLS)
@pytest.mark.parametrize("kind", Kind)
def test_probe_fails_for_a_whole_unexpired_request_alone(shell: str, kind: Kind, tmp_path: Path) -> None:
    words = probe_cases.SHELLS[shell]
    if not shutil.which(words[0]):
        apt.install(PACKAGES[words[0]])
    folder = tmp_path / "control"
    folder.mkdir()
    probe_cases.check_contents(words, folder, kind)
    (folder / kind).unlink()
    probe_cases.check_what_is_no_file(words, folder, kind)
