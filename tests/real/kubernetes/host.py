"""A private host: processes in a network, a process and a mount namespace of their own, gone with the first of them."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.real.kubernetes.tools import KubernetesUnavailable, run

_START_SECONDS = 10.0
_KERNEL = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
"""What kubelet sets for the whole machine (k8s.io/component-helpers, node/util/sysctl). It finds these set, in files
that lie over the real ones."""
_FORWARD = Path(__file__).with_name("forward.py")
_LISTEN = """\
import socket, sys
listener = socket.create_server((sys.argv[2], int(sys.argv[3])))
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"."], [listener.fileno()])
"""


class PrivateHost:
    """No interface but its loopback one, with `address` on it, and so no way out. Ends with this process at the latest.

    Its mounts are seen by nothing else; /run, /var/log and /var/lib are its own. It shares the other files.
    """

    def __init__(self, folder: Path, address: str, services: str) -> None:
        """`folder`: for its files. `services`: a network that nothing but this host's own rules may lead anywhere."""
        self.address = address
        self._folder = folder
        self.memory = folder / "memory"
        """A folder that lies in memory and is seen on this host alone: many small files, gone at once."""
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._others: list[subprocess.Popen[bytes]] = []
        self._ways: dict[str, str] = {}
        apart = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._first = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *apart, "tini", "-s", "--", "sleep", "infinity"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._init = self._child(self._first, "tini")
            self.run("sh", "-ec", self._prepare(services))
        except BaseException:
            self.close()
            raise

    def _prepare(self, services: str) -> str:
        self.memory.mkdir()
        lines = [
            "mount --make-rshared /",
            "ip link set lo up",
            f"ip address add {self.address}/32 dev lo",
            f"ip route add local {services} dev lo",
            "mount -t tmpfs tmpfs /run",
            f"mount -t tmpfs tmpfs {shlex.quote(str(self.memory))}",
        ]
        for own in ("log", "lib"):
            (self._folder / "var" / own).mkdir(parents=True)
            lines.append(f"mount --bind {shlex.quote(str(self._folder / 'var' / own))} /var/{own}")
        for name, value in _KERNEL.items():
            file = self._folder / "sysctl" / name.replace("/", ".")
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{value}\n")
            lines.append(f"mount --bind {shlex.quote(str(file))} /proc/sys/{name}")
        return "\n".join(lines)

    def words(self, *words: str) -> tuple[str, ...]:
        """A command that runs another on this host."""
        return ("nsenter", f"--target={self._init}", "--mount", "--net", "--pid", "--", *words)

    def run(self, *words: str, stdin: str = "", seconds: float = 120.0) -> str:
        """Standard output of a command on this host; AssertionError where it failed."""
        return run(*self.words(*words), stdin=stdin, seconds=seconds)

    def start(self, name: str, *words: str) -> None:
        """A command in the background; what it says goes to log/NAME."""
        (self._folder / "log").mkdir(exist_ok=True)
        with (self._folder / "log" / name).open("ab") as log:
            self._started[name] = subprocess.Popen(
                self.words(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def said(self, name: str) -> str:
        """The end of its log."""
        return (self._folder / "log" / name).read_text(errors="replace")[-3000:]

    def ended(self) -> list[str]:
        """Names of those started that run no more."""
        return [name for name, process in self._started.items() if process.poll() is not None]

    def pid(self, name: str) -> int:
        """As this process sees it."""
        return self._child(self._started[name])

    def resume(self, name: str) -> None:
        """SIGCONT to a command that was stopped by its pid, and to `nsenter`, which stops with it."""
        for pid in (self.pid(name), self._started[name].pid):
            os.kill(pid, signal.SIGCONT)

    def kill(self, name: str) -> None:
        """SIGKILL, and gone when this returns."""
        process = self._started.pop(name)
        os.kill(self._child(process), signal.SIGKILL)
        process.wait()

    def listener(self, port: int = 0) -> socket.socket:
        """A listening socket on this host's address, for a server in this process."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            words = (sys.executable, "-c", _LISTEN, str(theirs.fileno()), self.address, str(port))
            subprocess.run(
                ["nsenter", f"--target={self._init}", "--net", "--", *words], pass_fds=[theirs.fileno()], check=True
            )
            _, (number,), _, _ = socket.recv_fds(ours, 1, 1)
        return socket.socket(fileno=number)

    def forwarded(self, address: str) -> str:
        """Address on the machine's loopback that leads to an `address:port` on this host, as long as it lives."""
        if address in self._ways:
            return self._ways[address]
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            words = (sys.executable, str(_FORWARD), str(listener.fileno()), *address.rsplit(":", 1))
            self._others.append(
                subprocess.Popen(self.words(*words), pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL)
            )
            way = self._ways[address] = f"127.0.0.1:{listener.getsockname()[1]}"
            return way

    def close(self) -> None:
        """Ends all of it. Legal twice."""
        self._first.kill()
        self._first.wait()
        for process in (*self._started.values(), *self._others):
            process.wait()
        self._started, self._others, self._ways = {}, [], {}

    @staticmethod
    def _child(parent: "subprocess.Popen[bytes]", name: str = "") -> int:
        """The only child of `parent`, once it has become the command that it is to run."""
        deadline = time.monotonic() + _START_SECONDS
        while parent.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                pid = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text())
                comm = Path(f"/proc/{pid}/comm").read_text().strip()
                if comm == name or (not name and comm != "nsenter"):
                    return pid
            time.sleep(0.01)
        raise KubernetesUnavailable(f"{parent.args!r} has no process {name}")
