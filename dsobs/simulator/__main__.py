"""`python -m dsobs.simulator --port P`: starts the engine cores, then serves until a signal or a crash."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dsobs.simulator import core
from dsobs.simulator.options import Options, parse

if TYPE_CHECKING:
    from dsobs.simulator.engine import Engine

_CORE_EXIT_SECONDS = 1.0
_STATS_SECONDS = 10.0


def _fork_cores(options: Options) -> tuple[list[int], list[socket.socket]]:
    pids: list[int] = []
    sockets: list[socket.socket] = []
    parent = os.getpid()
    for rank in range(options.data_parallel_size):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for sock in (*sockets, ours):
                    sock.close()
                core.run(options, rank, theirs, parent)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        theirs.close()
        pids.append(pid)
        sockets.append(ours)
    return pids, sockets


def _listening_socket(options: Options) -> socket.socket:
    """Bound but not listening: connections are refused until the model is loaded."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((options.host, options.port))
    except OSError as problem:
        sock.close()
        raise SystemExit(
            f"python -m dsobs.simulator: error: can't listen on {options.host}:{options.port}: {problem.strerror}"
        ) from problem
    return sock


def _reap(pids: Sequence[int], options: Options) -> None:
    """Ends the cores; with `orphan_core` those that live stay alive."""
    if options.orphan_core:
        return
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _CORE_EXIT_SECONDS
    left = list(pids)
    while left and time.monotonic() < deadline:
        left = [pid for pid in left if os.waitpid(pid, os.WNOHANG)[0] == 0]
        time.sleep(0.01 if left else 0)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class _Log:
    def __init__(self, options: Options) -> None:
        # vLLM 0.32 leaves uvicorn's lines as they are; 0.23 put its prefix before them.
        prefix = f"(APIServer pid={os.getpid()}) "
        self.uvicorn_prefix = prefix if options.vllm_version == "0.23" else ""
        self._prefix = prefix

    def vllm(self, line: str, origin: str, level: str = "INFO") -> None:
        stamp = time.strftime("%m-%d %H:%M:%S")
        sys.stderr.write(f"{self._prefix}{level} {stamp} [{origin}] {line}\n")

    def uvicorn(self, line: str) -> None:
        sys.stderr.write(f"{self.uvicorn_prefix}INFO:     {line}\n")


async def _serve(options: Options, sock: socket.socket, sockets: Sequence[socket.socket], log: _Log) -> bool:
    """Serves until the end; True where an engine core died."""
    # Imported after the fork, so that the cores stay small.
    from aiohttp import web

    from dsobs.simulator.engine import Engine, EngineDeadError
    from dsobs.simulator.metrics import Page, process_start_time
    from dsobs.simulator.server import Server

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sign in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sign, stop.set)
    page = Page(options, process_start_time())
    engine = Engine(sockets, page)
    server = Server(options, engine, page, log.uvicorn_prefix)
    runner = web.AppRunner(server.app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(stop.wait())]
    try:
        starting = asyncio.create_task(engine.start())
        await asyncio.wait((tasks[0], starting), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return False
        starting.result()
        address = sock.getsockname()
        log.vllm(f"Supported tasks: ['{options.task}']", "api_server.py:579")
        log.vllm(f"Starting vLLM server on http://{options.host}:{address[1]}", "api_server.py:583")
        await runner.setup()
        await web.SockSite(runner, sock, backlog=2048).start()
        log.uvicorn(f"Started server process [{os.getpid()}]")
        log.uvicorn("Waiting for application startup.")
        log.uvicorn("Application startup complete.")
        sys.stderr.flush()
        tasks.append(asyncio.create_task(_log_stats(engine, log, options)))
        tasks.append(asyncio.create_task(_log_death(engine, log)))
        waiting = [tasks[0]]
        if not options.survive_crash:
            tasks.append(asyncio.create_task(server.watch()))
            waiting.append(asyncio.create_task(server.exit_requested.wait()))
            tasks.append(waiting[1])
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if options.shutdown_timeout and not engine.dead.is_set():
            await engine.drain(options.shutdown_timeout)
        log.uvicorn("Shutting down")
    except EngineDeadError:
        log.vllm("Engine core initialization failed. See root cause above.", "core_client.py:640", "ERROR")
        return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        crashed = engine.dead.is_set()
        # Ends the answers in flight before the runner waits for them.
        await engine.close()
        await runner.cleanup()
        sock.close()
    log.uvicorn("Application shutdown complete.")
    log.uvicorn(f"Finished server process [{os.getpid()}]")
    return crashed


async def _log_death(engine: "Engine", log: _Log) -> None:
    await engine.dead.wait()
    for line in (
        "AsyncLLM output_handler failed.",
        "Traceback (most recent call last):",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. "
        "See stack trace (above) for the root cause.",
    ):
        log.vllm(line, "async_llm.py:906", "ERROR")


async def _log_stats(engine: "Engine", log: _Log, options: Options) -> None:
    idle = True
    prompt = generated = 0
    while True:
        await asyncio.sleep(_STATS_SECONDS)
        was_idle, idle = idle, (prompt, generated) == (engine.prompt_tokens, engine.generation_tokens)
        prompt_rate = (engine.prompt_tokens - prompt) / _STATS_SECONDS
        rate = (engine.generation_tokens - generated) / _STATS_SECONDS
        prompt, generated = engine.prompt_tokens, engine.generation_tokens
        if idle and was_idle:
            continue
        for rank in range(options.data_parallel_size):
            value = engine.page.engine
            log.vllm(
                f"Engine {rank:03d}: Avg prompt throughput: {prompt_rate:.1f} tokens/s, "
                f"Avg generation throughput: {rate:.1f} tokens/s, "
                f"Running: {value('num_requests_running', rank).value:.0f} reqs, "
                f"Waiting: {value('num_requests_waiting', rank).value:.0f} reqs, "
                f"GPU KV cache usage: {100 * value('kv_cache_usage_perc', rank).value:.1f}%, "
                "Prefix cache hit rate: 0.0%",
                "loggers.py:273",
            )


def main(arguments: Sequence[str]) -> int:
    """Runs the server; returns its exit code."""
    options = parse(arguments)
    if options.exit_with_parent:
        core.die_with_parent(signal.SIGTERM, os.getppid())
    log = _Log(options)
    sock = _listening_socket(options)
    log.vllm(f"version {options.vllm_version}.0", "api_utils.py:339")
    log.vllm(f"non-default args: {{'host': '{options.host}', 'port': {sock.getsockname()[1]}}}", "api_utils.py:273")
    sys.stderr.flush()
    pids, sockets = _fork_cores(options)
    crashed = False
    try:
        crashed = asyncio.run(_serve(options, sock, sockets, log))
    finally:
        _reap(pids, options)
    return options.crash_exit_code if crashed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
