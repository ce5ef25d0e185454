"""Questions that outlast a turn."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Latest(Generic[T]):
    """Runs one question at a time and keeps the last answer."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._task: asyncio.Task[T] | None = None
        self.value: T | None = None

    def start(self) -> asyncio.Task[T]:
        """The question in flight, asked now if there is none."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._ask())
        return self._task

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
