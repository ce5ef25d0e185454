import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs.model.alert import Alert, AlertState, Transition
from dsobs.model.notification import Event
from dsobs.notifiers.messages import dedup_key, notification_of, severity_of

FIRING = Alert(
    name="EngineHung",
    labels={"severity": "critical", "model_name": "m", "engine": "0"},
    annotations={
        "summary": "no progress for 12 s with 8 requests outstanding",
        "runbook_url": "https://example.org/runbooks/hung",
    },
    state=AlertState.FIRING,
    value=12.0,
    active_at=1_800_000_000.0,
    fired_at=1_800_000_003.5,
)


def test_firing_alert_says_severity_name_server_and_what_is_wrong() -> None:
    sent = notification_of(
        Transition(1_800_000_003.5, FIRING, AlertState.PENDING),
        source="gpu-1",
        links=(("http://127.0.0.1:9940/", "dsobs"),),
        next_step="restarts the engine in 30 s unless it moves",
    )
    assert sent is not None
    assert sent.event is Event.TRIGGER
    assert sent.summary == "[critical] EngineHung on gpu-1: no progress for 12 s with 8 requests outstanding"
    assert sent.dedup_key == f"dsobs/gpu-1/{FIRING.fingerprint}"
    assert dict(sent.details) == {
        "started": "2027-01-15T08:00:00.000Z",
        "value": "12",
        "fired": "2027-01-15T08:00:03.500Z",
        "next": "restarts the engine in 30 s unless it moves",
    }
    assert sent.labels["alertname"] == "EngineHung"
    assert sent.links == (("https://example.org/runbooks/hung", "Runbook"), ("http://127.0.0.1:9940/", "dsobs"))
    assert sent.started_at == 1_800_000_000.0


def test_resolve_has_the_triggers_key_and_severity_and_its_end() -> None:
    ended = replace(FIRING, state=AlertState.RESOLVED, resolved_at=1_800_000_060.0, value=math.nan)
    sent = notification_of(Transition(1_800_000_061.0, ended, AlertState.FIRING), source="gpu-1", next_step="nothing")
    assert sent is not None
    assert (sent.event, sent.severity) == (Event.RESOLVE, "critical")
    assert sent.dedup_key == f"dsobs/gpu-1/{FIRING.fingerprint}"
    assert sent.summary.startswith("[resolved] EngineHung on gpu-1")
    assert sent.details["ended"] == "2027-01-15T08:01:00.000Z"
    assert "value" not in sent.details
    assert "next" not in sent.details


def test_pending_alert_is_told_to_nobody() -> None:
    assert notification_of(Transition(1.0, replace(FIRING, state=AlertState.PENDING), None), source="gpu-1") is None


def test_runbook_that_is_no_http_address_is_no_link() -> None:
    alert = replace(FIRING, annotations={"runbook_url": "javascript:alert(1)"})
    sent = notification_of(Transition(1.0, alert, None), source="gpu-1")
    assert sent is not None
    assert sent.links == ()
    assert sent.summary == "[critical] EngineHung on gpu-1"


@pytest.mark.parametrize(
    ("label", "severity"),
    [("critical", "critical"), ("Page", "critical"), ("info", "info"), ("none", "info"), ("ticket", "warning")],
)
def test_severity_labels_become_pagerdutys_words(label: str, severity: str) -> None:
    assert severity_of(label) == severity


@given(st.text(max_size=600), st.text(max_size=600))
def test_dedup_keys_are_short_stable_and_told_apart(source: str, other: str) -> None:
    key = dedup_key(source, "f" * 32)
    assert len(key) <= 255
    assert key == dedup_key(source, "f" * 32)
    assert (key == dedup_key(other, "f" * 32)) == (source == other)
