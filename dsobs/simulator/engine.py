"""The API server's side of the engine cores: sends requests over, hands tokens back, keeps the metrics page."""

import asyncio
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dsobs.simulator.metrics import Page

_DRAIN_LOOK_SECONDS = 0.02
_LINE_LIMIT = 1 << 26


class EngineDeadError(Exception):
    """An engine core is gone."""

    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")


@dataclass(slots=True)
class Parent:
    """One HTTP request's sequences together: vLLM observes some histograms once for all of them."""

    n: int
    left: int = 0
    longest: int = 0


@dataclass(slots=True)
class Flight:
    """One sequence in flight."""

    id: str
    rank: int
    prompt_tokens: int
    max_tokens: int | None
    parent: Parent
    arrived_at: float = field(default_factory=time.time)
    outputs: "asyncio.Queue[tuple[int | None, str | None] | None]" = field(default_factory=asyncio.Queue)
    generated: int = 0
    first_token_at: float | None = None
    last_token_at: float = 0.0
    queued_at: float = 0.0
    scheduled_at: float = 0.0
    preemptions: int = 0


class Engine:
    """The cores of all ranks."""

    def __init__(self, sockets: Sequence[socket.socket], page: Page) -> None:
        self.dead = asyncio.Event()
        self.asleep = False
        self._draining = False
        self.page = page
        self._sockets = sockets
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._flying: dict[str, Flight] = {}
        self._replies: list[asyncio.Queue[str]] = [asyncio.Queue() for _ in sockets]
        self._next_rank = 0
        self._control = asyncio.Lock()
        self.prompt_tokens = 0
        self.generation_tokens = 0

    @property
    def ranks(self) -> int:
        """How many engine cores there are."""
        return len(self._sockets)

    async def start(self) -> None:
        """Returns when every core has loaded. Raises EngineDeadError where one ended instead."""
        for rank, sock in enumerate(self._sockets):
            reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_LINE_LIMIT)
            self._writers.append(writer)
            self._tasks.append(asyncio.create_task(self._listen(rank, reader)))
        for replies in self._replies:
            ready = asyncio.create_task(replies.get())
            gone = asyncio.create_task(self.dead.wait())
            await asyncio.wait((ready, gone), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if not ready.done():
                ready.cancel()
                raise EngineDeadError

    async def drain(self, seconds: float) -> None:
        """Takes no more work; returns when what is in flight has finished, or after `seconds`."""
        self._draining = True
        deadline = time.monotonic() + seconds
        # Flights end in several ways.
        while self._flying and not self.dead.is_set() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_DRAIN_LOOK_SECONDS)

    async def close(self) -> None:
        """Cuts the lines to the cores, which end by that."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()

    def submit(
        self,
        id_: str,
        prompt_tokens: int,
        max_tokens: int | None,
        stop_token_ids: Sequence[int],
        parent: Parent,
        rank: int | None,
    ) -> Flight:
        """Sends one sequence to a core: the given rank, or each in turn. `max_tokens` None is a pooling request."""
        if self.dead.is_set() or self._draining:
            raise EngineDeadError
        if rank is None:
            rank = self._next_rank
            self._next_rank = (rank + 1) % self.ranks
        sequence = Flight(id_, rank, prompt_tokens, max_tokens, parent)
        parent.left += 1
        self._flying[id_] = sequence
        self._send(rank, ["add", id_, prompt_tokens, max_tokens or 0, list(stop_token_ids), max_tokens is None])
        return sequence

    def stopped(self, sequence: Flight) -> None:
        """The API server found a stop string: the sequence is finished here, and aborted in the core."""
        if self._flying.pop(sequence.id, None) is not None:
            self._finish(sequence, "stop")
            self._send(sequence.rank, ["abort", [sequence.id]])

    def abort(self, sequence: Flight) -> None:
        """The client is gone. vLLM counts nothing for it, not even finished_reason="abort"."""
        if self._flying.pop(sequence.id, None) is not None:
            self._send(sequence.rank, ["abort", [sequence.id]])

    async def sleep(self, level: int, mode: str) -> None:
        """Pauses all cores; new requests wait. Requests in flight are aborted in mode "abort"."""
        async with self._control:
            await self._ask_all(["pause", mode])
            self.asleep = True
            self.page.set_sleep_level(level)

    async def wake(self) -> None:
        """Lets all cores go on."""
        async with self._control:
            await self._ask_all(["resume"])
            self.asleep = False
            self.page.set_sleep_level(None)

    async def pause(self, mode: str) -> None:
        """Keeps all cores from working; new requests wait. Requests in flight are aborted in mode "abort"."""
        async with self._control:
            await self._ask_all(["pause", mode])

    async def resume(self) -> None:
        """Lets all cores go on."""
        async with self._control:
            await self._ask_all(["resume"])

    async def is_paused(self) -> bool:
        """By the word of the first core, as in vLLM: one that stands still says nothing."""
        async with self._control:
            return (await self._ask_all(["is_paused"]))[0] == "paused"

    async def _ask_all(self, message: list[object]) -> list[str]:
        for rank in range(self.ranks):
            self._send(rank, message)
        told = [await replies.get() for replies in self._replies]
        if "dead" in told:
            raise EngineDeadError
        return told

    def _send(self, rank: int, message: list[object]) -> None:
        if not self.dead.is_set():
            self._writers[rank].write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def _listen(self, rank: int, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                message = json.loads(line)
                if "ready" in message:
                    self._replies[rank].put_nowait("ready")
                    continue
                self._record(rank, message)
                if "reply" in message:
                    for id_ in message.get("aborted", ()):
                        self._end_aborted(id_)
                    self._replies[rank].put_nowait(str(message["reply"]))
        except ConnectionError:
            # A core that is killed with requests unread resets or breaks the line; its end is the same.
            pass
        self.dead.set()
        for sequence in self._flying.values():
            sequence.outputs.put_nowait(None)
        self._flying.clear()
        for replies in self._replies:
            replies.put_nowait("dead")

    def _end_aborted(self, id_: str) -> None:
        sequence = self._flying.pop(id_, None)
        if sequence is not None:
            self._finish(sequence, "abort")
            sequence.outputs.put_nowait((None, "abort"))

    def _record(self, rank: int, message: dict[str, object]) -> None:
        stats = message["stats"]
        out = message["out"]
        at = message["at"]
        assert isinstance(stats, dict)
        assert isinstance(out, list)
        assert isinstance(at, float)
        series = self.page.engine
        series("num_requests_running", rank).value = stats["running"]
        series("num_requests_waiting", rank).value = stats["waiting"]
        series("num_requests_waiting_by_reason", rank, reason="capacity").value = stats["waiting"]
        series("kv_cache_usage_perc", rank).value = stats["kv"]
        series("prefix_cache_queries_total", rank).value += stats["queries"]
        if not out:
            # Iteration statistics exist only for steps that gave output.
            return
        prompt = generated = 0
        for id_, token, reason, queued_at, scheduled_at, preemptions in out:
            sequence = self._flying.get(id_)
            if sequence is None:
                continue
            series("num_preemptions_total", rank).value += preemptions - sequence.preemptions
            sequence.preemptions = preemptions
            sequence.queued_at, sequence.scheduled_at = queued_at, scheduled_at
            generated += token is not None
            if sequence.first_token_at is None:
                prompt += sequence.prompt_tokens
                sequence.first_token_at = at
                series("time_to_first_token_seconds", rank).observe(time.time() - sequence.arrived_at)
            else:
                series("inter_token_latency_seconds", rank).observe(at - sequence.last_token_at)
            sequence.last_token_at = at
            sequence.generated += token is not None
            if reason is not None:
                del self._flying[id_]
                self._finish(sequence, reason)
            sequence.outputs.put_nowait((token, reason))
        self.prompt_tokens += prompt
        self.generation_tokens += generated
        series("prompt_tokens_total", rank).value += prompt
        series("prompt_tokens_by_source_total", rank, source="local_compute").value += prompt
        series("generation_tokens_total", rank).value += generated
        series("iteration_tokens_total", rank).observe(prompt + generated)

    def _finish(self, sequence: Flight, reason: str) -> None:
        rank = sequence.rank
        series = self.page.engine
        at = sequence.last_token_at
        first = at if sequence.first_token_at is None else sequence.first_token_at
        decode = at - first
        series("request_success_total", rank, finished_reason=reason).value += 1
        series("e2e_request_latency_seconds", rank).observe(time.time() - sequence.arrived_at)
        series("request_queue_time_seconds", rank).observe(sequence.scheduled_at - sequence.queued_at)
        series("request_prefill_time_seconds", rank).observe(first - sequence.scheduled_at)
        series("request_decode_time_seconds", rank).observe(decode)
        series("request_inference_time_seconds", rank).observe(at - sequence.scheduled_at)
        if "vllm:request_num_preemptions" in self.page.families:
            series("request_num_preemptions", rank).observe(sequence.preemptions)
        series("request_prompt_tokens", rank).observe(sequence.prompt_tokens)
        series("request_prefill_kv_computed_tokens", rank).observe(sequence.prompt_tokens)
        series("request_generation_tokens", rank).observe(sequence.generated)
        each = decode / (sequence.generated - 1) if sequence.generated > 1 else 0.0
        series("request_time_per_output_token_seconds", rank).observe(each)
        if sequence.max_tokens:
            series("request_params_max_tokens", rank).observe(sequence.max_tokens)
        parent = sequence.parent
        parent.left -= 1
        parent.longest = max(parent.longest, sequence.generated)
        if parent.left == 0:
            series("request_params_n", rank).observe(parent.n)
            series("request_max_num_generation_tokens", rank).observe(parent.longest)
