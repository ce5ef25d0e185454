"""What follows from an answer of the sink: a pure function."""

import random
from enum import Enum
from typing import NamedTuple

from dsobs.model.back_off import doubling


class Action(Enum):
    """What is done with records."""

    DONE = "done"
    """Taken, or there already."""
    RETRY = "retry"
    """Sent again after a while; it may succeed by itself."""
    HOLD = "hold"
    """Sent again after a while; somebody must mend something first, and is told."""
    SPLIT = "split"
    """Too large together: halves are sent."""
    DEAD_LETTER = "dead_letter"
    """Never taken as it is: kept aside."""


class Decision(NamedTuple):
    """What follows."""

    action: Action
    delay: float = 0.0
    """Seconds until the next attempt."""


FIRST_DELAY = 0.5
MOST_DELAY = 30.0
HOLD_DELAY = 10.0


def back_off(attempt: int, retry_after: float | None, chance: float) -> float:
    """Seconds before the attempt after `attempt` (from 1): doubling, with full jitter in its upper half."""
    return doubling(attempt, FIRST_DELAY, MOST_DELAY, retry_after, chance)


def decide(
    status: int | None,
    type_: str,
    attempt: int,
    *,
    count: int = 1,
    retry_after: float | None = None,
    chance: float | None = None,
) -> Decision:
    """What follows from `status` and Elasticsearch's `type_`, after `attempt` attempts (from 1) with `count` records.

    The status is that of a request, or of one record (`count` 1). None: no answer, or none that can be read. `chance`:
    a random number in [0, 1), by which delays are spread.
    """
    chance = random.random() if chance is None else chance
    if status is None or status in (408, 425, 429) or status >= 500:
        return Decision(Action.RETRY, back_off(attempt, retry_after, chance))
    if status < 300 or status == 409:
        return Decision(Action.DONE)
    if status == 413:
        return Decision(Action.SPLIT if count > 1 else Action.DEAD_LETTER)
    if status in (401, 403, 404, 407) or status < 400 or type_ in _HELD_TYPES:
        return Decision(Action.HOLD, HOLD_DELAY / 2 + HOLD_DELAY / 2 * chance)
    # One record of a request that is bad as a whole may be the cause.
    return Decision(Action.SPLIT if count > 1 else Action.DEAD_LETTER)


_HELD_TYPES = frozenset(
    {
        "cluster_block_exception",
        "index_closed_exception",
        "index_not_found_exception",
        "invalid_index_name_exception",
        "media_type_header_exception",
        "no_bulk_api",
        "unsupported_product",
    }
)
"""Refusals with another status that no record is to blame for."""
