"""The ledger: every step of every incident, on disk before it takes effect."""

import json
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS ledger (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at REAL NOT NULL,
        incident TEXT NOT NULL,
        kind TEXT NOT NULL,
        state TEXT NOT NULL,
        detail TEXT NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS ledger_incident ON ledger (incident)",
    "CREATE INDEX IF NOT EXISTS ledger_at ON ledger (at)",
)
KEEP_SECONDS = 90 * 86400.0
MAX_REFUSALS = 3
"""Restarts that a runtime refuses in one incident, before dsobs gives up."""
MAX_IN_VAIN = 2
"""The same for those that were asked for and had no effect."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    `kind`: incident, evidence, drain, restart, verify, page, guard, operator; scale, which is of no incident.
    `state`: opened, closed; reserved, done, failed, unknown, observed; refused; noted.
    """

    at: float
    incident: str
    kind: str
    state: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0


def said(detail: Mapping[str, Any]) -> str:
    """What a line's detail says for people; empty if it says nothing."""
    return str(detail.get("why") or detail.get("guard") or detail.get("reason") or detail.get("folder") or "")


def incident_id(now: float) -> str:
    """`20261123T171656Z-3f9c`: sortable, and unique beside others of the same second."""
    return f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def append(connection: sqlite3.Connection, entry: Entry) -> int:
    """Writes one line inside the caller's transaction; its id."""
    cursor = connection.execute(
        "INSERT INTO ledger (at, incident, kind, state, detail) VALUES (?, ?, ?, ?, ?)",
        (entry.at, entry.incident, entry.kind, entry.state, json.dumps(dict(entry.detail), default=str)),
    )
    return int(cursor.lastrowid or 0)


def _entries(rows: Sequence[tuple[Any, ...]]) -> list[Entry]:
    return [
        Entry(at, incident, kind, state, json.loads(detail), id_) for id_, at, incident, kind, state, detail in rows
    ]


def since(connection: sqlite3.Connection, at: float) -> list[Entry]:
    """All lines from `at` on, and all of incidents that are still open, oldest first."""
    rows = connection.execute(
        """SELECT id, at, incident, kind, state, detail FROM ledger WHERE at >= ? OR incident IN (
               SELECT incident FROM ledger WHERE kind = 'incident' GROUP BY incident
               HAVING SUM(state = 'closed') = 0)
           ORDER BY id""",
        (at,),
    ).fetchall()
    return _entries(rows)


def of_incident(connection: sqlite3.Connection, incident: str) -> list[Entry]:
    """All lines of one incident, oldest first; `incident` may be a prefix that names one."""
    rows = connection.execute(
        "SELECT id, at, incident, kind, state, detail FROM ledger WHERE substr(incident, 1, ?) = ? ORDER BY id",
        (len(incident), incident),
    ).fetchall()
    return _entries(rows)


def prune(connection: sqlite3.Connection, now: float) -> int:
    """Drops what is older than 90 days; how many lines."""
    return connection.execute("DELETE FROM ledger WHERE at < ?", (now - KEEP_SECONDS,)).rowcount


def by_incident(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """For JSON: newest incident first, each with its lines, oldest first."""
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.incident, []).append(entry)
    return [
        {
            "id": id_,
            "opened_at": found[0].at,
            "closed": Incident(id_, tuple(found)).closed,
            "alerts": list(found[0].detail.get("alerts", ())),
            "entries": [{"at": e.at, "kind": e.kind, "state": e.state, "detail": dict(e.detail)} for e in found],
        }
        for id_, found in reversed(grouped.items())
    ]


@dataclass(frozen=True, slots=True)
class Incident:
    """The lines of one incident, read for planning."""

    id: str
    entries: tuple[Entry, ...]

    def last(self, kind: str, *states: str) -> Entry | None:
        """The newest line of `kind` in one of `states` (any if none are given)."""
        for entry in reversed(self.entries):
            if entry.kind == kind and (not states or entry.state in states):
                return entry
        return None

    @property
    def opened_at(self) -> float:
        """When it began."""
        return self.entries[0].at

    @property
    def closed(self) -> bool:
        """It has ended; so has another number of replicas, which is no incident, once what came of it is known."""
        if self.entries[0].kind == "scale":
            return self.entries[-1].state != "reserved"
        return self.last("incident", "closed") is not None

    def refusals(self) -> list[Entry]:
        """Restarts that the runtime refused, oldest first; not those that dsobs withdrew before it asked."""
        return [
            entry
            for entry in self.entries
            if entry.kind == "restart" and entry.state == "failed" and not entry.detail.get("withdrawn")
        ]

    @property
    def given_up(self) -> bool:
        """So many of them that dsobs tries no more."""
        refusals = self.refusals()
        in_vain = sum(1 for entry in refusals if entry.detail.get("without_effect"))
        return len(refusals) >= MAX_REFUSALS or in_vain >= MAX_IN_VAIN

    @property
    def alerts(self) -> tuple[str, ...]:
        """The alerts that opened it."""
        return tuple(self.entries[0].detail.get("alerts", ()))


ATTEMPTED = ("reserved", "done", "failed", "unknown", "observed")


@dataclass(frozen=True, slots=True)
class Ledger:
    """The recent lines as planning sees them; immutable, made anew when a line is written."""

    entries: tuple[Entry, ...] = ()
    writable: bool = True
    why_not: str = ""

    def with_entry(self, entry: Entry) -> "Ledger":
        """The same with one line more."""
        return Ledger((*self.entries, entry), self.writable, self.why_not)

    def without(self, id_: int) -> "Ledger":
        """The same before one line was written."""
        return Ledger(tuple(e for e in self.entries if e.id != id_), self.writable, self.why_not)

    def incidents(self) -> list[Incident]:
        """By first line, oldest first."""
        grouped: dict[str, list[Entry]] = {}
        for entry in self.entries:
            grouped.setdefault(entry.incident, []).append(entry)
        return [Incident(id_, tuple(lines)) for id_, lines in grouped.items()]

    def open_incident(self) -> Incident | None:
        """The one that is going on."""
        for incident in reversed(self.incidents()):
            if incident.entries[0].kind == "incident" and not incident.closed:
                return incident
        return None

    def _restarts(self, state: str) -> list[Entry]:
        """Restarts in `state`, oldest first. One that surely did nothing does not count, one that was asked for in vain
        does."""
        lines = [entry for entry in self.entries if entry.kind == "restart"]
        failed = {
            int(entry.detail.get("attempt", 0))
            for entry in lines
            if entry.state == "failed" and not entry.detail.get("without_effect")
        }
        return [entry for entry in lines if entry.state == state and entry.id not in failed]

    def attempts(self, since: float) -> int:
        """Restarts after `since` that were made, or may have been."""
        return sum(1 for entry in self._restarts("reserved") if entry.at > since)

    def observed(self, since: float) -> int:
        """Restarts after `since` that enforce would have made."""
        return sum(1 for entry in self._restarts("observed") if entry.at > since)

    def last_restart(self, since: float) -> Entry | None:
        """The newest restart after `since` that was made, or may have been."""
        made = [e for e in self.entries if e.kind == "restart" and e.state in ("done", "unknown") and e.at > since]
        return made[-1] if made else None

    def last_attempt(self, *, observed: bool = False) -> Entry | None:
        """The newest restart that was reserved, whatever became of it; `observed`: or would have been."""
        made = self._restarts("reserved") + (self._restarts("observed") if observed else [])
        return max(made, key=lambda entry: entry.id, default=None)

    def attempt_in_flight(self) -> Entry | None:
        """A restart that was reserved and has no result yet."""
        ended = {int(e.detail.get("attempt", 0)) for e in self.entries if e.kind == "restart" and e.state != "reserved"}
        for entry in reversed(self.entries):
            if entry.kind == "restart" and entry.state == "reserved" and entry.id not in ended:
                return entry
        return None
