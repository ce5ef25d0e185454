"""Servers as the status page may have to show them, each in virtual time: what tests, screenshots and the benchmark
look at."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from dsobs.config import Config, Secret
from dsobs.config.models import Api, Mode, Notifiers, PagerDuty, Remediation
from dsobs.indicators import INDICATORS
from dsobs.model.alert import Alert, AlertState
from dsobs.model.observation import Gpu, Unknown
from dsobs.model.samples import labels
from dsobs.model.status import Charts, LogTail, Status
from dsobs.model.view import View
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Entry, Ledger
from dsobs.series.store import Store
from dsobs.sidecar.facts import Seen
from dsobs.sidecar.snapshot import CHART_SECONDS, STEP, Held, charts, settings_shown, snapshot
from tests.pipeline.world import Server, World

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"
"""A model's name, a label and a log line as somebody might choose them."""
SECRET = "R0UT1NG-K3Y"
CONFIG = Config(
    remediation=Remediation(mode=Mode.ENFORCE),
    notifiers=Notifiers(pagerduty=PagerDuty(routing_key=Secret(SECRET))),
    api=Api(control_token=Secret("file:/etc/dsobs/control.token")),
)
CARD = Gpu(0, "GPU-0", memory_total_bytes=80 * 2**30, memory_used_bytes=74 * 2**30, utilization_ratio=0.9)
AT = 1_700_000_000.0
USUAL = {
    "engine_unresponsive": 0.0,
    "engine_stall": 0.06,
    "start_up": 0.0,
    "availability": 0.9997,
    "restarts_24h": 1.0,
    "log_delay": 0.8,
    "notification_delay": 0.0,
    "turn_age": 0.5,
    "gpu_throttled": 0.0,
    "error_ratio": 0.002,
    "time_to_first_token_objective": 0.998,
    "disk_free": 0.41,
}
"""Indicators whose usual value does not follow from their threshold."""
ENGINE_LOG = (
    "INFO 11-14 22:12:50 [loggers.py:127] Engine 000: Avg prompt throughput: 812.3 tokens/s, Running: 4 reqs",
    'INFO:     10.0.0.7:40412 - "POST /v1/completions HTTP/1.1" 200 OK',
)


def seen(world: World, **more: object) -> Seen:
    """What is known of it now."""
    pipeline = world.pipeline
    found = Seen(
        now=world.now,
        config=world.config,
        view=pipeline.view,
        engine=pipeline.adapter.name if pipeline.adapter is not None else None,
        scrape=pipeline.last_scrape,
        health=pipeline.last_health,
        gpus=pipeline.gpus,
        alerts=[alert for alert in world.evaluator.alerts() if alert.state is not AlertState.RESOLVED],
        has_rules=world.evaluator.has_alert_rules,
        failing_rules=world.evaluator.failures(),
    )
    return replace(found, **more)  # type: ignore[arg-type]


def held(world: World, **more: object) -> Held:
    """What dsobs holds beside it."""
    found = Held(
        name="vllm-0",
        silenced=(),
        next_step=lambda _: "restarts the engine once it is confirmed and no guard refuses",
        ledger=world.ledger,
        switches=Switches(),
        steps=world.pipeline.planned(world.now, world.ledger, Switches(), ()),
        store=world.store,
        recorded=world.evaluator.metric_names,
        tails=(LogTail("engine", ENGINE_LOG, ""), LogTail("dsobs", ("22:12:51 INFO    the engine is ready",), "")),
        settings=settings_shown(world.config),
    )
    return replace(found, **more)  # type: ignore[arg-type]


def shown(world: World) -> Status:
    """Its snapshot."""
    return snapshot(seen(world), held(world))


def half_an_hour(now: float, models: Sequence[str] = ("m",), broken_at: float = math.inf) -> Store:
    """Recorded indicators of 30 minutes; what is inference stands still from `broken_at` on."""
    store = Store()
    for number, indicator in enumerate(INDICATORS.values()):
        store.want(indicator.record, CHART_SECONDS)
        by_model = models if indicator.class_.value == "inference performance" else ("",)
        threshold = indicator.threshold_of(CONFIG)
        for which, model in enumerate(by_model):
            series = labels(indicator.record, model_name=model)
            for n in range(int(CHART_SECONDS // STEP) + 1):
                at = now - CHART_SECONDS + n * STEP
                usual = USUAL.get(indicator.name, _usual(indicator.unit, threshold, indicator.better.value))
                wave = 1 + 0.12 * math.sin(n / 7 + number + which) + 0.05 * math.sin(n / 1.7 + 3 * number)
                flat = (
                    indicator.name in USUAL
                    or indicator.unit in ("bool", "faults", "errors", "restarts", "alerts", "lines")
                    or usual == 0
                )
                value = usual if flat else usual * wave
                if at >= broken_at and model:
                    value = 0.0 if indicator.unit.endswith("/s") else 3 * value
                store.append(series, at, min(value, 1.0) if indicator.unit == "ratio" else value)
    return store


def _usual(unit: str, threshold: float | None, better: str) -> float:
    if unit == "bool":
        return 1.0
    if threshold is not None and threshold > 0:
        return threshold * 0.6 if better == "lower" else min(threshold * 1.05, 1.0) if unit == "ratio" else threshold
    if unit in ("faults", "errors", "restarts", "alerts", "lines"):
        return 0.0
    return {"ratio": 0.6, "seconds": 0.2, "tokens/s": 950.0, "requests/s": 3.2, "requests": 4.0}.get(unit, 12.0)


def _world(seconds: float = 60.0, config: Config = CONFIG) -> World:
    world = World(config=config, now=AT - seconds, gpus=(CARD,), server=Server(started_at=AT - 3 * 86400.0))
    world.run(seconds)
    return world


def healthy() -> tuple[Status, Charts]:
    """Four requests are served; half an hour of it."""
    world = _world()
    store = half_an_hour(world.now)
    ledger = Ledger(tuple(_past(world.now - 7200.0)))
    world.ledger = ledger
    return snapshot(seen(world), held(world, store=store)), charts(store, world.now)


def _past(at: float) -> list[Entry]:
    lines: list[tuple[float, str, str, dict[str, object]]] = [
        (0.0, "incident", "opened", {"alerts": ["EngineHung"], "reason": "EngineHung firing"}),
        (0.4, "evidence", "done", {"folder": "/var/lib/dsobs/incidents/i1"}),
        (30.1, "restart", "reserved", {"reason": "no progress for 41 s, probe failed"}),
        (35.7, "restart", "done", {"attempt": 3}),
        (93.2, "verify", "done", {"reason": "new instance, ready, a probe was answered"}),
        (94.2, "incident", "closed", {"reason": "its alerts are gone"}),
    ]
    return [
        Entry(at + after, "20231114T201320Z-3f9c", kind, state, detail, n + 1)
        for n, (after, kind, state, detail) in enumerate(lines)
    ]


def hung() -> tuple[Status, Charts]:
    """Its core stands still with requests outstanding; the alert fires, a restart is being waited for."""
    world = _world()
    world.server.frozen = True
    world.run(200, until=lambda: "EngineHung" in world.firing())
    world.run(5)
    store = half_an_hour(world.now, broken_at=world.now - 60.0)
    return snapshot(seen(world), held(world, store=store)), charts(store, world.now)


def unknown() -> tuple[Status, Charts]:
    """Its page times out, no runtime and no GPU can be asked, and a rule fails."""
    world = World(config=CONFIG, now=AT - 60.0, gpus=Unknown("no NVIDIA driver"), knows_runtime=False)
    tails = (LogTail("engine", (), "no runtime configured"), LogTail("dsobs", ("22:13:20 WARNING no answer",), ""))
    world.run(2)
    failing = [("LatencyP99High", "more than 5000000 samples would be read")]
    looked = seen(world, scrape=None, failing_rules=failing)
    return snapshot(looked, held(world, store=Store(), tails=tails)), charts(Store(), world.now)


def empty() -> tuple[Status, Charts]:
    """dsobs has just been started beside nothing."""
    config = Config()
    world = World(config=config, now=AT, knows_runtime=False)
    nothing = seen(world, view=View(at=AT), standing="the first turn is not done")
    tails = (LogTail("engine", (), "not read yet"), LogTail("dsobs", (), "nothing was logged yet"))
    return snapshot(nothing, held(world, store=Store(), tails=tails, steps=[])), charts(Store(), AT)


def many_alerts(count: int = 500) -> tuple[Status, Charts]:
    """So many alerts, and names that try to inject."""
    world = _world()
    alerts = [
        Alert(
            f"Alert{n % 40}",
            {"alertname": f"Alert{n % 40}", "severity": "critical" if n % 3 else "warning", "model_name": HOSTILE},
            {"summary": f"Number {n}: {HOSTILE}", "description": "x" * 5000, "runbook_url": "javascript:alert(3)"},
            AlertState.FIRING if n % 5 else AlertState.PENDING,
            float(n),
            world.now - n,
        )
        for n in range(count)
    ]
    store = half_an_hour(world.now, (HOSTILE, *(f"model-{n}" for n in range(9))))
    tails = (LogTail("engine", (HOSTILE,) * 100, ""), LogTail("dsobs", (HOSTILE,), ""))
    return snapshot(seen(world, alerts=alerts), held(world, store=store, tails=tails)), charts(store, world.now)


SCENES: dict[str, Callable[[], tuple[Status, Charts]]] = {
    "healthy": functools.cache(healthy),
    "hung": functools.cache(hung),
    "unknown": functools.cache(unknown),
    "empty": functools.cache(empty),
    "500-alerts": functools.cache(many_alerts),
}
"""Each made once; nothing in it is changed."""
