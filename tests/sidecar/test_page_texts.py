"""The texts of pages."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs.config import Config
from dsobs.config.models import Pages
from dsobs.model.alert import Alert, AlertState, Transition
from dsobs.model.notification import Notification
from dsobs.notifiers.messages import notification_of
from dsobs.sidecar.page_texts import PageTexts, bad_templates

NOW = 1_800_000_000.0
ALERT = Alert(
    "LatencyP99High",
    {"alertname": "LatencyP99High", "severity": "warning", "model_name": "r1"},
    {"summary": "P99 is 612ms", "description": "Fewer than 99 %.", "threshold": "500ms at P99"},
    AlertState.FIRING,
    0.612,
    NOW - 312,
    NOW - 12,
)


def page(alert: Alert = ALERT, **templates: str) -> Notification:
    plain = notification_of(Transition(NOW, alert, None), source="gpu-1")
    assert plain is not None
    return PageTexts.of(Config(pages=Pages(**templates))).on(plain, alert, NOW)


def test_default_texts_are_the_rules_own_under_the_servers_name() -> None:
    assert page().summary == "[warning] LatencyP99High on gpu-1: P99 is 612ms"
    assert page().annotations["description"] == "Fewer than 99 %."


def test_value_threshold_and_duration_are_in_every_page() -> None:
    details = page().details
    assert {name: details[name] for name in ("value", "threshold", "duration")} == {
        "value": "0.612", "threshold": "500ms at P99", "duration": "5m 12s",
    }  # fmt: skip


def test_templates_may_name_numbers_labels_and_times() -> None:
    text = page(
        summary="{{ $labels.model_name }}: {{ $value | humanizeDuration }} > {{ $threshold }} for "
        "{{ $duration | humanizeDuration }} ({{ $status }}, {{ $severity }})",
        description="since {{ $started | humanizeTimestamp }} on {{ $source }}",
    )
    assert text.summary == "r1: 612ms > 500ms at P99 for 5m 12s (firing, warning)"
    assert text.annotations["description"] == "since 2027-01-15 07:54:48 +0000 UTC on gpu-1"


def test_duration_of_a_resolved_alert_ends_with_it() -> None:
    over = Alert(ALERT.name, ALERT.labels, ALERT.annotations, AlertState.RESOLVED, 0.4, NOW - 312, NOW - 12, NOW - 12)
    assert page(over).details["duration"] == "5m 0s"
    assert page(over).summary == "[resolved] LatencyP99High on gpu-1: P99 is 612ms"


def test_template_that_fails_leaves_the_plain_text(caplog: pytest.LogCaptureFixture) -> None:
    text = page(summary="{{ humanizeDuration $threshold }}")
    assert text.summary == "[warning] LatencyP99High on gpu-1: P99 is 612ms"
    assert "pages.summary" in caplog.text


def test_template_that_can_not_be_parsed_is_named_by_its_setting() -> None:
    (found,) = bad_templates(Config(pages=Pages(summary="{{ $limit }}")))
    assert found.key == "pages.summary"
    assert "$limit" in found.message
    assert list(bad_templates(Config())) == []


LINKS = {
    "runbook": "https://git.example.com/dsobs/docs/runbooks/{{ $labels.alertname }}.md",
    "dashboard": "https://grafana.example.com/d/dsobs-server?var-instance={{ $source | urlquery }}"
    "&from={{ $from }}&to={{ $to }}",
    "logs": "https://kibana.example.com/app/discover#/?_g=(time:(from:'{{ $from }}',to:'{{ $to }}'))",
}
RUNBOOK = ("https://git.example.com/dsobs/docs/runbooks/LatencyP99High.md", "Runbook")


def test_page_links_to_runbook_dashboard_and_logs_of_its_time() -> None:
    assert page(ALERT, **LINKS).links == (
        RUNBOOK,
        (
            "https://grafana.example.com/d/dsobs-server?var-instance=gpu-1&from=2027-01-15T07:24:48.000Z&to=now",
            "Dashboard",
        ),
        (
            "https://kibana.example.com/app/discover#/?_g=(time:(from:'2027-01-15T07:24:48.000Z',to:'now'))",
            "Logs",
        ),
    )
    assert page().links == ()


def test_links_of_a_resolved_alert_end_soon_after_it() -> None:
    over = replace(ALERT, state=AlertState.RESOLVED, resolved_at=NOW - 12)
    assert page(over, **LINKS).links[1][0].endswith("&to=2027-01-15T08:04:48.000Z")


def test_runbook_of_the_rule_wins_and_is_linked_once() -> None:
    own = replace(ALERT, annotations={**ALERT.annotations, "runbook_url": "https://wiki.example.com/p99"})
    assert page(own, **LINKS).links[0] == ("https://wiki.example.com/p99", "Runbook")
    assert [text for _, text in page(own, **LINKS).links] == ["Runbook", "Dashboard", "Logs"]


def test_what_an_address_can_not_have_is_escaped() -> None:
    named = replace(ALERT, labels={**ALERT.labels, "model_name": 'a "b"\n<c>'})
    (link,) = page(named, dashboard="https://grafana.example.com/?m={{ $labels.model_name }}").links
    assert link[0] == "https://grafana.example.com/?m=a%20%22b%22%20%3Cc%3E"


def test_link_that_can_not_be_rendered_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    (link,) = page(ALERT, **{**LINKS, "dashboard": "https://h/{{ humanizeDuration $threshold }}", "logs": ""}).links
    assert link == RUNBOOK
    assert "dashboard_url" in caplog.text


def test_link_that_is_no_address_is_named_by_its_setting() -> None:
    found = list(bad_templates(Config(pages=Pages(dashboard="grafana.example.com", logs="https://{{ $limit }}"))))
    assert [one.key for one in found] == ["pages.dashboard", "pages.logs"]
    assert "https://" in found[0].message


@given(st.dictionaries(st.sampled_from(["summary", "description", "threshold"]), st.text(max_size=50)), st.floats())
def test_any_annotations_and_value_make_a_page(annotations: dict[str, str], value: float) -> None:
    alert = Alert("A", {"alertname": "A"}, annotations, AlertState.FIRING, value, NOW - 1, NOW)
    assert page(alert).summary.startswith("[warning] A on gpu-1")
