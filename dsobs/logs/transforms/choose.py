"""Which records are sent. Reasons of those left out: level, keep, drop, size, sample, rate_limit."""

from collections import OrderedDict
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from dsobs.config.log_expression import split_share
from dsobs.config.log_transform import LogTransform
from dsobs.logs.metrics import LEFT_OUT
from dsobs.logs.record import Record
from dsobs.logs.transforms.fields import RANKS, Condition, Fields, condition, rank_of

_SECONDS_REMEMBERED = 64
"""Of each rate limit: lines of several files don't come in the order of their times."""


class Choose:
    """Leaves records out by level, expressions, size, share and rate, in this order."""

    needs_fields = True

    def __init__(self, settings: LogTransform) -> None:
        self._least = RANKS[settings.min_level] if settings.min_level else None
        self._without_level = settings.without_level != "drop"
        self._keep = [condition(text) for text in settings.keep]
        self._drop = [condition(text) for text in settings.drop]
        self._most_bytes = settings.max_record_bytes
        self._samples = [_Sample(text) for text in settings.sample]
        self._limits = [_Limit(text) for text in settings.rate_limit]

    def apply(self, records: list[Record]) -> list[Record]:
        """Those that are sent."""
        kept: list[Record] = []
        left_out: dict[str, int] = {}
        for record in records:
            reason = self._reason(record)
            if reason:
                left_out[reason] = left_out.get(reason, 0) + 1
            else:
                kept.append(record)
        for reason, count in left_out.items():
            LEFT_OUT.labels(reason).inc(count)
        return kept

    def _reason(self, record: Record) -> str:
        """Why it is left out; empty: it is not."""
        start, raw, document = record
        assert type(document) is dict
        if self._least is not None:
            rank = rank_of(document)
            if rank is None:
                if not self._without_level:
                    return "level"
            elif rank < self._least:
                return "level"
        if self._keep and not _any(self._keep, document):
            return "keep"
        if self._drop and _any(self._drop, document):
            return "drop"
        if self._most_bytes and len(raw) > self._most_bytes:
            return "size"
        for sample in self._samples:
            if sample.matches(document):
                if xxh3_64_intdigest(raw, seed=start & (2**64 - 1)) >= sample.below:
                    return "sample"
                break
        for limit in self._limits:
            if limit.matches(document):
                if limit.is_over(document):
                    return "rate_limit"
                break
        return ""


def _any(conditions: Sequence[Condition], document: Fields) -> bool:
    return any(one(document) for one in conditions)


class _Sample:
    """A share of records, by a hash of their bytes and place."""

    def __init__(self, text: str) -> None:
        share, expression = split_share(text)
        self.matches = condition(expression)
        self.below = int(share * 2**64)


class _Limit:
    """So many records for each second of the log."""

    def __init__(self, text: str) -> None:
        number, expression = split_share(text)
        self.matches = condition(expression)
        self._most = int(number)
        self._seen: OrderedDict[str, int] = OrderedDict()

    def is_over(self, document: Fields) -> bool:
        """Counts a record; whether it is one too many."""
        second = str(document.get("@timestamp", ""))[:19]
        seen = self._seen.get(second, 0) + 1
        if seen == 1 and len(self._seen) >= _SECONDS_REMEMBERED:
            self._seen.popitem(last=False)
        self._seen[second] = seen
        return seen > self._most
