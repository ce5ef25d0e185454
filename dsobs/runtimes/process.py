"""An engine that is a process: under `dsobs supervise`, or, to look at only, the one that listens on the target's port.

The supervisor is asked anew each time, so that one that is started later, or again, is found. Where none answers, its
last word (the state file beside its socket) still says who stopped the engine, and /proc says what lives.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dsobs import supervisor
from dsobs.config.models import RuntimeSettings, Target
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RestartResult, RuntimeRefused
from dsobs.supervisor import processes

log = logging.getLogger(__name__)

LINE_LIMIT = 4 * 1024 * 1024
CLEARING_SECONDS = 15.0
"""What a restart may take beyond its grace: the last processes of a hung engine take as long as the driver takes."""
LOOK_FOR_LISTENER_SECONDS = 10.0
"""Between two looks at who listens on the target's port, while that is not the supervised engine."""
_LISTEN = "0A"
"""TCP state LISTEN in /proc/net/tcp (linux/net/tcp_states.h)."""
_LOOPBACK6 = "00000000000000000000000001000000"


async def open_runtime(settings: RuntimeSettings, target: Target) -> "ProcessRuntime | Unknown":
    """Entry point. Unknown where there is no supervisor and the target is on another host."""
    runtime = ProcessRuntime(settings, target)
    if not runtime.is_local and not runtime.can_restart:
        return Unknown(f"no supervisor at {settings.supervisor_socket}, and {target.url} is not this host")
    return runtime


class ProcessRuntime:
    """One engine on this host. `can_restart` follows the supervisor's coming and going."""

    name = "process"

    def __init__(
        self,
        settings: RuntimeSettings,
        target: Target,
        *,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.time,
    ) -> None:
        parts = urlsplit(target.url)
        self._socket = settings.supervisor_socket
        self._timeout = settings.timeout
        self._proc = str(proc)
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._listening = ListeningProcess(self._port, self._proc, clock)
        self._trusts = settings.name == "process"
        """Somebody has said that the supervised engine is the target's, whoever listens on its port."""
        self._supervisor_pid = 0
        """As seen from here; 0 where it can't be."""
        self._own_since: float | None = None
        """Start of the supervised instance that was found to listen on the port."""
        self._looked_at = float("-inf")
        self._another = ""
        """Why the supervised engine is not the target's; empty: it is, or nothing speaks against it."""
        self.is_local = _is_local(parts.hostname or "")
        """The target's address is this host's loopback."""
        self.can_restart = self._socket.exists()
        self._answered = False
        """A supervisor did."""

    async def view(self) -> RuntimeView | Unknown:
        """The supervisor's word; without one, its last word and what /proc shows."""
        try:
            answer = await self._ask(self._timeout, op="status")
            if not answer.get("ok"):
                return Unknown(f"the supervisor at {self._socket} refused: {answer.get('detail')}")
            view = _view_of(answer["status"])
            await self._look_for_another(view)
            self._answered, self.can_restart = True, not self._another
            if self._another:
                found = await asyncio.to_thread(self._listening.look)
                return replace(found, look_only=self._another) if isinstance(found, RuntimeView) else found
            return view
        except (FileNotFoundError, ConnectionRefusedError):
            self.can_restart = False
            return await asyncio.to_thread(self._look)
        except (KeyError, TypeError, ValueError) as error:
            return Unknown(f"the supervisor at {self._socket} answered what can't be read: {error!r}")
        except (TimeoutError, OSError) as error:
            return Unknown(f"the supervisor at {self._socket} does not answer: {_words(error)}")

    async def restart(
        self,
        *,
        grace_seconds: float,
        expect_started_at: float | None,
        incident: str = "",  # noqa: ARG002 - of the protocol
    ) -> RestartResult:
        """Has the supervisor restart the engine and waits for the new one."""
        if self._another:
            raise RuntimeRefused(self._another)
        request = {"id": secrets.token_hex(8), "grace_seconds": grace_seconds, "expect_started_at": expect_started_at}
        try:
            answer = await self._ask(self._timeout + grace_seconds + CLEARING_SECONDS, op="restart", **request)
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
        if self._another:
            return Unknown(self._another)
        try:
            answer = await self._ask(self._timeout, op="log_tail", lines=lines)
            return [str(line) for line in answer["lines"]] if answer.get("ok") else Unknown(str(answer.get("detail")))
        except (FileNotFoundError, ConnectionRefusedError):
            return Unknown(f"no supervisor at {self._socket}, and nobody else keeps the output of a process")
        except (KeyError, TypeError, ValueError) as error:
            return Unknown(f"the supervisor at {self._socket} answered what can't be read: {error!r}")
        except (TimeoutError, OSError) as error:
            return Unknown(f"the supervisor at {self._socket} does not answer: {_words(error)}")

    async def close(self) -> None:
        """Holds nothing."""

    async def _ask(self, timeout: float, **request: Any) -> dict[str, Any]:
        """The answer; OSError, TimeoutError or ValueError if there is none."""
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=LINE_LIMIT)
            try:
                self._supervisor_pid = _peer_pid(writer)
                writer.write(json.dumps({"version": supervisor.VERSION, **request}).encode() + b"\n")
                line = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        if not line:
            raise ConnectionResetError("the supervisor hung up")
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError(f"not an object: {line[:80]!r}")  # noqa: TRY004 - of the data, not of an argument
        return answer

    async def _look_for_another(self, view: RuntimeView) -> None:
        """Two engines on one host, and the supervisor's socket is the other's: its engine must not be restarted for
        this one."""
        if self._trusts or not self.is_local or not view.running or view.started_at == self._own_since:
            return
        now = time.monotonic()
        if now - self._looked_at < LOOK_FOR_LISTENER_SECONDS:
            return
        self._looked_at = now
        before = self._another
        self._another = await asyncio.to_thread(self._find_another, view.started_at)
        if self._another and self._another != before:
            log.warning("the engine is only looked at: %s", self._another)

    def _find_another(self, started_at: float | None) -> str:
        """Who is seen to listen on the port and is none of the supervisor's. Not seen is no evidence."""
        try:
            holders = self._listening.holders()
            table = processes.process_table(self._proc)
            if not holders or self._supervisor_pid not in table:
                return ""
            family = {self._supervisor_pid, *(e.pid for e in processes.descendants(table, self._supervisor_pid))}
            if family.isdisjoint(holders):
                pid = min(holders)
                name = Path(f"{self._proc}/{pid}/comm").read_text().strip()
                if name == "docker-proxy":
                    return ""
                return (
                    f"port {self._port} is served by {name} (pid {pid}), which the supervisor at {self._socket} did "
                    "not start; name the right one (runtime.supervisor_socket), or set runtime.name to process if "
                    "that stands before its engine"
                )
        except OSError:
            # Ended while it was looked at, or hidden.
            return ""
        self._own_since = started_at
        return ""

    def _look(self) -> RuntimeView | Unknown:
        last, identity = self._last_word()
        if last is not None and identity is not None and last.started_at is not None:
            # Its supervisor was killed; the engine may live on.
            self._listening.follow(*identity, started_at=last.started_at, name=last.name)
        found = self._listening.look() if self.is_local or identity is not None else Unknown("not this host")
        if isinstance(found, RuntimeView) and found.running:
            return found
        if last is not None and not last.running:
            return replace(last, last_word=not self._answered)
        if last is None and isinstance(found, Unknown):
            return Unknown(f"no supervisor at {self._socket}; {found.reason}")
        return found

    def _last_word(self) -> tuple[RuntimeView | None, tuple[int, int] | None]:
        """The state that a supervisor left in this boot, and pid and start ticks of an engine it may have left."""
        try:
            state = json.loads(Path(f"{self._socket}.state").read_bytes())
            if state["version"] != supervisor.VERSION or state["boot_id"] != processes.boot_id(self._proc):
                return None, None
            view = _view_of(state["status"])
            identity = (int(state["status"]["pid"]), int(state["start_ticks"])) if view.running else None
            return view, identity
        except (OSError, ValueError, KeyError, TypeError):
            # None was ever there, or it was set aside as unreadable by the next one.
            return None, None


class ListeningProcess:
    """The process that listens on a port of this host, with all below it. Blocking: to be asked in a thread."""

    def __init__(self, port: int, proc: str, clock: Callable[[], float]) -> None:
        self._port = port
        self._proc = proc
        self._clock = clock
        self._identity: tuple[int, int] | None = None
        """pid and start ticks: a pid alone may be given to another process."""
        self._started_at = 0.0
        self._name = ""
        self._cpu = processes.CpuTime()
        self._ended_at: float | None = None

    def follow(self, pid: int, ticks: int, *, started_at: float, name: str) -> None:
        """Looks at this process from now on, whether it listens or not."""
        if self._identity != (pid, ticks):
            self._identity = (pid, ticks)
            self._started_at = started_at
            self._name = name
            self._cpu = processes.CpuTime()
            self._ended_at = None

    def look(self) -> RuntimeView | Unknown:
        """What /proc shows: the process seen last while it lives, else the one that listens now."""
        try:
            if not self._lives():
                found = self._find()
                if isinstance(found, Unknown):
                    return self._gone(found)
                self.follow(*found, started_at=self._start(found[1]), name=self._command(found[0]))
            assert self._identity is not None
            pid = self._identity[0]
            table = processes.process_table(self._proc)
            family = [table[pid], *processes.descendants(table, pid)]
        except KeyError:
            return Unknown("the process ended while it was looked at")
        except OSError as error:
            return Unknown(f"{self._proc} can't be read: {_words(error)}")
        return RuntimeView(
            runtime="process",
            name=self._name,
            running=True,
            started_at=self._started_at,
            cpu_seconds=self._cpu.add(family),
            pids=tuple(each.pid for each in family),
        )

    def _lives(self) -> bool:
        if self._identity is None:
            return False
        there = processes.process(self._identity[0], self._proc)
        return there is not None and there.start_ticks == self._identity[1] and there.state not in "ZX"

    def _gone(self, why: Unknown) -> RuntimeView | Unknown:
        if self._identity is None:
            return why
        # The end itself was not seen; it was after the look before.
        self._ended_at = self._ended_at if self._ended_at is not None else self._clock()
        return RuntimeView(
            runtime="process",
            name=self._name,
            running=False,
            started_at=self._started_at,
            ended_at=self._ended_at,
            cpu_seconds=self._cpu.seconds,
        )

    def _start(self, ticks: int) -> float:
        """Wall time of a start. Computed once a process, since a step of the wall clock would move it."""
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return self._clock() - age

    def _command(self, pid: int) -> str:
        words = Path(f"{self._proc}/{pid}/cmdline").read_bytes().split(b"\0")
        return processes.command_name([os.fsdecode(word) for word in words if word]) or str(pid)

    def holders(self) -> dict[int, int]:
        """Pid → start ticks of those that are seen to hold a listening socket of the port; OSError."""
        return self._holders(set(self._sockets()))[0]

    def _holders(self, inodes: set[str]) -> tuple[dict[int, int], bool]:
        """The same for these sockets, and whether processes were hidden."""
        holders: dict[int, int] = {}
        unreadable = False
        for each in processes.process_table(self._proc).values() if inodes else ():
            try:
                if any(link in inodes for link in _links(Path(f"{self._proc}/{each.pid}/fd"))):
                    holders[each.pid] = each.start_ticks
            except PermissionError:
                unreadable = True
            except FileNotFoundError:
                # Ended since the table was read.
                continue
        return holders, unreadable

    def _find(self) -> tuple[int, int] | Unknown:
        """Pid and start ticks of who holds a listening socket of the port: the eldest, since workers inherit it."""
        inodes = set(self._sockets())
        if not inodes:
            return Unknown(f"nobody listens on port {self._port}")
        holders, unreadable = self._holders(inodes)
        if not holders:
            why = "it belongs to another user" if unreadable else "it is in another container"
            return Unknown(f"the process on port {self._port} can't be seen: {why}")
        ticks, pid = min((ticks, pid) for pid, ticks in holders.items())
        if Path(f"{self._proc}/{pid}/comm").read_text().strip() == "docker-proxy":
            return Unknown(f"port {self._port} leads into a container (set runtime.name: docker)")
        return pid, ticks

    def _sockets(self) -> Iterator[str]:
        for name in ("tcp", "tcp6"):
            table = Path(f"{self._proc}/net/{name}")
            if not table.exists():
                # A kernel without IPv6.
                continue
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                address, _, port = fields[1].rpartition(":")
                if fields[3] == _LISTEN and int(port, 16) == self._port and _reachable(address):
                    yield f"socket:[{fields[9]}]"


def _peer_pid(writer: asyncio.StreamWriter) -> int:
    """Who listens at the other end of a UNIX socket, as a pid of this PID namespace; 0 where it is not in it."""
    peer: socket.socket = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])


def _links(folder: Path) -> Iterator[str]:
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(entry)  # noqa: PTH115 - a socket's link is no path


def _reachable(address: str) -> bool:
    """A listening address as in /proc/net/tcp, in the machine's byte order, takes connections to the loopback."""
    return set(address) == {"0"} or address == _LOOPBACK6 or (len(address) == 8 and address.endswith("7F"))


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _view_of(status: dict[str, Any]) -> RuntimeView:
    """From the supervisor's status; KeyError, TypeError if it is none."""
    return RuntimeView(
        runtime="process",
        name=str(status["command"]),
        running=bool(status["running"]),
        started_at=status["started_at"],
        exit_code=status["exit_code"],
        restart_count=status["restart_count"],
        ended_at=status["ended_at"],
        planned_stop=status["planned_stop"],
        stopping=status["planned_stop"] if status.get("phase") == "stopping" else None,
        cpu_seconds=status["cpu_seconds"],
        pids=tuple(status["pids"]),
        started_history=tuple(status["history"]),
        # A supervisor that was started by an earlier version does not say it.
        log_file=str(status.get("log_file") or ""),
    )
