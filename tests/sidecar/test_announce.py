"""The first log lines."""

import logging
from pathlib import Path

import pytest

from dsobs.config import Config, Secret
from dsobs.config.models import Alertmanager, Heartbeat, Notifiers, PagerDuty, Rules
from dsobs.rules.evaluator import Evaluator
from dsobs.series.store import Store
from dsobs.sidecar.announce import announce


def lines(caplog: pytest.LogCaptureFixture, config: Config) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO):
        announce(config, Evaluator([], Store()), Path("/state"), "")
    return [record.message for record in caplog.records]


def test_by_default_nobody_is_told_and_it_says_which_setting_changes_that(caplog: pytest.LogCaptureFixture) -> None:
    told = lines(caplog, Config())
    assert "pages: nobody is paged (notifiers)" in told
    assert "heartbeat: none is sent (heartbeat.url)" in told


def test_evaluation_in_prometheus_is_said_with_what_still_goes_out(caplog: pytest.LogCaptureFixture) -> None:
    told = lines(caplog, Config(rules=Rules(evaluation="prometheus")))
    assert (
        "pages are evaluated by Prometheus (rules.evaluation): from here only go Watchdog and what became of repair"
    ) in told


@pytest.mark.parametrize(("fallback", "warned"), [(False, True), (True, False)])
def test_two_ways_to_pagerduty_are_warned_of_unless_one_is_the_fallback(
    caplog: pytest.LogCaptureFixture, fallback: bool, warned: bool
) -> None:
    notifiers = Notifiers(
        alertmanager=Alertmanager(urls=("http://a",)), pagerduty=PagerDuty(routing_key=Secret("k"), fallback=fallback)
    )
    told = lines(caplog, Config(notifiers=notifiers, heartbeat=Heartbeat(url=Secret("http://h"))))
    assert "pages: alertmanager, pagerduty (notifiers)" in told
    assert "heartbeat: on (heartbeat.url)" in told
    assert any("two incidents" in line for line in told) is warned
