"""What this server's healthy gaps between two movements look like, learned while it works."""

from collections.abc import Mapping

BIN_SECONDS = 0.25
BINS = 400
"""Gaps up to 100 s are told apart; longer ones count as 100 s."""


class HealthyGaps:
    """A histogram of gaps between movements with work outstanding, in bins of 0.25 s. Fixed size."""

    def __init__(self, counts: Mapping[int, int] | None = None, worked_seconds: float = 0.0) -> None:
        self._counts = [0] * BINS
        for index, count in (counts or {}).items():
            self._counts[min(max(index, 0), BINS - 1)] += count
        self.worked_seconds = worked_seconds
        """Seconds of work seen."""

    def add(self, gap_seconds: float) -> None:
        """One healthy gap. Gaps that turned out to be a fault must not come here."""
        self._counts[min(int(gap_seconds / BIN_SECONDS), BINS - 1)] += 1
        self.worked_seconds += gap_seconds

    def quantile(self, q: float) -> float | None:
        """The upper edge of the bin that holds quantile `q`, in seconds; None without a gap."""
        total = sum(self._counts)
        if total == 0:
            return None
        rank = q * total
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return (index + 1) * BIN_SECONDS
        return BINS * BIN_SECONDS

    def threshold(self, least: float, most: float, learn_after: float) -> float:
        """3 × the 99.9th percentile, within [least, most]; `least` until `learn_after` seconds of work were seen."""
        gap = self.quantile(0.999)
        if gap is None or self.worked_seconds < learn_after:
            return least
        return min(max(3.0 * gap, least), most)

    def counts(self) -> dict[int, int]:
        """Bin → count, without empty bins."""
        return {index: count for index, count in enumerate(self._counts) if count}
