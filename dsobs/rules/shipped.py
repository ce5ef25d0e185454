"""The rules that ship with dsobs, with the settings in place of the defaults.

The files in `alerts/` have the default settings in them; this is the one place that knows where each stands. The
sidecar loads `FILE_NAMES`; `PROMETHEUS_FILE_NAME` is for Prometheus only.
"""

from collections.abc import Callable, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from dsobs import indicators
from dsobs.config import format_duration
from dsobs.config.models import Config, Hang, Objectives, Rules
from dsobs.indicators.catalogue import bucket_bound

FILE_NAMES = (
    "thresholds.rules.yaml",
    "engine.rules.yaml",
    "objectives.rules.yaml",
    "gpu.rules.yaml",
    "host.rules.yaml",
    "sidecar.rules.yaml",
    "logs.rules.yaml",
    "watchdog.rules.yaml",
    indicators.RULES_FILE,
)
PROMETHEUS_FILE_NAME = "prometheus.rules.yaml"
"""Windows beyond what the sidecar keeps, and what a dsobs can't say of itself."""
ALL_FILE_NAMES = (*FILE_NAMES, PROMETHEUS_FILE_NAME)
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


def source(name: str) -> str:
    """One rule file as it ships."""
    return (directory() / name).read_text(encoding="utf-8")


def sources(config: Config) -> list[tuple[str, str]]:
    """(file name, text) of the shipped rules with these settings; none where they are switched off."""
    if not config.rules.shipped:
        return []
    return [(name, render(name, config.rules, config.hang)) for name in FILE_NAMES]


def rule_file(names: Sequence[str], config: Config) -> str:
    """These shipped files with the settings, as one rule file for Prometheus."""
    lines = [
        "# Shipped rules of dsobs with the settings in place, by `dsobs rules show`. Prometheus loads this as it is.\n",
        "groups:\n",
    ]
    for number, name in enumerate(names):
        _, _, groups = render(name, config.rules, config.hang).partition("groups:\n")
        lines.append("\n" if number else "")
        lines.append(f"  # {name}\n{groups}")
    return "".join(lines)


def render(name: str, rules: Rules, hang: Hang) -> str:
    """A shipped rule file with these settings; with the default ones it is the very file."""
    if name == indicators.RULES_FILE:
        return indicators.rules_file(rules)
    head, *blocks = source(name).split("      - alert: ")
    rendered = [head]
    for block in blocks:
        change = _CHANGES.get(block.split("\n", 1)[0])
        rendered.append(change(block, rules, hang) if change is not None else block)
    return "      - alert: ".join(rendered)


def _replace(text: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        if old not in text:
            raise ValueError(f"a shipped rule has no {old!r} where the settings expect it")
        text = text.replace(old, new)
    return text


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _percentage(ratio: float) -> str:
    return f"{ratio * 100:.6g}%"


def _gpu_memory(block: str, rules: Rules, _: Hang) -> str:
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


def _latency(block: str, rules: Rules, _: Hang) -> str:
    new, old = rules.latency_p99, _DEFAULT_RULES.latency_p99
    pairs = [
        (f'le="{_number(old.threshold)}"', bucket_bound(new.threshold)),
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


def _restarts(block: str, rules: Rules, _: Hang) -> str:
    new, old = rules.restarts, _DEFAULT_RULES.restarts
    return _replace(
        block,
        [
            (f"> {old.threshold}\n", f"> {new.threshold}\n"),
            (f"more than {old.threshold} in", f"more than {new.threshold} in"),
        ],
    )


def _unresponsive(block: str, _: Rules, hang: Hang) -> str:
    new, old = hang.unresponsive_after, _DEFAULT_HANG.unresponsive_after
    return _replace(
        block,
        [
            (f">= {_number(old)}\n", f">= {_number(new)}\n"),
            (f"threshold: {format_duration(old)}\n", f"threshold: {format_duration(new)}\n"),
        ],
    )


def _time_to_first_token(block: str, rules: Rules, _: Hang) -> str:
    new, old = rules.objectives, _DEFAULT_RULES.objectives
    return _replace(
        block,
        [
            (f'le="{_number(old.ttft_threshold)}"', bucket_bound(new.ttft_threshold)),
            (f"(1 - {_number(old.ttft_target)})", f"(1 - {_number(new.ttft_target)})"),
            (_ttft_words(old), _ttft_words(new)),
        ],
    )


def _ttft_words(objectives: Objectives) -> str:
    return f"{_percentage(objectives.ttft_target)} within {_number(objectives.ttft_threshold)}s"


def _availability(block: str, rules: Rules, _: Hang) -> str:
    new, old = rules.objectives.availability_target, _DEFAULT_RULES.objectives.availability_target
    return _replace(
        block,
        [
            (f"(1 - {_number(old)})", f"(1 - {_number(new)})"),
            (f"budget of {_percentage(old)}", f"budget of {_percentage(new)}"),
        ],
    )


_CHANGES: dict[str, Callable[[str, Rules, Hang], str]] = {
    "GPUMemoryHigh": _gpu_memory,
    "LatencyP99High": _latency,
    "ContainerRestartsHigh": _restarts,
    "EngineUnresponsive": _unresponsive,
    **dict.fromkeys(
        ("TimeToFirstTokenBudgetFast", "TimeToFirstTokenBudgetSlow", "TimeToFirstTokenBudgetLong"),
        _time_to_first_token,
    ),
    **dict.fromkeys(
        ("AvailabilityBudgetFast", "AvailabilityBudgetSlow", "AvailabilityBudgetLong"),
        _availability,
    ),
}
"""Rule → what puts the settings into its block."""
