"""Alerts, actions and incidents as log records: a file of JSON lines that is shipped like any other.

The ledger in `state.db` is what counts; its lines that are not in the file are added at the next start, so that what
was done is found in the logs too, whenever dsobs or the machine ended. No caller waits for the disk.
"""

import contextlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from dsobs.model.alert import AlertState, Transition
from dsobs.remediation.ledger import Entry
from dsobs.telemetry import INCIDENT_RECORDS_LOST

log = logging.getLogger(__name__)

INCIDENTS_FILE = "incidents.ndjson"
"""In the state directory."""
MAX_BYTES = 16 * 1024 * 1024
"""A file of this size becomes `NAME.1`, and the one before it goes."""
MAX_WAITING = 10_000
"""Lines that wait for a disk that hangs."""
_END_BYTES = 1024 * 1024
_LEDGER_ID = "dsobs.ledger_id"
_OUTCOMES = {"done": "success", "failed": "failure", "unknown": "unknown"}
_WARNINGS = ("opened", "failed", "unknown", "refused", "reserved")


class Journal:
    """The file `path`, written by a thread of its own, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="dsobs-journal")
        self._waiting = 0
        self._trouble = ""

    def begin(self, entries: Iterable[Entry]) -> None:
        """Adds the lines of the ledger that came after the last one that is there."""
        lines = [(entry.id, orjson.dumps(of_entry(entry))) for entry in entries]
        self._submit(lambda: self._add_missing(lines))

    def entry(self, entry: Entry) -> None:
        """One line of the ledger, committed."""
        self._add(of_entry(entry))

    def transition(self, transition: Transition, incident: str | None) -> None:
        """An alert that changed its state; `incident` is the one that is open."""
        self._add(of_transition(transition, incident))

    def close(self) -> None:
        """Writes what waits; legal twice."""
        self._writer.shutdown()

    def _add(self, document: dict[str, Any]) -> None:
        line = orjson.dumps(document, default=str)
        self._submit(lambda: self._write([line]))

    def _submit(self, work: Any) -> None:
        if self._waiting >= MAX_WAITING:
            INCIDENT_RECORDS_LOST.labels("disk_hangs").inc()
            return
        self._waiting += 1
        # After `close` nothing is written any more; the ledger's lines are added at the next start.
        with contextlib.suppress(RuntimeError):
            self._writer.submit(self._run, work)

    def _run(self, work: Any) -> None:
        self._waiting -= 1
        try:
            work()
        except OSError as error:
            INCIDENT_RECORDS_LOST.labels("disk_error").inc()
            if self._trouble != str(error):
                log.warning("incidents can't be written for the logs: %s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""

    # On the thread.

    def _write(self, lines: list[bytes]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size >= MAX_BYTES:
                self.path.rename(self.path.with_name(f"{self.path.name}.1"))
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(fd).st_size
            data = b"".join(line + b"\n" for line in lines)
            # A crash in the middle of a write leaves half a line.
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data
            try:
                while data:
                    data = data[os.write(fd, data) :]
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)

    def _add_missing(self, lines: list[tuple[int, bytes]]) -> None:
        last = self._last_id()
        missing = [line for id_, line in lines if id_ > last]
        if missing:
            self._write(missing)

    def _last_id(self) -> int:
        """Of the newest line of the ledger that is in the file; 0: none."""
        for path in (self.path, self.path.with_name(f"{self.path.name}.1")):
            try:
                with path.open("rb") as file:
                    file.seek(max(0, path.stat().st_size - _END_BYTES))
                    lines = file.read().split(b"\n")
            except FileNotFoundError:
                continue
            for line in reversed(lines):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    return int(orjson.loads(line)[_LEDGER_ID])
        return 0


def of_entry(entry: Entry) -> dict[str, Any]:
    """A line of the ledger as a record: `event.action` is `KIND-STATE`, such as `restart-done`."""
    detail = entry.detail
    reason = detail.get("why") or detail.get("guard") or detail.get("reason") or detail.get("folder") or ""
    document: dict[str, Any] = {
        "@timestamp": _iso(entry.at),
        "message": f"incident {entry.incident}: {entry.kind} {entry.state}" + (f": {reason}" if reason else ""),
        "log.level": "warning" if entry.state in _WARNINGS else "info",
        "event.kind": "event",
        "event.dataset": "dsobs.incident",
        "event.action": f"{entry.kind}-{entry.state}",
        "labels.incident_id": entry.incident,
        _LEDGER_ID: entry.id,
    }
    if entry.state in _OUTCOMES:
        document["event.outcome"] = _OUTCOMES[entry.state]
    if reason:
        document["event.reason"] = str(reason)
    return document


def of_transition(transition: Transition, incident: str | None) -> dict[str, Any]:
    """An alert's new state as a record: `event.action` is `alert-STATE`, its labels are `labels.NAME`."""
    alert = transition.alert
    document: dict[str, Any] = {
        "@timestamp": _iso(transition.at),
        "message": f"alert {alert.name} {alert.state}: {alert.annotations.get('summary', '')}".removesuffix(": "),
        "log.level": _level(alert.state, alert.severity),
        "event.kind": "alert",
        "event.dataset": "dsobs.incident",
        "event.action": f"alert-{alert.state}",
        "rule.name": alert.name,
        **{f"labels.{name}": value for name, value in alert.labels.items()},
    }
    if incident is not None:
        document["labels.incident_id"] = incident
    return document


def _level(state: AlertState, severity: str) -> str:
    if state is not AlertState.FIRING:
        return "info"
    return {"critical": "critical", "info": "info"}.get(severity, "warning")


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
