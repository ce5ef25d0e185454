"""An engine, `dsobs run` beside it and a receiver of pages, all as real processes and sockets on loopback."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from dsobs.demo import child, engine_cores
from dsobs.simulator.process import free_port

SIMULATOR = (
    sys.executable,
    "-m",
    "dsobs.simulator",
    "--port",
    "{port}",
    "--exit-with-parent",
    "--disable-uvicorn-access-log",
)


POLL_SECONDS = 0.05
START_SECONDS = 90.0
"""Patience with what a machine at work takes long for; nobody is held to it."""


@dataclass
class Page:
    """One message that the receiver got."""

    at: float
    event: str
    name: str
    severity: str
    body: dict[str, Any]


@dataclass
class Scene:
    """What a test acts on and looks at."""

    folder: Path
    port: int
    session: aiohttp.ClientSession
    receiver: str
    pages: list[Page] = field(default_factory=list)
    events: list[tuple[float, str, str]] = field(default_factory=list)
    """(time, `event.action`, message) of dsobs's log."""
    engine: asyncio.subprocess.Process | None = None
    dsobs: asyncio.subprocess.Process | None = None
    api: int = 0
    control: Path = field(init=False)
    """The supervisor's socket."""
    engine_pid: int = 0
    """Of the engine, or of what supervises it."""
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    @property
    def url(self) -> str:
        """Of the engine."""
        return f"http://127.0.0.1:{self.port}"

    def __post_init__(self) -> None:
        self.control = self.folder / "supervise.sock"

    def beside(self, port: int, control: Path, pid: int) -> None:
        """Uses an engine that runs already, under a supervisor of that process id."""
        self.port, self.control, self.engine_pid = port, control, pid

    async def start_engine(
        self,
        *command: str,
        supervised: bool = True,
        ready: float = START_SECONDS,
        environ: dict[str, str] | None = None,
    ) -> None:
        """Starts it and waits until it answers."""
        words = [word.format(port=self.port) for word in (command or SIMULATOR)]
        if supervised:
            words = [
                sys.executable,
                "-m",
                "dsobs.supervisor",
                "--socket",
                str(self.control),
                "--stop-grace",
                "5",
                "--",
                *words,
            ]
        self.engine = await self.stack.enter_async_context(
            child(*words, output=self.folder / "engine.log", environ=environ)
        )
        self.engine_pid = self.engine.pid
        await self.until_answers("/health", ready)

    async def until_answers(self, path: str, seconds: float) -> None:
        """Waits for a 200 of the engine."""
        await self.until(lambda: self._answers(f"{self.url}{path}"), seconds, f"{self.url}{path}")

    async def _answers(self, url: str) -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                return answer.status == 200
        return False

    async def until(self, condition: Callable[[], Any], seconds: float, what: str) -> None:
        """Waits for a condition, plain or awaitable; AssertionError names it at the deadline."""
        deadline = time.monotonic() + seconds
        while True:
            holds = condition()
            if asyncio.iscoroutine(holds):
                holds = await holds
            if holds:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{self.story()}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), POLL_SECONDS)

    def story(self) -> str:
        """What dsobs logged, for a failed test."""
        with contextlib.suppress(OSError):
            return (self.folder / "dsobs.log").read_text(encoding="utf-8")[-6000:]
        return ""

    async def start_dsobs(
        self,
        *,
        enforce: bool = True,
        program: tuple[str, ...] = ("dsobs.cli",),
        environ: dict[str, str] | None = None,
        config: Path | None = None,
        **settings: str,
    ) -> None:
        """`dsobs run` beside the engine; settings by their names with `__` for dots, or all from the file `config`.
        `program`: the module that is `dsobs`, and words before its own."""
        self.api = free_port()
        if config is not None:
            own = ("--set", f"api.listen=127.0.0.1:{self.api}", "--set", "log.format=json")
            await self._run_dsobs(program, environ, "--config", str(config), *own)
            return
        wanted = {
            "target.url": self.url,
            "target.name": "test",
            "runtime.supervisor_socket": str(self.control),
            "notifiers.webhook.url": self.receiver,
            "remediation.mode": "enforce" if enforce else "observe",
            "remediation.kill_switch_file": str(self.folder / "kill"),
            "state.directory": str(self.folder / "state"),
            "api.listen": f"127.0.0.1:{self.api}",
            "log.format": "json",
            **{name.replace("__", "."): value for name, value in settings.items()},
        }
        flags = [word for name, value in wanted.items() if value for word in ("--set", f"{name}={value}")]
        await self._run_dsobs(program, environ, *flags)

    async def _run_dsobs(self, program: tuple[str, ...], environ: dict[str, str] | None, *flags: str) -> None:
        self.dsobs = await self.stack.enter_async_context(
            child(
                *(sys.executable, "-m", *program, "run", *flags),
                output=asyncio.subprocess.DEVNULL,
                errors=asyncio.subprocess.PIPE,
                environ=environ,
            )
        )
        assert self.dsobs.stderr is not None
        following = asyncio.ensure_future(self._follow(self.dsobs.stderr))
        self.stack.callback(following.cancel)
        await self.until(lambda: self._answers(f"http://127.0.0.1:{self.api}/readyz"), START_SECONDS, "dsobs ready")

    async def _follow(self, stream: asyncio.StreamReader) -> None:
        with (self.folder / "dsobs.log").open("ab") as log:
            async for raw in stream:
                log.write(raw)
                log.flush()
                with contextlib.suppress(orjson.JSONDecodeError):
                    line = orjson.loads(raw)
                    self.events.append((time.time(), str(line.get("event.action", "")), str(line.get("message", ""))))

    async def start_load(self, clients: int = 4, *more: str) -> asyncio.subprocess.Process:
        """Clients, until the scene ends."""
        words = (sys.executable, "-m", "dsobs.simulator.load", "--url", self.url, "--clients", str(clients))
        command = (*words, "--duration", "900", *more)
        return await self.stack.enter_async_context(child(*command, output=self.folder / "load.log"))

    async def status(self) -> dict[str, Any]:
        """`/api/v1/status`."""
        async with self.session.get(f"http://127.0.0.1:{self.api}/api/v1/status") as answer:
            told: dict[str, Any] = (await answer.json())["data"]
            return told

    async def incidents(self) -> list[dict[str, Any]]:
        """`/api/v1/incidents`."""
        async with self.session.get(f"http://127.0.0.1:{self.api}/api/v1/incidents") as answer:
            told: list[dict[str, Any]] = (await answer.json())["data"]
            return told

    async def until_working(self, seconds: float = START_SECONDS) -> None:
        """Until dsobs sees tokens move."""

        async def works() -> bool:
            engines = (await self.status())["view"]["engines"]
            return any(e["moved_tokens"] and e["stall_seconds"] < 2 for e in engines)

        await self.until(works, seconds, "tokens move")

    def left_alone(self) -> None:
        """Nothing critical was paged and nothing restarted; AssertionError tells what was."""
        assert (self.critical(), self.acted()) == ([], []), self.story()

    async def turns(self, count: int, seconds: float | None = None) -> None:
        """Lets dsobs's loop turn so many times."""
        seen: set[float] = set()

        async def turned() -> bool:
            seen.add((await self.status())["view"]["at"])
            return len(seen) > count

        await self.until(turned, seconds or count * 3 + START_SECONDS, f"{count} turns")

    def cores(self) -> list[int]:
        """The engine-core processes."""
        found = engine_cores(self.engine_pid)
        assert found, "no engine core"
        return found

    def api_server(self) -> int:
        """The process that answers requests: the engine core's parent."""
        stat = Path(f"/proc/{self.cores()[0]}/stat").read_text(encoding="utf-8")
        return int(stat.rpartition(")")[2].split()[1])

    def happened(self, action: str) -> int:
        """How often dsobs logged this `event.action`."""
        return sum(told == action for _, told, _ in self.events)

    def stop_core(self) -> float:
        """SIGSTOP; when."""
        for core in self.cores():
            os.kill(core, signal.SIGSTOP)
        return time.time()

    async def stop_at_work(self) -> float:
        """SIGSTOP in the middle of work; when. Not between two rounds of requests: its page says then that it is idle,
        and a hang while idle is found by probes only, much later."""
        for _ in range(20):
            stopped = self.stop_core()
            await asyncio.sleep(0.3)  # What the core had sent is on the page by now.
            if await self.running() > 0:
                return stopped
            for core in self.cores():
                os.kill(core, signal.SIGCONT)
            await asyncio.sleep(0.1)
        raise AssertionError(f"the core was idle whenever it was stopped\n{self.story()}")

    async def running(self) -> float:
        """Requests that the engine's page says it works on."""
        async with self.session.get(f"{self.url}/metrics") as answer:
            page = await answer.text()
        return sum(map(float, re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", page, re.MULTILINE)))

    def paged(self, name: str, event: str = "trigger") -> Page | None:
        """The first page of an alert."""
        return next((p for p in self.pages if p.name == name and p.event == event), None)

    def critical(self) -> list[str]:
        """Every critical page so far."""
        return [page.body["summary"] for page in self.pages if page.severity == "critical" and page.event == "trigger"]

    def acted(self) -> list[str]:
        """Every action that dsobs began."""
        return [message for _, action, message in self.events if action.startswith("restart")]


@contextlib.asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    """Everything that was started is ended with it."""
    async with contextlib.AsyncExitStack() as stack:
        # Servers close idle connections: a POST on one that is just being closed would fail by no fault of theirs.
        connector = aiohttp.TCPConnector(force_close=True)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        pages: list[Page] = []

        async def take(request: web.Request) -> web.Response:
            body = orjson.loads(await request.read())
            name = body.get("labels", {}).get("alertname", "") or body["summary"]
            pages.append(Page(time.time(), body["event"], name, body["severity"], body))
            return web.Response()

        app = web.Application()
        app.router.add_post("/", take)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        yield Scene(folder, free_port(), session, receiver, pages, stack=stack)
