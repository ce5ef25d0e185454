"""The Docker daemon: its Engine API over a UNIX socket or plain TCP, and what its errors mean."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Iterator, Mapping
from typing import Any, TypeVar

import aiohttp

from dsobs.model.observation import Unknown
from dsobs.model.runtime import RuntimeRefused

T = TypeVar("T")

WANTED_VERSION = (1, 41)
"""Docker 20.10: the first with `one-shot` statistics. A daemon that no longer speaks it is asked in its oldest."""
ANSWER_BYTES = 4 * 1024 * 1024


class DaemonError(Exception):
    """The daemon answered with an error; the message is its own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Daemon:
    """One, at its address. What it refuses is a `DaemonError`; one that does not answer an `aiohttp.ClientError`."""

    def __init__(self, where: str, timeout: float) -> None:
        """`where` begins with unix:// or tcp://; `timeout` of one question, seconds."""
        self.where = where
        self.timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._version: str | None = None

    # What errors mean.

    async def known(self, question: Awaitable[T]) -> T | Unknown:
        """What the daemon says in time, or why that is not known."""
        try:
            async with asyncio.timeout(self.timeout):
                return await question
        except DaemonError as error:
            return Unknown(f"Docker: {error}")
        except (KeyError, TypeError, ValueError) as error:
            return Unknown(self._unreadable(error))
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return Unknown(self.silent(error))

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """A change: RuntimeRefused where the daemon's answer is an error, and what was begun has been taken back;
        ConnectionError where it does not answer, and what became of it is not known."""
        try:
            yield
        except DaemonError as error:
            raise RuntimeRefused(f"Docker: {error}") from error
        except aiohttp.ClientError as error:
            raise ConnectionError(self.silent(error)) from error
        except (KeyError, TypeError, ValueError) as error:
            raise RuntimeRefused(self._unreadable(error)) from error

    def silent(self, error: Exception) -> str:
        """In words, that it does not answer."""
        return f"Docker at {self.where} does not answer: {words_of(error)}"

    def _unreadable(self, error: Exception) -> str:
        return f"Docker at {self.where} answered what can't be read: {error!r}"

    # Asking.

    async def json(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """`GET`, read as JSON."""
        return json.loads(await self.get(path, params))

    async def get(self, path: str, params: Mapping[str, str] | None = None, *, limit: int = ANSWER_BYTES) -> bytes:
        """`GET`; the answer's body."""
        return await self.call("GET", path, params or {}, limit=limit)

    async def call(
        self, method: str, path: str, params: Mapping[str, str], *, limit: int = ANSWER_BYTES, body: object = None
    ) -> bytes:
        """The answer's body, `limit` bytes at most. `body` goes out as JSON. The caller sets the deadline."""
        if self._version is None:
            told = json.loads(await self._exchange("GET", "/version", {}, limit))
            self._version = negotiated(str(told["ApiVersion"]), str(told.get("MinAPIVersion") or told["ApiVersion"]))
        try:
            return await self._exchange(method, f"/v{self._version}{path}", params, limit, body)
        except DaemonError as error:
            if error.status == 400 and "version" in str(error):
                # The daemon was exchanged for one of another age.
                self._version = None
            raise

    async def _exchange(
        self, method: str, path: str, params: Mapping[str, str], limit: int, given: object = None
    ) -> bytes:
        if self._session is None:
            unix = self.where.startswith("unix://")
            connector = aiohttp.UnixConnector(path=self.where.removeprefix("unix://")) if unix else None
            base = "http://docker" if unix else "http" + self.where.removeprefix("tcp")
            # Each caller sets its own deadline.
            timeout = aiohttp.ClientTimeout(total=None)
            self._session = aiohttp.ClientSession(base, connector=connector, timeout=timeout)
        async with self._session.request(method, path, params=params, json=given, allow_redirects=False) as answer:
            body = bytearray()
            async for chunk in answer.content.iter_any():
                body += chunk
                if len(body) > limit:
                    raise ValueError(f"more than {limit} bytes")
            if answer.status >= 300:
                raise DaemonError(answer.status, _message(answer.status, bytes(body)))
            return bytes(body)

    async def close(self) -> None:
        """Closes the connection; legal twice."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def negotiated(newest: str, oldest: str) -> str:
    """The API version to speak with a daemon that speaks `oldest` to `newest`; ValueError if these are no versions."""
    low, high = (tuple(int(part) for part in text.split(".")) for text in (oldest, newest))
    return ".".join(str(part) for part in max(low, min(high, WANTED_VERSION)))


def words_of(error: Exception) -> str:
    """What an error says, or its name where it says nothing."""
    return str(error) or type(error).__name__


def _message(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"status {status}"
