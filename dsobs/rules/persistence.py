"""The state of alerts on disk.

The functions take a connection, so that they can be part of a larger transaction: an alert's new state and what goes
out about it are committed together. A snapshot is all there is, a handful of rows, so a failed write is mended by the
next.

Pending time and the time of `keep_firing_for` are stored as durations, never as moments: time in which nothing was
evaluated does not count, and a wall clock that was set meanwhile changes nothing.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from dsobs.model.alert import AlertState

SCHEMA: tuple[str, ...] = (
    """
    CREATE TABLE IF NOT EXISTS alerts (
        rule_key TEXT NOT NULL,
        labels TEXT NOT NULL,
        name TEXT NOT NULL,
        annotations TEXT NOT NULL,
        state TEXT NOT NULL,
        value REAL,
        active_at REAL NOT NULL,
        fired_at REAL,
        resolved_at REAL,
        pending_seconds REAL NOT NULL,
        kept_seconds REAL,
        evaluated_at REAL NOT NULL,
        PRIMARY KEY (rule_key, labels)
    ) WITHOUT ROWID
    """,
)


@dataclass(frozen=True, slots=True)
class SavedAlert:
    """One alert as it is on disk. Moments are Unix seconds."""

    rule_key: str
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    state: AlertState
    value: float
    active_at: float
    fired_at: float | None
    resolved_at: float | None
    pending_seconds: float
    """How long the condition had held."""
    kept_seconds: float | None
    """How long it has been firing by `keep_firing_for` alone; None: the condition held."""
    evaluated_at: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All alerts at one moment."""

    at: float
    revision: int
    alerts: tuple[SavedAlert, ...]


def save(connection: sqlite3.Connection, snapshot: Snapshot) -> None:
    """Puts the snapshot in place of what is there; the caller's transaction makes it all or nothing."""
    connection.execute("DELETE FROM alerts")
    connection.executemany(
        "INSERT INTO alerts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                alert.rule_key,
                json.dumps(dict(alert.labels), sort_keys=True),
                alert.name,
                json.dumps(dict(alert.annotations), sort_keys=True),
                alert.state.value,
                # SQLite stores NaN as NULL.
                alert.value,
                alert.active_at,
                alert.fired_at,
                alert.resolved_at,
                alert.pending_seconds,
                alert.kept_seconds,
                alert.evaluated_at,
            )
            for alert in snapshot.alerts
        ],
    )


def restore(connection: sqlite3.Connection) -> list[SavedAlert]:
    """What the last committed snapshot held."""
    rows = connection.execute(
        "SELECT rule_key, name, labels, annotations, state, value, active_at, fired_at, resolved_at, pending_seconds,"
        " kept_seconds, evaluated_at FROM alerts ORDER BY rule_key, labels"
    )
    return [
        SavedAlert(
            rule_key,
            name,
            json.loads(labels),
            json.loads(annotations),
            AlertState(state),
            float("nan") if value is None else value,
            *moments,
        )
        for rule_key, name, labels, annotations, state, value, *moments in rows
    ]
