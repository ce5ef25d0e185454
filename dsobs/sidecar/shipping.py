"""Log shipping in a process of its own, which can delay neither scraping nor alerting nor repair.

The child (`dsobs.cli.logs.child`) is started with the settings on its stdin, stops when that is closed, and is started
again with back-off when it ends by itself. What it says of itself is shown as dsobs's own metrics.
"""

import asyncio
import contextlib
import glob
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from dsobs.config import Config, Secret
from dsobs.sidecar.journal import INCIDENTS_FILE
from dsobs.telemetry import LOG_SHIPPER_RESTARTS, LOG_SHIPPER_UP, REGISTRY

log = logging.getLogger(__name__)

CHILD = (sys.executable, "-m", "dsobs.cli.logs.child")
MOST_WAIT_SECONDS = 60.0
STEADY_SECONDS = 60.0
"""A child that ran this long begins the back-off anew."""
STOP_SECONDS = 10.0
"""From closing its stdin to SIGKILL: twice what it takes to drain."""
_LINE_BYTES = 1024 * 1024


class Shipping(Collector):
    """The child and what it said last."""

    def __init__(self, folder: Path, name: str) -> None:
        """`folder` is the state directory, `name` what `service.name` is unless it is set."""
        self.status: dict[str, Any] | None = None
        """Of the child's last tick; None: it does not run."""
        self._folder = folder
        self._name = name
        self._config: Config | None = None
        self._log_file = ""
        """Of the engine's output, as its supervisor said it last."""
        self._settings: bytes = b""
        self._samples: list[tuple[str, dict[str, str], float]] = []
        self._idle = asyncio.Event()
        """No child runs."""
        self._idle.set()
        self._task: asyncio.Task[None] | None = None
        self._again = asyncio.Event()

    # What the child says of itself.

    def take(self, told: dict[str, Any]) -> None:
        """Its last tick: `samples`, each of (name, labels, value), and `status`."""
        self._samples, self.status = told["samples"], told["status"]
        LOG_SHIPPER_UP.set(1)

    def forget(self) -> None:
        """It does not run: nothing is concluded from what it said."""
        self._samples, self.status = [], None
        LOG_SHIPPER_UP.set(0)

    def collect(self) -> Iterable[Metric]:
        """The child's metrics, as it last told them; none while it does not run."""
        families: dict[str, Metric] = {}
        for name, names, value in self._samples:
            family = name.removesuffix("_total")
            kind = "counter" if name != family else "gauge"
            families.setdefault(family, Metric(family, "Of log shipping.", kind)).add_sample(name, names, value)
        return families.values()

    def kv_pool(self) -> int | None:
        """Bytes of the KV pool that shipped logs named last; None while none did."""
        wanted = ("dsobs_log_engine_start_up_bytes", {"fact": "kv_pool"})
        return next((int(value) for name, names, value in self._samples if (name, names) == wanted), None)

    def describe(self) -> Iterable[Metric]:
        """Nothing: names come with the first tick."""
        return ()

    # Running.

    def use(self, config: Config) -> None:
        """Ships as `config` says from now on; a child with other settings is replaced."""
        self._config = config
        found = (glob.escape(self._log_file),) if self._log_file and config.logs.supervised else ()
        files = (*config.logs.files, *found)
        settings = _settings(config, files, self._folder / "logs", self._name) if files else b""
        if settings == self._settings:
            return
        self._settings = settings
        if self._task is None:
            REGISTRY.register(self)
            self._task = asyncio.create_task(self._keep_running())
        self._again.set()

    def found(self, log_file: str) -> None:
        """The engine's output is written to this file: it is shipped too, now and when it is not told any more."""
        if log_file != self._log_file:
            self._log_file = log_file
            if self._config is not None:
                self.use(self._config)
                if self._config.logs.supervised:
                    log.info("logs: %s is shipped, as its supervisor says (logs.supervised)", log_file)

    async def _keep_running(self) -> None:
        wait = 1.0
        while True:
            self._again.clear()
            if self._settings:
                begun = asyncio.get_running_loop().time()
                code = await self._run_once(self._settings)
                if not self._again.is_set():
                    wait = 1.0 if asyncio.get_running_loop().time() - begun > STEADY_SECONDS else wait
                    LOG_SHIPPER_RESTARTS.inc()
                    log.error("the log shipping process ended with status %s; again in %.0f s", code, wait)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._again.wait(), wait)
                    wait = min(MOST_WAIT_SECONDS, 2 * wait)
            else:
                await self._again.wait()

    async def _run_once(self, settings: bytes) -> int | None:
        """Until the child ends by itself, or is to end; its exit status, None where it could not be started."""
        self._idle.clear()
        try:
            process = await asyncio.create_subprocess_exec(
                *CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES
            )
        except OSError as error:
            log.error("the log shipping process can't be started: %s", error)
            self._idle.set()
            return None
        reading = asyncio.create_task(self._listen(process))
        again = asyncio.create_task(self._again.wait())
        try:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.write(settings)
                await process.stdin.drain()
            await asyncio.wait((reading, again), return_when=asyncio.FIRST_COMPLETED)
            return await self._end(process)
        finally:
            for task in (reading, again):
                task.cancel()
            self.forget()
            self._idle.set()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self.take(orjson.loads(line))

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """Closes its stdin, waits for it to drain, and ends it if it does not."""
        assert process.stdin is not None
        process.stdin.close()
        try:
            return await asyncio.wait_for(process.wait(), STOP_SECONDS)
        except TimeoutError:
            process.kill()
            return await process.wait()

    async def stop(self) -> None:
        """Ends the child; legal twice, and where there is none."""
        if self._task is None:
            return
        self._settings = b""
        self._again.set()
        await self._idle.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        REGISTRY.unregister(self)


def _settings(config: Config, files: tuple[str, ...], directory: Path, name: str) -> bytes:
    """The child's first line. Secrets are in it as they were written: it goes through a pipe."""
    # dsobs's own alerts, actions and incidents go with the logs.
    incidents = f"incident:{glob.escape(str(directory.parent / INCIDENTS_FILE))}"
    settings = {
        "logs": {**config.logs.model_dump(), "files": [*files, incidents]},
        "directory": directory,
        "service": name,
        "log": config.log.model_dump(),
    }
    return orjson.dumps(settings, default=_plain) + b"\n"


def _plain(value: object) -> str:
    return value.handed_on() if isinstance(value, Secret) else str(value)
