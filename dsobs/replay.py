"""A recorded incident in virtual time: the same parsing, rules and planning as the live loop, as in enforce mode.

There is no probe in a replay. EngineHung becomes critical at max(threshold, 10 s) of stall, or at 65 s in a prefill,
and
the restart is planned only where the stall lasts as long as confirmation and waiting would.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dsobs.collectors.nvml import gpus_of_record
from dsobs.config import Config, Mode
from dsobs.config.models import PagerDuty
from dsobs.model.alert import Alert, AlertState
from dsobs.model.observation import Failure, Observation, Scrape, Unknown
from dsobs.model.view import View
from dsobs.notifiers.inhibition import inhibitor
from dsobs.notifiers.messages import severity_of
from dsobs.pipeline import Pipeline, inhibit_rules, rule_groups
from dsobs.recorder.records import failed_scrape_of, health_of, host_of, paused_of, read_records, runtime_of
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Entry, Ledger
from dsobs.remediation.plan import Step
from dsobs.rules.evaluator import Evaluator
from dsobs.series.exposition import ExpositionError, Parser
from dsobs.series.store import Store


def observation_of(record: dict[str, Any], parser: Parser) -> Observation:
    """One record as the live loop would have seen it, probes left out."""
    at = float(record["t"])
    text = record.get("metrics")
    scrape = failed_scrape_of(record)
    if isinstance(text, str) and "failure" not in record and _is_page(text):
        seconds = record.get("metrics_s")
        duration = float(seconds) if isinstance(seconds, int | float) else 0.0
        try:
            scrape = Scrape(at, duration, page=parser.parse(text), text=text, status=200)
        except ExpositionError as error:
            scrape = Scrape(at, duration, text=text, failure=Failure.UNPARSABLE, detail=str(error), status=200)
    runtime = runtime_of(record)
    return Observation(
        at=at,
        scrape=scrape,
        health=health_of(record),
        gpus=gpus_of_record(record.get("nvml")),
        runtime=runtime if runtime is not None else Unknown("not in the recording"),
        paused=paused_of(record),
        host=host_of(record) or Unknown("not in the recording"),
    )


def _is_page(text: str) -> bool:
    """A page has lines; an error in words is one."""
    return "\n" in text.strip() or text.startswith("#") or not text


SAYS_SOMETHING = ("metrics", "health", "nvml", "runtime")
"""A record without any of these tells nothing about a server."""


def is_usable(record: dict[str, Any]) -> bool:
    """Whether there is anything in it to replay."""
    return any(record.get(name) not in (None, "", [], {}) for name in SAYS_SOMETHING)


class Replay:
    """Runs records through the pipeline and yields what happened, in order."""

    def __init__(self, config: Config) -> None:
        remediation = config.remediation.model_copy(update={"mode": Mode.ENFORCE})
        config = config.model_copy(update={"remediation": remediation})
        groups = rule_groups(config)
        store = Store()
        evaluator = Evaluator(groups, store)
        self._pipeline = Pipeline(config, store, evaluator, probes="assumed", assume_restart=True)
        self._parser = Parser()
        self._ledger = Ledger()
        self._ids = itertools.count(1)
        self._refused: str | None = None
        self._inhibit = inhibit_rules(config)
        self._severities = _severities(config)
        self._source = config.target.name or "recording"
        self._told: set[str] = set()
        """Fingerprints of alerts that were paged and have not ended."""
        self._start: float | None = None
        self.samples = 0
        self.out_of_order = 0
        """Records that were left out, since they are older than the one before."""

    def run(self, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Events as `dsobs replay --json` prints them; the last one has kind `end`."""
        last = 0.0
        for record in records:
            obs = observation_of(record, self._parser)
            if self._start is None:
                self._start = obs.at
            if self.samples and obs.at < last:
                self.out_of_order += 1
                continue
            last = obs.at
            self.samples += 1
            turn = self._pipeline.turn(obs, self._ledger, Switches())
            for transition in turn.transitions:
                yield self._event(
                    transition.at,
                    "alert",
                    transition.alert.name,
                    transition.alert.state.value,
                    severity=transition.alert.severity,
                    labels=dict(transition.alert.labels),
                    annotations=dict(transition.alert.annotations),
                )
            yield from self._pages(self._pipeline.alerts(), obs.at)
            for step in turn.steps:
                yield from self._take(step, turn.view)
        yield {"t": self._since(last) if self._start is not None else 0.0, "kind": "end", "samples": self.samples}

    def _pages(self, alerts: Sequence[Alert], now: float) -> Iterator[dict[str, Any]]:
        """As a live dsobs tells them: once, where nothing that fires holds them back, and their end."""
        firing = [alert for alert in alerts if alert.state is AlertState.FIRING]
        sources = [self._labels(alert) for alert in firing]
        for alert, names in zip(firing, sources, strict=True):
            told = alert.fingerprint in self._told or alert.severity == "none"
            if told or severity_of(alert.severity) not in self._severities:
                continue
            if inhibitor(self._inhibit, names, sources) is None:
                self._told.add(alert.fingerprint)
                yield self._page(alert, "triggered", now)
        for alert in alerts:
            if alert.state is AlertState.RESOLVED and alert.fingerprint in self._told:
                self._told.discard(alert.fingerprint)
                yield self._page(alert, "resolved", now)

    def _labels(self, alert: Alert) -> dict[str, str]:
        return {"instance": self._source, **alert.labels, "alertname": alert.name}

    def _page(self, alert: Alert, state: str, now: float) -> dict[str, Any]:
        return self._event(
            now,
            "page",
            alert.name,
            state,
            severity=alert.severity,
            labels=dict(alert.labels),
            annotations=dict(alert.annotations),
        )

    def _since(self, at: float) -> float:
        return round(at - (self._start or 0.0), 3)

    def _event(self, at: float, kind: str, name: str, state: str, **more: Any) -> dict[str, Any]:
        return {"t": self._since(at), "kind": kind, "name": name, "state": state, **more}

    def _take(self, step: Step, view: View) -> Iterator[dict[str, Any]]:
        """Writes what the actor would write, with the outcomes that can't be known left open."""
        now = view.at
        incident = step.incident or f"replay-{next(self._ids)}"
        if step.action == "restart" and step.refused is not None:
            if self._refused != step.refused.partition(":")[0]:
                self._refused = step.refused.partition(":")[0]
                yield self._step(now, step, "refused", step.refused)
            return
        kind, state = _LEDGER[step.action]
        detail: dict[str, Any] = {"reason": step.reason, "alerts": list(step.alerts)}
        if step.action == "restart":
            # Nobody restarts the engine of a recording: the attempt counts as made, with an outcome that is not known.
            attempt = next(self._ids)
            detail |= {"instance_started_at": view.instance_started_at, "attempt": attempt, "reserved_at": now}
            self._ledger = self._ledger.with_entry(Entry(now, incident, kind, "reserved", detail, attempt))
        self._ledger = self._ledger.with_entry(Entry(now, incident, kind, state, detail, next(self._ids)))
        yield self._step(now, step, "planned", step.reason)

    def _step(self, now: float, step: Step, state: str, reason: str) -> dict[str, Any]:
        event = self._event(now, "step", step.action, state, reason=reason)
        return {**event, "severity": "info", "labels": {"alerts": ", ".join(step.alerts)}, "annotations": {}}


def _severities(config: Config) -> frozenset[str]:
    """What the notifiers that are configured are told; without any, what a PagerDuty is by default."""
    notifiers = config.notifiers
    ways = [way for way in (notifiers.pagerduty, notifiers.slack, notifiers.webhook, notifiers.alertmanager) if way]
    told = [way.severities for way in ways] or [PagerDuty.model_fields["severities"].default]
    return frozenset(severity for severities in told for severity in severities)


_LEDGER = {
    "open": ("incident", "opened"),
    "close": ("incident", "closed"),
    "evidence": ("evidence", "done"),
    "drain": ("drain", "done"),
    "restart": ("restart", "unknown"),
    "verified": ("verify", "done"),
    "failed": ("verify", "failed"),
    "page": ("page", "done"),
}


def replay(path: Path, config: Config) -> Iterator[dict[str, Any]]:
    """The events of one recording; `RecordError` if it can't be read."""
    return Replay(config).run(read_records(path))
