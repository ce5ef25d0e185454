"""The control folder: an emptyDir of the pod, in which the sidecar writes requests that the engine's probes read.

A request is a file of one line, written by rename:

    <expiry, Unix seconds> <start of the engine that is meant, Unix seconds, or -> <incident or reason>

`restart` fails the liveness probe, and kubelet then restarts the engine's container; `drain` and `warmup` fail the
readiness probe. A request holds only while its expiry lies ahead, and no further than its kind allows; whatever else
the file is (not there, empty, cut off, malformed, past, far in the future) means alive and ready. So a sidecar that is
dead, slow or mad takes no engine down, and a wall clock that is set ends a request instead of prolonging it. Both
containers read one clock, the node's.

The probes' text is made here and nowhere else, for the chart, for `dsobs k8s inject` and for the tests, which run it
in dash, bash and busybox. It is POSIX sh, forks nothing while there is no request (the engine may be short of CPU, and
a probe that times out is a failure to kubelet), and asks `date` where there is one.
"""

import contextlib
import fcntl
import math
import os
import re
import shlex
import socket
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

MOUNT_PATH = "/run/dsobs"
"""Where the folder is mounted, in the engine read-only."""
SIZE_LIMIT = "1Mi"
"""Of the emptyDir. It holds three files of one line, and a lock."""
RESTART_SECONDS = 12.0
"""From a restart request to its expiry: time for two failed probes in a row, and not for the new container's too."""
LIVENESS_PERIOD = 3
LIVENESS_FAILURES = 2
NEEDED = "sh, and date with +%s"
"""What the engine's image must have for its probes. Without such a date every request means alive and ready; without sh
kubelet can't start the probes, and keeps what it takes for granted before the first one: alive, and not ready."""
PROBE_TIMEOUT = 30
"""Seconds. The probe runs in the engine's cgroup, where a shell may have to wait for its turn, and a time-out counts as
a failure."""
KILL_GRACE = 5
"""Seconds from SIGTERM to SIGKILL of an engine that a restart was asked for: a hung one does not drain."""
READINESS_PERIOD = 5
ANSWER_TIMEOUT = 5
"""Seconds that the engine may take to answer its readiness probe."""
TERMINATING = "terminating"
"""A file that the sidecar's own preStop hook writes. kubelet runs the hook when the pod begins to end, before it waits
for the other containers, so it is a witness of a planned stop that takes no right."""
STARTUP_PERIOD = 5
STARTUP_SECONDS = 24 * 3600
"""The start-up probe only holds liveness back; it must never kill, so it is this wide."""
INCIDENT = re.compile(r"[!-~]{1,100}")
"""What may stand in the third field: printable, no space."""


class Kind(StrEnum):
    """What is asked for; the value is the file's name."""

    RESTART = "restart"
    """kubelet is to restart the engine's container."""
    DRAIN = "drain"
    """The engine is to get no new requests; it finishes what it has."""
    WARMUP = "warmup"
    """The engine is not to get requests yet."""

    @property
    def horizon(self) -> int:
        """Seconds that an expiry may lie ahead; further ahead means alive and ready."""
        return 60 if self is Kind.RESTART else 600


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    expires_at: int
    """Unix seconds."""
    engine_started_at: float | None
    """Start of the instance that is meant, Unix seconds; None: not known."""
    incident: str

    def line(self) -> str:
        """As it stands in the file; ValueError for an incident that has a space or is no text."""
        if not INCIDENT.fullmatch(self.incident):
            raise ValueError(f"the incident {self.incident!r} can't stand in a request: printable ASCII, no spaces")
        started = "-" if self.engine_started_at is None else f"{self.engine_started_at:.3f}"
        return f"{self.expires_at} {started} {self.incident}\n"


def parsed(text: str) -> Request | None:
    """The request that a file's text holds; None for what is none. The probes' own reading, in Python."""
    line, newline, _ = text.partition("\n")
    fields = line.split()
    if not newline or len(fields) < 3 or not re.fullmatch(r"[0-9]{1,12}", fields[0]):
        return None
    try:
        started = None if fields[1] == "-" else float(fields[1])
    except ValueError:
        started = None
    return Request(int(fields[0]), started, fields[2])


class FolderBusyError(OSError):
    """Another sidecar of this pod works on the folder; the message says what to do."""


class ControlFolder:
    """The sidecar's side of the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def take(self) -> None:
        """Makes sure that this is the only sidecar on it; OSError with what is wrong (FolderBusyError for another
        one). What an earlier run of dsobs asked for is withdrawn: nobody watches over it any more."""
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip() or "an unknown process"
            os.close(descriptor)
            raise FolderBusyError(
                f"the control folder {self.folder} belongs to another dsobs of this pod ({holder}); take one of the "
                "two sidecars out of the pod"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._lock = descriptor
        for kind in Kind:
            self.withdraw(kind)
        # A sidecar that ended alone has left it; where the pod ends there is no other sidecar afterwards.
        (self.folder / TERMINATING).unlink(missing_ok=True)

    @property
    def terminating(self) -> bool:
        """The pod is ending: the sidecar's preStop hook was run."""
        return (self.folder / TERMINATING).exists()

    def write(self, kind: Kind, request: Request) -> None:
        """Puts the request there, whole or not at all; OSError if it can't be (it may then be there all the same: see
        `withdraw`), ValueError for one that can't be written."""
        temporary = self.folder / f".{kind}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        line = request.line().encode()
        descriptor = os.open(temporary, flags, 0o644)
        try:
            # The engine may run as another user, whatever the umask is.
            os.fchmod(descriptor, 0o644)
            if os.write(descriptor, line) != len(line):
                raise OSError(f"{temporary} could not be written whole")
        finally:
            os.close(descriptor)
        temporary.rename(self.folder / kind)

    def read(self, kind: Kind) -> Request | None:
        """The request that is there, expired or not; None for none, and for a file that is none."""
        try:
            with (self.folder / kind).open("rb") as file:
                return parsed(file.read(1024).decode(errors="replace"))
        except OSError:
            return None

    def withdraw(self, kind: Kind) -> bool:
        """Takes the request away; whether there was one. OSError if it can't be."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / f".{kind}.tmp").unlink()
        try:
            (self.folder / kind).unlink()
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Withdraws what is there and leaves the folder; legal twice."""
        if self._lock is not None:
            for kind in Kind:
                with contextlib.suppress(OSError):
                    self.withdraw(kind)
            os.close(self._lock)
            self._lock = None


def unusable(folder: Path) -> str | None:
    """Why requests can't be written there, and what to do; None if they can."""
    if not folder.is_dir():
        return f"there is no control folder {folder}: mount there the emptyDir that the engine's probes read"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"the control folder {folder} can't be written to: mount it without readOnly in the sidecar"
    return None


def expiry(now: float, seconds: float) -> int:
    """The second in which a request of `now` ends that is to hold for `seconds`."""
    return math.ceil(now + seconds)


# `set` and `[` never see what is no plain number, so that no shell's arithmetic can choke on it or run it. A file that
# is no regular one is not opened: a pipe would block. `read` fails at a line without an end, so a cut-off file is none.
_HOLDS = (
    'holds() { [ -f "$1" ] && read -r u s i x < "$1" && case $u in ""|*[!0-9]*|?????????????*) false;; esac'
    ' && [ -n "$i" ] && n=$(date +%s) && case $n in ""|*[!0-9]*) false;; esac'
    ' && [ "$u" -gt "$n" ] && [ "$u" -le "$((n+$2))" ]; } 2>/dev/null'
)


def _call(kind: Kind, folder: str) -> str:
    return f"holds {shlex.quote(f'{folder}/{kind}')} {kind.horizon}"


def liveness_script(folder: str = MOUNT_PATH) -> str:
    """POSIX sh; exits with 0 (alive) unless a restart request holds."""
    return f"{_HOLDS}; ! {_call(Kind.RESTART, folder)}"


def readiness_script(url: str | None = None, folder: str = MOUNT_PATH, *, timeout: int = ANSWER_TIMEOUT) -> str:
    """POSIX sh; exits with 0 (ready) unless a drain or a warm-up request holds, or the engine does not answer `url`
    with success within `timeout` seconds.

    It is asked by the first of curl, wget and python3 that the engine's image has; certificates are not checked, as
    kubelet does not. An image with none of them, or None for `url`, is judged by the files alone.
    """
    held = f"{_HOLDS}; {_call(Kind.DRAIN, folder)} && exit 1; {_call(Kind.WARMUP, folder)} && exit 1; "
    if url is None:
        return f"{held}exit 0"
    address = shlex.quote(url)
    unchecked = "--no-check-certificate " if url.startswith("https:") else ""
    code = shlex.quote(
        "import ssl,sys,urllib.request as r;"
        f"r.urlopen(sys.argv[1],timeout={timeout},context=ssl._create_unverified_context())"
    )
    return (
        f'{held}has() {{ command -v "$1" >/dev/null; }}; '
        f"if has curl; then exec curl -fsSk -m {timeout} -o /dev/null {address}; "
        f"elif has wget; then exec wget -q {unchecked}-T {timeout} -O /dev/null {address}; "
        f"elif has python3; then exec python3 -c {code} {address}; fi"
    )


def liveness_probe(folder: str = MOUNT_PATH) -> dict[str, Any]:
    """The engine's livenessProbe, as it stands in a manifest.

    With these numbers a request of `RESTART_SECONDS` restarts a container once, 10 to 11 s after it was written
    (Kubernetes 1.34, an engine that ignores SIGTERM).
    """
    return {
        "exec": {"command": ["sh", "-c", liveness_script(folder)]},
        "periodSeconds": LIVENESS_PERIOD,
        "failureThreshold": LIVENESS_FAILURES,
        "timeoutSeconds": PROBE_TIMEOUT,
        "terminationGracePeriodSeconds": KILL_GRACE,
    }


def readiness_probe(url: str | None, folder: str = MOUNT_PATH) -> dict[str, Any]:
    """The engine's readinessProbe: it depends on the engine and on files that expire, never on the sidecar."""
    return {
        "exec": {"command": ["sh", "-c", readiness_script(url, folder)]},
        "periodSeconds": READINESS_PERIOD,
        "failureThreshold": 3,
        "timeoutSeconds": PROBE_TIMEOUT,
    }


def sidecar_pre_stop(folder: str = MOUNT_PATH) -> dict[str, Any]:
    """The sidecar's lifecycle.preStop."""
    return {"exec": {"command": ["sh", "-c", f": > {shlex.quote(f'{folder}/{TERMINATING}')}"]}}


def startup_probe(path: str, port: int, *, scheme: str = "HTTP") -> dict[str, Any]:
    """The engine's startupProbe: holds liveness back until the engine has answered, for a day at most."""
    return {
        "httpGet": {"path": path, "port": port, "scheme": scheme},
        "periodSeconds": STARTUP_PERIOD,
        "failureThreshold": STARTUP_SECONDS // STARTUP_PERIOD,
        "timeoutSeconds": PROBE_TIMEOUT,
    }
