"""Instant vectors and the label sets in them."""

from collections.abc import Callable
from typing import TypeAlias, TypeVar

from dsobs.model.samples import Labels
from dsobs.promql.errors import EvaluationError

Vector: TypeAlias = list[tuple[Labels, float]]
Value: TypeAlias = Vector | float | str
Found = TypeVar("Found")

_KNOWN = 10_000
"""Label sets for which a part is remembered."""


def without_name(labels: Labels) -> Labels:
    """Without the metric's name."""
    if labels and labels[0][0] == "__name__":
        return labels[1:]
    return tuple([pair for pair in labels if pair[0] != "__name__"])


def unique(vector: Vector) -> Vector:
    """The vector, if no two of its series have the same labels."""
    if len(vector) > 1 and len({labels for labels, _ in vector}) < len(vector):
        raise EvaluationError("vector cannot contain metrics with the same labelset")
    return vector


def remembered(part: Callable[[Labels], Found]) -> Callable[[Labels], Found]:
    """The same function, its results kept: the label sets of a rule are the same ones second after second."""
    known: dict[Labels, Found] = {}

    def look_up(labels: Labels) -> Found:
        found = known.get(labels)
        if found is None:
            if len(known) >= _KNOWN:
                known.clear()
            found = known[labels] = part(labels)
        return found

    return look_up


def labels_kept(names: frozenset[str], *, kept: bool) -> Callable[[Labels], Labels]:
    """What `by` and `on` keep of a label set, or what `without` and `ignoring` leave (the metric's name goes then)."""
    if kept and not names:
        return lambda _: ()
    if kept:
        return remembered(lambda labels: tuple([pair for pair in labels if pair[0] in names]))
    if not names:
        return without_name
    dropped = names | {"__name__"}
    return remembered(lambda labels: tuple([pair for pair in labels if pair[0] not in dropped]))
