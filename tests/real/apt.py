"""Debian packages that a test needs, installed where they are missing."""

import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_name("apt.sh")
INSTALL_SECONDS = 1200.0


class InstallFailed(Exception):
    """The message has what apt-get said."""


def install(*packages: str) -> None:
    """Those that are missing, without recommended ones; InstallFailed."""
    done = subprocess.run(
        ["bash", str(SCRIPT), *packages], capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    if done.returncode:
        raise InstallFailed(done.stderr[-3000:])
