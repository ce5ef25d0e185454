"""Who is told of what: from the alerts as they stand to the outbox and to the receivers that are told again and again.

An alert is told of once, when it fires and nothing holds it back: no silence, no other alert that explains it. What
held it back may end while it fires; then it goes out. One that was told of is resolved when it ends, whatever holds by
then. A receiver that is new is told of what the others were told of and what still fires.
"""

import logging
import sqlite3
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dsobs import silences, telemetry
from dsobs.config import Config, Mode
from dsobs.model.alert import Alert, AlertState, Transition
from dsobs.model.clock import Clock
from dsobs.model.notification import Event, Notification
from dsobs.model.notifier import Standing
from dsobs.notifiers.inhibition import InhibitRule, inhibitor
from dsobs.notifiers.messages import dedup_key, notification_of
from dsobs.remediation.ledger import Ledger
from dsobs.remediation.plan import ACTION_LABEL
from dsobs.sidecar.page_texts import PageTexts
from dsobs.silences import Silence

log = logging.getLogger(__name__)

SCHEMA = ("CREATE TABLE IF NOT EXISTS told (name TEXT PRIMARY KEY)",)
"""Fingerprints of alerts of which somebody was told and that have not ended; what became of escalations; and the
receivers that are up to date."""

WATCHDOG = "Watchdog"
"""The alert that always fires, so that its end is noticed."""
ESCALATION = "RemediationEscalated"
"""`alertname` of an incident's page where it stands among alerts."""
SCALE_OUT = "scale-out"
"""In place of an incident's id, where people have to add a replica."""
SCALE_OUT_ALERT = "ScaleOutWanted"
"""The `alertname` of that page."""
_MARK = "\n"
"""Between incident and page in a saved name; fingerprints have none."""
_RECEIVER = "\t"
"""In front of a receiver's name where it is saved; the others have none."""
RESOLVED_SECONDS = 900.0
"""How long an ended escalation stays among the alerts that are sent; as for alerts of rules."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What of the settings decides who is told."""

    source: str
    """What alerts call the server."""
    elsewhere: bool
    """Prometheus evaluates pages: rules' alerts are not told of."""
    inhibit: Sequence[InhibitRule]
    mode: Mode
    texts: PageTexts
    instance: str = ""
    """`instance` of alerts that have none; empty: the source."""

    @classmethod
    def of(cls, config: Config, source: str, inhibit: Sequence[InhibitRule]) -> "Policy":
        """From the settings and what their files hold."""
        alertmanager = config.notifiers.alertmanager
        labels = dict(pair.split("=", 1) for pair in alertmanager.labels) if alertmanager is not None else {}
        return cls(
            source,
            config.rules.evaluation == "prometheus",
            inhibit,
            config.remediation.mode,
            PageTexts.of(config),
            labels.get("instance", ""),
        )

    def labels(self, alert: Alert) -> dict[str, str]:
        """As receivers know the alert: with the server's name, unless it has an `instance` of its own."""
        return {"instance": self.instance or self.source, **alert.labels, "alertname": alert.name}

    def next_step(self, alert: Alert) -> str:
        """What dsobs does about an alert, or would do, in words."""
        if alert.labels.get("action", "") != "restart":
            return "nothing; this is for a person"
        if self.mode is Mode.OBSERVE:
            return "nothing: remediation.mode is observe; in enforce it would restart the engine once that is confirmed"
        return "restarts the engine once it is confirmed and no guard refuses"


class Teller:
    """Remembers of what somebody was told."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self.policy = policy
        self._clock = clock
        self._told: set[str] = set()
        self._saved: frozenset[str] | None = None
        self._held: dict[str, str] = {}
        self._open: list[Alert] = []
        """Critical alerts of the server itself that somebody was told of: firing in the last turn, restarts first."""
        self._escalations: dict[str, str] = {}
        """Open incident → `alertname` of the page that carries its escalation, or of a page of its own."""
        self._escalated: dict[str, tuple[str, float]] = {}
        """Incident → (text, when) of escalations since the start: the ledger may have been out of reach."""
        self._command = ""
        """By which people add the replica that they were asked for."""
        self._up_to_date: set[str] = set()
        """Receivers that were told of all that stands."""
        self._owed: dict[str, set[str]] = {}
        """The others → alerts of which they have not been told."""

    # On disk.

    def restore(self, connection: sqlite3.Connection) -> None:
        """What the last run told of."""
        names = {name for (name,) in connection.execute("SELECT name FROM told")}
        self._saved = frozenset(names)
        self._up_to_date = {name.removeprefix(_RECEIVER) for name in names if name.startswith(_RECEIVER)}
        names = {name for name in names if not name.startswith(_RECEIVER)}
        marks = [name.partition(_MARK) for name in names if _MARK in name]
        self._escalations = {incident: page for incident, _, page in marks}
        self._told = {name for name in names if _MARK not in name}

    @property
    def unsaved(self) -> frozenset[str] | None:
        """What to `save`; None where the disk has it."""
        escalations = {incident + _MARK + page for incident, page in self._escalations.items()}
        now = frozenset(self._told) | escalations | {_RECEIVER + name for name in self._up_to_date}
        return None if now == self._saved else now

    @staticmethod
    def save(connection: sqlite3.Connection, told: frozenset[str]) -> None:
        """In the transaction that also takes the notifications."""
        connection.execute("DELETE FROM told")
        connection.executemany("INSERT INTO told VALUES (?)", [(name,) for name in told])

    def saved(self, told: frozenset[str]) -> None:
        """The transaction is committed."""
        self._saved = told

    # Each turn.

    def catch_up(
        self, receivers: Iterable[str], alerts: Sequence[Alert], held: Iterable[Silence], now: float
    ) -> dict[str, list[Notification]]:
        """Receiver → what it is to be told of, since it is new; ahead of `turn`. `receivers`: all that there are.

        An alert that is held back by now waits for that to end, as any other.
        """
        names = set(receivers)
        self._up_to_date &= names
        self._owed = {name: owed & self._told for name, owed in self._owed.items() if name in names}
        told: dict[str, list[Notification]] = {}
        for name in names - self._up_to_date - self._owed.keys():
            self._owed[name] = set(self._told)
            told[name] = [
                self._escalated_page(incident, *self._escalated[incident])
                for incident, page in self._escalations.items()
                if page in (ESCALATION, SCALE_OUT_ALERT) and incident in self._escalated
            ]
        if any(self._owed.values()):
            firing = {alert.fingerprint: alert for alert in alerts if alert.state is AlertState.FIRING}
            labels = {name: self.policy.labels(alert) for name, alert in firing.items()}
            sources = list(labels.values())
            free = {
                name
                for name in set().union(*self._owed.values()) & firing.keys()
                if firing[name].confirmed and not self._why_held(firing[name], labels[name], sources, held, now)
            }
            for receiver, waiting in self._owed.items():
                for name in sorted(waiting & free, key=lambda name: firing[name].active_at):
                    told.setdefault(receiver, []).extend(self._notified(firing[name], now))
                waiting.difference_update(free)
        self._up_to_date |= {name for name, owed in self._owed.items() if not owed}
        self._owed = {name: owed for name, owed in self._owed.items() if owed}
        return {name: some for name, some in told.items() if some}

    def turn(self, alerts: Sequence[Alert], held: Iterable[Silence], now: float) -> list[Notification]:
        """What is to be told of now; `held` are the silences that there are."""
        firing = [alert for alert in alerts if alert.state is AlertState.FIRING]
        sources = [self.policy.labels(alert) for alert in firing]
        why = {
            alert.fingerprint: self._why_held(alert, labels, sources, held, now)
            for alert, labels in zip(firing, sources, strict=True)
        }
        self._note_held([alert for alert in firing if alert.fingerprint not in self._told], why)
        told: list[Notification] = []
        for alert in firing:
            name = alert.fingerprint
            if name not in self._told and not why[name] and alert.confirmed:
                self._told.add(name)
                told += self._notified(alert, now)
        for alert in alerts:
            if alert.state is AlertState.RESOLVED and alert.fingerprint in self._told:
                self._told.discard(alert.fingerprint)
                told += self._notified(alert, now)
        self._told &= {alert.fingerprint for alert in firing}
        mine = [
            a for a in firing if a.fingerprint in self._told and a.severity == "critical" and ACTION_LABEL in a.labels
        ]
        self._open = sorted(mine, key=lambda alert: alert.labels[ACTION_LABEL] != "restart")
        return told

    def _why_held(
        self,
        alert: Alert,
        labels: Mapping[str, str],
        firing: Sequence[Mapping[str, str]],
        held: Iterable[Silence],
        now: float,
    ) -> str:
        """Why nobody is told of this alert; empty where somebody is."""
        if alert.severity == "none" or alert.name == WATCHDOG:
            return "no fault"
        if self.policy.elsewhere:
            return "evaluated elsewhere"
        silence = silences.holding(held, labels, now)
        if silence is not None:
            return f"silenced: {silence.id}"
        source = inhibitor(self.policy.inhibit, labels, firing)
        return f"inhibited: {source}" if source is not None else ""

    def _note_held(self, firing: Sequence[Alert], why: dict[str, str]) -> None:
        """Of alerts that nobody was told of."""
        counts = Tally(why[alert.fingerprint].partition(":")[0] for alert in firing)
        for reason in ("silenced", "inhibited", "evaluated elsewhere", "no fault"):
            telemetry.ALERTS_HELD.labels(reason.replace(" ", "_")).set(counts[reason])
        for alert in firing:
            reason = why[alert.fingerprint]
            if reason and reason != "no fault" and self._held.get(alert.fingerprint) != reason:
                log.info("nobody is told of %s: %s", alert.name, reason)
        self._held = why

    def _notified(self, alert: Alert, now: float) -> list[Notification]:
        made = notification_of(
            Transition(now, alert, None), source=self.policy.source, next_step=self.policy.next_step(alert)
        )
        return [self.policy.texts.on(made, alert, now)] if made is not None else []

    def scale_out(self, text: str | None, command: str, now: float) -> Notification | None:
        """People have to add a replica by this command, as `text` says, or (None) not any more; None where nobody was
        told of it."""
        self._command = command
        if text is None:
            self._escalated.pop(SCALE_OUT, None)
            return self._escalated_page(SCALE_OUT, None, now) if self._escalations.pop(SCALE_OUT, None) else None
        # A page of its own: no fault explains it, and none that ends ends it.
        self._escalations[SCALE_OUT], self._escalated[SCALE_OUT] = SCALE_OUT_ALERT, (text, now)
        return self._escalated_page(SCALE_OUT, text, now)

    def escalation(self, incident: str, text: str | None, now: float) -> Notification | None:
        """The ladder of an incident is used up, as `text` says, or (None) that incident is closed.

        While a page of the same server is open it is an update of that one, whose end is its end: one fault, one page.
        """
        if text is None:
            self._escalated.pop(incident, None)
            if self._escalations.pop(incident, ESCALATION) != ESCALATION:
                return None
        else:
            self._escalated[incident] = (text, now)
            carrier = self._carrier(incident)
            if carrier is not None:
                (made,) = self._notified(carrier, now)
                return replace(
                    made,
                    at=now,
                    summary=f"[critical] {carrier.name} on {self.policy.source}: {text}",
                    details={**made.details, "next": text, "incident": incident, "do": f"dsobs incidents {incident}"},
                )
        return self._escalated_page(incident, text, now)

    def _escalated_page(self, incident: str, text: str | None, now: float) -> Notification:
        """A page of its own, or (None) its end."""
        summary = f"[critical] {self.policy.source}: {text}" if text else f"[resolved] {self.policy.source}: {incident}"
        return Notification(
            at=now,
            event=Event.RESOLVE if text is None else Event.TRIGGER,
            dedup_key=dedup_key(self.policy.source, f"incident-{incident}"),
            summary=summary,
            severity="critical",
            source=self.policy.source,
            component="dsobs",
            details={"incident": incident, "do": _look_at(incident), **self._run(incident)},
        )

    def _run(self, incident: str) -> dict[str, str]:
        """Whole, where a summary would be cut."""
        return {"run": self._command} if incident == SCALE_OUT and self._command else {}

    def _carrier(self, incident: str) -> Alert | None:
        """The open page that the escalation goes into; one that has a page of its own keeps that."""
        if self._escalations.get(incident) == ESCALATION or not self._open:
            self._escalations[incident] = ESCALATION
            return None
        before = self._escalations.get(incident)
        carrier = next((alert for alert in self._open if alert.name == before), self._open[0])
        self._escalations[incident] = carrier.name
        return carrier

    # For receivers that are told the whole state.

    def standing(self, alerts: Sequence[Alert], ledger: Ledger, now: float) -> list[Standing]:
        """All alerts as they stand: firing, lately resolved, Watchdog and escalated incidents.

        Where Prometheus evaluates pages, only the latter two: the rules' alerts come from there.
        """
        found = [
            self._standing(alert, now)
            for alert in alerts
            if alert.state is not AlertState.PENDING and (alert.name == WATCHDOG or not self.policy.elsewhere)
        ]
        told: dict[str, Standing] = {}
        for incident in ledger.incidents():
            page, closed = incident.last("page"), incident.last("incident", "closed")
            if page is not None and (closed is None or now - closed.at <= RESOLVED_SECONDS):
                until = closed.at if closed is not None else None
                told[incident.id] = self._escalated_alert(
                    incident.id, str(page.detail.get("reason", "")), page.at, now, until
                )
        over = {incident.id for incident in ledger.incidents() if incident.closed}
        for id_, (text, at) in self._escalated.items():
            if id_ in over:
                continue
            told.setdefault(id_, self._escalated_alert(id_, text, at, now))
        return [*found, *told.values()]

    def _standing(self, alert: Alert, now: float) -> Standing:
        # Each turn: the page of the same alert has said what is wrong with them.
        addresses = self.policy.texts.addresses(alert, self.policy.source, now, quiet=True)
        annotations = {**alert.annotations, **addresses}
        ended = None
        if alert.state is AlertState.RESOLVED:
            ended = alert.resolved_at if alert.resolved_at is not None else now
        elif alert.name != WATCHDOG:
            annotations["next_step"] = self.policy.next_step(alert)
        return Standing(
            labels=self.policy.labels(alert),
            annotations=annotations,
            severity=alert.severity,
            # As in Prometheus: `startsAt` is when it fired.
            started_at=alert.fired_at if alert.fired_at is not None else alert.active_at,
            seen_at=alert.seen_at,
            interval=alert.interval,
            ended_at=ended,
        )

    def _escalated_alert(self, incident: str, text: str, at: float, now: float, ended: float | None = None) -> Standing:
        return Standing(
            labels={
                # Where a page carries it, it is of that page's group.
                "alertname": self._escalations.get(incident, ESCALATION),
                "instance": self.policy.instance or self.policy.source,
                "severity": "critical",
                "component": "dsobs",
                "incident": incident,
            },
            annotations={
                "summary": f"{self.policy.source}: {text}",
                "description": f"See `{_look_at(incident)}`.",
                **self._run(incident),
            },
            severity="critical",
            started_at=at,
            seen_at=now,
            interval=1.0,
            ended_at=ended,
        )


def _look_at(incident: str) -> str:
    """The command that shows more of it."""
    return "dsobs incidents" if incident == SCALE_OUT else f"dsobs incidents {incident}"
