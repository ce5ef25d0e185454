"""Files of a Go module, for what a project publishes nowhere else that a build machine reaches."""

import json
import os
import subprocess
from pathlib import Path


def module(name: str) -> Path:
    """Folder of a Go module, NAME@VERSION; AssertionError with what `go` says."""
    path = f"{os.environ['PATH']}:/usr/local/go/bin"
    proxy = subprocess.run(
        ["go", "env", "GOPROXY"], capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}
    ).stdout
    done = subprocess.run(
        ["go", "mod", "download", "-json", name],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PATH": path, "GOPROXY": proxy.strip().removesuffix(",direct"), "GOTOOLCHAIN": "local"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(json.loads(done.stdout)["Dir"])
