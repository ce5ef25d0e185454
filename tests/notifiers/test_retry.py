import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsobs.model.notifier import Answer
from dsobs.notifiers.retry import Accepted, GiveUp, RetryAt, decide, retry_after_seconds

NOW = 1_800_000_000.0


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_2xx_is_accepted(status: int) -> None:
    assert decide(Answer(status), 0, NOW, Random(1)) == Accepted()


def test_400_is_final_however_often() -> None:
    assert decide(Answer(400, detail="bad key"), 5, NOW, Random(1)) == GiveUp("HTTP 400 bad key")


@pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 413, 422])
def test_other_4xx_speak_of_settings_and_are_retried_loudly(status: int) -> None:
    decision = decide(Answer(status, detail="who are you"), 0, NOW, Random(1))
    assert isinstance(decision, RetryAt)
    assert (decision.reason, decision.loud) == (f"HTTP {status} who are you", True)
    assert 0.5 <= decision.at - NOW <= 1.0


@given(status=st.none() | st.integers(100, 599), attempt=st.integers(0, 10**9), seed=st.integers())
def test_2xx_is_accepted_400_given_up_and_all_else_sent_again(status: int | None, attempt: int, seed: int) -> None:
    decision = decide(Answer(status), attempt, NOW, Random(seed))
    if status is not None and 200 <= status < 300:
        assert isinstance(decision, Accepted)
    elif status == 400:
        assert isinstance(decision, GiveUp)
    else:
        assert isinstance(decision, RetryAt)


@pytest.mark.parametrize(
    "answer",
    [Answer(429), Answer(408), Answer(500), Answer(503), Answer(302), Answer(None, detail="refused", arrived=False)],
)
def test_everything_else_is_retried_within_a_second_at_first(answer: Answer) -> None:
    decision = decide(answer, 0, NOW, Random(1))
    assert isinstance(decision, RetryAt)
    assert not decision.loud
    assert 0.5 <= decision.at - NOW <= 1.0


@given(attempt=st.integers(0, 10**9), seed=st.integers(), status=st.sampled_from([None, 302, 408, 429, 500, 599]))
def test_retries_never_end_and_never_wait_over_a_minute(attempt: int, seed: int, status: int | None) -> None:
    decision = decide(Answer(status), attempt, NOW, Random(seed))
    assert isinstance(decision, RetryAt)
    longest = min(60.0, 2.0 ** min(attempt, 10))
    assert longest / 2 <= decision.at - NOW <= longest + 1e-6


@pytest.mark.parametrize(
    ("header", "least", "most"), [("30", 30, 30), ("3600", 60, 60), ("0", 0.5, 1), ("soon", 0.5, 1)]
)
def test_retry_after_counts_where_it_is_longer_and_up_to_a_minute(header: str, least: float, most: float) -> None:
    decision = decide(Answer(429, retry_after=header), 0, NOW, Random(1))
    assert isinstance(decision, RetryAt)
    assert least <= decision.at - NOW <= most


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", None),
        ("5", 5.0),
        ("-5", 0.0),
        ("nan", None),
        ("inf", None),
        ("Fri, 15 Jan 2027 08:00:20 GMT", 20.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("Fri, 99 Jan 2027", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    assert retry_after_seconds(header, NOW) == seconds


@given(st.text(max_size=40))
def test_any_retry_after_header_is_read_without_an_error(header: str) -> None:
    seconds = retry_after_seconds(header, NOW)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))
