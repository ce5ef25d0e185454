"""How long to wait for a server that did not take something."""

LONGEST_ASKED = 600.0
"""Seconds; a server that asks for a longer pause is asked again sooner."""


def doubling(attempt: int, first: float, most: float, retry_after: float | None, chance: float) -> float:
    """Seconds before the attempt after `attempt` failed ones (from 1): from `first`, doubling up to `most`, with full
    jitter (`chance` in [0, 1)) in its upper half; what the server asked for counts where it is longer."""
    delay = min(most, first * 2.0 ** min(attempt - 1, 16))
    delay = delay / 2 + delay / 2 * chance
    return max(delay, min(retry_after or 0.0, LONGEST_ASKED))
