import json
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsobs import plugins
from dsobs.config import Secret
from dsobs.config.models import PagerDuty
from dsobs.model.notification import Event
from dsobs.model.notifier import Notifier
from dsobs.notifiers.pagerduty import PagerDutyNotifier, event_body, trimmed
from tests.contracts.notifier_contract import NotifierContract, a_notification
from tests.pagerduty_stand_in import MAX_BYTES, PagerDutyStandIn, problems_of

KEY = "0123456789abcdef0123456789abcdef"


class TestPagerDuty(NotifierContract):
    accepted_status = 202
    secrets = (KEY,)

    def make(self, url: str, session: aiohttp.ClientSession, *, deadline_seconds: float) -> Notifier:
        configured = PagerDuty(routing_key=Secret(KEY), url=f"{url}/v2/enqueue", severities=("critical", "warning"))
        return PagerDutyNotifier(configured, session, deadline_seconds=deadline_seconds)

    def make_without_secret(self, url: str, session: aiohttp.ClientSession) -> Notifier:
        return PagerDutyNotifier(PagerDuty(routing_key=Secret("file:/nowhere/secret"), url=url), session)


def test_is_found_by_its_entry_point() -> None:
    assert plugins.load("dsobs.notifiers", "pagerduty") is PagerDutyNotifier


async def test_stand_in_for_pagerduty_takes_the_trigger_and_its_resolve(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY + "\n")
    async with PagerDutyStandIn() as pagerduty, aiohttp.ClientSession() as session:
        notifier = PagerDutyNotifier(PagerDuty(routing_key=Secret(f"file:{key_file}"), url=pagerduty.url), session)
        sent = a_notification(
            details={"value": "12"},
            labels={"alertname": "EngineHung", "model_name": "m"},
            annotations={"summary": "stuck"},
            links=(("https://example.org/r", "Runbook"),),
            started_at=1_800_000_000.0,
            component="engine",
        )
        assert (await notifier.send(sent)).status == 202
        assert (await notifier.send(a_notification(Event.RESOLVE))).status == 202
    assert pagerduty.events == [
        {
            "routing_key": KEY,
            "event_action": "trigger",
            "dedup_key": "dsobs/gpu-1/abc",
            "client": "dsobs",
            "client_url": "https://example.org/r",
            "links": [{"href": "https://example.org/r", "text": "Runbook"}],
            "payload": {
                "summary": "[critical] EngineHung on gpu-1: no progress for 12 s",
                "source": "gpu-1",
                "severity": "critical",
                "timestamp": "2027-01-15T08:00:00.000Z",
                "component": "engine",
                "group": "m",
                "class": "EngineHung",
                "custom_details": {
                    "value": "12",
                    "labels": {"alertname": "EngineHung", "model_name": "m"},
                    "annotations": {"summary": "stuck"},
                },
            },
        },
        {"routing_key": KEY, "event_action": "resolve", "dedup_key": "dsobs/gpu-1/abc"},
    ]
    assert [incident.open for incident in pagerduty.incidents] == [False]


async def test_routing_key_is_read_anew_for_each_event(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("too short")
    async with PagerDutyStandIn() as pagerduty, aiohttp.ClientSession() as session:
        notifier = PagerDutyNotifier(PagerDuty(routing_key=Secret(f"file:{key_file}"), url=pagerduty.url), session)
        assert (await notifier.send(a_notification())).status == 400
        key_file.write_text(KEY)
        assert (await notifier.send(a_notification())).status == 202


def test_long_summary_is_cut_to_1024_characters() -> None:
    event = json.loads(event_body(a_notification(summary="x" * 3000), KEY))
    assert len(event["payload"]["summary"]) == 1024
    assert event["payload"]["summary"].endswith("x…")


def test_huge_details_are_shortened_until_the_event_fits() -> None:
    details = {"short": "kept", **{f"log {n}": "é\n" * 100_000 for n in range(20)}}
    body = event_body(a_notification(details=details), KEY)
    assert len(body) <= MAX_BYTES
    kept = json.loads(body)["payload"]["custom_details"]
    assert kept["short"] == "kept"
    assert len(kept) == 21
    assert kept["log 3"].endswith("…")


def test_too_many_details_are_left_out_from_the_end() -> None:
    kept = trimmed({f"{n:06d}": "v" * 300 for n in range(10_000)}, 100_000)
    assert len(json.dumps(kept, ensure_ascii=False).encode()) <= 110_000
    assert list(kept)[:2] == ["left_out", "000000"]


_TEXT = st.text(max_size=40)


@settings(max_examples=200, deadline=None)
@given(
    event=st.sampled_from(Event),
    key=st.text(min_size=1, max_size=300),
    summary=st.text(max_size=2000),
    severity=_TEXT,
    source=_TEXT,
    component=_TEXT,
    details=st.dictionaries(_TEXT, st.text(max_size=300), max_size=5),
    links=st.lists(st.tuples(st.text(min_size=1, max_size=20), _TEXT), max_size=3).map(tuple),
    labels=st.dictionaries(_TEXT, _TEXT, max_size=3),
)
def test_every_event_is_within_the_published_schema(event: Event, **fields: object) -> None:
    fields["dedup_key"] = fields.pop("key")
    problems, _ = problems_of(event_body(a_notification(event, **fields), KEY))
    assert problems == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"routing_key": "short"}, "'routing_key' must have 32 characters"),
        ({"event_action": "open"}, "'event_action' is 'open'"),
        ({"dedup_key": "k" * 256}, "'dedup_key' must be 1 to 255 characters"),
        ({"payload": None}, "'payload' is missing"),
        ({"payload": {"summary": "s", "source": "s", "severity": "page"}}, "'severity' is 'page'"),
        ({"payload": {"summary": "s" * 1025, "source": "s", "severity": "info"}}, "'summary' must be 1 to 1024"),
    ],
)
def test_stand_in_for_pagerduty_refuses_what_the_schema_forbids(change: dict[str, object], problem: str) -> None:
    event = json.loads(event_body(a_notification(), KEY))
    problems, _ = problems_of(json.dumps({**event, **change}).encode())
    assert problem in " ".join(problems)
