"""How many requests may be in flight: more while the server keeps up, fewer when it refuses or slows down."""

BACK_OFF = 0.5
"""What is left of the limit after a refusal."""
SLOW = 2.5
"""A request that takes this many times the usual is a sign of load."""
SETTLE_SECONDS = 1.0
"""The limit is lowered at most this often: requests that were in flight together fail together."""


class Concurrency:
    """Additive increase, multiplicative decrease, by refusals and by rising latency. Times are monotonic seconds."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limit = 1.0
        self._usual: float | None = None
        """Seconds per request while the server is at ease: rises slowly, falls at once."""
        self._lowered_at = float("-inf")

    @property
    def limit(self) -> int:
        """Requests that may be in flight."""
        return int(self._limit)

    def succeeded(self, seconds: float, now: float) -> None:
        """A request was answered after so many seconds, and nothing in it was refused for want of room."""
        usual = self._usual
        self._usual = seconds if usual is None else min(seconds, usual + (seconds - usual) * 0.05)
        if usual is not None and seconds > SLOW * usual and seconds > 0.1:
            self._lower(now, 0.8)
        else:
            self._limit = min(float(self._most), self._limit + 1.0 / self._limit)

    def pushed_back(self, now: float) -> None:
        """The server refused for want of room, or did not answer in time."""
        self._lower(now, BACK_OFF)

    def _lower(self, now: float, share: float) -> None:
        if now - self._lowered_at >= SETTLE_SECONDS:
            self._lowered_at = now
            self._limit = max(1.0, self._limit * share)
