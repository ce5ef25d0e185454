"""Clients for demos and tests: they ask a vLLM-shaped server again and again, streaming, until they are stopped.

python -m dsobs.simulator.load --url http://127.0.0.1:8000 --clients 4 --duration 60
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import time
from dataclasses import dataclass, field

import aiohttp

RETRY_SECONDS = 0.5
MAX_CLIENTS = 2000
MAX_DURATION = 3600.0


@dataclass(slots=True)
class Load:
    """What the clients ask for, and what came of it."""

    url: str
    clients: int = 4
    prompt_tokens: tuple[int, int] = (16, 64)
    max_tokens: tuple[int, int] = (16, 64)
    model: str = ""
    """Empty: the first that /v1/models names."""
    timeout: float = 60.0
    """Seconds after which a client gives up."""
    api_key: str = ""
    done: int = 0
    failed: int = 0
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, duration: float) -> None:
        """All clients, for at most `duration` seconds or until `stopped` is set."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self.url, headers=headers, connector=connector) as session:
            tasks = [asyncio.create_task(self._client(session)) for _ in range(self.clients)]
            try:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopped.wait(), duration)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while True:
            try:
                async with asyncio.timeout(self.timeout):
                    if not self.model:
                        async with session.get("/v1/models") as answer:
                            self.model = (await answer.json())["data"][0]["id"]
                    await self._ask(session)
                self.done += 1
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, IndexError):
                self.failed += 1
                await asyncio.sleep(RETRY_SECONDS)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        words = random.randint(*self.prompt_tokens)
        body = {
            "model": self.model,
            "prompt": " ".join(random.choices(("why", "does", "it", "stop", "now", "and", "then"), k=words)),
            "max_tokens": random.randint(*self.max_tokens),
            "stream": True,
        }
        async with session.post("/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b'data: {"error"'):
                    # The status was 200 before the engine died.
                    raise ValueError(line.decode(errors="replace"))


def main() -> int:
    """The command line; prints a JSON object at the end."""
    parser = argparse.ArgumentParser(
        prog="python -m dsobs.simulator.load", description="Clients of a vLLM-shaped server."
    )
    parser.add_argument("--url", required=True, help="address of the server, on loopback")
    parser.add_argument("--clients", type=int, default=4, help=f"at most {MAX_CLIENTS}")
    parser.add_argument("--duration", type=float, default=60.0, help=f"seconds, at most {MAX_DURATION:.0f}")
    parser.add_argument("--prompt-tokens", type=int, nargs=2, default=(16, 64), metavar=("LEAST", "MOST"))
    parser.add_argument("--max-tokens", type=int, nargs=2, default=(16, 64), metavar=("LEAST", "MOST"))
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds after which a client gives up")
    parser.add_argument("--api-key", default="", help="bearer token for the server")
    parser.add_argument("--model", default="", help="default: the first that the server names")
    args = parser.parse_args()
    if not 1 <= args.clients <= MAX_CLIENTS or not 0 < args.duration <= MAX_DURATION:
        parser.error(f"--clients is 1 to {MAX_CLIENTS}, --duration up to {MAX_DURATION:.0f}")
    for name in ("prompt_tokens", "max_tokens"):
        least, most = getattr(args, name)
        if not 1 <= least <= most:
            parser.error(f"--{name.replace('_', '-')} takes the least and the most, 1 or more, got {least} {most}")

    async def run() -> Load:
        load = Load(
            args.url,
            args.clients,
            tuple(args.prompt_tokens),
            tuple(args.max_tokens),
            args.model,
            args.timeout,
            args.api_key,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, load.stopped.set)
        await load.run(args.duration)
        return load

    begun = time.monotonic()
    load = asyncio.run(run())
    print(json.dumps({"done": load.done, "failed": load.failed, "seconds": round(time.monotonic() - begun, 1)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
