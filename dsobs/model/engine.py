"""One inference engine to dsobs: a map from its metrics page to the canonical signals, and a one-token request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from dsobs.model.samples import Page, Sample

EngineKey: TypeAlias = tuple[str, str]
"""(model_name, engine rank) of one engine series; the rank is "" where the engine does not say."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a page says once and for all about the server."""

    engine_keys: tuple[EngineKey, ...] = ()
    process_start_time: float | None = None
    """Seconds since the Unix epoch."""
    flags: str = ""
    """What tells one configuration of the server from another: what is learned holds for the same flags only."""
    kv_cache_bytes: Mapping[EngineKey, int] = field(default_factory=dict)
    """Size of the KV cache pool where the page gives it in bytes."""
    addressable: bool = False
    """Several engines, and a probe can be sent to one of them by its rank."""


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """A one-token synthetic request."""

    method: str
    path: str
    json: Mapping[str, object] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    engine: str | None = None
    """The rank that it is addressed to; None where this form can't be, so that its answer proves only that one
    lives."""


class EngineAdapter(Protocol):
    """One engine. Found by the entry point group `dsobs.engines`."""

    name: str
    """vllm, sglang, …"""
    metrics_path: str
    pause_path: str | None
    """Where it says whether somebody paused its scheduler, some servers at least; None: it has no such thing."""
    reserves_memory: bool
    """It takes its KV cache's memory at start, so that memory in use says nothing."""

    def recognizes(self, page: Page) -> bool:
        """Whether this page comes from such an engine."""
        ...

    def canonical(self, page: Page) -> list[Sample]:
        """The canonical signals of `dsobs.model.signals` that the page gives; what is missing there is missing here.

        Per engine series, never summed.
        """
        ...

    def facts(self, page: Page) -> EngineFacts:
        """What the page says about the server."""
        ...

    def paused(self, body: bytes) -> bool | None:
        """What the 200 of `pause_path` says; None if that is neither yes nor no."""
        ...

    def probe_requests(self, models: Sequence[str], request_id: str, engine: str | None) -> list[ProbeRequest]:
        """Requests to try in turn, the next only where the one before says that the model can't do this (an embedding
        model answers 400 or 404 to a completion); `request_id` goes out as X-Request-Id; `engine` addresses a rank."""
        ...
