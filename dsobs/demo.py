"""`dsobs demo`: an engine under load hangs, and dsobs is watched while it sees, pages and repairs.

Everything is real: a server process with a separate engine core, clients, `dsobs supervise`, `dsobs run` in enforce
mode, a
receiver of pages on loopback; the core is stopped with SIGSTOP. All of it is ended at the end, also on Ctrl-C.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import aiohttp
import orjson
from aiohttp import web

from dsobs.demo_logs import DemoError, ElasticsearchHere, show_logs
from dsobs.simulator.process import free_port
from dsobs.supervisor.processes import descendants, process_table

SIMULATOR = f"{shlex.quote(sys.executable)} -m dsobs.simulator --port {{port}} --load-seconds 3 --exit-with-parent"
WORK_SECONDS = 8.0
"""Load before the core is stopped."""
STORY = (
    "last progress",
    "stall seen",
    "probe sent",
    "probe failed",
    "alert firing",
    "evidence saved",
    "page sent",
    "restart begun",
    "restarted",
    "ready",
    "verified",
    "resolved",
)
"""The lines of the timeline, each once. All of them are needed for exit code 0."""
_ACTIONS = {
    "stall-seen": "stall seen",
    "probe-sent": "probe sent",
    "probe-timeout": "probe failed",
    "alert-firing": "alert firing",
    "evidence-saved": "evidence saved",
    "restart-begun": "restart begun",
    "restart-done": "restarted",
    "engine-ready": "ready",
    "verified": "verified",
}


@dataclass
class Timeline:
    """What happened when, printed as it happens."""

    out: TextIO
    colour: bool
    stopped_at: float | None = None
    """When the core was stopped, Unix seconds."""
    told: dict[str, float] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, what: str, text: str, at: float | None = None) -> None:
        """One line, the first time that this happens after the core was stopped."""
        at = time.time() if at is None else at
        if self.stopped_at is None or what in self.told:
            return
        self.told[what] = at
        mark = {"page sent": "31;1", "alert firing": "31", "stall seen": "33"}.get(
            what, "32" if what in STORY[7:] else "36"
        )
        self._line(f"{at - self.stopped_at:+7.1f} s", what, text, mark)
        self.changed.set()

    def say(self, text: str) -> None:
        """A line about the surroundings."""
        self._line("", "", text, "")

    def _line(self, seconds: str, what: str, text: str, mark: str) -> None:
        name = f"\x1b[{mark}m{what:<15}\x1b[0m" if mark and self.colour else f"{what:<15}"
        print(f"{seconds:>9}  {name} {text}".rstrip() if seconds else text, file=self.out, flush=True)

    async def until(self, *what: str, seconds: float) -> None:
        """Waits for these lines; DemoError names the missing ones."""
        deadline = time.monotonic() + seconds
        while missing := [name for name in what if name not in self.told]:
            left = deadline - time.monotonic()
            if left <= 0:
                raise DemoError(f"not seen within {seconds:.0f} s: {', '.join(missing)}")
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), left)


@contextlib.asynccontextmanager
async def child(
    *command: str, output: Path | int, errors: int | None = None, environ: dict[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child in a session of its own, ended with all that is left of its group."""
    with contextlib.ExitStack() as stack:
        out: Any = stack.enter_context(output.open("wb")) if isinstance(output, Path) else output
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out if errors is None else errors,
            start_new_session=True,
            env={**os.environ, **(environ or {})},
            limit=1024 * 1024,
        )
    try:
        yield process
    finally:
        for number, seconds in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
            if process.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), seconds)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def _receiver(timeline: Timeline) -> AsyncIterator[str]:
    """A receiver of pages on loopback that prints them."""

    async def take(request: web.Request) -> web.Response:
        page = orjson.loads(await request.read())
        what = {"trigger": "page sent", "resolve": "resolved"}.get(page["event"], "")
        if what and "EngineHung" in page["summary"]:
            timeline.tell(what, f"{page['event']}: {page['summary']}")
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}/"
    finally:
        await runner.cleanup()


def _tail(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def engine_cores(pid: int) -> list[int]:
    """The engine-core processes below `pid`: by title, as vLLM sets it."""
    found = []
    for below in descendants(process_table(), pid):
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{below.pid}/cmdline").read_bytes() + Path(f"/proc/{below.pid}/comm").read_bytes()
            if b"EngineCor" in title:
                found.append(below.pid)
    return found


async def _follow(stream: asyncio.StreamReader, timeline: Timeline, log: TextIO) -> None:
    """dsobs's own JSON log: each line into the log file, what belongs to the story into the timeline."""
    async for raw in stream:
        log.write(raw.decode(errors="replace"))
        log.flush()
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        action = line.get("event.action", "")
        text = str(line.get("message", ""))
        if action == "stall-seen" and timeline.stopped_at is not None:
            timeline.tell("last progress", "the last token that a client got", float(line["dsobs.last_progress"]))
        # Readiness matters once the old instance is gone.
        if action == "engine-ready" and "restarted" not in timeline.told:
            continue
        if action in _ACTIONS and (action != "alert-firing" or "EngineHung" in text):
            timeline.tell(_ACTIONS[action], text)


async def _ready(
    session: aiohttp.ClientSession,
    url: str,
    seconds: float,
    process: asyncio.subprocess.Process,
    log: Path | None = None,
) -> None:
    """Until `url` answers with 200; the last line of `log` tells meanwhile what is being done."""
    deadline = time.monotonic() + seconds
    shown = time.monotonic()
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise DemoError(f"the process behind {url} ended with exit code {process.returncode}")
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(url, timeout=aiohttp.ClientTimeout(total=2)) as answer:
                if answer.status == 200:
                    return
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            lines = _tail(log) if log is not None else []
            print(f"  … still waiting for {url}{': ' + lines[-1].strip()[-100:] if lines else ''}", flush=True)
        await asyncio.sleep(0.1)
    raise DemoError(f"{url} was not ready within {seconds:.0f} s")


async def _story(
    command: str,
    start_seconds: float,
    folder: Path,
    timeline: Timeline,
    elastic: ElasticsearchHere | None,
    *,
    kept: bool,
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession())
        port, api = free_port(), free_port()
        url = f"http://127.0.0.1:{port}"
        receiver = await stack.enter_async_context(_receiver(timeline))
        timeline.say("starting an inference server under `dsobs supervise`")
        control = folder / "supervise.sock"
        engine = await stack.enter_async_context(
            child(
                *(sys.executable, "-m", "dsobs.supervisor", "--socket", str(control), "--stop-grace", "5", "--"),
                *shlex.split(command.format(port=port)),
                output=folder / "engine.log",
            )
        )
        await _ready(session, f"{url}/health", start_seconds, engine, folder / "engine.log")
        await stack.enter_async_context(
            child(
                *(sys.executable, "-m", "dsobs.simulator.load", "--url", url, "--clients", "4"),
                *("--duration", "900"),
                output=folder / "load.log",
            )
        )
        timeline.say("starting `dsobs run` beside it, in enforce mode")
        settings = {
            "target.url": url,
            "target.name": "demo",
            "runtime.name": "process",
            "runtime.supervisor_socket": str(control),
            "runtime.stop_grace": "5s",
            "notifiers.webhook.url": receiver,
            "remediation.mode": "enforce",
            "state.directory": str(folder / "state"),
            "remediation.kill_switch_file": str(folder / "kill"),
            "api.listen": f"127.0.0.1:{api}",
            "log.format": "json",
            "logs.files": str(folder / "engine.log"),
            **(elastic.settings if elastic is not None else {}),
        }
        flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        dsobs = await stack.enter_async_context(
            child(
                *(sys.executable, "-m", "dsobs.cli", "run", *flags),
                output=asyncio.subprocess.DEVNULL,
                errors=asyncio.subprocess.PIPE,
                environ={"PYTHONWARNINGS": "ignore"},
            )
        )
        assert dsobs.stderr is not None
        log = stack.enter_context((folder / "dsobs.log").open("w", encoding="utf-8"))
        following = asyncio.create_task(_follow(dsobs.stderr, timeline, log))
        stack.callback(following.cancel)
        await _ready(session, f"http://127.0.0.1:{api}/readyz", 30.0, dsobs)
        timeline.say(f"  metrics http://127.0.0.1:{api}/metrics, API http://127.0.0.1:{api}/api/v1/status")
        timeline.say(f"  logs in {folder}{'' if kept else ', until the demo ends (--keep DIR keeps them)'}")
        before = await _started(session, api)
        await _work(session, api, 60.0)
        timeline.say(f"4 clients are being answered; stopping the engine core with SIGSTOP in {WORK_SECONDS:.0f} s")
        await asyncio.sleep(WORK_SECONDS)
        cores = engine_cores(engine.pid)
        if not cores:
            raise DemoError("no engine-core process found below the server")
        timeline.stopped_at = time.time()
        timeline.say("")
        for core in cores:
            os.kill(core, signal.SIGSTOP)
        async with session.get(f"{url}/health") as answer:
            timeline.tell("core stopped", f"pid {cores[0]}; /health says {answer.status}")
        await timeline.until("stall seen", "alert firing", "page sent", seconds=30.0)
        await timeline.until("restarted", seconds=60.0)
        await timeline.until(*STORY, seconds=max(60.0, start_seconds))
        after = await _started(session, api)
        if before is None or after is None or after <= before:
            raise DemoError("the engine is the same instance as before: it was not restarted")
        await _work(session, api, 30.0)
        if any(_exists(core) for core in cores):
            raise DemoError("a process of the hung engine is still there")
        timeline.say("")
        incident = await _conclude(session, api, timeline)
        await show_logs(session, folder / "state", incident, timeline.say, elastic)


async def _status(session: aiohttp.ClientSession, api: int) -> dict[str, Any]:
    async with session.get(f"http://127.0.0.1:{api}/api/v1/status") as answer:
        status: dict[str, Any] = (await answer.json())["data"]
        return status


async def _started(session: aiohttp.ClientSession, api: int) -> float | None:
    started = (await _status(session, api))["view"]["instance_started_at"]
    return float(started) if started is not None else None


async def _work(session: aiohttp.ClientSession, api: int, seconds: float) -> None:
    """Until tokens move."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        view = (await _status(session, api))["view"]
        if view["ready"] and any(e["moved_tokens"] and e["stall_seconds"] < 2 for e in view["engines"]):
            return
        await asyncio.sleep(0.2)
    raise DemoError("no client is answered")


async def _conclude(session: aiohttp.ClientSession, api: int, timeline: Timeline) -> str:
    """The incident's id."""
    async with session.get(f"http://127.0.0.1:{api}/api/v1/incidents") as answer:
        incidents = (await answer.json())["data"]
    assert timeline.stopped_at is not None
    page = timeline.told["page sent"] - timeline.stopped_at
    back = timeline.told["verified"] - timeline.stopped_at
    timeline.say(f"the hang was paged after {page:.1f} s and repaired after {back:.1f} s; /health said 200 all along")
    timeline.say(f"incident {incidents[0]['id']}: the clients are being answered again")
    return str(incidents[0]["id"])


async def demo(
    command: str,
    start_seconds: float,
    out: TextIO,
    keep: Path | None = None,
    elastic: ElasticsearchHere | None = None,
) -> int:
    """Tells the story; 0 only if the repair really happened."""
    timeline = Timeline(out, colour=out.isatty() and "NO_COLOR" not in os.environ)
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dsobs-demo-")))
        try:
            await _story(command, start_seconds, folder, timeline, elastic, kept=keep is not None)
        except DemoError as error:
            print(f"dsobs demo: {error}", file=sys.stderr)
            for name in ("engine.log", "dsobs.log"):
                with contextlib.suppress(OSError):
                    print(f"--- {name}", *_tail(folder / name), sep="\n", file=sys.stderr)
            return 1
    return 0


def run(
    command: str,
    start_seconds: float,
    out: TextIO,
    keep: Path | None = None,
    elastic: ElasticsearchHere | None = None,
) -> int:
    """`demo` with SIGTERM and Ctrl-C turned into an orderly end (exit code 130)."""

    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)

    async def main() -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(demo(command, start_seconds, out, keep, elastic))
        end: Callable[[], object] = task.cancel
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, end)
        try:
            return await task
        except asyncio.CancelledError:
            print("dsobs demo: ended early", file=sys.stderr)
            return 130

    return asyncio.run(main())
