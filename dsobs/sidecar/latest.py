"""Questions that outlast a turn."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class Latest(Generic[T]):
    """Runs one question at a time and keeps the last answer.

    A question that raises, by a mistake in a plugin or in dsobs, is answered by `failed` with the error in words: it
    must not end what is asked beside it.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]], failed: Callable[[str], T]) -> None:
        self._ask = ask
        self._failed = failed
        self._error = ""
        self._task: asyncio.Task[T] | None = None
        self.value: T | None = None

    def start(self) -> asyncio.Task[T]:
        """The question in flight, asked now if there is none."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._answer())
        return self._task

    async def _answer(self) -> T:
        try:
            answer = await self._ask()
        except Exception as error:
            reason = f"asking failed: {type(error).__name__}: {error}"
            # A question is asked each second: said once until it changes.
            log.log(logging.DEBUG if reason == self._error else logging.ERROR, "%s", reason, exc_info=error)
            self._error = reason
            return self._failed(reason)
        self._error = ""
        return answer

    def take(self) -> T | None:
        """The answer if it has just come, else None."""
        if self._task is None or not self._task.done():
            return None
        task, self._task = self._task, None
        self.value = task.result()
        return self.value

    async def cancel(self) -> None:
        """Gives the question up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
