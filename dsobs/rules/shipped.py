"""The rules that ship with dsobs, with the settings in place of the defaults.

The file `alerts/dsobs.rules.yaml` has the default settings in it; this is the one place that knows where each stands.
`alerts/logs.rules.yaml`, on logs and their shipping, goes as it is.
"""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from dsobs.config import format_duration
from dsobs.config.models import Hang, Rules

FILE_NAME = "dsobs.rules.yaml"
LOGS_FILE_NAME = "logs.rules.yaml"
_DEFAULT_RULES = Rules()
_DEFAULT_HANG = Hang()
_TTFT = "dsobs_engine_time_to_first_token_seconds"
_E2E = "dsobs_engine_request_duration_seconds"


def directory() -> Traversable:
    """The folder of the shipped rule files: package data in a wheel, the repository's `alerts/` in a checkout."""
    packaged = files("dsobs") / "_data" / "alerts"
    if packaged.is_dir():
        return packaged
    return Path(__file__).resolve().parents[2] / "alerts"


def source() -> str:
    """The rule file as it ships."""
    return (directory() / FILE_NAME).read_text(encoding="utf-8")


def files_for(rules: Rules, hang: Hang) -> list[tuple[str, str]]:
    """Name and text of each rule file, with these settings."""
    logs = (directory() / LOGS_FILE_NAME).read_text(encoding="utf-8")
    return [(FILE_NAME, render(rules, hang)), (LOGS_FILE_NAME, logs)]


def render(rules: Rules, hang: Hang) -> str:
    """The shipped rule file with these settings; with the default ones it is the very file."""
    head, *blocks = source().split("      - alert: ")
    rendered = [head]
    for block in blocks:
        name = block.split("\n", 1)[0]
        if name == "GPUMemoryHigh":
            rendered.append(_gpu_memory(block, rules))
        elif name == "LatencyP99High":
            rendered.append(_latency(block, rules))
        elif name == "ContainerRestartsHigh":
            rendered.append(_restarts(block, rules))
        elif name == "EngineUnresponsive":
            rendered.append(_unresponsive(block, hang))
        else:
            rendered.append(block)
    return "      - alert: ".join(rendered)


def _replace(text: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        if old not in text:
            raise ValueError(f"{FILE_NAME} has no {old!r} where the settings expect it")
        text = text.replace(old, new)
    return text


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _percentage(ratio: float) -> str:
    return f"{ratio * 100:.6g}%"


def _gpu_memory(block: str, rules: Rules) -> str:
    new, old = rules.gpu_memory, _DEFAULT_RULES.gpu_memory
    pairs = [
        (f"> {_number(old.threshold)}\n", f"> {_number(new.threshold)}\n"),
        (f"for: {format_duration(old.for_)}\n", f"for: {format_duration(new.for_)}\n"),
        (
            f"{_percentage(old.threshold)} for {format_duration(old.for_)}",
            f"{_percentage(new.threshold)} for {format_duration(new.for_)}",
        ),
    ]
    if new.form == "literal":
        pairs.append(("dsobs_gpu_memory_effective_ratio", "dsobs_gpu_memory_used_ratio"))
        start, end = block.index(">-\n"), block.index("          threshold:")
        block = f"{block[:start]}All memory in use counts, reserved KV cache included.\n{block[end:]}"
    return _replace(block, pairs)


def _latency(block: str, rules: Rules) -> str:
    new, old = rules.latency_p99, _DEFAULT_RULES.latency_p99
    pairs = [
        (f'le="{_number(old.threshold)}"', _bound(new.threshold)),
        (f"> {_number(old.threshold)}\n", f"> {_number(new.threshold)}\n"),
        (f"[{format_duration(old.window)}]", f"[{format_duration(new.window)}]"),
        (f">= {old.min_requests}\n", f">= {new.min_requests}\n"),
        (
            f"last {format_duration(old.window)} had it within {format_duration(old.threshold)}",
            f"last {format_duration(new.window)} had it within {format_duration(new.threshold)}",
        ),
        (
            f"{format_duration(old.threshold)} at P99 over {format_duration(old.window)}, {old.min_requests} requests",
            f"{format_duration(new.threshold)} at P99 over {format_duration(new.window)}, {new.min_requests} requests",
        ),
    ]
    if new.signal == "e2e":
        pairs += [(_TTFT, _E2E), ("P99 time to first token", "P99 request latency")]
    return _replace(block, pairs)


def _bound(threshold: float) -> str:
    text = _number(threshold)
    # Prometheus 3 writes the bound of a whole number as 1.0, engines write 1 or 1.0.
    return f'le="{text}"' if "." in text or "e" in text else f'le=~"{text}|{text}[.]0"'


def _restarts(block: str, rules: Rules) -> str:
    new, old = rules.restarts, _DEFAULT_RULES.restarts
    return _replace(
        block,
        [
            (f"> {old.threshold}\n", f"> {new.threshold}\n"),
            (f"more than {old.threshold} in", f"more than {new.threshold} in"),
        ],
    )


def _unresponsive(block: str, hang: Hang) -> str:
    new, old = hang.unresponsive_after, _DEFAULT_HANG.unresponsive_after
    return _replace(
        block,
        [
            (f">= {_number(old)}\n", f">= {_number(new)}\n"),
            (f"threshold: {format_duration(old)}\n", f"threshold: {format_duration(new)}\n"),
        ],
    )
