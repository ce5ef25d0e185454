"""What to do next: `plan(alerts, view, ledger, now) → [Step]`, a pure function.

The ladder of an incident: evidence, drain (where the server still works), restart, verify, and a page when that is
used up.

When EngineHung, which is paged at once, becomes a restart; times at the default settings, from the first failed probe:

| CPU time and GPU | restart |
|---|---|
| stand still (the core is stopped, blocked, or gone) | 30 s more without progress (`confirm_hang`) |
| nothing to ask, or they say neither (a collective that spins) | the same |
| at work (one long prefill step, a compilation; also a loop that never ends) | 10 min (`confirm_working`) |
| contradict each other (CPU busy, GPU at 0 %: a compilation) | the same |
| at work, and other engines of this server have moved since: theirs | 30 s, as if there were nothing to ask |
| stand still, and the page can't be read any more | 5 min of that (`confirm_unresponsive`) |
| anything else, and the page can't be read any more | never: page only |

EngineUnresponsive needs both, no byte and a stand-still, for 5 min (`confirm_unresponsive`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dsobs.config.models import Mode
from dsobs.config.models import Remediation as Settings
from dsobs.model.alert import Alert, AlertState
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.view import EngineProgress, View, Witness
from dsobs.remediation.guard import Case, Switches, refusal
from dsobs.remediation.ledger import ATTEMPTED, Entry, Incident, Ledger

ACTION_LABEL = "action"
"""A rule's label that asks for remediation; `restart` is the one there is."""
BEYOND_A_RESTART = frozenset({"reset_gpu", "reboot_node", "escalate"})
"""Actions that a critical alert asks of people, and beside which no restart is made."""
QUIET_SECONDS = 60.0
"""An incident whose alerts are gone is closed after this long without one."""
FRESH_SECONDS = 15.0
"""A standstill that was seen longer ago proves nothing about now."""
SHM_LEFT_OVER = 0.9
"""As HostShmNearlyFull."""
SILENT_RUNTIME_SECONDS = 60.0
"""A runtime that says nothing about the engine may only be slow (a daemon whose host is busy), and then tells of a
planned stop: nobody is paged for that before it has been asked for this long beyond `down_grace`. The alert's own page
is out at once."""
DRAIN_TURN_SECONDS = 90.0
"""What a drain may wait for its turn, the random delay of sidecars that do not talk included."""
RETRY_SECONDS = 60.0
"""From a restart that surely did nothing, withdrawn or refused, to the next try; a guard holds refused ones longer."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do now, or one that a guard refused."""

    action: str
    """open, evidence, drain, restart, verified, failed, page or close."""
    incident: str | None
    """None: the incident is opened by this step."""
    reason: str
    refused: str | None = None
    """Why it is not done."""
    alerts: tuple[str, ...] = ()
    how: str = "restart"
    """Of a restart: `replace` where the engine's container alone does not help."""


def asks_for_restart(alert: Alert) -> bool:
    """It fires, and its rule wants the engine restarted."""
    return alert.state is AlertState.FIRING and alert.labels.get(ACTION_LABEL) == "restart"


def plan(
    alerts: Sequence[Alert], view: View, ledger: Ledger, now: float, settings: Settings, switches: Switches
) -> list[Step]:
    """The steps that are due at `now`; empty on a healthy server."""
    firing = list(filter(asks_for_restart, alerts))
    asking = [alert for alert in firing if alert.confirmed]
    incident = ledger.open_incident()
    if incident is None:
        if not asking:
            return []
        names = tuple(sorted({alert.name for alert in asking}))
        return [Step("open", None, " and ".join(names) + " firing", alerts=names)]
    steps: list[Step] = []
    if incident.last("evidence") is None:
        steps.append(Step("evidence", incident.id, "the incident was opened", alerts=incident.alerts))
    if ledger.attempt_in_flight() is not None:
        return steps
    owed = _owed(incident)
    if owed is not None:
        steps.append(Step("page", incident.id, owed, alerts=incident.alerts))
    attempt = _unproved(incident)
    if attempt is not None:
        proof = _proof(attempt, view, given_up=_given_up(incident, attempt))
        if proof is not None:
            return [*steps, Step("verified", incident.id, proof)]
        if not _given_up(incident, attempt):
            return steps + _overdue(incident, attempt, view, now, settings)
    if asking:
        steps += _restart(asking, gpu_fault_of(alerts, view), incident, view, ledger, now, settings, switches)
    # One restored from before dsobs was restarted asks for nothing until it is seen anew, but it is not gone.
    elif not firing and _settled(incident, view, now):
        steps.append(Step("close", incident.id, "its alerts are gone"))
    return steps


def _unproved(incident: Incident) -> Entry | None:
    """The last restart, if it was made (or may have been) and has not been verified."""
    attempt = incident.last("restart", *ATTEMPTED)
    if attempt is None or attempt.state not in ("done", "unknown"):
        return None
    verdict = incident.last("verify", "done")
    return attempt if verdict is None or verdict.id < attempt.id else None


def _given_up(incident: Incident, attempt: Entry) -> bool:
    """It was not verified in its time. A proof that comes later still ends the incident."""
    verdict = incident.last("verify", "failed")
    return verdict is not None and verdict.id > attempt.id


def _owed(incident: Incident) -> str | None:
    """What a failed repair has to tell a person and has not told, also where dsobs was killed in between."""
    refusals = incident.refusals()
    failures = [*refusals, incident.last("verify", "failed")]
    failure = max((e for e in failures if e is not None), key=lambda entry: entry.id, default=None)
    told = incident.last("page")
    if failure is None or (told is not None and told.id > failure.id):
        return None
    if failure.kind == "restart":
        # Told once when it is first refused, and once more when dsobs gives up.
        if len(refusals) > 1 and not incident.given_up:
            return None
        often = f" {len(refusals)} times, dsobs tries no more" if incident.given_up else ""
        return f"restart failed{often}: {failure.detail.get('why', 'no reason known')}"
    return f"restart did not help: {failure.detail.get('reason', 'not verified')}"


def awaits_verification(ledger: Ledger) -> bool:
    """Whether the engine has been restarted and has yet to prove that it works."""
    incident = ledger.open_incident()
    return incident is not None and _unproved(incident) is not None


def unseen_restart(ledger: Ledger, known_start: float | None) -> Entry | None:
    """A restart that was made, or may have been, and whose new instance had not been seen when dsobs ended;
    `known_start`: of the instance that it had seen last."""
    incident = ledger.open_incident()
    attempt = ledger.attempt_in_flight() or (_unproved(incident) if incident is not None else None)
    before = attempt.detail.get("instance_started_at") if attempt is not None else None
    if before is None or known_start is None or abs(known_start - float(before)) > 0.5:
        return None
    return attempt


def under_repair(ledger: Ledger) -> bool:
    """Whether it is being restarted, or has been and has yet to prove that it works."""
    return ledger.attempt_in_flight() is not None or awaits_verification(ledger)


def _settled(incident: Incident, view: View, now: float) -> bool:
    verdict = incident.last("verify")
    if verdict is not None and verdict.state == "done":
        return True
    over = view.ready or view.planned_stop is not None
    return over and now - incident.entries[-1].at >= QUIET_SECONDS


def _since(attempt: Entry) -> float:
    return float(attempt.detail.get("reserved_at", attempt.at))


def _fresh(attempt: Entry, view: View) -> bool:
    """Another instance is there than the one that was restarted."""
    before = attempt.detail.get("instance_started_at")
    # An earlier start is another instance too: the wall clock was set back.
    return view.instance_started_at is not None and (
        before is None or abs(view.instance_started_at - float(before)) > 0.5
    )


def _proof(attempt: Entry, view: View, *, given_up: bool) -> str | None:
    """A new instance is ready, a probe was answered since (or requests moved), and nothing stalls.

    The same instance proves something only where the restart's outcome is not known, once its time was over.
    """
    fresh = _fresh(attempt, view)
    if not fresh and not (given_up and attempt.state == "unknown"):
        return None
    answered = view.probe_answered_at is not None and view.probe_answered_at > _since(attempt)
    moved = any(e.moved_tokens and e.last_moved_at > _since(attempt) for e in view.engines)
    if not view.ready or not (answered or moved) or any(e.failed_at is not None for e in view.engines):
        return None
    how = "a probe was answered" if answered else "requests finish"
    return f"{'new' if fresh else 'the same'} instance, ready, {how}"


def _overdue(incident: Incident, attempt: Entry, view: View, now: float, settings: Settings) -> list[Step]:
    if now - _since(attempt) <= settings.verify_timeout:
        return []
    fresh = _fresh(attempt, view)
    missing = "no new instance" if not fresh else "not ready" if not view.ready else "no request was answered"
    return [Step("failed", incident.id, f"not verified within {settings.verify_timeout:.0f} s: {missing}")]


def due(alert: Alert, view: View, now: float, settings: Settings) -> str | None:
    """Why this alert wants a restart at this moment; None while its evidence is not enough."""
    if alert.name == "EngineHung":
        return next((why for e in view.engines if (why := _hung_due(e, view, now, settings)) is not None), None)
    if alert.name == "EngineUnresponsive":
        if view.unresponsive_since is None or view.still_since is None:
            return None
        if now - max(view.unresponsive_since, view.still_since) >= settings.confirm_unresponsive:
            return f"not one byte for {now - view.unresponsive_since:.0f} s, and CPU or GPU stand still"
        return None
    if alert.name == "EngineDown":
        return _down_due(view, now, settings)
    return None


def awaited(alert: Alert, view: View, now: float, settings: Settings) -> str:
    """What an alert that asks for a restart, and is not `due`, still waits for."""
    if alert.name == "EngineUnresponsive" and view.unresponsive_since is not None:
        return _standstill_awaited(view.unresponsive_since, view, now, settings)
    if alert.name == "EngineDown" and view.down_since is not None:
        if (left := settings.down_grace - (now - view.down_since)) > 0:
            return f"{left:.0f} s more for its runtime to start it again (remediation.down_grace)"
        return "its runtime, which may be starting it again, or a request that is answered with an error"
    hung = next((engine for engine in view.engines if engine.failed_at is not None), None)
    if alert.name != "EngineHung" or hung is None or hung.failed_at is None:
        return "more evidence"
    if now - hung.last_seen_at > FRESH_SECONDS:
        return f"its page, or {_standstill_awaited(hung.failed_at, view, now, settings)}"
    worked_at = _worked_at(hung, view)
    if (left := settings.confirm_hang - (hung.last_seen_at - (worked_at or hung.failed_at))) > 0:
        what = "progress" if worked_at is None else "progress and without work of CPU or GPU"
        return f"{left:.0f} s more without {what} (remediation.confirm_hang)"
    return "more evidence"


def _standstill_awaited(since: float, view: View, now: float, settings: Settings) -> str:
    if view.still_since is None:
        return "CPU or GPU to stand still, which is not seen"
    left = settings.confirm_unresponsive - (now - max(since, view.still_since))
    return f"{max(left, 0.0):.0f} s more of a standstill of CPU or GPU (remediation.confirm_unresponsive)"


def _hung_due(engine: EngineProgress, view: View, now: float, settings: Settings) -> str | None:
    failed_at, seen_at = engine.failed_at, engine.last_seen_at
    if failed_at is None or engine.last_moved_at >= failed_at:
        return None
    if now - seen_at > FRESH_SECONDS:
        # Its page can't be read any more: it takes what an unresponsive server takes, and the same witness.
        if view.still_since is None or now - max(failed_at, view.still_since) < settings.confirm_unresponsive:
            return None
        return f"a probe failed, no page for {now - seen_at:.0f} s, CPU or GPU stand still"
    reason = f"no progress for {seen_at - engine.last_moved_at:.0f} s, probe failed"
    if seen_at - (_worked_at(engine, view) or failed_at) >= settings.confirm_hang:
        return reason
    if seen_at - failed_at >= settings.confirm_working:
        return f"{reason}, though CPU or GPU are at work"
    return None


def _at_work(alert: Alert, view: View, settings: Settings) -> bool:
    """A hang that would be restarted by now, were nothing at work."""
    return alert.name == "EngineHung" and any(
        engine.failed_at is not None
        and engine.last_seen_at - engine.failed_at >= settings.confirm_hang
        and view.at - engine.last_seen_at <= FRESH_SECONDS
        and _worked_at(engine, view) is not None
        for engine in view.engines
    )


def _worked_at(engine: EngineProgress, view: View) -> float | None:
    """When CPU or GPU last showed this engine at work in its hang; None: not since the probe failed."""
    assert engine.failed_at is not None
    if view.worked_at is None or view.worked_at <= engine.failed_at:
        return None
    others = any(e.key != engine.key and e.last_moved_at > engine.failed_at for e in view.engines)
    return None if others else view.worked_at


def _down_due(view: View, now: float, settings: Settings) -> str | None:
    if view.down_since is None or now - view.down_since < settings.down_grace:
        return None
    runtime = view.runtime
    if isinstance(runtime, RuntimeView) and runtime.running is not False and view.up:
        # The API server outlived its core: only an answer of its own shows that.
        if view.probe_error_at is None or view.probe_error_at < view.down_since:
            return None
        # A core that is dead moves nothing: then it is something before the server that answers.
        if any(now - engine.last_moved_at < settings.down_grace for engine in view.engines):
            return None
        return f"{view.down_reason}, and a request was answered with an error"
    if isinstance(runtime, Unknown) and view.up:
        return None
    if isinstance(runtime, RuntimeView) and runtime.brings_back and not runtime.running:
        # It has ended, or may have: who brings it back is at it already.
        return _left_over(view, now)
    if isinstance(runtime, RuntimeView) and runtime.running and view.starting_since is None:
        # What lives behind the closed port may be starting the engine again (a wrapper), and then it works. What only
        # failed to exit stands still.
        if view.witness is not Witness.STILL or view.still_since is None:
            return None
        if now - max(view.still_since, view.down_since) < settings.confirm_unresponsive:
            return None
    return f"down for {now - view.down_since:.0f} s: {view.down_reason}"


def _left_over(view: View, now: float) -> str | None:
    """What has ended left so much behind in shared memory that the next start would find no room: it outlives the
    container, and goes with the pod (vllm#54002, llm-d#364: an emptyDir; the pod's own /dev/shm is the same)."""
    if view.shm_left_over is None or view.shm_left_over <= SHM_LEFT_OVER or view.down_since is None:
        return None
    return f"down for {now - view.down_since:.0f} s, and what has ended holds {view.shm_left_over:.0%} of /dev/shm"


def gpu_fault_of(alerts: Sequence[Alert], view: View) -> str:
    """Why a restart would not help: XIDs as the cards told them, other faults by their alerts.

    An alert of an XID says less than the reading: it comes later, and it ends while the card is still broken.
    """
    names = {
        alert.name
        for alert in alerts
        if alert.state is AlertState.FIRING
        and alert.severity == "critical"
        and alert.labels.get(ACTION_LABEL) in BEYOND_A_RESTART
        and "xid" not in alert.labels
        and alert.labels.get("cause") != "xid"
        and alert.labels.get("uuid") not in view.others_gpus
    }
    cards = sorted({fault.card for fault in view.gpu_faults})
    told = [str(fault) for fault in view.gpu_faults]
    if cards:
        told[-1] += f" (once it is well: dsobs gpu clear {' '.join(cards)})"
    return " and ".join([*told, *sorted(names)])


def _restart(
    asking: Sequence[Alert],
    gpu_fault: str,
    incident: Incident,
    view: View,
    ledger: Ledger,
    now: float,
    settings: Settings,
    switches: Switches,
) -> list[Step]:
    reasons = [reason for alert in asking if (reason := due(alert, view, now, settings)) is not None]
    failed = incident.last("restart", "failed")
    names = tuple(sorted({alert.name for alert in asking}))
    if not reasons and any(_at_work(alert, view, settings) for alert in asking):
        why = f"at_work: CPU or GPU show work, so it has {settings.confirm_working:.0f} s from the failed probe"
        return [Step("restart", incident.id, "no progress, probe failed", refused=why, alerts=names)]
    if not reasons or (failed is not None and now - failed.at < RETRY_SECONDS):
        return []
    how = "replace" if reasons[0] == _left_over(view, now) else "restart"
    refused = refusal(Case(view, ledger, switches, settings, now, gpu_fault, replaces=how == "replace"))
    step = Step("restart", incident.id, reasons[0], refused=refused, alerts=names, how=how)
    if refused is None:
        waiting = _drain(step, incident, view, now, settings)
        return [step] if waiting is None else waiting
    told = incident.last("page")
    final = refused.startswith(
        ("budget", "fleet_budget", "runtime_known", "gpu_well", "ledger_writable", "coordination", "state_agreed")
    )
    silent = refused.startswith("runtime_known") and isinstance(view.runtime, Unknown)
    if silent and now - incident.opened_at < settings.down_grace + SILENT_RUNTIME_SECONDS:
        return [step]
    if final and told is None and settings.mode is Mode.ENFORCE:  # In observe the alert's own page says all.
        return [step, Step("page", incident.id, f"restart refused: {refused}", alerts=names)]
    return [step]


def _drain(restart: Step, incident: Incident, view: View, now: float, settings: Settings) -> list[Step] | None:
    """Where one of several engines hangs, the others may finish what they have: wait while tokens move, up to the
    limit.

    None once the restart may go ahead. A server of which nothing works is not drained: its work never ends.
    """
    working = [e for e in view.engines if e.failed_at is None and e.outstanding > 0 and now - e.last_moved_at < 3.0]
    if not working or not view.up:
        return None
    begun = incident.last("drain")
    attempt = incident.last("restart", *ATTEMPTED)
    if begun is None or (attempt is not None and begun.id < attempt.id):
        return [Step("drain", restart.incident, f"{len(working)} other engines still work", alerts=restart.alerts)]
    # One that waits for its turn has not begun.
    limit = settings.drain_timeout + (DRAIN_TURN_SECONDS if begun.state == "reserved" else 0.0)
    return [] if now - begun.at < limit else None
