"""Clients that stream completions from a service and count, each for itself, what came whole."""

import asyncio
import random
import threading
import time
from types import TracebackType
from typing import Self

import aiohttp

DEADLINE_SECONDS = 60.0
"""An answer that takes longer is lost."""
RETRY_SECONDS = 0.2


class Streams:
    """So many clients, as a context: each opens a connection, asks, reads to the end, and begins anew. When the context
    ends, what has been asked is answered still, and then nothing of it is left."""

    def __init__(self, address: str, number: int, *, tokens: tuple[int, int] = (20, 100)) -> None:
        """`address`: of the service, host:port; `tokens`: of an answer, least and most."""
        self._url = f"http://{address}/v1/completions"
        self._number = number
        self._tokens = tokens
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()), name="streams")
        self.whole = 0
        """Answers that came to their end."""
        self.lost: list[str] = []
        """Of those that did not, when and why."""

    async def _all(self) -> None:
        timeout = aiohttp.ClientTimeout(total=DEADLINE_SECONDS)
        # A connection for each request, so that who is told of one replica less asks the others.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._client(session) for _ in range(self._number)))

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._end.is_set():
            try:
                await self._ask(session)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                self.lost.append(f"{time.strftime('%H:%M:%S')} {type(error).__name__}: {error}")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self.whole += 1

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        asked = random.randint(*self._tokens)
        body = {"model": "deepseek-r1-7b", "prompt": "why", "max_tokens": asked, "stream": True}
        async with session.post(self._url, json=body) as answer:
            text = await answer.text()
        got = text.count('"text"')
        if answer.status != 200 or not text.rstrip().endswith("data: [DONE]") or got < asked:
            raise ValueError(f"status {answer.status}, {got} of {asked} tokens, and then: {text[-200:]!r}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
