"""Continuous batching in virtual work: who is in a step, how long it takes, what it yields.

Pure: time is an argument, nothing waits here. Modelled on vLLM's V1 scheduler: running requests first, then waiting
ones, prompts in chunks of what is left of the step's token budget, preemption of the youngest when blocks run out.
"""

import zlib
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

VOCABULARY = 512
_FIRST_TOKEN = 2


@dataclass(slots=True)
class Request:
    """One sequence in the engine core."""

    id: str
    prompt_tokens: int
    max_tokens: int
    stop_token_ids: frozenset[int] = frozenset()
    pooling: bool = False
    queued_at: float = 0.0
    computed: int = 0
    generated: int = 0
    blocks: int = 0
    scheduled_at: float | None = None
    preemptions: int = 0
    seed: int = field(init=False)

    def __post_init__(self) -> None:
        self.seed = zlib.crc32(self.id.encode())

    @property
    def length(self) -> int:
        """Tokens that must be in the KV cache before the next one can be made."""
        return self.prompt_tokens + self.generated

    def next_token(self) -> int:
        """An invented token id, the same every time for one request id and position."""
        return _FIRST_TOKEN + (self.seed + self.generated * 7919) % (VOCABULARY - _FIRST_TOKEN)


@dataclass(slots=True)
class Yield:
    """What one step gave one request."""

    id: str
    token: int | None
    finish_reason: str | None
    queued_at: float
    scheduled_at: float
    preemptions: int


@dataclass(slots=True)
class Scheduler:
    """The requests of one engine core. `plan` begins a step, `complete` ends it."""

    max_num_seqs: int
    max_num_batched_tokens: int
    num_gpu_blocks: int
    block_size: int
    decode_step_seconds: float
    prefill_tokens_per_second: float
    paused: bool = False
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    used_blocks: int = 0
    prefix_queries: int = 0
    _planned: list[tuple[Request, int]] = field(default_factory=list)

    @property
    def kv_usage(self) -> float:
        """Part of the KV cache in use; one block is set aside, as in vLLM."""
        return self.used_blocks / (self.num_gpu_blocks - 1)

    @property
    def has_work(self) -> bool:
        """A step would do something."""
        return not self.paused and bool(self.running or self.waiting)

    def add(self, request: Request, now: float) -> None:
        """Queues a request."""
        request.queued_at = now
        self.waiting.append(request)

    def abort(self, ids: Iterable[str]) -> None:
        """Forgets requests, between two steps."""
        gone = set(ids)
        for request in self.running:
            if request.id in gone:
                self._release(request)
        self.running = [request for request in self.running if request.id not in gone]
        self.waiting = deque(request for request in self.waiting if request.id not in gone)

    def plan(self, now: float) -> float:
        """Chooses the requests of the next step, and returns how many seconds it takes."""
        budget = self.max_num_batched_tokens
        planned: list[tuple[Request, int]] = []
        prefill = 0
        preempted_now = False
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            tokens = min(request.length - request.computed, budget)
            while not self._reserve(request, tokens):
                victim = self.running.pop()
                self._preempt(victim)
                preempted_now = True
                if victim is request:
                    break
            else:
                planned.append((request, tokens))
                budget -= tokens
                prefill += tokens if request.computed < request.prompt_tokens else 0
                index += 1
        while self.waiting and not preempted_now and budget > 0 and len(self.running) < self.max_num_seqs:
            request = self.waiting[0]
            tokens = min(request.length, budget)
            if not self._reserve(request, tokens):
                break
            self.waiting.popleft()
            if request.scheduled_at is None:
                request.scheduled_at = now
            self.prefix_queries += request.length
            self.running.append(request)
            planned.append((request, tokens))
            budget -= tokens
            prefill += tokens
        self._planned = planned
        return self.decode_step_seconds + prefill / self.prefill_tokens_per_second

    def complete(self) -> list[Yield]:
        """Ends the step: a token for each request whose cache is complete; a chunk of a prompt yields nothing."""
        out: list[Yield] = []
        finished: set[str] = set()
        for request, tokens in self._planned:
            request.computed += tokens
            if request.computed < request.length:
                continue
            token: int | None = None
            reason: str | None = None
            if request.pooling:
                reason = "stop"
            else:
                token = request.next_token()
                request.generated += 1
                if token in request.stop_token_ids:
                    reason = "stop"
                elif request.generated >= request.max_tokens:
                    reason = "length"
            if reason is not None:
                finished.add(request.id)
                self._release(request)
            scheduled_at = request.queued_at if request.scheduled_at is None else request.scheduled_at
            out.append(Yield(request.id, token, reason, request.queued_at, scheduled_at, request.preemptions))
        if finished:
            self.running = [request for request in self.running if request.id not in finished]
        self._planned = []
        return out

    def counts(self) -> Mapping[str, float]:
        """Gauges as of now, and counts since the last call."""
        result = {
            "running": len(self.running),
            "waiting": len(self.waiting),
            "kv": self.kv_usage,
            "queries": self.prefix_queries,
        }
        self.prefix_queries = 0
        return result

    def _reserve(self, request: Request, tokens: int) -> bool:
        need = -(-(request.computed + tokens) // self.block_size)
        extra = max(0, need - request.blocks)
        if self.used_blocks + extra > self.num_gpu_blocks - 1:
            return False
        request.blocks += extra
        self.used_blocks += extra
        return True

    def _release(self, request: Request) -> None:
        self.used_blocks -= request.blocks
        request.blocks = 0

    def _preempt(self, request: Request) -> None:
        self._release(request)
        request.computed = 0
        request.preemptions += 1
        self.waiting.appendleft(request)
