"""Incidents as traces."""

from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import StatusCode

from dsobs.otlp.traces import spans_of, trace_id
from dsobs.remediation.ledger import Entry

INCIDENT = "20261129T010203Z-abcd"


def spans(*lines: tuple[float, str, str, dict[str, Any]]) -> list[ReadableSpan]:
    entries = [Entry(at, INCIDENT, kind, state, detail, n) for n, (at, kind, state, detail) in enumerate(lines, 1)]
    return [
        span
        for number, entry in enumerate(entries)
        for span in spans_of(
            entry,
            entries[:number],
            resource=Resource({}),
            scope=InstrumentationScope("dsobs"),
            attributes={"dsobs.server": "vllm-a"},
        )
    ]


STORY = (
    (100.0, "incident", "opened", {"alerts": ["EngineHung"], "reason": "EngineHung fires"}),
    (102.0, "evidence", "done", {"folder": "incidents/x"}),
    (130.0, "restart", "reserved", {"reason": "hang confirmed"}),
    (135.0, "restart", "done", {"reason": "hang confirmed", "attempt": 3, "reserved_at": 130.0}),
    (160.0, "verify", "done", {"reason": "ready and moving"}),
    (190.0, "incident", "closed", {"reason": "resolved"}),
)


def test_incident_is_one_trace_with_a_span_for_each_step() -> None:
    found = spans(*STORY)
    assert [(s.name, s.start_time, s.end_time) for s in found] == [
        ("evidence", 100_000_000_000, 102_000_000_000),
        ("restart", 130_000_000_000, 135_000_000_000),
        ("verify", 135_000_000_000, 160_000_000_000),
        ("incident", 100_000_000_000, 190_000_000_000),
    ]
    root = found[-1]
    assert {s.context.trace_id for s in found} == {trace_id(INCIDENT)}
    assert root.parent is None
    assert all(s.parent is not None and s.parent.span_id == root.context.span_id for s in found[:-1])
    assert len({s.context.span_id for s in found}) == 4
    assert all(s.status.status_code is StatusCode.OK for s in found)
    assert root.attributes == {
        "dsobs.server": "vllm-a",
        "dsobs.incident.id": INCIDENT,
        "dsobs.incident.alerts": ["EngineHung"],
        "dsobs.step.reason": "resolved",
    }


def test_same_lines_give_the_same_ids_after_a_restart_of_dsobs() -> None:
    assert [s.context for s in spans(*STORY)] == [s.context for s in spans(*STORY)]


def test_step_that_failed_and_incident_that_a_person_was_paged_for_are_errors() -> None:
    failed = (135.0, "restart", "failed", {"why": "no right to", "attempt": 3, "reserved_at": 130.0})
    paged = (136.0, "page", "done", {"reason": "restart failed"})
    found = {s.name: s for s in spans(*STORY[:3], failed, paged, STORY[-1])}
    assert (found["restart"].status.status_code, found["restart"].status.description) == (
        StatusCode.ERROR,
        "no right to",
    )
    assert found["incident"].status.status_code is StatusCode.ERROR
    assert found["page"].start_time == found["page"].end_time


def test_restart_that_was_refused_is_neither_good_nor_bad() -> None:
    refused = (131.0, "restart", "refused", {"reason": "hang", "guard": "cooldown: 5 min left"})
    (span,) = spans(STORY[0], refused)
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes is not None
    assert span.attributes["dsobs.step.reason"] == "cooldown: 5 min left"
    assert span.start_time == span.end_time


def test_clock_that_was_set_back_makes_no_span_that_ends_before_it_begins() -> None:
    back = (90.0, "restart", "done", {"reserved_at": 130.0})
    (span,) = spans(STORY[0], back)
    assert span.start_time == span.end_time == 90_000_000_000
