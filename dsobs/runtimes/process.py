"""An engine that is a process: under `dsobs supervise`, or, to look at only, the one that listens on the target's
port."""

import asyncio
import contextlib
import ipaddress
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dsobs.config.models import RuntimeSettings, Target
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RestartResult, RuntimeRefused

VERSION = 1
"""Of the supervisor's protocol."""
LINE_LIMIT = 4 * 1024 * 1024
_LISTEN = "0A"
"""TCP state LISTEN in /proc/net/tcp (linux/net/tcp_states.h)."""


async def open_runtime(settings: RuntimeSettings, target: Target) -> "SupervisedProcess | ListeningProcess | Unknown":
    """The supervisor's socket if one is there or has been, else the listening process of a target on this host."""
    socket = settings.supervisor_socket
    if socket.exists() or state_file(socket).exists():
        return SupervisedProcess(settings)
    parts = urlsplit(target.url)
    if not _is_local(parts.hostname or ""):
        return Unknown(f"no supervisor at {socket}, and {parts.hostname} is not this host (runtime.name)")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    listening = ListeningProcess(port)
    view = await listening.view()
    return view if isinstance(view, Unknown) else listening


def state_file(socket: Path) -> Path:
    """Where the supervisor leaves its last status."""
    return socket.with_name(socket.name + ".state")


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class SupervisedProcess:
    """An engine under `dsobs supervise`, by its socket. Each question is a connection of its own, so that a supervisor
    that was restarted is found again."""

    name = "process"
    can_restart = True

    def __init__(self, settings: RuntimeSettings) -> None:
        self._socket = settings.supervisor_socket
        self._timeout = settings.timeout

    async def _ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """The answer; OSError, TimeoutError or ValueError if there is none."""
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=LINE_LIMIT)
            try:
                writer.write(json.dumps({"version": VERSION, **request}).encode() + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        if not line:
            raise ConnectionResetError("the supervisor hung up")
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def view(self) -> RuntimeView | Unknown:
        """The supervisor's word; its last word where it has ended."""
        try:
            answer = await self._ask(self._timeout, op="status")
        except (FileNotFoundError, ConnectionRefusedError):
            return await asyncio.to_thread(self._last_word)
        except (TimeoutError, OSError, ValueError) as error:
            return Unknown(f"the supervisor at {self._socket} does not answer: {str(error) or type(error).__name__}")
        if not answer.get("ok"):
            return Unknown(f"the supervisor at {self._socket} refused: {answer.get('detail')}")
        return _view_of(answer["status"])

    def _last_word(self) -> RuntimeView | Unknown:
        try:
            told = json.loads(state_file(self._socket).read_text(encoding="utf-8"))
            status = told.get("status", told)
            return _view_of({**status, "running": _lives(status), "pids": []})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return Unknown(f"no supervisor at {self._socket}")

    async def restart(self, *, grace_seconds: float, expect_started_at: float | None) -> RestartResult:
        """Has the supervisor restart the engine and waits for the new one."""
        request = {"id": secrets.token_hex(8), "grace_seconds": grace_seconds, "expect_started_at": expect_started_at}
        try:
            # The last processes of a hung engine may take as long as the driver takes.
            answer = await self._ask(self._timeout + grace_seconds + 15.0, op="restart", **request)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise RuntimeRefused(f"no supervisor at {self._socket}; start the engine by `dsobs supervise`") from error
        except ValueError as error:
            raise ConnectionError(f"the supervisor's answer can't be read: {error}") from error
        if answer.get("ok"):
            return RestartResult(started_at=answer.get("started_at"), detail="restarted by dsobs supervise")
        if answer.get("error") in ("refused", "bad_request"):
            raise RuntimeRefused(str(answer.get("detail")))
        raise ConnectionError(f"the supervisor failed: {answer.get('detail')}")

    async def log_tail(self, lines: int) -> list[str] | Unknown:
        """The last lines that the supervisor holds."""
        try:
            answer = await self._ask(self._timeout, op="log_tail", lines=lines)
        except (TimeoutError, OSError, ValueError) as error:
            return Unknown(f"the supervisor at {self._socket} does not answer: {str(error) or type(error).__name__}")
        return (
            [str(line) for line in answer.get("lines", ())] if answer.get("ok") else Unknown(str(answer.get("detail")))
        )

    async def close(self) -> None:
        """Holds nothing."""


def _lives(status: dict[str, Any]) -> bool:
    """Whether an engine whose supervisor is gone is still there."""
    pid = status.get("pid")
    return bool(status.get("running")) and isinstance(pid, int) and Path(f"/proc/{pid}").exists()


def _view_of(status: dict[str, Any]) -> RuntimeView:
    return RuntimeView(
        runtime="process",
        name=str(status["command"]),
        running=bool(status["running"]),
        started_at=status["started_at"],
        exit_code=status["exit_code"],
        restart_count=status["restart_count"],
        ended_at=status["ended_at"],
        planned_stop=status["planned_stop"],
        cpu_seconds=status["cpu_seconds"],
        pids=tuple(status["pids"]),
    )


class ListeningProcess:
    """The process that listens on a port of this host, with all below it; nobody supervises it, so it is only looked
    at."""

    name = "process"
    can_restart = False

    def __init__(self, port: int, proc: Path = Path("/proc")) -> None:
        self._port = port
        self._proc = proc
        self._last: RuntimeView | None = None
        self._identity: tuple[int, int] | None = None
        """pid and start ticks: a pid alone may be given to another process."""

    async def view(self) -> RuntimeView | Unknown:
        """What /proc shows."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> RuntimeView | Unknown:
        if self._identity is None or not self._still_there():
            found = self._find()
            if found is None:
                if self._last is None:
                    return Unknown(f"no process seen listening on port {self._port}")
                return RuntimeView("process", self._last.name, running=False, started_at=self._last.started_at)
            if isinstance(found, Unknown):
                return found
            self._identity = found
        pid, ticks = self._identity
        try:
            family = self._family(pid)
            command = (self._proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        except OSError:
            return Unknown(f"process {pid} ended while it was looked at")
        self._last = RuntimeView(
            runtime="process",
            name=" ".join(os.fsdecode(word) for word in command[:3] if word)[:200] or str(pid),
            running=True,
            started_at=self._boot_time() + ticks / os.sysconf("SC_CLK_TCK"),
            cpu_seconds=sum(cpu for _, cpu in family) / os.sysconf("SC_CLK_TCK"),
            pids=tuple(pid for pid, _ in family),
        )
        return self._last

    def _still_there(self) -> bool:
        assert self._identity is not None
        stat = self._stat(self._identity[0])
        return stat is not None and int(stat[19]) == self._identity[1] and stat[0] not in "ZX"

    def _stat(self, pid: int | str) -> list[str] | None:
        """Fields of /proc/PID/stat from the state on (proc(5), field 3)."""
        try:
            return (
                (self._proc / str(pid) / "stat")
                .read_text(encoding="utf-8", errors="replace")
                .rpartition(")")[2]
                .split()
            )
        except OSError:
            return None

    def _boot_time(self) -> float:
        for line in (self._proc / "stat").read_text(encoding="ascii").splitlines():
            if line.startswith("btime "):
                return float(line.split()[1])
        return 0.0

    def _find(self) -> tuple[int, int] | Unknown | None:
        """Who holds a listening socket of the port: the eldest, since workers may have inherited it."""
        inodes = set(self._listening())
        if not inodes:
            return None
        holders: list[tuple[int, int]] = []
        unreadable = False
        for entry in self._proc.iterdir():
            if not entry.name.isdigit():
                continue
            try:
                links = [os.readlink(entry / "fd" / fd) for fd in os.listdir(entry / "fd")]  # noqa: PTH115, PTH208
            except PermissionError:
                unreadable = True
                continue
            except OSError:
                continue
            if any(link in inodes for link in links):
                stat = self._stat(entry.name)
                if stat is not None:
                    holders.append((int(stat[19]), int(entry.name)))
        if holders:
            ticks, pid = min(holders)
            return pid, ticks
        if unreadable:
            return Unknown(f"the process on port {self._port} belongs to another user, and its files can't be read")
        return None

    def _listening(self) -> Iterable[str]:
        for table in ("tcp", "tcp6"):
            try:
                lines = (self._proc / "net" / table).read_text(encoding="ascii").splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == self._port:
                    yield f"socket:[{fields[9]}]"

    def _family(self, root: int) -> list[tuple[int, int]]:
        """(pid, CPU ticks of it and of its ended children) of the process and all below it."""
        parents: dict[int, list[int]] = {}
        ticks: dict[int, int] = {}
        for entry in self._proc.iterdir():
            stat = self._stat(entry.name) if entry.name.isdigit() else None
            if stat is not None:
                pid = int(entry.name)
                parents.setdefault(int(stat[1]), []).append(pid)
                ticks[pid] = sum(int(stat[i]) for i in (11, 12, 13, 14))
        found, todo = [], [root]
        while todo:
            pid = todo.pop()
            if pid in ticks:
                found.append((pid, ticks[pid]))
            todo += parents.get(pid, [])
        return found

    async def restart(self, *, grace_seconds: float, expect_started_at: float | None) -> RestartResult:
        """Refuses: what was started by others is theirs to start again."""
        raise RuntimeRefused("nobody supervises this process; start the engine by `dsobs supervise -- …`")

    async def log_tail(self, lines: int) -> list[str] | Unknown:
        """Unknown: its output goes elsewhere."""
        return Unknown("the output of a process that nobody supervises is not known")

    async def close(self) -> None:
        """Holds nothing."""
