"""Long work that lets others work: a generator that yields whenever it has worked for a while.

Where a part can't be interrupted but touches nothing that others use, it yields that part, a function, and is sent its
result: whoever drives it may run it in another thread.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from functools import partial
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Sliced: TypeAlias = Generator[Callable[[], Any] | None, Any, T]
"""Work whose result is a `T`."""
SLICE_SECONDS = 0.005
"""How long one slice is; a little more where what is under way can't be interrupted."""


class Slice:
    """The present one."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = time.perf_counter() + SLICE_SECONDS

    def over(self) -> Iterator[None]:
        """Yields once if it has been used up, and begins the next."""
        if time.perf_counter() > self._until:
            yield
            self._until = time.perf_counter() + SLICE_SECONDS


def finish(work: Sliced[T]) -> T:
    """All of it in one go."""
    try:
        _driven(work, _here).send(None)
    except StopIteration as finished:
        found: T = finished.value
        return found
    raise AssertionError("nothing here waits")


async def unhurried(work: Sliced[T]) -> T:
    """All of it, without holding the event loop for much longer than a slice."""
    return await _driven(work, _aside)


async def _driven(work: Sliced[T], do: Callable[[Callable[[], Any] | None], Awaitable[Any]]) -> T:
    go_on = partial(work.send, None)
    while True:
        try:
            part = go_on()
        except StopIteration as finished:
            found: T = finished.value
            return found
        try:
            go_on = partial(work.send, await do(part))
        except Exception as error:  # noqa: BLE001 - it is the work's to handle
            go_on = partial(work.throw, error)


async def _here(part: Callable[[], Any] | None) -> Any:
    return None if part is None else part()


async def _aside(part: Callable[[], Any] | None) -> Any:
    return await (asyncio.sleep(0) if part is None else asyncio.to_thread(part))
