"""Whether the server is healthy, and how that is known: pure functions of what was seen at one moment."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dsobs.config import Config
from dsobs.model.alert import Alert, AlertState
from dsobs.model.observation import Gpu, Health, ProbeOutcome, RuntimeView, Scrape, Unknown
from dsobs.model.status import Fact, StartUp, State, Verdict
from dsobs.model.view import EngineProgress, View
from dsobs.signals.progress import is_stalled

FRESH_SECONDS = 30.0
"""A page, or a turn of dsobs, that is older says nothing about now."""
OF_NOBODY = frozenset({"none", "info"})
"""Severities of alerts that tell of no fault."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the state is known by."""

    now: float
    config: Config
    view: View
    engine: str | None
    """Name of the adapter."""
    scrape: Scrape | None
    """The one that ended last."""
    health: Health | None
    gpus: tuple[Gpu, ...] | Unknown
    alerts: Sequence[Alert]
    """Pending and firing."""
    has_rules: bool
    """Some rule looks for faults."""
    failing_rules: Sequence[tuple[str, str]] = field(default=())
    standing: str | None = None
    """Why dsobs itself does not see what is: its loop stands still, or has not turned yet."""


def duration(seconds: float) -> str:
    """For people: `8 s`, `3 min`, `2.5 h`, `4 d`."""
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 172800 else f"{seconds / 86400:.3g} d"


def faults(alerts: Sequence[Alert]) -> list[Alert]:
    """Firing ones that tell of a fault."""
    return [a for a in alerts if a.state is AlertState.FIRING and a.severity not in OF_NOBODY]


def state_of(seen: Seen) -> tuple[State, str]:
    """The state, and a sentence that says why."""
    view, now, firing = seen.view, seen.now, faults(seen.alerts)
    if seen.standing is not None:
        return State.UNKNOWN, f"Not known: dsobs itself sees nothing, {seen.standing}."
    critical = {alert.name: alert for alert in firing if alert.severity != "warning"}
    if len(critical) == 1:
        ((name, alert),) = critical.items()
        return State.FAULTY, f"{name} fires: {alert.annotations.get('summary') or 'it has no summary'}."
    if critical:
        return State.FAULTY, f"{_names(sorted(critical))} fire."
    if view.down_since is not None:
        return State.FAULTY, f"Down for {duration(now - view.down_since)}: {view.down_reason}."
    hung = [engine for engine in view.engines if engine.failed_at is not None]
    if hung:
        return State.FAULTY, f"Hung: {_stall(hung[0])}, and a synthetic request was not answered."
    if view.planned_stop is not None:
        return State.STOPPED, f"Stopped on purpose: {view.planned_stop}."
    is_there = isinstance(view.runtime, RuntimeView) and view.runtime.running is True
    # What has never answered and is not seen to run may as well not be there.
    if not view.up and view.starting_since is not None and (view.seen or is_there):
        return _starting(seen, now - view.starting_since)
    unknown = next(_not_known(seen), None)
    if unknown is not None:
        return State.UNKNOWN, f"Not known: {unknown}."
    if view.asleep or view.paused:
        return State.STOPPED, "Its scheduler is paused." if view.paused else "It sleeps, as it was asked to."
    if not view.ready:
        if not view.was_ready and view.starting_since is not None:
            return _starting(seen, now - view.starting_since)
        return State.FAULTY, f"Not ready: {_health(seen.health)}."
    if firing:
        return State.DEGRADED, f"It serves, with a warning: {_names(sorted({alert.name for alert in firing}))}."
    text = _progress(view.engines, now).text
    return State.HEALTHY, f"{text[:1].upper()}{text[1:]}."


def _names(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 3 else " and ".join(names)


def _starting(seen: Seen, seconds: float) -> tuple[State, str]:
    budget = seen.config.startup.budget
    if seconds > budget:
        return State.FAULTY, f"Starting for {duration(seconds)}: it should have been up within {duration(budget)}."
    return State.STARTING, f"Starting for {duration(seconds)}, of {duration(budget)} that it has."


def _not_known(seen: Seen) -> Iterator[str]:
    """What keeps it from being known to be healthy, most telling first."""
    view = seen.view
    if not view.seen:
        yield f"the engine has never answered{_scrape_failure(seen.scrape)}"
    if seen.scrape is None or seen.now - seen.scrape.at > FRESH_SECONDS:
        yield f"its metrics page was not read for more than {FRESH_SECONDS:.0f} s"
    if not view.up:
        yield f"its metrics page can't be read{_scrape_failure(seen.scrape)}"
    if seen.engine is None:
        yield "its metrics page is of no engine that dsobs knows (target.engine)"
    elif not view.engines:
        yield "its metrics page tells of no progress"
    stalled = next((engine for engine in view.engines if is_stalled(engine)), None)
    if stalled is not None and not view.paused and not view.asleep:
        yield f"{_stall(stalled)}; whether it hangs is being looked at"
    if seen.health is not None and seen.health.status is None and not view.ready:
        yield f"whether it is ready; {_health(seen.health)}"
    if not seen.has_rules:
        yield "no rule looks for faults (rules.shipped, rules.files)"
    if seen.failing_rules:
        yield f"a rule can't be evaluated ({seen.failing_rules[0][0]})"


def _scrape_failure(scrape: Scrape | None) -> str:
    if scrape is None or scrape.failure is None:
        return ""
    return f": {scrape.failure.value}" + (f", {scrape.detail}" if scrape.detail else "")


def _health(health: Health | None) -> str:
    if health is None:
        return "/health was not asked yet"
    if health.status is not None:
        return f"/health says {health.status}"
    return f"/health gave nothing ({health.failure.value if health.failure else health.detail or 'no reason known'})"


def _stall(engine: EngineProgress) -> str:
    return f"no progress for {duration(engine.stall_seconds)} with {engine.outstanding:.0f} requests outstanding"


def facts(seen: Seen) -> tuple[Fact, ...]:
    """What the state is known by, what is not known included."""
    found = [_itself(seen), _page(seen), _ready(seen), _work(seen), _probe(seen), _process(seen), _cards(seen)]
    found.append(_alerts(seen))
    if seen.standing is None:
        return tuple(found)
    # What was well when it was last looked at is not known to be well now.
    old = {Verdict.GOOD: Verdict.UNKNOWN}
    return tuple(Fact(fact.name, old.get(fact.verdict, fact.verdict), fact.text) for fact in found)


def _itself(seen: Seen) -> Fact:
    if seen.standing is not None:
        return Fact("dsobs", Verdict.UNKNOWN, seen.standing)
    return Fact("dsobs", Verdict.GOOD, f"looked {duration(seen.now - seen.view.at)} ago")


def _page(seen: Seen) -> Fact:
    scrape = seen.scrape
    if scrape is None:
        return Fact("Metrics page", Verdict.UNKNOWN, "not read yet")
    age = seen.now - scrape.at
    if not scrape.ok:
        verdict = Verdict.BAD if scrape.failure is not None and scrape.failure.is_away else Verdict.UNKNOWN
        return Fact("Metrics page", verdict, f"can't be read{_scrape_failure(scrape)}")
    if age > FRESH_SECONDS:
        return Fact("Metrics page", Verdict.UNKNOWN, f"last read {duration(age)} ago")
    if seen.engine is None:
        return Fact("Metrics page", Verdict.UNKNOWN, "read, and of no engine that dsobs knows")
    return Fact("Metrics page", Verdict.GOOD, f"of {seen.engine}, read in {scrape.duration_seconds * 1000:.0f} ms")


def _ready(seen: Seen) -> Fact:
    health = seen.health
    if health is None or (health.status is None and seen.view.up):
        return Fact("Ready", Verdict.UNKNOWN, _health(health))
    if health.ok:
        return Fact("Ready", Verdict.GOOD, "/health says 200; a hung engine may say so too")
    return Fact("Ready", Verdict.BAD, _health(health))


def _progress(engines: Sequence[EngineProgress], now: float) -> Fact:
    working = [engine for engine in engines if engine.outstanding > 0]
    if not working:
        return Fact("Progress", Verdict.GOOD, "nothing is asked of it: no request is outstanding")
    total = sum(engine.outstanding for engine in working)
    slowest = max(working, key=lambda engine: engine.stall_seconds)
    moved = duration(now - min(engine.last_moved_at for engine in working))
    where = f" (slowest of {len(working)} engines)" if len(working) > 1 else ""
    limit = duration(slowest.threshold_seconds)
    text = f"{total:.0f} requests outstanding, last progress {moved} ago{where}, of {limit} that it may take"
    return Fact("Progress", Verdict.GOOD, text)


def _work(seen: Seen) -> Fact:
    view = seen.view
    if not view.engines:
        return Fact("Progress", Verdict.UNKNOWN, "its page tells of none")
    hung = next((engine for engine in view.engines if engine.failed_at is not None), None)
    if hung is not None:
        return Fact("Progress", Verdict.BAD, f"{_stall(hung)}, and a synthetic request was not answered")
    if not view.up or seen.scrape is None or seen.now - seen.scrape.at > FRESH_SECONDS:
        return Fact("Progress", Verdict.UNKNOWN, "its page can't be read")
    if view.paused or view.asleep:
        return Fact("Progress", Verdict.NOTE, "its scheduler is paused" if view.paused else "it sleeps")
    stalled = next((engine for engine in view.engines if is_stalled(engine)), None)
    if stalled is not None:
        said = f"{_stall(stalled)}, more than the {duration(stalled.threshold_seconds)} that are usual"
        return Fact("Progress", Verdict.UNKNOWN, f"{said}; CPU and GPU: {view.witness.value}")
    return _progress(view.engines, seen.now)


def _probe(seen: Seen) -> Fact:
    view, name = seen.view, "Synthetic request"
    if view.probe_ended_at is not None and view.probe_outcome not in (ProbeOutcome.ANSWERED, ProbeOutcome.ERROR):
        ago = f"{duration(seen.now - view.probe_ended_at)} ago"
        if view.probe_outcome != ProbeOutcome.TIMEOUT:
            return Fact(name, Verdict.UNKNOWN, f"the last one proved nothing, {ago} ({view.probe_outcome})")
        # A server that is only busy answers none in time either.
        hung = any(engine.failed_at is not None for engine in view.engines)
        return Fact(name, Verdict.BAD if hung else Verdict.UNKNOWN, f"not answered in time, {ago}")
    answered, error = view.probe_answered_at, view.probe_error_at
    if answered is not None and (error is None or error < answered):
        return Fact(name, Verdict.GOOD, f"answered {duration(seen.now - answered)} ago")
    if error is not None:
        return Fact(name, Verdict.BAD, f"answered with an error {duration(seen.now - error)} ago")
    if not view.probes_enabled:
        return Fact(name, Verdict.NOTE, "none is sent (hang.probe)")
    return Fact(name, Verdict.NOTE, "none was needed yet: one is sent when progress stops")


def _process(seen: Seen) -> Fact:
    runtime, name = seen.view.runtime, "Process"
    if not isinstance(runtime, RuntimeView):
        return Fact(name, Verdict.UNKNOWN, runtime.reason)
    where = f"{runtime.name} ({runtime.runtime})"
    if runtime.running is None:
        return Fact(name, Verdict.UNKNOWN, f"{where} can't be seen")
    if not runtime.running:
        code = f" with status {runtime.exit_code}" if runtime.exit_code is not None else ""
        planned = f", {runtime.planned_stop}" if runtime.planned_stop else ""
        return Fact(name, Verdict.NOTE if planned else Verdict.BAD, f"{where} has ended{code}{planned}")
    since = f" for {duration(seen.now - runtime.started_at)}" if runtime.started_at is not None else ""
    return Fact(name, Verdict.GOOD, f"{where} runs{since}")


def _cards(seen: Seen) -> Fact:
    if isinstance(seen.gpus, Unknown):
        return Fact("GPUs", Verdict.UNKNOWN, seen.gpus.reason)
    if seen.view.gpu_faults:
        return Fact("GPUs", Verdict.BAD, "; ".join(map(str, seen.view.gpu_faults)))
    return Fact("GPUs", Verdict.GOOD, f"{len(seen.gpus)} {'card is' if len(seen.gpus) == 1 else 'cards are'} read")


def _alerts(seen: Seen) -> Fact:
    if not seen.has_rules:
        return Fact("Alerts", Verdict.UNKNOWN, "no rule looks for faults (rules.shipped, rules.files)")
    firing = faults(seen.alerts)
    if firing:
        critical = sum(alert.severity != "warning" for alert in firing)
        return Fact("Alerts", Verdict.BAD, f"{len(firing)} firing, {critical} of them critical")
    if seen.failing_rules:
        return Fact("Alerts", Verdict.UNKNOWN, f"rules that can't be evaluated: {len(seen.failing_rules)}")
    return Fact("Alerts", Verdict.GOOD, "none fires")


def start_up(seen: Seen) -> StartUp:
    """The present instance's way to ready."""
    view, budget = seen.view, seen.config.startup.budget
    if view.starting_since is not None and not view.ready:
        state, text = "starting", f"for {duration(seen.now - view.starting_since)} of {duration(budget)}"
    elif view.ready:
        at = view.instance_started_at
        state, text = "ready", "" if at is None else f"instance started {duration(seen.now - at)} ago"
    elif not view.seen:
        state, text = "not seen", "it has never answered"
    else:
        state = "down" if view.down_since is not None or view.planned_stop is not None else "not ready"
        text = view.planned_stop or view.down_reason
    return StartUp(state, view.instance_started_at, budget, text)
