"""Alerts and the ledger's lines as log records."""

import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from dsobs.logs.formats import format_named
from dsobs.logs.record import Common, Lines, LogFile
from dsobs.model.alert import Alert, AlertState, Transition
from dsobs.remediation.ledger import Entry
from dsobs.sidecar import journal
from dsobs.sidecar.journal import Journal
from dsobs.telemetry import INCIDENT_RECORDS_LOST

INCIDENT = "20261124T080000Z-3f9c"
T0 = 1795507200.0


def entry(id_: int, kind: str = "restart", state: str = "done", **detail: Any) -> Entry:
    return Entry(T0 + id_, INCIDENT, kind, state, detail, id_)


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines() if line]


def test_a_line_of_the_ledger_is_a_record_with_the_incidents_id(tmp_path: Path) -> None:
    one = Journal(tmp_path / "incidents.ndjson")
    one.entry(entry(3, "guard", "refused", guard="cooldown"))
    one.close()
    assert lines(one.path) == [
        {
            "@timestamp": "2026-11-24T08:00:03.000Z",
            "message": f"incident {INCIDENT}: guard refused: cooldown",
            "log.level": "warning",
            "event.kind": "event",
            "event.dataset": "dsobs.incident",
            "event.action": "guard-refused",
            "event.reason": "cooldown",
            "labels.incident_id": INCIDENT,
            "dsobs.ledger_id": 3,
        }
    ]


@pytest.mark.parametrize(
    ("state", "severity", "level"),
    [
        (AlertState.FIRING, "critical", "critical"),
        (AlertState.FIRING, "warning", "warning"),
        (AlertState.FIRING, "info", "info"),
        (AlertState.RESOLVED, "critical", "info"),
    ],
)
def test_an_alert_is_a_record_with_its_labels(tmp_path: Path, state: AlertState, severity: str, level: str) -> None:
    alert = Alert("EngineHung", {"severity": severity, "model": "r1"}, {"summary": "no tokens"}, state)
    document = journal.of_transition(Transition(T0, alert, None), INCIDENT)
    assert document["message"] == f"alert EngineHung {state}: no tokens"
    assert (document["log.level"], document["labels.model"]) == (level, "r1")
    assert document["labels.incident_id"] == INCIDENT
    assert "labels.incident_id" not in journal.of_transition(Transition(T0, alert, None), None)


def test_what_the_ledger_has_and_the_file_has_not_is_added_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "incidents.ndjson"
    first = Journal(path)
    first.begin([entry(1)])
    first.entry(entry(2))
    first.close()
    path.write_bytes(path.read_bytes() + b'{"dsobs.ledger_id": 3, "half')
    again = Journal(path)
    again.begin([entry(number) for number in range(1, 5)])
    again.close()
    whole = [line for line in path.read_bytes().splitlines() if line.endswith(b"}")]
    assert [orjson.loads(line)["dsobs.ledger_id"] for line in whole] == [1, 2, 3, 4]


def test_the_files_together_have_a_bound_and_the_last_line_is_known_over_a_rotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 1000)
    one = Journal(tmp_path / "incidents.ndjson")
    for number in range(1, 30):
        one.entry(entry(number))
    one.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 3000
    one.path.unlink(missing_ok=True)
    assert one._last_id() > 0


def test_a_disk_that_fails_is_counted_and_holds_nobody_up(tmp_path: Path) -> None:
    lost = INCIDENT_RECORDS_LOST.labels("disk_error")
    before = lost._value.get()
    (tmp_path / "file").touch()
    one = Journal(tmp_path / "file" / "incidents.ndjson")
    one.entry(entry(1))
    one.close()
    assert lost._value.get() == before + 1


def test_a_disk_that_hangs_costs_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_WAITING", 3)
    lost = INCIDENT_RECORDS_LOST.labels("disk_hangs")
    before = lost._value.get()
    one = Journal(tmp_path / "incidents.ndjson")
    stuck, begun = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        stuck.wait(10)

    one._submit(hang)
    assert begun.wait(10)
    for number in range(1, 7):
        one.entry(entry(number))
    assert lost._value.get() == before + 3
    stuck.set()
    one.close()
    assert len(lines(one.path)) == 3


def test_the_records_have_a_data_stream_of_their_own(tmp_path: Path) -> None:
    common = Common({"host.name": "h", "labels.cluster": "eu-1"})
    file = LogFile(tmp_path / "incidents.ndjson", T0, "incident")
    parser = format_named("incident").open(file, common, as_fields=False)
    line = orjson.dumps(journal.of_entry(entry(1)))
    assert parser.parse(Lines(0, len(line) + 1, [line], T0)) == [(0, line, line)]
    assert parser.dataset == "incident"
