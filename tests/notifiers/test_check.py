import aiohttp

from dsobs.config import Secret
from dsobs.config.models import Notifiers, PagerDuty, Webhook
from dsobs.notifiers import configured
from dsobs.notifiers.check import check_notifiers
from tests.pagerduty_stand_in import Fault, PagerDutyStandIn

KEY = "0123456789abcdef0123456789abcdef"


async def test_test_opens_and_resolves_and_says_who_did_not_accept() -> None:
    async with PagerDutyStandIn() as pagerduty, aiohttp.ClientSession() as session:
        settings = Notifiers(
            pagerduty=PagerDuty(routing_key=Secret(KEY), url=pagerduty.url),
            webhook=Webhook(url=Secret("http://127.0.0.1:1/x")),
        )
        good, bad = await check_notifiers(configured(settings, session), source="gpu-1", now=1_800_000_000.0)
    assert (good.notifier, good.ok, good.why) == ("pagerduty", True, "accepted (HTTP 202)")
    assert (bad.notifier, bad.ok, bad.resolve) == ("webhook", False, None)
    assert bad.why.startswith("not accepted: http://127.0.0.1:1: no connection")
    assert [event["event_action"] for event in pagerduty.events] == ["trigger", "resolve"]


async def test_test_that_may_have_arrived_is_resolved_all_the_same() -> None:
    async with PagerDutyStandIn() as pagerduty, aiohttp.ClientSession() as session:
        pagerduty.script.append(Fault(503, commit=True))
        settings = Notifiers(pagerduty=PagerDuty(routing_key=Secret(KEY), url=pagerduty.url))
        (result,) = await check_notifiers(configured(settings, session), source="gpu-1", now=1_800_000_000.0)
    assert (result.ok, result.why.startswith("not accepted: HTTP 503")) == (False, True)
    assert pagerduty.open_incidents() == {}


async def test_nothing_configured_is_nothing_to_tell() -> None:
    async with aiohttp.ClientSession() as session:
        assert configured(Notifiers(), session) == []
