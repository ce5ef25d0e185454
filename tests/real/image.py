"""The image of deploy/image, built by a Docker daemon of the test from a base made here, without a registry."""

import os
import subprocess
from pathlib import Path

from tests.real import apt
from tests.real.docker import Dockerd

ROOT = Path(__file__).parents[2]
BASE = "debian:bookworm-slim"
"""What the Dockerfile asks for; here it is one that was made on this machine."""
IMAGE = "dsobs:0.1.0"
"""As docs/kubernetes.md calls it."""
BUILD_SECONDS = 900.0


def base_tar() -> Path:
    """Debian 12 with apt and this machine's certificates, as `debian:bookworm-slim` elsewhere; made once a machine."""
    cache = Path(os.environ.get("DSOBS_TOOL_CACHE", Path.home() / ".cache" / "dsobs-tools"))
    made = cache / "debian-12-apt.tar"
    if not made.exists():
        apt.install("mmdebstrap")
        part = made.with_suffix(f".{os.getpid()}.tar")
        hook = "--customize-hook=copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs"
        words = ("mmdebstrap", "--quiet", "--variant=apt", "--include=ca-certificates", hook, "bookworm", str(part))
        subprocess.run(words, check=True, timeout=BUILD_SECONDS)
        part.rename(made)
    return made


def docker(daemon: Dockerd, *words: str, check: bool = True) -> str:
    """Output of a docker command; AssertionError with both streams where it failed."""
    done = subprocess.run(
        ["docker", *words],
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
        env={**os.environ, "DOCKER_HOST": daemon.host, "DOCKER_BUILDKIT": "0"},
    )
    assert done.returncode == 0 or not check, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def build(daemon: Dockerd, tag: str, *options: str) -> None:
    """Builds the image, with these further options of `docker build`."""
    if not docker(daemon, "image", "ls", "--quiet", BASE).strip():
        docker(daemon, "import", str(base_tar()), BASE)
    file = ROOT / "deploy" / "image" / "Dockerfile"
    docker(daemon, "build", "--network=host", f"--file={file}", *options, f"--tag={tag}", str(ROOT))
