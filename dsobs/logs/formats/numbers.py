"""Lines of vLLM that hold numbers: engine statistics and start-up facts, as fields; uvicorn's access lines; traces."""

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from dsobs.logs.metrics import START_UP_BYTES, START_UP_SECONDS
from dsobs.model.start_up import LITERALS as START_UP_LITERALS
from dsobs.model.start_up import facts_of

LITERALS = tuple(literal.encode() for literal in ("throughput", "SpecDecoding", *START_UP_LITERALS))
"""One of these is in every line that `numbers_of` finds something in."""

_GAUGES = {"bytes": START_UP_BYTES, "seconds": START_UP_SECONDS}
_ENGINE = re.compile(r"Engine (\d+): ")
_PAIR = re.compile(r"([A-Z][A-Za-z ]*?):? (-?\d+(?:\.\d+)?)( tokens/s| reqs|%| tokens|x)?(?=,|$|\.$)")
_NAMES = {
    "Avg prompt throughput": "prompt_tokens_per_second",
    "Avg generation throughput": "generation_tokens_per_second",
    "Running": "requests_running",
    "Waiting": "requests_waiting",
    "Deferred": "requests_deferred",
    "Swapped": "requests_swapped",
    "Preemptions": "preemptions",
    "Corrupted": "requests_corrupted",
    "GPU KV cache usage": "kv_cache_usage_ratio",
    "CPU KV cache usage": "kv_cache_usage_ratio",
    "XPU KV cache usage": "kv_cache_usage_ratio",
    "Prefix cache hit rate": "prefix_cache_hit_ratio",
    "External prefix cache hit rate": "external_prefix_cache_hit_ratio",
    "MM cache hit rate": "mm_cache_hit_ratio",
    "SpecDecoding metrics: Mean acceptance length": "spec_mean_acceptance_length",
    "Mean acceptance length": "spec_mean_acceptance_length",
    "Avg Draft acceptance rate": "spec_acceptance_ratio",
    "Accepted throughput": "spec_accepted_tokens_per_second",
    "Drafted throughput": "spec_drafted_tokens_per_second",
    "Accepted": "spec_accepted_tokens",
    "Drafted": "spec_drafted_tokens",
}


def numbers_of(message: str) -> dict[str, Any]:
    """Fields `vllm.…` of a line of engine statistics or of start-up; empty for any other.

    Rates are tokens a second, shares are 0 to 1.
    """
    found: dict[str, Any] = {}
    if "throughput: " in message or "SpecDecoding" in message:
        if (engine := _ENGINE.match(message)) is not None:
            found["vllm.engine"] = int(engine[1])
        for name, value, unit in _PAIR.findall(message.partition("Engine ")[2].partition(": ")[2] or message):
            if (field := _NAMES.get(name.strip())) is None:
                continue
            if unit == "%":
                found[f"vllm.{field}"] = round(float(value) / 100, 6)
            else:
                found[f"vllm.{field}"] = float(value) if unit == " tokens/s" or "." in value else int(value)
        return found
    for name, value in facts_of(message).items():
        found[f"vllm.{name}"] = value
        fact, _, unit = name.rpartition("_")
        if unit in _GAUGES:
            _GAUGES[unit].labels(fact).set(value)
    return found


_ACCESS = re.compile(r'(\S+?):(\d+) - "([A-Z]+) (\S+) HTTP/(\d(?:\.\d)?)" (\d{3})(?: .*)?')


def access_of(message: str) -> dict[str, Any]:
    """Fields of a line of uvicorn's access log, `127.0.0.1:5 - "GET /health HTTP/1.1" 200 OK`; empty for any other."""
    match = _ACCESS.fullmatch(message)
    if match is None:
        return {}
    address, port, method, target, version, status = match.groups()
    path, _, query = target.partition("?")
    found: dict[str, Any] = {
        "client.ip" if _is_ip(address) else "client.address": address,
        "client.port": int(port),
        "http.request.method": method,
        "http.version": version,
        "http.response.status_code": int(status),
        "url.path": path,
        "event.outcome": "success" if status < "400" else "failure",
    }
    if query:
        found["url.query"] = query
    return found


@lru_cache(maxsize=1024)
def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


_TRACEPARENT = re.compile(r"\b[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}\b")
_TRACE_ID = re.compile(r"\btrace[_.]?id[\"']?\s*[=:]\s*[\"']?([0-9a-f]{32})\b", re.IGNORECASE)
_SPAN_ID = re.compile(r"\bspan[_.]?id[\"']?\s*[=:]\s*[\"']?([0-9a-f]{16})\b", re.IGNORECASE)


def trace_of(text: str) -> dict[str, Any]:
    """`trace.id` and `span.id` of a W3C trace context, https://www.w3.org/TR/trace-context/, or of `trace_id=…`.

    Only worth asking where `trace` stands in the text."""
    match = _TRACEPARENT.search(text)
    if match is not None:
        return {"trace.id": match[1], "span.id": match[2]}
    found = {}
    if (match := _TRACE_ID.search(text)) is not None:
        found["trace.id"] = match[1].lower()
        if (match := _SPAN_ID.search(text)) is not None:
            found["span.id"] = match[1].lower()
    return found
