"""An engine in a Docker container, by the Docker Engine API."""

import asyncio
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from dsobs.config.models import RuntimeSettings, Target
from dsobs.model.observation import Gpu, RuntimeView, Unknown
from dsobs.model.runtime import RestartResult, RuntimeHeld, RuntimeRefused
from dsobs.model.scaling import NoRoom, Replicas
from dsobs.runtimes.docker_daemon import Daemon, DaemonError, words_of
from dsobs.runtimes.docker_scaling import ContainerReplicas
from dsobs.supervisor import processes

SAME_START_SECONDS = 0.05
SAME_END_SECONDS = 2.0
"""Between the time that the daemon notes for an end and that of its event."""
STOP_SIGNALS = frozenset({"2", "3", "9", "15"})
"""SIGINT, SIGQUIT, SIGKILL, SIGTERM: what a person sends to end a container."""
STOP_TAKES_SECONDS = 600.0
"""A stop signal this long before the end has led to it: containers may be given a long grace."""
RESTART_SLACK_SECONDS = 15.0
"""What the daemon takes beyond the grace: it waits 10 s for the end of what it has killed, then starts anew."""
HISTORY_SECONDS = 24 * 3600.0
EVENT_BYTES = 1024 * 1024
"""The daemon keeps the last 256 events."""


async def open_runtime(settings: RuntimeSettings, target: Target) -> "DockerRuntime | Unknown":
    """Entry point. Unknown where the settings name no container or no address that can be used."""
    if not settings.container:
        return Unknown("runtime.container must name the engine's container")
    if not settings.docker_host.startswith(("unix://", "tcp://")):
        return Unknown("runtime.docker_host must begin with unix:// or tcp://")
    return DockerRuntime(settings, target=target.url)


@dataclass(slots=True)
class Stops:
    """Who was seen to stop the container, from its events in their order. An exit code proves nothing.

    The daemon tells `kill` (with the signal), `die`, `stop` of a `docker stop`, and besides `start` and `restart` of a
    `docker restart`; a container that ends by itself only tells `die`.
    """

    asked_at: float = -math.inf
    asked_by: str | None = None
    """A stop that was asked for and has not ended the present instance yet."""
    died_at: float = -math.inf
    planned: str | None = None
    """Who stopped the instance that ended last; None: nobody was seen to."""
    starts: list[float] = field(default_factory=list)

    def of(self, ended: float | None, now: float) -> str | None:
        """Who stops the present instance, or stopped the one that ended at `ended`; None: of the container's forerunner
        under the same name. An end whose events were not seen is nobody's."""
        return self.asked(now) or self._ended_by(ended)

    def _ended_by(self, ended: float | None) -> str | None:
        return self.planned if ended is None or abs(ended - self.died_at) <= SAME_END_SECONDS else None

    def asked(self, now: float) -> str | None:
        """Who has just asked the present instance to stop."""
        return self.asked_by if now - self.asked_at <= STOP_TAKES_SECONDS else None

    def take(self, at: float, action: str, attributes: Mapping[str, str], *, own: bool) -> None:
        """One event at `at`, seconds since the Unix epoch; `own`: while dsobs itself had the container restarted."""
        match action:
            case "kill" if attributes.get("signal") in STOP_SIGNALS and not own:
                if self.asked_by is None:
                    self.asked_at, self.asked_by = at, f"docker kill event, signal {attributes['signal']}"
            case "die":
                asked = self.asked_by if at - self.asked_at <= STOP_TAKES_SECONDS else None
                self.died_at, self.planned, self.asked_by = at, asked, None
            case "stop" | "restart" if not own and at >= self.died_at > -math.inf:
                self.planned = self.planned or f"docker {action} event"
            case "start":
                self.starts = [start for start in self.starts if start > at - HISTORY_SECONDS] + [at]
                self.asked_by = None


class DockerRuntime:
    """One container, by name, so that one that is made anew under the same name is followed."""

    name = "docker"
    can_restart = True
    change_seconds = 900.0
    """A replica that is taken away may first finish what it has; each step has a deadline of its own."""

    def __init__(self, settings: RuntimeSettings, *, target: str = "", proc: Path = Path("/proc")) -> None:
        """`target`: the engine's address, as dsobs reaches it."""
        self._container = settings.container
        self._timeout = settings.timeout
        self._daemon = Daemon(settings.docker_host, settings.timeout)
        self._proc = str(proc)
        self._seen = Stops()
        self._event_nanos = -1
        """Time of the last event taken."""
        self._counted: tuple[str, float | None] | None = None
        """Container and start of the instance whose CPU time is counted."""
        self._cpu = processes.CpuTime()
        self._own: list[tuple[float, float]] = []
        """When dsobs itself had the container restarted, from and to."""
        self._replicas = ContainerReplicas(self._daemon, settings.container, target)
        self.cards: Callable[[], tuple[Gpu, ...] | Unknown] = lambda: Unknown("no card was read")
        """As they were read last, without those that are broken."""

    async def view(self) -> RuntimeView | Unknown:
        """What the daemon says of the container: three questions under one deadline."""
        return await self._daemon.known(self._view())

    async def _view(self) -> RuntimeView:
        told = await self._inspect()
        state = told["State"]
        started, ended = _time(state["StartedAt"]), _time(state["FinishedAt"])
        # Between two tries of a restart policy the daemon says both.
        running = bool(state["Running"]) and not state.get("Restarting", False)
        name = str(told["Name"]).lstrip("/")
        await self._read_events(str(told["Id"]), name)
        cpu_seconds, pids = await self._usage(str(told["Id"]), int(state["Pid"]), started) if running else (None, ())
        paused = "docker pause" if state.get("Paused") else None
        return RuntimeView(
            runtime="docker",
            name=name,
            running=running,
            started_at=started,
            # A container that was created and never started has the code 0 of no instance; so has one that runs.
            exit_code=int(state["ExitCode"]) if ended is not None and not running else None,
            oom_killed=bool(state["OOMKilled"]) if ended is not None and not running else None,
            restart_count=int(told["RestartCount"]),
            ended_at=ended,
            planned_stop=paused or self._seen.of(ended, time.time()),
            stopping=(paused or self._seen.asked(time.time())) if running else None,
            cpu_seconds=cpu_seconds,
            pids=pids,
            started_history=self._history(started),
        )

    def _history(self, started: float | None) -> tuple[float, ...]:
        oldest = time.time() - HISTORY_SECONDS
        # The event comes a moment after the start that it tells of.
        told = [start for start in self._seen.starts if started is None or not started <= start < started + 1.0]
        return tuple(sorted(start for start in (*told, *([started] if started else ())) if start >= oldest))

    async def _inspect(self) -> Any:
        return await self._daemon.json(self._path("/json"))

    async def _usage(self, container: str, pid: int, started: float | None) -> tuple[float | None, tuple[int, ...]]:
        """CPU time and pids, as this host counts them. Where dsobs is in another PID namespace: the daemon's CPU time
        (Docker 20.10 takes a second for it), and no pids, which would be those of strangers."""
        family = await asyncio.to_thread(self._family, container, pid)
        if family:
            if self._counted != (container, started):
                self._counted, self._cpu = (container, started), processes.CpuTime()
            return self._cpu.add(family), tuple(each.pid for each in family)
        if self._counted == (container, started):
            # Counted by /proc before; the daemon's number is another one.
            return None, ()
        try:
            stats = await self._daemon.json(self._path("/stats"), {"stream": "false", "one-shot": "true"})
            total = stats["cpu_stats"]["cpu_usage"]["total_usage"]
        except (DaemonError, KeyError):
            return None, ()
        return total / 1e9 if total else None, ()

    def _family(self, container: str, pid: int) -> list[processes.Process]:
        """The container's processes; none where /proc does not show them, or `pid` means another process here."""
        try:
            if container not in Path(f"{self._proc}/{pid}/cgroup").read_text():
                return []
            table = processes.process_table(self._proc)
            return [table[pid], *processes.descendants(table, pid)]
        except (OSError, KeyError):
            # Ended meanwhile, or hidden from us: not known.
            return []

    async def _read_events(self, container: str, name: str) -> None:
        """Takes the daemon's events since those read last; the first time, of the last 24 hours."""
        now = time.time()
        since = self._event_nanos / 1e9 if self._event_nanos >= 0 else now - HISTORY_SECONDS
        filters = json.dumps({"container": [self._container], "type": ["container"]})
        # An end that is not in the future has the daemon answer at once with what it remembers.
        params = {"since": f"{since:.9f}", "until": f"{now:.9f}", "filters": filters}
        for line in (await self._daemon.get("/events", params, limit=EVENT_BYTES)).splitlines():
            event = json.loads(line)
            nanos, actor = int(event["timeNano"]), event["Actor"]
            # The filter matches beginnings of names too.
            if nanos <= self._event_nanos or (actor["ID"] != container and actor["Attributes"].get("name") != name):
                continue
            self._event_nanos = nanos
            at = nanos / 1e9
            own = any(begun <= at <= ended for begun, ended in self._own)
            self._seen.take(at, str(event["Action"]), actor["Attributes"], own=own)
        self._own = [span for span in self._own if span[1] > now - STOP_TAKES_SECONDS]

    async def restart(
        self,
        *,
        grace_seconds: float,
        expect_started_at: float | None,
        incident: str = "",  # noqa: ARG002 - of the protocol
    ) -> RestartResult:
        """`POST /containers/{id}/restart`: SIGTERM, SIGKILL after the grace, start.

        The container's restart policy does not matter for it, only for what comes after; the result's detail names it.
        """
        before = await self._daemon.known(self._before())
        if isinstance(before, Unknown):
            raise RuntimeRefused(before.reason)
        started, policy = before
        if expect_started_at is not None and (started is None or abs(started - expect_started_at) > SAME_START_SECONDS):
            raise RuntimeRefused(f"the container did not start at {expect_started_at} but at {started}")
        begun, limit = time.time(), grace_seconds + self._timeout + RESTART_SLACK_SECONDS
        # Until it is over, and as long as it may take if its end is not learnt.
        self._own.append((begun, begun + limit))
        try:
            async with asyncio.timeout(limit):
                await self._daemon.call("POST", self._path("/restart"), {"t": str(math.ceil(grace_seconds))})
        except DaemonError as error:
            if error.status >= 500:
                # The daemon may have stopped it and failed to start it: only what did not change is surely not done.
                return await self._after_failure(started, error)
            self._own.pop()
            raise RuntimeRefused(f"Docker refused: {error}") from error
        except aiohttp.ClientConnectorError as error:
            self._own.pop()
            raise RuntimeRefused(self._daemon.silent(error)) from error
        except aiohttp.ClientError as error:
            raise ConnectionError(f"Docker's answer did not come: {words_of(error)}") from error
        self._own[-1] = (begun, time.time())
        after = await self.view()
        return RestartResult(
            started_at=None if isinstance(after, Unknown) else after.started_at,
            detail=f"restarted by Docker (restart policy: {policy})",
        )

    async def _before(self) -> tuple[float | None, str]:
        """Start and restart policy."""
        told = await self._inspect()
        return _time(told["State"]["StartedAt"]), str(told["HostConfig"]["RestartPolicy"]["Name"] or "no")

    async def _after_failure(self, started: float | None, error: DaemonError) -> RestartResult:
        after = await self.view()
        if isinstance(after, Unknown):
            raise ConnectionError(f"Docker failed: {error}; {after.reason}") from error
        if not after.running:
            raise ConnectionError(f"Docker failed: {error}; the container is stopped") from error
        if after.started_at == started:
            raise RuntimeRefused(f"Docker failed: {error}; the container runs on") from error
        return RestartResult(started_at=after.started_at, detail=f"Docker failed ({error}), and runs a new instance")

    async def log_tail(self, lines: int) -> list[str] | Unknown:
        """The container's last lines, standard output and error in the order they were written."""
        if lines <= 0:
            return []
        params = {"stdout": "1", "stderr": "1", "tail": str(lines)}
        body = await self._daemon.known(self._daemon.get(self._path("/logs"), params))
        return body if isinstance(body, Unknown) else demultiplexed(body).decode(errors="replace").splitlines()[-lines:]

    async def replicas(self) -> Replicas | Unknown:
        """Of `dsobs.model.scaling.Scales`."""
        return await self._daemon.known(self._replicas.look())

    async def no_room(self) -> NoRoom | None:
        """Of `dsobs.model.scaling.Places`."""
        with self._daemon.refusing():
            return await self._replicas.no_room(self.cards())

    async def scale(self, before: Replicas, to: int) -> str:
        """Of `dsobs.model.scaling.Scales`."""
        with self._daemon.refusing():
            return await self._replicas.set(before, to, self.cards())

    async def set_minimum(self, before: Replicas, to: int, until: float | None) -> str:  # noqa: ARG002 - of the protocol
        """Of `dsobs.model.scaling.Scales`; there are no autoscalers here."""
        raise RuntimeHeld("Docker has no autoscaler")

    async def close(self) -> None:
        """Closes the connection; legal twice."""
        await self._daemon.close()

    def _path(self, rest: str) -> str:
        return f"/containers/{quote(self._container, safe='')}{rest}"


def demultiplexed(body: bytes) -> bytes:
    """The payload of Docker's frames: stream (0 to 2), 3 zero bytes, length as 4 bytes big-endian, payload.

    Engine API, "Attach to a container", stream format. A container with a terminal has no frames: `body` as it is. Of a
    frame that was cut off, what is there.
    """
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        header = body[at : at + 8]
        if len(header) < 8 or header[0] > 2 or header[1:4] != b"\0\0\0":
            return body if not parts else b"".join(parts)
        size = int.from_bytes(header[4:], "big")
        parts.append(body[at + 8 : at + 8 + size])
        at += 8 + size
    return b"".join(parts)


def _time(text: str) -> float | None:
    """Docker's RFC 3339 with nanoseconds, in seconds since the Unix epoch; None for Go's zero time, "never"."""
    if text.startswith("0001-"):
        return None
    # Nanoseconds are more than datetime takes.
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()
