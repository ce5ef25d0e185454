"""What follows from an answer, as a table."""

import pytest

from dsobs.logs.concurrency import Concurrency
from dsobs.logs.delivery import FEW, WINDOW, Window
from dsobs.logs.retry import FIRST_DELAY, MOST_DELAY, Action, decide


@pytest.mark.parametrize(
    ("status", "type_", "count", "action"),
    [
        (None, "", 10, Action.RETRY),
        (201, "", 1, Action.DONE),
        (409, "version_conflict_engine_exception", 1, Action.DONE),
        (429, "es_rejected_execution_exception", 1, Action.RETRY),
        (408, "", 1, Action.RETRY),
        (500, "", 1, Action.RETRY),
        (503, "unavailable_shards_exception", 1, Action.RETRY),
        (400, "document_parsing_exception", 1, Action.DEAD_LETTER),
        (400, "mapper_parsing_exception", 1, Action.DEAD_LETTER),
        (400, "illegal_argument_exception", 50, Action.SPLIT),
        (400, "invalid_index_name_exception", 50, Action.HOLD),
        (400, "index_closed_exception", 1, Action.HOLD),
        (413, "", 10, Action.SPLIT),
        (413, "", 1, Action.DEAD_LETTER),
        (401, "security_exception", 10, Action.HOLD),
        (403, "security_exception", 1, Action.HOLD),
        (403, "cluster_block_exception", 1, Action.HOLD),
        (404, "index_not_found_exception", 1, Action.HOLD),
        (407, "", 10, Action.HOLD),
        (302, "", 10, Action.HOLD),
    ],
)
def test_each_answer_has_one_consequence(status: int | None, type_: str, count: int, action: Action) -> None:
    assert decide(status, type_, 1, count=count).action is action


def test_delays_double_with_jitter_up_to_a_bound() -> None:
    for attempt in range(1, 40):
        most = min(MOST_DELAY, FIRST_DELAY * 2 ** (attempt - 1))
        assert decide(503, "", attempt, chance=0.0).delay == most / 2
        assert decide(503, "", attempt, chance=1.0).delay == most


def test_a_server_that_says_when_is_believed_within_reason() -> None:
    assert decide(429, "", 1, retry_after=90.0, chance=0.0).delay == 90.0
    assert decide(429, "", 1, retry_after=1e9, chance=0.0).delay == 600.0


def test_few_refused_records_never_hold_and_more_than_the_share_do() -> None:
    window = Window(0.05)
    assert window.allows(FEW, FEW)
    assert not window.allows(51, 51)
    window.add(0, 10 * WINDOW)
    assert window.allows(50, 50)
    window.add(50, 50)
    assert not window.allows(10, 10)
    window.add(0, WINDOW)
    assert window.allows(10, 10)


def test_concurrency_grows_by_one_a_round_and_halves_on_refusal_once_a_second() -> None:
    concurrency = Concurrency(8)
    assert concurrency.limit == 1
    for _ in range(100):
        concurrency.succeeded(0.01, 0.0)
    assert concurrency.limit == 8
    for _ in range(5):
        concurrency.pushed_back(10.0)
    assert concurrency.limit == 4
    concurrency.pushed_back(11.0)
    assert concurrency.limit == 2


def test_rising_latency_lowers_concurrency_before_the_server_refuses() -> None:
    concurrency = Concurrency(8)
    for _ in range(100):
        concurrency.succeeded(0.1, 0.0)
    for second in range(1, 6):
        concurrency.succeeded(2.0, float(second))
    assert concurrency.limit < 4


def test_concurrency_never_falls_below_one() -> None:
    concurrency = Concurrency(4)
    for second in range(20):
        concurrency.pushed_back(float(second))
    assert concurrency.limit == 1
