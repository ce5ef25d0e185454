"""Servers whose pages play faults that can't be had without the real thing: a vLLM's page, and its node's GPU page.

A page's counters grow with the wall clock by the rates that hold; a fault is another set of rates and gauges.
"""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

GIB = 2**30
LABELS = 'model_name="deepseek-r1-7b",engine="0"'
CARD = 'gpu="0",uuid="GPU-0"'
BOUNDS = ("0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "+Inf")
XIDS = {13: "application", 31: "application", 48: "escalate", 79: "reboot_node", 119: "reset_gpu"}


@dataclass
class Server:
    """One inference server with one GPU. Rates are a second's; the defaults are a healthy, busy server."""

    requests: float = 4.0
    tokens: float = 400.0
    error_share: float = 0.0
    slow_share: float = 0.0
    """Of the first tokens: 1 to 2.5 s instead of 0.1 to 0.25 s."""
    preemptions: float = 0.0
    running: int = 4
    waiting: int = 0
    kv_usage: float = 0.3
    silent: bool = False
    """Connections are accepted, and nothing is answered."""
    started: float = field(default_factory=time.time)
    foreign_bytes: int = 0
    xids: dict[int, int] = field(default_factory=lambda: dict.fromkeys(XIDS, 0))
    xid_times: dict[int, float] = field(default_factory=dict)
    throttled: int = 0
    ecc_uncorrected: int = 0
    remap_pending: int = 0
    remap_failed: int = 0
    counted: dict[str, float] = field(default_factory=dict)
    counted_at: float = field(default_factory=time.time)
    for_ever: asyncio.Event = field(default_factory=asyncio.Event)

    def _count(self) -> dict[str, float]:
        now = time.time()
        passed, self.counted_at = now - self.counted_at, now
        for name, rate in (
            ("stop", self.requests * (1 - self.error_share)),
            ("error", self.requests * self.error_share),
            ("fast", self.requests * (1 - self.slow_share)),
            ("slow", self.requests * self.slow_share),
            ("tokens", self.tokens),
            ("preemptions", self.preemptions),
        ):
            self.counted[name] = self.counted.get(name, 0.0) + rate * passed
        return {name: float(int(value)) for name, value in self.counted.items()}

    def engine_page(self) -> str:
        """As of vLLM 0.32, the families that rules look at."""
        counted = self._count()
        first = "vllm:time_to_first_token_seconds"
        buckets = [(b, counted["fast"] + (counted["slow"] if float(b) >= 2.5 else 0.0)) for b in BOUNDS]
        buckets[0] = (BOUNDS[0], 0.0)
        total = counted["fast"] + counted["slow"]
        pool = f'engine="0",kv_cache_memory_bytes="{56 * GIB}"'
        return "\n".join(
            [
                f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{{LABELS}}} {self.running}",
                f"# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{{{LABELS}}} {self.waiting}",
                f"# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{{LABELS}}} {self.kv_usage}",
                f"# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{{pool}}} 1",
                "# TYPE vllm:generation_tokens_total counter",
                f"vllm:generation_tokens_total{{{LABELS}}} {counted['tokens']}",
                "# TYPE vllm:num_preemptions_total counter",
                f"vllm:num_preemptions_total{{{LABELS}}} {counted['preemptions']}",
                "# TYPE vllm:request_success_total counter",
                *(
                    f'vllm:request_success_total{{{LABELS},finished_reason="{reason}"}} {counted[reason]}'
                    for reason in ("stop", "error")
                ),
                f"# TYPE {first} histogram",
                *(f'{first}_bucket{{{LABELS},le="{bound}"}} {value}' for bound, value in buckets),
                f"{first}_count{{{LABELS}}} {total}",
                f"{first}_sum{{{LABELS}}} {0.2 * counted['fast'] + 2.0 * counted['slow']}",
                f"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {self.started}\n",
            ]
        )

    def gpu_page(self) -> str:
        """As of dsobs-nvml with DCGM's names beside its own: what dcgm-exporter shows by default of these, and the
        double-bit errors that many add to it."""
        used, total = 74 * GIB + self.foreign_bytes, 80 * GIB
        last = max((xid for xid, count in self.xids.items() if count), default=0)
        foreign = [f'dsobs_gpu_process_memory_bytes{{{CARD},pid="4194303"}} {self.foreign_bytes}']
        return "\n".join(
            [
                "dsobs_nvml_up 1",
                f"dsobs_gpu_up{{{CARD}}} 1",
                f"dsobs_gpu_memory_total_bytes{{{CARD}}} {total}",
                f"dsobs_gpu_memory_used_bytes{{{CARD}}} {used}",
                f'dsobs_gpu_process_memory_bytes{{{CARD},pid="{os.getpid()}"}} {74 * GIB}',
                *(foreign if self.foreign_bytes else []),
                f'dsobs_gpu_clock_event_active{{{CARD},reason="hw_thermal_slowdown"}} {self.throttled}',
                *(
                    f'dsobs_gpu_xid_errors_total{{{CARD},xid="{xid}",reason="{XIDS[xid]}"}} {count}'
                    for xid, count in self.xids.items()
                ),
                *(
                    f'dsobs_gpu_xid_last_time_seconds{{{CARD},xid="{xid}",reason="{XIDS[xid]}"}} {self.xid_times[xid]}'
                    for xid, count in self.xids.items()
                    if count
                ),
                f'dsobs_gpu_ecc_errors_total{{{CARD},type="uncorrected"}} {self.ecc_uncorrected}',
                f"dsobs_gpu_row_remap_pending{{{CARD}}} {self.remap_pending}",
                f"dsobs_gpu_row_remap_failed{{{CARD}}} {self.remap_failed}",
                f"DCGM_FI_DEV_FB_USED{{{CARD}}} {used // 2**20}",
                f"DCGM_FI_DEV_FB_FREE{{{CARD}}} {(total - used) // 2**20}",
                f"DCGM_FI_DEV_XID_ERRORS{{{CARD}}} {last}",
                f"DCGM_FI_DEV_ROW_REMAP_FAILURE{{{CARD}}} {self.remap_failed}",
                f"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{{CARD}}} {self.ecc_uncorrected}\n",
            ]
        )

    def restart(self) -> None:
        """Another process: counters from 0."""
        self.started = time.time()
        self.counted = dict.fromkeys(self.counted, 0.0)

    async def _answer(self, text: str) -> web.Response:
        if self.silent:
            await self.for_ever.wait()
        return web.Response(text=text)

    def application(self) -> web.Application:
        """The engine: `/metrics`, `/health`, and what a probe asks."""
        app = web.Application()

        async def metrics(_: web.Request) -> web.Response:
            return await self._answer(self.engine_page())

        async def health(_: web.Request) -> web.Response:
            return await self._answer("")

        async def models(_: web.Request) -> web.Response:
            if self.silent:
                await self.for_ever.wait()
            return web.json_response({"object": "list", "data": [{"id": "deepseek-r1-7b", "object": "model"}]})

        async def completion(_: web.Request) -> web.Response:
            if self.silent:
                await self.for_ever.wait()
            return web.json_response({"object": "text_completion", "choices": [{"index": 0, "text": "x"}]})

        app.router.add_get("/metrics", metrics)
        app.router.add_get("/health", health)
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/completions", completion)
        return app

    def exporter(self) -> web.Application:
        """The node's GPU exporter."""
        app = web.Application()

        async def metrics(_: web.Request) -> web.Response:
            return web.Response(text=self.gpu_page())

        app.router.add_get("/metrics", metrics)
        return app


@dataclass(frozen=True)
class Fault:
    """What happens, the shipped alert for it, and what people use on the engine's and dcgm-exporter's own metrics."""

    name: str
    alert: str
    begin: Callable[[Server], None] | None
    """None: done to a simulator's processes."""
    native: str = ""
    """Alert of `NATIVE_RULES`; empty where nothing there shows it."""
    gpu: bool = False
    idle: bool = False
    """A simulator without clients."""


def _put(**values: object) -> Callable[[Server], None]:
    def begin(server: Server) -> None:
        for name, value in values.items():
            setattr(server, name, value)

    return begin


def _xid(number: int) -> Callable[[Server], None]:
    def begin(server: Server) -> None:
        server.xids[number] += 1
        server.xid_times[number] = time.time()

    return begin


_STUCK = {"running": 0, "waiting": 6, "kv_usage": 0.0, "requests": 0.0, "tokens": 0.0}
FAULTS = (
    Fault("engine core stopped (SIGSTOP) under load", "EngineHung", None, "NoTokens"),
    Fault("engine core stopped (SIGSTOP) while idle", "EngineHung", None, idle=True),
    Fault("engine core killed under load", "EngineDown", None, "TargetDown"),
    Fault("port accepts, nothing is answered", "EngineUnresponsive", _put(silent=True), "TargetDown"),
    Fault("six requests wait, none runs", "SchedulerStuck", _put(**_STUCK), "WaitingNotRunning"),
    Fault(
        "one preemption a second, KV cache 99 %", "PreemptionThrash", _put(preemptions=1.0, kv_usage=0.99), "Preempts"
    ),
    Fault("KV cache 99 %, eight requests wait", "KVCacheSaturated", _put(kv_usage=0.99, waiting=8), "KVCacheFull"),
    Fault("40 requests wait", "QueueGrowing", _put(waiting=40), "QueueLong"),
    Fault("30 % of the requests fail", "ErrorRateHigh", _put(error_share=0.3), "ErrorShare"),
    Fault("first tokens take 2 s", "LatencyP99High", _put(slow_share=1.0), "FirstTokenSlow"),
    Fault("fourth restart", "ContainerRestartsHigh", Server.restart, "Restarts"),
    Fault("memory for work 44 % → 91 %", "GPUMemoryHigh", _put(kv_usage=0.97), "MemoryFull", gpu=True),
    Fault("XID 13", "GPUApplicationFault", _xid(13), "Xid", gpu=True),
    Fault("XID 119", "GPUResetNeeded", _xid(119), "Xid", gpu=True),
    Fault("XID 79", "GPUFellOffBus", _xid(79), "Xid", gpu=True),
    Fault("XID 48", "GPUFaultEscalate", _xid(48), "Xid", gpu=True),
    Fault("thermal slowdown", "GPUThrottled", _put(throttled=1), gpu=True),
    Fault("2 GiB held by a foreign process", "GPUOrphanMemory", _put(foreign_bytes=2 * GIB), gpu=True),
    Fault("uncorrected memory error", "GPUECCUncorrected", _put(ecc_uncorrected=1), "DoubleBit", gpu=True),
    Fault("row remap pending", "GPURowRemapPending", _put(remap_pending=1), gpu=True),
    Fault("row remap failed", "GPURowRemapFailed", _put(remap_failed=1), "RowRemapFailure", gpu=True),
)
"""Those of the catalogue that a page or a signal can make within half an hour. Not played: burn rates (they want half
of 1 h or 6 h covered first), what is the host's (disk, /dev/shm, cgroup), EngineStartSlow and EngineTargetAbsent (the
settings' own length), EngineSignalsLost, dsobs's own."""

_ERRORS = 'sum by (instance) (increase(vllm:request_success_total{finished_reason="error"}[5m]))'
_FINISHED = 'sum by (instance) (increase(vllm:request_success_total{finished_reason!="abort"}[5m]))'
NATIVE_RULES = {
    # Alert: expression, for, severity.
    "NoTokens": ("vllm:num_requests_running > 0 and rate(vllm:generation_tokens_total[5m]) == 0", "0s", "critical"),
    "TargetDown": ('up{job="engine"} == 0', "1m", "critical"),
    "WaitingNotRunning": ("vllm:num_requests_waiting > 0 and vllm:num_requests_running == 0", "3m", "critical"),
    "Preempts": ("rate(vllm:num_preemptions_total[5m]) > 0.1", "5m", "warning"),
    "KVCacheFull": ("vllm:kv_cache_usage_perc > 0.95", "5m", "warning"),
    "QueueLong": ("vllm:num_requests_waiting > 10", "5m", "warning"),
    "ErrorShare": (f"{_ERRORS} / {_FINISHED} > 0.05", "2m", "warning"),
    "FirstTokenSlow": (
        "histogram_quantile(0.99, sum by (le, instance) (rate(vllm:time_to_first_token_seconds_bucket[5m]))) > 0.5",
        "0s",
        "warning",
    ),
    "Restarts": ('changes(process_start_time_seconds{job="engine"}[24h]) > 3', "0s", "warning"),
    "MemoryFull": ("DCGM_FI_DEV_FB_USED / (DCGM_FI_DEV_FB_USED + DCGM_FI_DEV_FB_FREE) > 0.85", "5m", "warning"),
    "Xid": ("DCGM_FI_DEV_XID_ERRORS > 0", "0s", "critical"),
    "DoubleBit": ("increase(DCGM_FI_DEV_ECC_DBE_VOL_TOTAL[1h]) > 0", "0s", "warning"),
    "RowRemapFailure": ("DCGM_FI_DEV_ROW_REMAP_FAILURE > 0", "0s", "critical"),
}
"""With the limits and times of the shipped rule for the same fault, where the metrics allow it."""
