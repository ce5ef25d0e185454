"""What to do after a try to send: a pure function of the answer."""

import math
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import Random
from typing import TypeAlias

from dsobs.model.back_off import doubling
from dsobs.model.notifier import Answer

FIRST_DELAY_SECONDS = 1.0
MAX_DELAY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """The receiver has it."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Send the same again."""

    at: float
    """Not before this, seconds since the Unix epoch."""
    reason: str
    loud: bool = False
    """The receiver answers, and its answer speaks of wrong settings: a person must mend them."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The receiver will never take this event as it is."""

    reason: str


Decision: TypeAlias = Accepted | RetryAt | GiveUp


def decide(answer: Answer, attempt: int, now: float, rng: Random) -> Decision:
    """What follows from `answer` to try number `attempt` (0 is the first).

    Any 2xx is accepted, and 400 is final (PagerDuty Events API v2: "do not retry"): it speaks of the event itself. All
    else is sent again for as long as it takes, redirects included (a gateway in between): what is still queued for a
    key is the last that is true of it, so it never grows stale. So are the other 4xx, such as 401, 403, 404 and 413,
    which are loud: a key or a route that is mended while the alert fires must not find the page gone. The delay doubles
    from 1 s to 60 s, with jitter down to its half; the receiver's Retry-After counts where it is longer, up to 60 s.
    """
    status = answer.status
    if status is not None and 200 <= status < 300:
        return Accepted()
    reason = answer.detail or "no answer" if status is None else f"HTTP {status} {answer.detail}".rstrip()
    if status == 400:
        return GiveUp(reason)
    asked = min(retry_after_seconds(answer.retry_after, now) or 0.0, MAX_DELAY_SECONDS)
    delay = doubling(attempt + 1, FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS, asked, rng.random())
    loud = status is not None and 400 <= status < 500 and status not in (408, 425, 429)
    return RetryAt(now + delay, reason, loud)


def retry_after_seconds(header: str, now: float) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: seconds or a date); None if it says nothing."""
    text = header.strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
