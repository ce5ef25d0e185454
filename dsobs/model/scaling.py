"""How many replicas of a workload there are, and what can change that."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from dsobs.model.observation import Gpu, Unknown


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """Something that scales the workload already."""

    kind: str
    """HorizontalPodAutoscaler or ScaledObject."""
    name: str
    minimum: int
    maximum: int
    raised_from: int | None = None
    """The minimum before a sidecar raised it; None: nobody has."""
    raised_until: float | None = None
    """Unix seconds at which that is to be put back."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Replicas:
    """A workload as it was looked at."""

    workload: str
    """For people: `Deployment vllm`."""
    wanted: int
    """As its spec has it."""
    ready: int
    """Pods that take requests."""
    autoscaler: Autoscaler | None = None
    peers: tuple[str, ...] = ()
    """Addresses of the other ready pods, without port."""
    pods: int = 0
    """Pods or containers that are there, those that still load and those that end among them."""
    servers: tuple[str, ...] = ()
    """Addresses (URLs) of other replicas that have no sidecar of their own, ready or not."""


@dataclass(frozen=True, slots=True)
class NoRoom:
    """There is no place for a further replica that dsobs could use."""

    reason: str
    command: str
    """What a person can run, with secrets left out; empty where none is known."""


@runtime_checkable
class Scales(Protocol):
    """A runtime whose engine is one replica of a workload that can be given more.

    What changes something raises `RuntimeRefused` when surely nothing was done.
    """

    async def replicas(self) -> Replicas | Unknown:
        """As they are now; Unknown, with the reason and what to do, where that can't be seen. Bounded."""
        ...

    async def scale(self, before: Replicas, to: int) -> str:
        """Sets the number of replicas, unless it is another by now than `before` has it; what was done, for people."""
        ...

    async def set_minimum(self, before: Replicas, to: int, until: float | None) -> str:
        """Raises the autoscaler's minimum to `to` until then (Unix seconds), or (None) puts it back."""
        ...


@runtime_checkable
class Places(Scales, Protocol):
    """One that has to find a place for a replica itself."""

    change_seconds: float
    """What one change may take at most."""
    cards: Callable[[], tuple[Gpu, ...] | Unknown]
    """Tells the cards as they were read last; set by who reads them."""

    async def no_room(self) -> NoRoom | None:
        """None if there is a place now; `RuntimeRefused` or OSError where that can't be looked at."""
        ...
