"""A real Chromium, Debian's, driven by its own protocol: https://chromedevtools.github.io/devtools-protocol/."""

import asyncio
import base64
import contextlib
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.real import apt

START_SECONDS = 60.0
AXE_SCRIPT = Path(__file__).with_name("axe.sh")


@functools.cache
def program() -> str:
    """Its path; it is installed where it is missing."""
    found = shutil.which("chromium")
    if found is None:
        apt.install("chromium", "fonts-dejavu-core")
        found = shutil.which("chromium")
    assert found is not None
    return found


@functools.cache
def axe() -> str:
    """The text of axe-core, from the tool cache."""
    done = subprocess.run(["bash", str(AXE_SCRIPT)], check=True, capture_output=True, text=True, timeout=300)
    return Path(done.stdout.strip()).read_text(encoding="utf-8")


class ProtocolError(Exception):
    """The browser refused a command."""


class ScriptError(Exception):
    """What a script in the page threw."""


@dataclass
class Tab:
    """One page."""

    socket: aiohttp.ClientWebSocketResponse
    session: str = ""
    target: str = ""
    said: list[str] = field(default_factory=list)
    """What the console and the log said, errors and what the policy forbade among it."""
    requests: list[str] = field(default_factory=list)
    """Every address that was asked for."""
    received: float = 0.0
    """Bytes over the wire of what has been read whole."""
    _ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    _waiting: dict[int, "asyncio.Future[Any]"] = field(default_factory=dict)

    async def read(self) -> None:
        """Until the browser ends."""
        async for message in self.socket:
            told = message.json()
            if "id" in told:
                waiting = self._waiting.pop(told["id"], None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(told)
            else:
                self._event(told["method"], told.get("params", {}))

    def _event(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(one.get("value", one.get("description"))) for one in params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.said.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.loadingFinished":
            self.received += params["encodedDataLength"]

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol."""
        number = next(self._ids)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        await self.socket.send_json(message)
        told = await asyncio.wait_for(self._waiting[number], 60)
        if "error" in told:
            raise ProtocolError(str(told))
        result: dict[str, Any] = told["result"]
        return result

    async def js(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        told = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            raise ScriptError(str(told["exceptionDetails"].get("exception", told)))
        return told["result"].get("value")

    async def until(self, expression: str, seconds: float = 90.0) -> Any:
        """Waits until a JavaScript expression is truthy; AssertionError names it and the page's text."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not (value := await self.js(expression)):
            if asyncio.get_running_loop().time() > deadline:
                text = await self.js("document.body.innerText.slice(0, 1500)")
                raise AssertionError(f"not within {seconds:.0f} s: {expression}\n{self.said}\n{text}")
            await self.js("new Promise((done) => setTimeout(done, 50))")
        return value

    async def nodes(self, selector: str) -> list[int]:
        """What fits a selector, also in a page that runs no scripts; none while one page takes another's place."""
        root = await self.call("DOM.getDocument")
        try:
            found = await self.call("DOM.querySelectorAll", nodeId=root["root"]["nodeId"], selector=selector)
        except ProtocolError:
            return []
        nodes: list[int] = found["nodeIds"]
        return nodes

    async def go(self, url: str) -> None:
        """Loads a page."""
        self.said.clear()
        self.requests.clear()
        self.received = 0.0
        await self.call("Page.navigate", url=url)
        await self.until(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    async def size(self, width: int, height: int, *, phone: bool = False) -> None:
        """Of the window."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    async def scheme(self, name: str) -> None:
        """dark or light."""
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    async def key(self, name: str) -> None:
        """Presses Tab, Enter or the like."""
        codes = {"Tab": 9, "Enter": 13}
        for kind in ("keyDown", "keyUp"):
            more = {"text": "\r"} if (name, kind) == ("Enter", "keyDown") else {}
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=codes[name], **more
            )

    async def picture(self) -> bytes:
        """PNG of what is in the window."""
        told = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(told["data"])


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """A Chromium with one empty page, on loopback, with a profile of its own."""
    with tempfile.TemporaryDirectory(prefix="dsobs-chromium-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            program(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}/profile",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "HOME": folder},
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                while b"DevTools listening on " not in (line := await process.stderr.readline()):
                    assert line, "chromium ended"
            drain = asyncio.create_task(process.stderr.read())
            async with aiohttp.ClientSession() as session:
                address = line.decode().rpartition(" ")[2].strip()
                async with session.ws_connect(address, max_msg_size=64 * 2**20) as socket:
                    tab = Tab(socket)
                    reading = asyncio.create_task(tab.read())
                    tab.target = (await tab.call("Target.createTarget", url="about:blank"))["targetId"]
                    attached = await tab.call("Target.attachToTarget", targetId=tab.target, flatten=True)
                    tab.session = attached["sessionId"]
                    for domain in ("Page", "Runtime", "Log", "Network"):
                        await tab.call(f"{domain}.enable")
                    yield tab
                    reading.cancel()
            drain.cancel()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
