"""What formats and transforms cost a record, in microseconds of CPU time: the best of some rounds.

Encoding of the documents is measured too, since what a parser leaves to it is no gain: `with_body`.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from dsobs.config.log_transform import LogTransform, Redact
from dsobs.config.logs import Logs
from dsobs.logs.batch import Encoder
from dsobs.logs.formats import format_named
from dsobs.logs.record import Common, Lines, LogFile, Record
from dsobs.logs.transforms import open_transforms

RECORDS, ROUNDS = 5_000, 15
_AT = 1_795_507_698.0
_COMMON = Common({"host.name": "node-1", "service.name": "deepseek-r1", "log.file.path": "/var/log/vllm/vllm.log"})
_FILE = LogFile(Path("/var/log/vllm/vllm.log"), _AT, "auto")


def json_lines() -> list[bytes]:
    """300 bytes each, with ECS names."""
    return [
        orjson.dumps(
            {
                "@timestamp": f"2026-11-24T08:{n // 60 % 60:02}:{n % 60:02}.{n % 1000:03}Z",
                "log.level": "INFO" if n % 50 else "ERROR",
                "log.logger": "app.requests",
                "message": f"request {n} finished in {n % 700} ms",
                "request_id": f"cmpl-{n:032x}",
                "path": "/v1/chat/completions",
                "tokens": n % 4096,
                "note": "x" * 68,
            }
        )
        for n in range(RECORDS)
    ]


def mapped_json_lines() -> list[bytes]:
    """As vLLM writes with a JSON formatter: names of Python's logging, a time without a zone."""
    return [
        orjson.dumps(
            {
                "asctime": f"2026-11-24 08:{n // 6000 % 60:02}:{n // 100 % 60:02},{n % 100:02}0",
                "levelname": "INFO",
                "name": "vllm.v1.engine.async_llm",
                "processName": "MainProcess",
                "process": 3456,
                "message": f"Added request cmpl-{n:032x}.",
                "vllm_process_name": "APIServer",
            }
        )
        for n in range(RECORDS)
    ]


def vllm_lines() -> list[bytes]:
    """A busy server's: accesses, requests, a line of statistics in fifty, a warning in a hundred."""
    made = []
    for n in range(RECORDS):
        head = b"(APIServer pid=29896) INFO 11-24 08:%02d:%02d " % (n // 6000 % 60, n // 100 % 60)
        if n % 100 == 99:
            made.append(head.replace(b"INFO", b"WARNING") + b"[serving.py:274] Retrying request %d once" % n)
        elif n % 50 == 49:
            made.append(
                head + b"[loggers.py:335] Engine 000: Avg prompt throughput: 0.4 tokens/s, Avg generation throughput: "
                b"%d.6 tokens/s, Running: 3 reqs, Waiting: 0 reqs, GPU KV cache usage: 12.5%%, Prefix cache hit rate: "
                b"0.0%%" % n
            )
        elif n % 2:
            made.append(head + b"[async_llm.py:420] Added request cmpl-%032x." % n)
        else:
            made.append(
                b'(APIServer pid=29896) INFO:     10.0.0.%d:%d - "POST /v1/chat/completions HTTP/1.1" 200 OK'
                % (n % 250, 1024 + n)
            )
    return made


def plain_vllm_lines() -> list[bytes]:
    """Only lines of vLLM's own logger, about 250 bytes each."""
    note = b"params: SamplingParams(n=1, temperature=1.0, top_p=1.0, top_k=0, max_tokens=900), lora_request: None."
    return [
        b"(APIServer pid=29896) INFO 11-24 08:%02d:%02d [request_logger.py:66] Received request cmpl-%032x-0: %b"
        % (n // 6000 % 60, n // 100 % 60, n, note)
        for n in range(RECORDS)
    ]


def lines_of(lines: list[bytes]) -> Lines:
    """A block of a file."""
    return Lines(0, sum(map(len, lines)) + len(lines), lines, _AT)


def best(work: Callable[[], Any]) -> float:
    """Microseconds a record, the best round."""
    took = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        work()
        took.append(time.process_time() - begun)
    return round(min(took) / RECORDS * 1e6, 2)


def measure(name: str, format_: str, lines: list[bytes], settings: Logs | None = None) -> dict[str, Any]:
    """One row: parsing, what the transforms of `settings` add, and all of it with the bodies."""
    transforms = open_transforms(settings or Logs())
    as_fields = any(transform.needs_fields for transform in transforms)
    block, encoder = lines_of(lines), Encoder("0123456789abcdef", _COMMON)

    def parsed() -> list[Record]:
        parser = format_named(format_).open(_FILE, _COMMON, as_fields=as_fields)
        return parser.parse(block) + parser.flush()

    def transformed() -> list[Record]:
        records = parsed()
        for transform in transforms:
            records = transform.apply(records)
        return records

    parse = best(parsed)
    row = {
        "benchmark": f"log_formats: {name}",
        "records": RECORDS,
        "bytes_per_record": round(sum(map(len, lines)) / len(lines)),
        "parse_us": parse,
        "with_body_us": best(lambda: encoder.encode(transformed())),
    }
    if transforms:
        row["transform_us"] = round(best(transformed) - parse, 2)
    return row


def main() -> int:
    """A JSON object a row."""
    for name, format_, lines in (
        ("JSON with ECS names, sent as it is", "json", json_lines()),
        ("JSON of Python's logging, mapped", "vllm-json", mapped_json_lines()),
        ("vLLM text, vLLM's lines only", "vllm", plain_vllm_lines()),
        ("vLLM text, half of it accesses", "vllm", vllm_lines()),
        ("plain text", "plain", plain_vllm_lines()),
    ):
        print(json.dumps(measure(name, format_, lines)), flush=True)
    all_kinds = LogTransform(redact=Redact(kinds=("api_key", "bearer", "email", "phone", "card", "prompt")))
    busy = LogTransform(
        min_level="info",
        drop=('url.path =~ "/(health|metrics)"',),
        rename=("request_id=http.request.id",),
        add=("labels.site=eu-1",),
        max_field_bytes=8192,
    )
    with_secrets = [line.replace(b'"note":"xxxx', b'"note":"me@example.org') for line in json_lines()]
    for name, format_, lines, transform in (
        ("JSON as it is, redaction of all kinds on, nothing to redact", "json", json_lines(), all_kinds),
        ("JSON as it is, redaction of all kinds on, an address in each line", "json", with_secrets, all_kinds),
        ("vLLM text, redaction of all kinds on", "vllm", vllm_lines(), all_kinds),
        ("JSON with ECS names, level, drop, rename, add, cut", "json", json_lines(), busy),
    ):
        print(json.dumps(measure(name, format_, lines, Logs(transform=transform))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
