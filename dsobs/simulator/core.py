"""The engine-core process: takes requests from a socket, keeps a Scheduler busy, sends what each step gave.

Messages are JSON, one a line. To the core: ["add", id, prompt_tokens, max_tokens, stop_token_ids, pooling],
["abort", ids], ["pause", mode], ["resume"], ["is_paused"]. From it: {"ready": …} once, then {"stats": …,
"out": [[id, token, finish_reason, queued_at, scheduled_at, preemptions], …], "at": monotonic seconds}, or
{"reply": …} to the last three.
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from dsobs.simulator.options import Options
from dsobs.simulator.scheduler import Request, Scheduler

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def set_title(title: str) -> None:
    """Shows `title` as this process's name and command line, as vLLM's processes do (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, title.encode()[:15], 0, 0, 0)
    # proc(5): arg_start and arg_end are fields 48 and 49; the name in field 2 may contain spaces.
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(stat[45]), int(stat[46])
    if end > start:
        ctypes.memmove(start, title.encode()[: end - start - 1].ljust(end - start, b"\0"), end - start)


def die_with_parent(sign: signal.Signals, parent: int) -> None:
    """Has the kernel send `sign` to this process when `parent` ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(sign), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), sign)


def log(line: str, origin: str) -> None:
    """One line as vLLM's default logging writes it."""
    stamp = time.strftime("%m-%d %H:%M:%S")
    sys.stderr.write(f"(EngineCore pid={os.getpid()}) INFO {stamp} [{origin}] {line}\n")
    sys.stderr.flush()


def _load(options: Options, rank: int) -> None:
    log(
        f"Initializing a V1 LLM engine (v{options.vllm_version}.0) with config: "
        f"model='/models/{options.model_names[0]}', "
        f"data_parallel_rank={rank}",
        "core.py:113",
    )
    log(f"Starting to load model /models/{options.model_names[0]}...", "gpu_model_runner.py:5092")
    time.sleep(options.load_seconds)
    log(f"Model loading took 14.28 GiB memory and {options.load_seconds:.6f} seconds", "gpu_model_runner.py:5187")
    tokens = options.num_gpu_blocks * options.block_size
    log(f"Available KV cache memory: {options.kv_cache_gib:.2f} GiB", "gpu_worker.py:480")
    log(f"GPU KV cache size: {tokens:,} tokens", "kv_cache_utils.py:1744")
    log(
        f"Maximum concurrency for {options.max_model_len:,} tokens per request: {tokens / options.max_model_len:.2f}x",
        "kv_cache_utils.py:1745",
    )
    log(
        f"init engine (profile, create kv cache, warmup model) took {options.load_seconds:.2f} s",
        "core.py:313",
    )


class _Mailbox:
    """Lines from the API server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closed = False
        self._rest = b""

    def receive(self, wait: float | None) -> list[list[object]]:
        """The messages that came within `wait` seconds of the first; None waits for one."""
        messages: list[list[object]] = []
        while not self.closed and select.select([self.sock], [], [], wait)[0]:
            data = self.sock.recv(1 << 20)
            if not data:
                self.closed = True
                break
            *lines, self._rest = (self._rest + data).split(b"\n")
            messages += [json.loads(line) for line in lines]
            wait = 0 if messages else wait
        return messages


def _apply(scheduler: Scheduler, message: list[object]) -> dict[str, object] | None:
    match message:
        case ["add", str(id_), int(prompt), int(limit), list(stops), bool(pooling)]:
            scheduler.add(Request(id_, prompt, limit, frozenset(stops), pooling), time.monotonic())
        case ["abort", list(ids)]:
            scheduler.abort(ids)
        case ["pause", str(mode)]:
            scheduler.paused = True
            ids = [request.id for request in (*scheduler.running, *scheduler.waiting)] if mode == "abort" else []
            scheduler.abort(ids)
            return {"reply": "paused", "aborted": ids}
        case ["resume"]:
            scheduler.paused = False
            return {"reply": "resumed"}
        case ["is_paused"]:
            return {"reply": "paused" if scheduler.paused else "resumed"}
        case _:
            raise ValueError(f"unknown message {message!r}")
    return None


def _compute(seconds: float, *, asleep: float) -> None:
    """One step: a prefill keeps a processor busy, as on a real server; the rest of it is slept."""
    end = time.monotonic() + seconds
    time.sleep(min(asleep, seconds))
    while time.monotonic() < end:
        pass


def run(options: Options, rank: int, sock: socket.socket, parent: int) -> None:
    """Serves one rank until the API server is gone (for ever with `orphan_core`)."""
    set_title("VLLM::EngineCore" if options.data_parallel_size == 1 else f"VLLM::EngineCore_DP{rank}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if options.orphan_core:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    else:
        die_with_parent(signal.SIGKILL, parent)
    _load(options, rank)
    scheduler = Scheduler(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        num_gpu_blocks=options.num_gpu_blocks,
        block_size=options.block_size,
        decode_step_seconds=options.decode_step_seconds,
        prefill_tokens_per_second=options.prefill_tokens_per_second,
    )
    mailbox = _Mailbox(sock)

    def send(message: dict[str, object]) -> None:
        try:
            sock.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")
        except ConnectionError:
            mailbox.closed = True

    send({"ready": rank})
    while not mailbox.closed:
        for message in mailbox.receive(0 if scheduler.has_work else None):
            reply = _apply(scheduler, message)
            if reply is not None or message[0] == "abort":
                send({"stats": scheduler.counts(), "out": [], "at": time.monotonic(), **(reply or {})})
        if not scheduler.has_work:
            continue
        _compute(scheduler.plan(time.monotonic()), asleep=options.decode_step_seconds)
        out = [
            [y.id, y.token, y.finish_reason, y.queued_at, y.scheduled_at, y.preemptions] for y in scheduler.complete()
        ]
        send({"stats": scheduler.counts(), "out": out, "at": time.monotonic()})
    while options.orphan_core:
        signal.pause()
