"""Scenes: real tests that are played side by side in one cluster, since most of their time is waiting.

    @scene
    def test_claim(stage: Stage) -> str | None: ...

is a test like any other; what it returns is printed. All of a run come before its other tests, which may do with the
cluster what they like.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import pytest

from tests.real.kubernetes.cluster import Cluster
from tests.real.kubernetes.namespace import Namespace
from tests.real.kubernetes.serving import Pager, pager

SIDE_BY_SIDE = 3
"""Each has a pod or three; two processors carry so many starts at a time beside the other lanes."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What a scene has to itself, and the cluster, which it shares."""

    cluster: Cluster
    namespace: Namespace
    paged: Pager


Play = Callable[[Stage], str | None]


def scene(play: Play) -> Callable[..., None]:
    """Marks a test as a scene."""

    def test(scenes: "Scenes", capsys: pytest.CaptureFixture[str]) -> None:
        told = scenes.outcome(play)
        if told is not None:
            with capsys.disabled():
                print(f"\n{told}")

    test.__name__, test.__doc__, test.__module__ = play.__name__, play.__doc__, play.__module__
    test.__qualname__ = play.__qualname__
    _PLAYS[test] = play
    return test


_PLAYS: dict[Callable[..., None], Play] = {}


def plays_of(items: Sequence[pytest.Item]) -> list[Play]:
    """The scenes among the tests that are to be run, in their order."""
    return [play for item in items if (play := play_of(item)) is not None]


def play_of(item: pytest.Item) -> Play | None:
    """Of a test that is a scene."""
    return _PLAYS.get(item.function) if isinstance(item, pytest.Function) else None


class Scenes:
    """Plays them, as a context."""

    def __init__(self, cluster: Cluster, plays: Sequence[Play]) -> None:
        self._cluster = cluster
        self._threads = ThreadPoolExecutor(SIDE_BY_SIDE)
        # Made once, before several want it.
        assert cluster.dsobs_image
        self._played: dict[Play, Future[str | None]] = {play: self._threads.submit(self._play, play) for play in plays}

    def _play(self, play: Play) -> str | None:
        with self._cluster.namespace() as namespace, pager(self._cluster) as paged:
            return play(Stage(self._cluster, namespace, paged))

    def outcome(self, play: Play) -> str | None:
        """What the scene returned or raised, once it is over."""
        return self._played[play].result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not all(future.done() for future in self._played.values()):
            self._cluster.given_up.set()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._cluster.given_up.clear()
