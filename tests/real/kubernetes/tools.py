"""What tests/real/kubernetes.sh installs, and how commands are run."""

import functools
import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "kubernetes.sh"
INSTALL_SECONDS = 3600.0
"""A first build on two busy cores has taken a quarter of an hour."""


class KubernetesUnavailable(Exception):
    """No cluster can be had here; the message has the reason."""


@functools.cache
def home() -> Path:
    """Folder of the binaries, built where they are missing."""
    return _made("home") / "bin"


@functools.cache
def base_system() -> Path:
    """Folder of a Debian 12 with Python, made where it is missing: rootfs.tar, and layout/ with the image `base`."""
    return _made("base")


def _made(what: str) -> Path:
    if os.geteuid() != 0:
        raise KubernetesUnavailable("a node needs root")
    done = subprocess.run(
        ["bash", str(SCRIPT), what], stdout=subprocess.PIPE, text=True, timeout=INSTALL_SECONDS, check=False
    )
    if done.returncode:
        raise KubernetesUnavailable(f"kubernetes.sh {what} failed, its words are above")
    return Path(done.stdout.strip().splitlines()[-1])


def run(*words: str, stdin: str = "", check: bool = True, seconds: float = 120.0) -> str:
    """Standard output of a command; AssertionError with what it said where it failed."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=seconds, check=False)
    assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    return done.stdout
