"""The one snapshot that page, events and `dsobs status` show: a pure function of what the sidecar holds."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsobs import __version__
from dsobs.config import Config
from dsobs.config.models import Mode
from dsobs.config.settings import shown_settings
from dsobs.indicators import INDICATORS, Better, Indicator
from dsobs.model.alert import Alert, AlertState
from dsobs.model.observation import Unknown
from dsobs.model.samples import Labels
from dsobs.model.status import (
    Charts,
    Fact,
    Guards,
    GuardState,
    LogTail,
    NextStep,
    Reading,
    ShownSetting,
    StandingAlert,
    StandingAlerts,
    State,
    Status,
    Tile,
    TimelineEntry,
    TimelineIncident,
)
from dsobs.remediation.guard import GUARDS, Case, Switches, cooldown_left, restarts_used
from dsobs.remediation.ledger import Incident, Ledger, said
from dsobs.remediation.plan import ACTION_LABEL, Step, awaited, gpu_fault_of, under_repair
from dsobs.series.store import Series, Store, is_stale
from dsobs.sidecar.facts import OF_NOBODY, Seen, facts, faults, start_up, state_of
from dsobs.sidecar.plain import plain

MAX_ALERTS = 50
MAX_LABELS = 24
MAX_INCIDENTS = 10
MAX_ENTRIES = 30
MAX_MODELS = 6
MAX_TEXT = 1000
"""Characters of one text that comes from elsewhere."""
CHART_SECONDS = 1800.0
STEP = 15.0
"""As often as indicators are recorded."""
READING_SECONDS = 60.0
"""A recorded value that is older says nothing about now."""
_SEVERITIES = ("critical", "error", "warning", "info", "none")


@dataclass(frozen=True, slots=True)
class Held:
    """What the sidecar holds beside what it has seen."""

    name: str
    silenced: Collection[str]
    """Fingerprints of alerts."""
    next_step: Callable[[Alert], str]
    """What dsobs does about an alert."""
    ledger: Ledger
    switches: Switches
    steps: Sequence[Step]
    """That are due."""
    store: Store
    recorded: Collection[str]
    """Names of the series that rules record."""
    tails: tuple[LogTail, ...]
    settings: tuple[ShownSetting, ...]
    """As `settings_shown` gives them."""
    reload_error: str = ""
    logs: Mapping[str, Any] | None = None


def snapshot(seen: Seen, held: Held) -> Status:
    """All of it at `seen.now`."""
    state, headline = state_of(seen)
    case = Case(seen.view, held.ledger, held.switches, seen.config.remediation, seen.now)
    case = Case(case.view, case.ledger, case.switches, case.settings, case.now, gpu_fault_of(seen.alerts, seen.view))
    known = facts(seen)
    tiles = tuple(_tile(indicator, seen, held) for indicator in INDICATORS.values())
    incidents = held.ledger.incidents()
    return Status(
        at=seen.now,
        name=held.name,
        version=__version__,
        target=seen.config.target.url,
        engine=seen.engine,
        state=state,
        headline=_cut(headline),
        facts=tuple(Fact(fact.name, fact.verdict, _cut(fact.text)) for fact in known),
        start_up=start_up(seen),
        indicators=tiles,
        alerts=_alerts(seen, held),
        incidents=tuple(_incident(incident) for incident in reversed(incidents[-MAX_INCIDENTS:])),
        incidents_left_out=max(len(incidents) - MAX_INCIDENTS, 0),
        guards=_guards(case),
        next_steps=tuple(NextStep(step.action, _cut(step.reason), step.refused) for step in held.steps),
        next_text=_next_text(seen, held, state),
        unknown=_unknown(seen, tiles),
        log_tails=held.tails,
        settings=held.settings,
        reload_error=held.reload_error or None,
        logs=held.logs,
        view=plain(seen.view),
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


# Indicators.


def _tile(indicator: Indicator, seen: Seen, held: Held) -> Tile:
    now = round(seen.now * 1000)
    found: list[Reading] = []
    for series in held.store.series(indicator.record):
        value = _value_at(series, now, READING_SECONDS * 1000)
        if value is not None:
            bad = indicator.is_bad(value, seen.config)
            found.append(Reading(_model(series.labels), value, indicator.shown(value), bad))
    found.sort(key=lambda reading: (not reading.bad, reading.model))
    threshold = indicator.threshold_of(seen.config)
    word = ">" if indicator.better is Better.LOWER else "<"
    return Tile(
        name=indicator.name,
        title=indicator.title,
        about=indicator.class_.value,
        question=indicator.question,
        unit=indicator.unit,
        better=indicator.better.value,
        threshold=threshold,
        threshold_shown="" if threshold is None else f"{word} {indicator.shown(threshold)}",
        bad_value=indicator.bad,
        readings=tuple(found[:MAX_MODELS]),
        unknown="" if found else _cut(_why_not(indicator, seen, held)),
        left_out=max(len(found) - MAX_MODELS, 0),
    )


def _model(labels: Labels) -> str:
    return _cut(next((value for name, value in labels if name == "model_name"), ""))


def _value_at(series: Series, t: int, oldest: float) -> float | None:
    """The value that held at `t` (ms), at most `oldest` ms old; None where it is not known."""
    sample = series.at(t)
    if sample is None or t - sample[0] > oldest or is_stale(sample[1]) or not math.isfinite(sample[1]):
        return None
    return sample[1]


def _why_not(indicator: Indicator, seen: Seen, held: Held) -> str:
    """Why there is no reading."""
    formula = indicator.formula
    if seen.standing is not None:
        return seen.standing
    if indicator.record not in held.recorded:
        return "no rule records it (rules.shipped)"
    if "dsobs_gpu_" in formula and isinstance(seen.gpus, Unknown):
        return f"GPUs: {seen.gpus.reason}"
    if "dsobs_container_" in formula and isinstance(seen.view.runtime, Unknown):
        return f"process: {seen.view.runtime.reason}"
    if "dsobs_log_" in formula and not seen.config.logs.files:
        return "no log is shipped (logs.files)"
    if "dsobs_outbox_" in formula:
        return "nothing was to be told yet, or nobody is paged (notifiers)"
    if "dsobs_engine_" in formula and not seen.view.up:
        return "the engine's metrics page can't be read"
    return f"no data for it within its window: {indicator.source}"


def charts(store: Store, now: float) -> Charts:
    """The last 30 minutes of all indicators, a point each 15 s; a gap where nothing was known."""
    count = round(CHART_SECONDS / STEP) + 1
    end = math.floor(now / STEP) * STEP
    start = end - (count - 1) * STEP
    times = [round((start + n * STEP) * 1000) for n in range(count)]
    found: dict[str, dict[str, tuple[float | None, ...]]] = {}
    for name, indicator in INDICATORS.items():
        lines: dict[str, tuple[float | None, ...]] = {}
        for series in store.series(indicator.record):
            values = tuple(_rounded(_value_at(series, t, 2 * STEP * 1000)) for t in times)
            if len(lines) < MAX_MODELS and any(value is not None for value in values):
                lines[_model(series.labels)] = values
        found[name] = lines
    return Charts(start, STEP, count, found)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


# Alerts and incidents.


def _alerts(seen: Seen, held: Held) -> StandingAlerts:
    standing = [alert for alert in seen.alerts if alert.severity not in OF_NOBODY]

    def order(alert: Alert) -> tuple[bool, int, float]:
        severity = alert.severity
        rank = _SEVERITIES.index(severity) if severity in _SEVERITIES else 1
        return alert.state is not AlertState.FIRING, rank, alert.active_at

    standing.sort(key=order)
    firing = sum(alert.state is AlertState.FIRING for alert in standing)
    return StandingAlerts(
        firing=firing,
        pending=len(standing) - firing,
        shown=tuple(_alert(alert, held) for alert in standing[:MAX_ALERTS]),
        left_out=max(len(standing) - MAX_ALERTS, 0),
        failing_rules=tuple((name, _cut(error)) for name, error in seen.failing_rules[:MAX_ALERTS]),
    )


_OWN_PLACE = ("summary", "description", "runbook", "runbook_url")


def _alert(alert: Alert, held: Held) -> StandingAlert:
    notes = alert.annotations
    return StandingAlert(
        name=alert.name,
        severity=alert.severity,
        state=alert.state.value,
        since=alert.active_at,
        value="unknown" if math.isnan(alert.value) else f"{alert.value:.6g}",
        summary=_cut(notes.get("summary", "")),
        description=_cut(notes.get("description", "")),
        runbook=notes.get("runbook_url") or notes.get("runbook", ""),
        labels={name: _cut(value) for name, value in sorted(alert.labels.items())[:MAX_LABELS] if name != "alertname"},
        silenced=alert.fingerprint in held.silenced,
        confirmed=alert.confirmed,
        evidence=tuple((name, _cut(text)) for name, text in sorted(notes.items()) if name not in _OWN_PLACE)[
            :MAX_LABELS
        ],
        next_step=held.next_step(alert),
    )


def _incident(incident: Incident) -> TimelineIncident:
    lines = incident.entries
    if len(lines) > MAX_ENTRIES:
        lines = (lines[0], *lines[-(MAX_ENTRIES - 1) :])
    return TimelineIncident(
        id=incident.id,
        opened_at=incident.opened_at,
        closed=incident.closed,
        alerts=incident.alerts,
        entries=tuple(TimelineEntry(e.at, f"{e.kind} {e.state}", _cut(said(e.detail))) for e in lines),
        left_out=len(incident.entries) - len(lines),
    )


# Repair.


def _guards(case: Case) -> Guards:
    used, limit = restarts_used(case), case.settings.max_restarts_24h
    going_on = case.ledger.open_incident()
    return Guards(
        mode=case.settings.mode.value,
        killed=case.switches.killed,
        restarts_24h=case.view.restarts_24h,
        max_restarts_24h=limit,
        budget_left=None if used is None else max(limit - used, 0),
        cooldown_left=cooldown_left(case),
        ledger_writable=case.ledger.writable,
        incident=going_on.id if going_on is not None else None,
        checks=tuple(
            GuardState(guard.__name__, (guard.__doc__ or "").partition("\n")[0], guard(case)) for guard in GUARDS
        ),
    )


_STEPS = {
    "open": "open an incident",
    "evidence": "gather evidence",
    "drain": "wait until the other engines have finished",
    "restart": "restart the engine",
    "verified": "note that the repair is verified",
    "failed": "note that the repair did not help",
    "page": "page a person",
    "close": "close the incident",
}


def _next_text(seen: Seen, held: Held, state: State) -> str:
    """What dsobs would do next, as a sentence."""
    observes = seen.config.remediation.mode is Mode.OBSERVE
    for step in sorted(held.steps, key=lambda step: step.action != "restart"):
        what = _STEPS.get(step.action, step.action)
        if step.refused is not None:
            return _cut(f"It would {what} ({step.reason}), and a guard refuses: {step.refused}.")
        note = "; mode is observe, so it is only noted" if observes and step.action == "restart" else ""
        return _cut(f"Next: {what} ({step.reason}){note}.")
    going_on = held.ledger.open_incident()
    if going_on is not None and under_repair(held.ledger):
        return f"A restart of incident {going_on.id} is under way, or is being verified."
    asking = [alert for alert in faults(seen.alerts) if alert.labels.get(ACTION_LABEL) == "restart"]
    if asking:
        return _cut(" ".join(dict.fromkeys(_awaiting(alert, seen, held, observes=observes) for alert in asking)))
    if going_on is not None:
        return f"Incident {going_on.id} is open: it is closed once the engine stays well."
    if state is State.UNKNOWN:
        return "Nothing: nothing is repaired while the state is not known."
    return "Nothing: no alert asks for a repair."


def _awaiting(alert: Alert, seen: Seen, held: Held, *, observes: bool) -> str:
    """What an alert that asks for a restart leads to, and what it waits for."""
    if alert.fingerprint in held.silenced:
        return f"Nothing for {alert.name}: it is silenced, and nothing is repaired while that holds."
    if not alert.confirmed:
        return f"Nothing for {alert.name} yet: it is from before dsobs was restarted, and has to be seen anew."
    note = "; mode is observe, so it is only noted" if observes else ""
    waits = awaited(alert, seen.view, seen.now, seen.config.remediation)
    return f"{alert.name} leads to a restart, unless a guard refuses{note}. It waits for {waits}."


def _unknown(seen: Seen, tiles: Sequence[Tile]) -> dict[str, str]:
    """What is not known → why."""
    found: dict[str, str] = {}
    if seen.standing is not None:
        found["dsobs"] = seen.standing
    if seen.engine is None:
        found["engine"] = "its metrics page was not recognized" if seen.view.up else "its metrics page was not read"
    if isinstance(seen.gpus, Unknown):
        found["gpu"] = seen.gpus.reason
    if isinstance(seen.view.runtime, Unknown):
        found["runtime"] = seen.view.runtime.reason
    if seen.view.restarts_24h is None:
        found["restarts"] = "neither the runtime nor the engine's page tells when it was started"
    found |= {f"rule {name}": _cut(error) for name, error in seen.failing_rules[:MAX_ALERTS]}
    return found | {tile.title: tile.unknown for tile in tiles if tile.unknown}


# Settings.


def settings_shown(config: Config) -> tuple[ShownSetting, ...]:
    """Each setting in force, secrets as stars or references."""
    defaults = dict(shown_settings(Config()))
    return tuple(
        ShownSetting(".".join(key), _written(value), defaults.get(key, ...) != value)
        for key, value in shown_settings(config)
    )


def _written(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(value) if value else "none"
    return _cut(str(value))
