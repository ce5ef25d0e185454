"""Debian packages that a test needs, installed where they are missing."""

import os
import subprocess

INSTALL_SECONDS = 600.0


class InstallFailed(Exception):
    """The message has what apt-get said."""


def install(*packages: str) -> None:
    """`apt-get install` of these, without recommended ones; InstallFailed."""
    for words in (("update", "-q"), ("install", "-q", "-y", "--no-install-recommends", *packages)):
        result = subprocess.run(
            ["apt-get", *words],
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
        if result.returncode:
            raise InstallFailed(f"apt-get {words[0]}: {result.stdout[-1000:]}{result.stderr[-2000:]}")
