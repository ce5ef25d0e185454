"""Pages: recorded ones, and older versions' as constructed from vLLM's documented names (not captured)."""

import gzip
import json
from functools import cache
from pathlib import Path

from dsobs.model.samples import Page
from dsobs.series.exposition import Parser

DATA = Path(__file__).parent.parent / "data"


@cache
def recorded() -> tuple[str, ...]:
    """Every page of the H100 recording (vLLM 0.23), in order."""
    with gzip.open(DATA / "h100-vllm-0.23" / "scenario.jsonl.gz", "rt") as lines:
        bodies = [json.loads(line)["metrics"] for line in lines]
    return tuple(body for body in bodies if body.startswith("#"))


def busy() -> str:
    """A page of the recording under load, 577 lines."""
    return recorded()[100]


def captured() -> dict[str, str]:
    """Pages of a real vLLM 0.32."""
    return {path.stem: path.read_text() for path in sorted((DATA / "vllm-0.32").glob("*.prom"))}


def parsed(text: str) -> Page:
    """The page of a text."""
    return Parser().parse(text)


def _histogram(name: str, labels: str) -> str:
    return (
        f"# TYPE {name} histogram\n"
        f'{name}_bucket{{le="0.1",{labels}}} 2.0\n{name}_bucket{{le="0.5",{labels}}} 3.0\n'
        f'{name}_bucket{{le="1.0",{labels}}} 4.0\n{name}_bucket{{le="+Inf",{labels}}} 4.0\n'
        f"{name}_count{{{labels}}} 4.0\n{name}_sum{{{labels}}} 1.75\n"
    )


def constructed_v08() -> str:
    """CONSTRUCTED, vLLM 0.8: `model_name` alone, the old names."""
    m = 'model_name="m"'
    return (
        f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{{m}}} 3.0\n"
        f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{{{m}}} 1.0\n"
        f"# TYPE vllm:num_requests_swapped gauge\nvllm:num_requests_swapped{{{m}}} 0.0\n"
        f"# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc{{{m}}} 0.25\n"
        f"# TYPE vllm:cpu_cache_usage_perc gauge\nvllm:cpu_cache_usage_perc{{{m}}} 0.9\n"
        f"# TYPE vllm:gpu_prefix_cache_queries_total counter\nvllm:gpu_prefix_cache_queries_total{{{m}}} 70.0\n"
        f"# TYPE vllm:gpu_prefix_cache_hits_total counter\nvllm:gpu_prefix_cache_hits_total{{{m}}} 7.0\n"
        f"# TYPE vllm:num_preemptions_total counter\nvllm:num_preemptions_total{{{m}}} 2.0\n"
        f"# TYPE vllm:prompt_tokens_total counter\nvllm:prompt_tokens_total{{{m}}} 100.0\n"
        f"# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total{{{m}}} 200.0\n"
        f'# TYPE vllm:request_success_total counter\nvllm:request_success_total{{finished_reason="stop",{m}}} 4.0\n'
        f"# TYPE vllm:iteration_tokens_total histogram\nvllm:iteration_tokens_total_count{{{m}}} 60.0\n"
        + _histogram("vllm:time_to_first_token_seconds", m)
        + _histogram("vllm:time_per_output_token_seconds", m)
        + _histogram("vllm:e2e_request_latency_seconds", m)
        + _histogram("vllm:request_queue_time_seconds", m)
    )


def constructed_v10() -> str:
    """CONSTRUCTED, vLLM 0.10: old and new names side by side, with different values to tell them apart."""
    m = 'engine="0",model_name="m"'
    return (
        f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{{m}}} 3.0\n"
        f"# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc{{{m}}} 0.25\n"
        f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{{m}}} 0.5\n"
        f"# TYPE vllm:gpu_prefix_cache_queries_total counter\nvllm:gpu_prefix_cache_queries_total{{{m}}} 70.0\n"
        f"# TYPE vllm:prefix_cache_queries_total counter\nvllm:prefix_cache_queries_total{{{m}}} 71.0\n"
        + _histogram("vllm:time_per_output_token_seconds", m)
        + _histogram("vllm:inter_token_latency_seconds", m).replace(" 1.75", " 9.75")
    )


def constructed_ranks(ranks: int = 8, model: str = "m", first: int = 0) -> str:
    """CONSTRUCTED: data parallel, rank r with r requests running and 100 + r steps."""
    lines = []
    for rank in range(first, first + ranks):
        labels = f'engine="{rank}",model_name="{model}"'
        lines += [
            f"vllm:num_requests_running{{{labels}}} {rank}.0",
            f"vllm:num_requests_waiting{{{labels}}} 0.0",
            f"vllm:kv_cache_usage_perc{{{labels}}} 0.{rank}",
            f"vllm:iteration_tokens_total_count{{{labels}}} {100 + rank}.0",
        ]
    return "# TYPE vllm:num_requests_running gauge\n" + "\n".join(lines) + "\n"


def constructed_models() -> str:
    """CONSTRUCTED: two models on one server, both rank 0."""
    return constructed_ranks(1, "a") + constructed_ranks(1, "b").partition("\n")[2]
