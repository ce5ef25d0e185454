"""A private Docker daemon: installs docker.io where it is missing, leaves nothing behind."""

import contextlib
import ctypes
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.real import apt

START_SECONDS = 60.0
STOP_SECONDS = 30.0
CLONE_NEWNET = 0x40000000
"""sched.h"""
IMAGE = "host:latest"
"""An image of links into /usr, which containers get from this machine, read-only: its shell and its Python."""


class DockerUnavailable(Exception):
    """No daemon can be had here; the message has the reason."""


def install() -> None:
    """apt's docker.io, once a machine."""
    if shutil.which("dockerd", path=_path()):
        return
    try:
        apt.install("docker.io")
    except apt.InstallFailed as problem:
        raise DockerUnavailable(str(problem)) from problem


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/usr/bin:/sbin:/bin"


def _enter(network: int) -> None:
    # os.setns is of Python 3.12.
    if ctypes.CDLL(None, use_errno=True).setns(network, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


class Dockerd:
    """A daemon on a socket of its own, as a context; DockerUnavailable if it does not come up.

    `private_network`: it and its containers have a network that leads nowhere, with bridges of their own, Docker's own
    among them. `programs`: a folder that it looks for programs in first.
    """

    def __init__(self, *, private_network: bool = False, programs: Path | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="dockerd-"))
        self.socket = self.folder / "docker.sock"
        self.host = f"unix://{self.socket}"
        self.process: subprocess.Popen[bytes] | None = None
        self._programs = f"{programs}:" if programs is not None else ""
        self._apart = ("unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh") if private_network else ()

    def __enter__(self) -> Self:
        try:
            install()
            self.start()
            self._import_image()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the daemon and waits until it answers."""
        if os.geteuid() != 0:
            raise DockerUnavailable("dockerd needs root")
        (self.folder / "daemon.json").write_text("{}")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *self._apart,
                    "dockerd",
                    *("--config-file", str(self.folder / "daemon.json")),
                    *("--data-root", str(self.folder / "data")),
                    *("--exec-root", str(self.folder / "exec")),
                    *("--pidfile", str(self.folder / "pid")),
                    *("--host", self.host),
                    "--iptables=false",
                    *(() if self._apart else ("--bridge=none",)),
                ],
                stdout=log,
                stderr=log,
                env={**os.environ, "PATH": self._programs + _path()},
            )
        end = time.monotonic() + START_SECONDS
        while self.command("version", check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > end:
                raise DockerUnavailable(f"dockerd did not start:\n{(self.folder / 'log').read_text()[-4000:]}")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Meanwhile this thread, what it starts and the sockets that it opens are in the daemon's network."""
        assert self.process is not None
        own, theirs = Path("/proc/thread-self/ns/net"), Path(f"/proc/{self.process.pid}/ns/net")
        with own.open() as before, theirs.open() as there:
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def command(self, *words: str, check: bool = True, stdin: bytes | None = None) -> subprocess.CompletedProcess[str]:
        """The docker command against this daemon; AssertionError with its words where it failed."""
        result = subprocess.run(
            ["docker", "--host", self.host, *words],
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
            env={**os.environ, "PATH": _path(), "DOCKER_CONFIG": str(self.folder)},
        )
        text = subprocess.CompletedProcess(
            result.args, result.returncode, result.stdout.decode(), result.stderr.decode(errors="replace")
        )
        assert not check or text.returncode == 0, f"docker {' '.join(words)}: {text.stderr}"
        return text

    def run(self, name: str, *command: str, options: tuple[str, ...] = ()) -> None:
        """`docker run --detach` with this machine's /usr."""
        fixed = ("--detach", "--network", "host", "--volume", "/usr:/usr:ro", "--name", name)
        self.command("run", *fixed, *options, IMAGE, *command)

    def remove(self, name: str) -> None:
        """`docker rm --force`; no error if there is none."""
        self.command("rm", "--force", name, check=False)

    def _import_image(self) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in ("usr", "tmp", "dev", "proc", "sys", "etc", "run", "var"):
                folder = tarfile.TarInfo(name)
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
            for name in ("bin", "sbin", "lib", "lib64"):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
                tar.addfile(link)
        self.command("import", "-", IMAGE, stdin=packed.getvalue())

    def stop(self) -> None:
        """Ends all containers and the daemon; removes its folder. Legal twice."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            names = self.command("ps", "--all", "--quiet", check=False).stdout.split()
            if names:
                self.command("rm", "--force", *names, check=False)
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        # containerd and its shims end with it, unless it was killed.
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if line.split()[1].startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", line.split()[1]], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _left(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    name, words = (entry / "comm").read_text(), (entry / "cmdline").read_bytes()
                    if name.startswith(("dockerd", "containerd")) and str(self.folder).encode() in words:
                        found.append(int(entry.name))
        return found
