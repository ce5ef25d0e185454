"""Guards: each gives the reason why a restart must not be done now, or nothing. All are on by default."""

from collections.abc import Callable
from dataclasses import dataclass, field

from dsobs.config.models import Mode
from dsobs.config.models import Remediation as Settings
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.turn import Fleet
from dsobs.model.view import View
from dsobs.remediation.ledger import Ledger

DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Switches:
    """What people and the surroundings have set."""

    killed: str | None = None
    """Which kill switch is on: file, API or setting."""
    silenced: str | None = None
    """Which silences hold, in words."""
    state_set_aside: str | None = None
    """A state file that could not be read was set aside and nobody has agreed to go on."""
    uncoordinated: str | None = None
    """Why this process may not act beside other sidecars of the workload; None: it may, see `Turn`."""
    fleet: Fleet = field(default_factory=Fleet)
    """What other replicas of the workload have to say."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a guard looks at."""

    view: View
    ledger: Ledger
    switches: Switches
    settings: Settings
    now: float
    gpu_fault: str = ""
    """What says that the card has to be reset, or worse."""
    replaces: bool = False
    """What is left of the engine is to be replaced as a whole: a restart would not help."""


def kill_switch(case: Case) -> str | None:
    """A person said stop."""
    return f"kill switch: {case.switches.killed}" if case.switches.killed else None


def silence(case: Case) -> str | None:
    """A silenced alert repairs nothing."""
    return case.switches.silenced


def ledger_writable(case: Case) -> str | None:
    """What can't be recorded is not done."""
    return None if case.ledger.writable else f"the ledger can't be written: {case.ledger.why_not}"


def state_agreed(case: Case) -> str | None:
    """Without its past, dsobs does not know its budget."""
    aside = case.switches.state_set_aside
    return f"state was unreadable and set aside as {aside}; remove that file to agree to go on" if aside else None


def coordination(case: Case) -> str | None:
    """Never two at once on one workload."""
    return case.switches.uncoordinated


def runtime_known(case: Case) -> str | None:
    """Nothing is repaired on missing data."""
    runtime = case.view.runtime
    if case.replaces:
        why = case.view.cannot_replace
        return f"a restart would not help, and the engine can't be replaced: {why}" if why else None
    if case.view.can_restart:
        return None
    if isinstance(runtime, Unknown):
        why = runtime.reason
    else:
        why = runtime.look_only or f"{runtime.runtime} can only be looked at"
    return f"the runtime can't restart the engine: {why}"


def not_starting(case: Case) -> str | None:
    """A starting engine is left alone, however long it takes."""
    view = case.view
    if not view.seen:
        return "the engine was never up"
    runtime = view.runtime
    # A process that has ended is not starting, whatever its runtime plans.
    ended = isinstance(runtime, RuntimeView) and runtime.running is False
    if view.starting_since is not None and not view.up and not ended:
        return f"the engine is starting since {case.now - view.starting_since:.0f} s"
    return None


def not_planned(case: Case) -> str | None:
    """Somebody stopped it on purpose, or is about to, or has it paused."""
    runtime = case.view.runtime
    who = case.view.planned_stop or (runtime.stopping if isinstance(runtime, RuntimeView) else None)
    return f"planned stop: {who}" if who else None


def not_held(case: Case) -> str | None:
    """Somebody else is at work on it: a rollout, a drain of its node, a person who debugs it."""
    runtime = case.view.runtime
    return runtime.hold if isinstance(runtime, RuntimeView) else None


def ready_again(case: Case) -> str | None:
    """A restart that has not led to a ready engine is not followed by another: that would be a loop."""
    if case.view.was_ready:
        return None
    entry = case.ledger.last_restart(case.now - DAY)
    return f"the engine has not been ready since the restart of incident {entry.incident}" if entry else None


def not_paused(case: Case) -> str | None:
    """Whoever paused it will resume it."""
    return "the engine is paused" if case.view.paused else None


def not_asleep(case: Case) -> str | None:
    """Sleep mode is no hang."""
    return "the engine sleeps" if case.view.asleep else None


def gpu_well(case: Case) -> str | None:
    """A restart puts the next engine on the same broken card."""
    return f"{case.gpu_fault}: a restart does not mend the card" if case.gpu_fault else None


def one_at_a_time(case: Case) -> str | None:
    """An attempt whose end is not known yet."""
    entry = case.ledger.attempt_in_flight()
    return f"a restart of incident {entry.incident} is under way" if entry else None


def restarts_used(case: Case) -> int | None:
    """Restarts of the last 24 h that count against the budget; None: not known."""
    seen = case.view.restarts_24h
    if seen is None:
        return None
    if case.settings.mode is Mode.OBSERVE:
        # What enforce would have done by now; in enforce nothing came of what was only observed.
        return seen + case.ledger.observed(case.now - DAY)
    # One whose outcome is not known counts as done, though no new instance of it was seen.
    return seen + max(case.ledger.attempts(case.now - DAY) - case.view.own_restarts_24h, 0)


def budget(case: Case) -> str | None:
    """Every restart of the last 24 h counts, whoever made it: dsobs never breaks the documented limit itself."""
    used, limit = restarts_used(case), case.settings.max_restarts_24h
    if used is None:
        return "restarts of the last 24 h are not known"
    return f"budget used: {used} restarts in 24 h, limit {limit}" if used >= limit else None


def cooldown_left(case: Case) -> float:
    """Seconds until the next attempt may be made; 0 if it may be now."""
    entry = case.ledger.last_attempt(observed=case.settings.mode is Mode.OBSERVE)
    return 0.0 if entry is None else max(entry.at + case.settings.cooldown - case.now, 0.0)


def cooldown(case: Case) -> str | None:
    """Between two attempts; one whose outcome is unknown counts as done."""
    left = cooldown_left(case)
    return f"cooldown: {left:.0f} s left" if left > 0 else None


def refused_before(case: Case) -> str | None:
    """What the runtime refused, or was asked in vain, is tried again, but neither at once nor for ever."""
    incident = case.ledger.open_incident()
    refusals = incident.refusals() if incident is not None else []
    if incident is None or not refusals:
        return None
    if incident.given_up:
        return f"the runtime refused {len(refusals)} times; this is for a person"
    left = refusals[-1].at + case.settings.cooldown - case.now
    return f"the runtime refused, next try in {left:.0f} s" if left > 0 else None


def others_acting(case: Case) -> str | None:
    """Another sidecar acts on the same workload."""
    return case.switches.fleet.acting


def breaker(case: Case) -> str | None:
    """A fault of the whole fleet is no fault of this engine: what still serves is not taken away."""
    return case.switches.fleet.unready


def fleet_budget(case: Case) -> str | None:
    """Acting on one replica after the other has not helped the workload."""
    return case.switches.fleet.budget


GUARDS: tuple[Callable[[Case], str | None], ...] = (
    kill_switch,
    silence,
    ledger_writable,
    state_agreed,
    coordination,
    not_planned,
    not_held,
    not_paused,
    not_asleep,
    not_starting,
    runtime_known,
    gpu_well,
    one_at_a_time,
    ready_again,
    budget,
    cooldown,
    refused_before,
    fleet_budget,
    others_acting,
    breaker,
)


def refusal(case: Case) -> str | None:
    """The first guard's reason, or None if a restart may go ahead."""
    for guard in GUARDS:
        reason = guard(case)
        if reason is not None:
            return f"{guard.__name__}: {reason}"
    return None
