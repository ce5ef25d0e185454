"""An engine in a Docker container, by the Docker Engine API (v1.40 and later) over its UNIX socket."""

import asyncio
import json
import re
import time
from datetime import datetime
from typing import Any
from urllib.parse import quote

import aiohttp

from dsobs.config.models import RuntimeSettings, Target
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RestartResult, RuntimeRefused

SAME_START_SECONDS = 0.5
STOP_SIGNALS = frozenset({"2", "3", "9", "15"})
"""SIGINT, SIGQUIT, SIGKILL, SIGTERM: what a person sends to end a container."""
PLANNED_BEFORE_END_SECONDS = 600.0
"""A stop signal this long before the end has led to it: containers may be given a long grace."""
RESTART_SLACK_SECONDS = 10.0
LOG_BYTES = 4 * 1024 * 1024
_NEVER = "0001-01-01T00:00:00Z"


async def open_runtime(settings: RuntimeSettings, target: Target) -> "Docker | Unknown":
    """The container that `runtime.container` names; Unknown while the daemon can't be asked or has no such
    container."""
    docker = Docker(settings)
    view = await docker.view()
    if isinstance(view, Unknown):
        await docker.close()
        return view
    return docker


def _time(text: str) -> float | None:
    """Docker's RFC 3339 with nanoseconds; None for the zero time."""
    if not text or text.startswith(_NEVER[:10]):
        return None
    # Nanoseconds are more than datetime takes.
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text)).timestamp()


class Docker:
    """One container, by name, so that one that is made anew under the same name is followed."""

    name = "docker"
    can_restart = True

    def __init__(self, settings: RuntimeSettings) -> None:
        self._container = settings.container
        self._timeout = settings.timeout
        socket = settings.docker_host.removeprefix("unix://")
        self._where = settings.docker_host
        self._session = aiohttp.ClientSession(
            "http://docker", connector=aiohttp.UnixConnector(path=socket), timeout=aiohttp.ClientTimeout(total=None)
        )
        self._planned: tuple[float | None, float | None, str | None] = (None, None, None)
        """Start and end of the instance that was judged last, and who was seen to stop it."""

    def _path(self, rest: str) -> str:
        return f"/containers/{quote(self._container, safe='')}{rest}"

    async def _json(self, path: str, **params: str) -> Any:
        """The body; aiohttp.ClientResponseError with the daemon's own words for an error."""
        async with asyncio.timeout(self._timeout), self._session.get(path, params=params) as answer:
            if answer.status >= 400:
                raise aiohttp.ClientResponseError(
                    answer.request_info, (), status=answer.status, message=await _message(answer)
                )
            return await answer.json(content_type=None)

    async def view(self) -> RuntimeView | Unknown:
        """What the daemon says of the container."""
        try:
            told = await self._json(self._path("/json"))
            state = told["State"]
            started, ended = _time(state["StartedAt"]), _time(state["FinishedAt"])
            running = bool(state["Running"]) and not state.get("Restarting", False)
            cpu, pids = await self._usage(running)
            return RuntimeView(
                runtime="docker",
                name=str(told["Name"]).lstrip("/"),
                running=running,
                started_at=started,
                exit_code=None if ended is None else int(state["ExitCode"]) if not running else None,
                oom_killed=bool(state["OOMKilled"]) if ended is not None else None,
                restart_count=int(told["RestartCount"]),
                ended_at=ended,
                planned_stop=await self._planned_stop(running, started, ended),
                cpu_seconds=cpu,
                pids=pids,
            )
        except aiohttp.ClientResponseError as error:
            return Unknown(f"Docker: {error.message}")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return Unknown(f"Docker at {self._where} does not answer: {str(error) or type(error).__name__}")
        except (KeyError, TypeError, ValueError) as error:
            return Unknown(f"Docker at {self._where} answered what can't be read: {error!r}")

    async def _usage(self, running: bool) -> tuple[float | None, tuple[int, ...]]:
        """CPU seconds so far, and process ids; unknown where the daemon does not count them."""
        if not running:
            return None, ()
        params = {"stream": "false", "one-shot": "true"}
        try:
            stats = await self._json(self._path("/stats"), **params)
            total = stats["cpu_stats"]["cpu_usage"]["total_usage"]
            return (total / 1e9 if total else None), ()
        except (aiohttp.ClientResponseError, KeyError, TypeError):
            return None, ()

    async def _planned_stop(self, running: bool, started: float | None, ended: float | None) -> str | None:
        """Who was seen to stop the last instance that ended, from the daemon's events. An exit code proves nothing."""
        if ended is None:
            return None
        key = (started if running else None, ended)
        if self._planned[:2] != key:
            since = ended - PLANNED_BEFORE_END_SECONDS
            events = await self._events(since, ended + 1.0)
            self._planned = (*key, _planned_by(events, ended))
        return self._planned[2]

    async def _events(self, since: float, until: float) -> list[dict[str, Any]]:
        filters = json.dumps({"container": [self._container], "type": ["container"]})
        params = {"since": f"{since:.9f}", "until": f"{min(until, time.time()):.9f}", "filters": filters}
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(self._timeout), self._session.get("/events", params=params) as answer:
            async for line in answer.content:
                if line.strip():
                    found.append(json.loads(line))
        return found

    async def restart(self, *, grace_seconds: float, expect_started_at: float | None) -> RestartResult:
        """`POST /containers/{id}/restart`: SIGTERM, SIGKILL after the grace, start."""
        view = await self.view()
        if isinstance(view, Unknown):
            raise RuntimeRefused(view.reason)
        if expect_started_at is not None and (
            view.started_at is None or abs(view.started_at - expect_started_at) > SAME_START_SECONDS
        ):
            raise RuntimeRefused(f"the container did not start at {expect_started_at} but at {view.started_at}")
        url = self._path("/restart")
        async with asyncio.timeout(grace_seconds + self._timeout + RESTART_SLACK_SECONDS):
            try:
                async with self._session.post(url, params={"t": str(max(round(grace_seconds), 0))}) as answer:
                    if answer.status >= 500:
                        # The daemon may have stopped it and failed to start it.
                        raise ConnectionError(f"Docker failed: {await _message(answer)}")
                    if answer.status >= 400:
                        raise RuntimeRefused(f"Docker refused: {await _message(answer)}")
            except aiohttp.ClientConnectorError as error:
                raise RuntimeRefused(f"Docker at {self._where} does not answer: {error}") from error
            except aiohttp.ClientError as error:
                raise ConnectionError(f"Docker's answer did not come: {error}") from error
        after = await self.view()
        return RestartResult(
            started_at=None if isinstance(after, Unknown) else after.started_at, detail="restarted by Docker"
        )

    async def log_tail(self, lines: int) -> list[str] | Unknown:
        """The container's last lines."""
        params = {"stdout": "1", "stderr": "1", "tail": str(lines)}
        try:
            async with asyncio.timeout(self._timeout), self._session.get(self._path("/logs"), params=params) as answer:
                if answer.status >= 400:
                    return Unknown(f"Docker: {await _message(answer)}")
                body = await answer.content.read(LOG_BYTES)
                while len(body) < LOG_BYTES and (more := await answer.content.read(LOG_BYTES - len(body))):
                    body += more
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return Unknown(f"Docker at {self._where} does not answer: {str(error) or type(error).__name__}")
        return _demultiplexed(body).decode(errors="replace").splitlines()[-lines:]

    async def close(self) -> None:
        """Closes the connection; legal twice."""
        await self._session.close()


def _planned_by(events: list[dict[str, Any]], ended: float) -> str | None:
    """The first stop that a person asked for before the last end; ends in between belong to instances before it."""
    last_die = max(
        (e["timeNano"] / 1e9 for e in events if e.get("Action") == "die" and e["timeNano"] / 1e9 < ended - 1.0),
        default=0.0,
    )
    for event in events:
        at = event["timeNano"] / 1e9
        if not last_die < at <= ended + 1.0:
            continue
        action = event.get("Action")
        if action == "kill" and str(event["Actor"]["Attributes"].get("signal")) in STOP_SIGNALS:
            return f"docker kill event, signal {event['Actor']['Attributes']['signal']}"
        if action in ("stop", "restart"):
            return f"docker {action} event"
    return None


async def _message(answer: aiohttp.ClientResponse) -> str:
    body = await answer.content.read(4096)
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status}"


def _is_multiplexed(body: bytes) -> bool:
    return len(body) >= 8 and body[0] in (0, 1, 2) and body[1:4] == b"\0\0\0"


def _demultiplexed(body: bytes) -> bytes:
    """Docker's frames of a container without a terminal: stream, 3 zero bytes, length, payload (API: "attach")."""
    if not _is_multiplexed(body):
        return body
    out, at = [], 0
    while at + 8 <= len(body):
        size = int.from_bytes(body[at + 4 : at + 8], "big")
        out.append(body[at + 8 : at + 8 + size])
        at += 8 + size
    return b"".join(out)
