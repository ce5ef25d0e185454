"""vLLM's metrics page: the families of one version (families_*.json), filled by the simulator.

The families were taken from the pages of real servers: names, types, help texts, label names, fixed label values and
bucket bounds. What only a real model can know (FLOPs, caches of other tiers) stays at 0, as on a server without it.
"""

import gc
import json
import os
import platform
import resource
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from dsobs.simulator.options import Options


def format_value(value: float) -> str:
    """A sample value as prometheus_client writes it (Go's notation from 1e6 up)."""
    text = repr(float(value))
    dot = text.find(".")
    if value > 0 and dot > 6 and "e" not in text:
        mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{dot - 1:02d}"
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(text, text)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in sorted(labels.items())) + "}"


class Series:
    """One series: a number, or a histogram's or summary's counts and sum."""

    __slots__ = ("_lines", "bounds", "counts", "created", "labels", "total", "value")

    def __init__(self, name: str, kind: str, labels: Mapping[str, str], bounds: Sequence[str]) -> None:
        self.labels = _labels(labels)
        self.value = 0.0
        self.total = 0.0
        self.created = time.time()
        self.bounds = [float(bound) for bound in bounds]
        self.counts = [0] * len(bounds)
        if kind == "histogram":
            self._lines = [name + "_bucket" + _labels({**labels, "le": bound}) for bound in bounds]
            self._lines += [name + "_count" + self.labels, name + "_sum" + self.labels]
        elif kind == "summary":
            self._lines = [name + "_count" + self.labels, name + "_sum" + self.labels]
        else:
            self._lines = [name + self.labels]

    def observe(self, value: float, times: int = 1) -> None:
        """Adds an observation (histograms and summaries)."""
        self.value += times
        self.total += value * times
        if self.bounds:
            self.counts[bisect_left(self.bounds, value)] += times

    def render(self) -> list[str]:
        """The series' lines; buckets are cumulative."""
        if len(self._lines) == 1:
            return [f"{self._lines[0]} {format_value(self.value)}"]
        lines = []
        running = 0
        for line, count in zip(self._lines, self.counts, strict=False):
            running += count
            lines.append(f"{line} {format_value(running)}")
        lines.append(f"{self._lines[-2]} {format_value(self.value)}")
        lines.append(f"{self._lines[-1]} {format_value(self.total)}")
        return lines


class Family:
    """One family with its series, in the order in which they came."""

    def __init__(self, entry: Mapping[str, object]) -> None:
        self.name = str(entry["name"])
        self.kind = str(entry["type"])
        help_text = str(entry["help"])
        buckets = entry.get("buckets", ())
        assert isinstance(buckets, (list, tuple))
        self.buckets = tuple(str(bound) for bound in buckets)
        self.series: dict[tuple[str, ...], Series] = {}
        self._head = [f"# HELP {self.name} {help_text}", f"# TYPE {self.name} {self.kind}"]
        self._created_head: list[str] = []
        self._created_name = ""
        if entry.get("created"):
            stem = self.name.removesuffix("_total") if self.kind == "counter" else self.name
            self._created_name = stem + "_created"
            self._created_head = [
                f"# HELP {self._created_name} {help_text}",
                f"# TYPE {self._created_name} gauge",
            ]

    def at(self, **labels: str) -> Series:
        """The series with these labels, made where it is missing."""
        key = tuple(labels.values())
        found = self.series.get(key)
        if found is None:
            found = self.series[key] = Series(self.name, self.kind, labels, self.buckets)
        return found

    def render(self) -> list[str]:
        """HELP, TYPE and samples, then the `_created` family where there is one."""
        lines = list(self._head)
        for series in self.series.values():
            lines += series.render()
        if self._created_head and self.series:
            lines += self._created_head
            lines += [f"{self._created_name}{s.labels} {format_value(s.created)}" for s in self.series.values()]
        return lines


_SLEEP_FAMILIES: tuple[Mapping[str, object], ...] = (
    {
        "name": "vllm:sleep_mode_operation_duration_seconds",
        "type": "histogram",
        "help": "Duration of one sleep-mode operation.",
        "created": True,
        "buckets": ["0.01", "0.1", "1.0", "10.0", "30.0", "60.0", "120.0", "300.0", "600.0", "+Inf"],
    },
    {
        "name": "vllm:sleep_mode_operations_in_flight",
        "type": "gauge",
        "help": "Sleep-mode operations currently awaited.",
        "created": False,
    },
)
"""Appear with the first sleep or wake-up; 0.32 only."""


def load_families(version: str) -> list[dict[str, object]]:
    """The table of families of a vLLM version ("0.23", "0.32"), in page order."""
    text = resources.files("dsobs.simulator").joinpath(f"families_{version}.json").read_text()
    families = json.loads(text)["families"]
    assert isinstance(families, list)
    return families


def token_bounds(max_model_len: int) -> list[str]:
    """Bounds of the histograms of tokens in a request: 1, 2, 5, 10, … up to the context length, as vLLM makes them."""
    bounds = [mantissa * 10**exponent for exponent in range(12) for mantissa in (1, 2, 5)]
    return [str(float(bound)) for bound in bounds if bound <= max_model_len] + ["+Inf"]


TOKEN_HISTOGRAMS = frozenset(
    {
        "vllm:request_prompt_tokens",
        "vllm:request_generation_tokens",
        "vllm:request_max_num_generation_tokens",
        "vllm:request_params_max_tokens",
        "vllm:request_prefill_kv_computed_tokens",
    }
)


class Page:
    """All families of one server. Labels are given by keyword; engines by their rank."""

    def __init__(self, options: Options, started_at: float) -> None:
        self.version = options.vllm_version
        self.model = options.model_names[0]
        self.engines = [str(rank) for rank in range(options.data_parallel_size)]
        self.families: dict[str, Family] = {}
        self._started_at = started_at
        for entry in load_families(options.vllm_version):
            self._add(entry, options)
        self.set_sleep_level(None)

    def _add(self, entry: Mapping[str, object], options: Options) -> None:
        if entry["name"] in TOKEN_HISTOGRAMS:
            entry = {**entry, "buckets": token_bounds(options.max_model_len)}
        family = self.families[str(entry["name"])] = Family(entry)
        names = entry["labels"]
        constants = entry.get("constant", [{}])
        assert isinstance(names, list)
        assert isinstance(constants, list)
        if family.name.startswith("http_") and names:
            return
        if family.name == "vllm:cache_config_info":
            constants = [constants[0] | _cache_config(options, constants[0])]
        if family.name == "python_info":
            major, minor, patch = platform.python_version_tuple()
            constants = [
                {
                    "implementation": platform.python_implementation(),
                    "major": major,
                    "minor": minor,
                    "patchlevel": patch,
                    "version": platform.python_version(),
                }
            ]
        for engine in self.engines if "engine" in names else [""]:
            for constant in constants:
                labels = {"engine": engine} if engine else {}
                if "model_name" in names:
                    labels["model_name"] = self.model
                family.at(**labels, **constant).value = 1.0 if family.name.endswith("_info") else 0.0

    def engine(self, name: str, rank: int, **labels: str) -> Series:
        """The series `vllm:<name>` of one engine."""
        return self.families["vllm:" + name].at(engine=str(rank), model_name=self.model, **labels)

    def set_sleep_level(self, level: int | None) -> None:
        """Sleep state of all engines: None is awake."""
        states = {"awake": level is None, "weights_offloaded": level == 1, "discard_all": level == 2}
        for rank in range(len(self.engines)):
            for state, holds in states.items():
                self.engine("engine_sleep_state", rank, sleep_state=state).value = float(holds)

    def record_sleep_operation(self, operation: str, seconds: float) -> None:
        """Counts a sleep or wake-up where the version does."""
        if self.version == "0.23":
            return
        for entry in _SLEEP_FAMILIES:
            if str(entry["name"]) not in self.families:
                self.families[str(entry["name"])] = Family(entry)
        self.families["vllm:sleep_mode_operation_duration_seconds"].at(operation=operation).observe(seconds)
        self.families["vllm:sleep_mode_operations_in_flight"].at(operation=operation)

    def record_http(
        self, handler: str, method: str, status: int, seconds: float, request_bytes: int, response_bytes: int
    ) -> None:
        """Counts one answered HTTP request, as prometheus-fastapi-instrumentator does."""
        self.families["http_requests_total"].at(handler=handler, method=method, status=f"{status // 100}xx").value += 1
        self.families["http_request_size_bytes"].at(handler=handler).observe(request_bytes)
        self.families["http_response_size_bytes"].at(handler=handler).observe(response_bytes)
        self.families["http_request_duration_highr_seconds"].at().observe(seconds)
        self.families["http_request_duration_seconds"].at(handler=handler, method=method).observe(seconds)

    def render(self) -> str:
        """The whole page as of now, text format 0.0.4."""
        self._read_process()
        lines: list[str] = []
        for family in self.families.values():
            lines += family.render()
        return "\n".join(lines) + "\n"

    def _read_process(self) -> None:
        statm = Path("/proc/self/statm").read_text().split()
        page_size = resource.getpagesize()
        times = os.times()
        for name, value in (
            ("process_virtual_memory_bytes", float(int(statm[0]) * page_size)),
            ("process_resident_memory_bytes", float(int(statm[1]) * page_size)),
            ("process_start_time_seconds", self._started_at),
            ("process_cpu_seconds_total", times.user + times.system),
            ("process_open_fds", float(sum(1 for _ in Path("/proc/self/fd").iterdir()))),
            ("process_max_fds", float(resource.getrlimit(resource.RLIMIT_NOFILE)[0])),
        ):
            self.families[name].at().value = value
        for generation, stats in enumerate(gc.get_stats()):
            for key in ("collected", "uncollectable"):
                self.families[f"python_gc_objects_{key}_total"].at(generation=str(generation)).value = stats[key]
            self.families["python_gc_collections_total"].at(generation=str(generation)).value = stats["collections"]


def _cache_config(options: Options, captured: Mapping[str, str]) -> dict[str, str]:
    tokens = options.num_gpu_blocks * options.block_size
    own = {
        "block_size": str(options.block_size),
        "effective_attention_block_size": str(options.block_size),
        "num_gpu_blocks": str(options.num_gpu_blocks),
        "kv_cache_size_tokens": str(tokens),
        "kv_cache_max_concurrency": str(tokens / options.max_model_len),
        # A GPU server leaves this "None" unless its user set it; the captured page of 0.32 is a CPU server's.
        "kv_cache_memory_bytes": "None",
    }
    return {name: value for name, value in own.items() if name in captured}


def process_start_time() -> float:
    """When this process started, seconds since the Unix epoch (proc(5), field 22 of stat, and btime)."""
    stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return float(boot.split()[1]) + int(stat[19]) / os.sysconf("SC_CLK_TCK")
