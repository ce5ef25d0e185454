"""The first log lines: what is on and what is off, each with the setting that changes it."""

import logging
from pathlib import Path

from dsobs import __version__
from dsobs.config import Config, Mode
from dsobs.rules.evaluator import Evaluator

log = logging.getLogger(__name__)


def announce(config: Config, evaluator: Evaluator, folder: Path, state_error: str) -> None:
    """Says it. `state_error`: why nothing is kept on disk; empty where it is."""
    log.info("dsobs %s beside %s (target.url)", __version__, config.target.url)
    cards = "NVML, if there is a driver" if config.gpu.source == "local" else config.gpu.source
    log.info("GPU readings: %s (gpu.enabled, gpu.source)", cards if config.gpu.enabled else "off")
    groups = evaluator.rules()["groups"]
    rules = sum(len(group["rules"]) for group in groups)
    log.info("rules: %d, groups: %d (rules.shipped, rules.files)", rules, len(groups))
    _tell_paging(config)
    log.info("synthetic requests: %s (hang.probe)", "on" if config.probes_enabled else "none are sent")
    mode = config.remediation.mode
    log.info("repair: %s (remediation.mode)", "enforce" if mode is Mode.ENFORCE else "observe: nothing is changed")
    scaling = config.scaling
    log.info(
        "scale-out: %s (scaling.mode)",
        f"up to {scaling.max_replicas} replicas" if scaling.mode == "scale" else "the demand is published",
    )
    log.info("logs: %s (logs.files)", _shipping(config) if config.logs.files else "none are tailed")
    log.info("OpenTelemetry: %s (otlp)", config.otlp.endpoint if config.otlp is not None else "nothing is exported")
    log.info("control endpoints: %s (api.control_token)", "on" if config.api.control_token else "off")
    log.info("state in %s (state.directory)", f"memory: {state_error}" if state_error else folder)


def _shipping(config: Config) -> str:
    elastic, otlp = config.logs.elasticsearch, config.logs.otlp
    sink = "a file (logs.elasticsearch, logs.otlp)"
    if elastic is not None:
        sink = ", ".join(elastic.urls)
    elif otlp is not None:
        sink = otlp.endpoint
    return f"{', '.join(config.logs.files)} to {sink}"


def _tell_paging(config: Config) -> None:
    notifiers = config.notifiers
    told = sorted(name for name in type(notifiers).model_fields if getattr(notifiers, name) is not None)
    log.info("pages: %s (notifiers)", ", ".join(told) if told else "nobody is paged")
    if config.rules.evaluation == "prometheus":
        log.info(
            "pages are evaluated by Prometheus (rules.evaluation): from here only go Watchdog and what became of repair"
        )
    if notifiers.alertmanager is not None and notifiers.pagerduty is not None and not notifiers.pagerduty.fallback:
        log.warning(
            "both PagerDuty and Alertmanager are told: where Alertmanager pages the same service, each fault is two "
            "incidents (notifiers.pagerduty.fallback)"
        )
    heartbeat = "on" if config.heartbeat.url is not None else "none is sent"
    log.info("heartbeat: %s (heartbeat.url)", heartbeat)
