"""What the simulator can be told on its command line."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

VERSIONS = ("0.32", "0.23")


@dataclass(frozen=True, slots=True)
class Options:
    """The simulator's settings. Times in seconds, sizes in tokens unless the name says otherwise."""

    host: str = "127.0.0.1"
    port: int = 8000
    model_names: tuple[str, ...] = ("deepseek-r1-7b",)
    """Names under which the model is served; the first one is the label `model_name`."""
    vllm_version: Literal["0.32", "0.23"] = "0.32"
    task: Literal["generate", "embed"] = "generate"
    api_key: str | None = None
    dev_mode: bool = False
    access_log: bool = True
    data_parallel_size: int = 1
    max_model_len: int = 32768
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    num_gpu_blocks: int = 65688
    block_size: int = 16
    kv_cache_gib: float = 56.13
    load_seconds: float = 0.0
    shutdown_timeout: float = 0.0
    """After SIGTERM, how long requests in flight may take to finish; 0 aborts them. vLLM's flag of that name."""
    decode_step_seconds: float = 0.02
    prefill_tokens_per_second: float = 50_000.0
    crash_exit_code: int = 0
    """0 is what vLLM 0.32 was seen to end with."""
    crash_exit_seconds: float = 0.5
    survive_crash: bool = False
    orphan_core: bool = False
    exit_with_parent: bool = False


def _parser() -> argparse.ArgumentParser:
    defaults = {field.name: field.default for field in fields(Options)}
    parser = argparse.ArgumentParser(
        prog="python -m dsobs.simulator",
        description="A server that looks and fails like vLLM, for demos, tests and drills. It invents its tokens. "
        "Stop its VLLM::EngineCore process with SIGSTOP for a hang, kill it for a crash.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    server = parser.add_argument_group("server")
    server.add_argument("--host", default=defaults["host"], help="address to listen on")
    server.add_argument("--port", type=int, required=True, help="TCP port; 0 lets the system choose")
    server.add_argument(
        "--model-name",
        "--served-model-name",
        dest="model_names",
        nargs="+",
        default=list(Options().model_names),
        metavar="NAME",
        help="names of the model; the first is the label model_name",
    )
    server.add_argument("--vllm-version", choices=VERSIONS, default="0.32", help="whose metrics page and log to show")
    server.add_argument(
        "--task", choices=("generate", "embed"), default="generate", help="embed: an embedding model, no completions"
    )
    server.add_argument("--api-key", default=None, help="bearer token that /v1 asks for; without it: open")
    server.add_argument(
        "--dev-mode", action="store_true", help="serve /sleep, /wake_up, /is_sleeping, /pause, /resume and /is_paused"
    )
    server.add_argument(
        "--disable-uvicorn-access-log", dest="access_log", action="store_false", help="no log line for each request"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--data-parallel-size", type=int, default=1, help="engine cores, one process each")
    engine.add_argument(
        "--max-model-len", type=int, default=defaults["max_model_len"], help="prompt and answer at most, tokens"
    )
    engine.add_argument("--max-num-seqs", type=int, default=defaults["max_num_seqs"], help="requests in one step")
    engine.add_argument(
        "--max-num-batched-tokens",
        type=int,
        default=defaults["max_num_batched_tokens"],
        help="tokens in one step; a longer prompt is prefilled in chunks of this size",
    )
    engine.add_argument(
        "--num-gpu-blocks", type=int, default=defaults["num_gpu_blocks"], help="size of the KV cache, blocks"
    )
    engine.add_argument("--block-size", type=int, default=defaults["block_size"], help="tokens in a block")
    engine.add_argument(
        "--kv-cache-gib", type=float, default=defaults["kv_cache_gib"], help="size of the KV cache as logged, GiB"
    )
    engine.add_argument("--load-seconds", type=float, default=0.0, help="start-up time; the port is closed meanwhile")
    engine.add_argument(
        "--decode-step-seconds", type=float, default=defaults["decode_step_seconds"], help="time of one step"
    )
    engine.add_argument(
        "--prefill-tokens-per-second",
        type=float,
        default=defaults["prefill_tokens_per_second"],
        help="speed of prompts, added to the step's time",
    )
    engine.add_argument(
        "--shutdown-timeout",
        type=float,
        default=0.0,
        help="after SIGTERM, how long requests in flight may take to finish; 0 aborts them",
    )
    faults = parser.add_argument_group("faults")
    faults.add_argument(
        "--crash-exit-code", type=int, default=0, metavar="N", help="exit code after the engine core died"
    )
    faults.add_argument(
        "--crash-exit-seconds",
        type=float,
        default=defaults["crash_exit_seconds"],
        help="time from the first request that fails after a crash to the exit (5 s where none comes)",
    )
    faults.add_argument("--survive-crash", action="store_true", help="fail to exit after the engine core died")
    faults.add_argument("--orphan-core", action="store_true", help="engine cores outlive the server's death")
    faults.add_argument("--exit-with-parent", action="store_true", help="end when the process that started this ends")
    return parser


def parse(arguments: Sequence[str]) -> Options:
    """Options from the command line; prints what is wrong and raises SystemExit(2) where they make no sense."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    given["model_names"] = tuple(given["model_names"])
    options = Options(**given)
    for field in fields(Options):
        value = getattr(options, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            parser.error(f"--{field.name.replace('_', '-')} must be a number, got {value}")
    for name in (
        "data_parallel_size",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "block_size",
        "prefill_tokens_per_second",
        "kv_cache_gib",
    ):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be more than 0, got {getattr(options, name)}")
    for name in ("load_seconds", "crash_exit_seconds", "decode_step_seconds", "shutdown_timeout"):
        if getattr(options, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must not be negative, got {getattr(options, name)}")
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be 0 to 65535, got {options.port}")
    if not 0 <= options.crash_exit_code <= 255:
        parser.error(f"--crash-exit-code must be 0 to 255, got {options.crash_exit_code}")
    needed = -(-options.max_model_len // options.block_size) + 1
    if options.num_gpu_blocks < needed:
        parser.error(
            f"--num-gpu-blocks {options.num_gpu_blocks} is too small for one request of "
            f"{options.max_model_len} tokens: "
            f"give at least {needed}, or a smaller --max-model-len"
        )
    return options
