"""Binary operators: arithmetic, comparisons, sets, and how the two sides are matched (prometheus `VectorBinop`)."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dsobs.model.samples import Labels
from dsobs.promql.errors import EvaluationError
from dsobs.promql.numbers import divide, modulo, power
from dsobs.promql.vectors import Vector, labels_kept, unique, without_name

ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "%": modulo,
    "*": operator.mul,
    "+": operator.add,
    "-": operator.sub,
    "/": divide,
    "^": power,
    "atan2": math.atan2,
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    ">=": operator.ge,
}
Apply = Callable[[float, float], float | None]
"""Of the left and the right value; None: there is no result."""


@dataclass(frozen=True, slots=True)
class Matching:
    """Which series of the two sides belong together, and what labels the result has."""

    key: Callable[[Labels], Labels]
    """The part of a label set that has to be equal on both sides."""
    on: bool
    names: frozenset[str]
    many: str = ""
    """The side that may have many series for one of the other: "left", "right" or neither."""
    included: tuple[str, ...] = ()
    """Labels that the result has from the side of the one."""

    @classmethod
    def of(cls, modifier: Any) -> "Matching":
        """From the parser's modifier; None is one-to-one on all labels."""
        matching = modifier.matching if modifier is not None else None
        names = frozenset(matching.labels) if matching is not None else frozenset()
        on = matching is not None and str(matching.type).endswith(".Include")
        key = labels_kept(names, kept=on)
        if modifier is None:
            return cls(key, on, names)
        many = {"ManyToOne": "left", "OneToMany": "right"}.get(str(modifier.card).rpartition(".")[2], "")
        return cls(key, on, names, many, tuple(modifier.group_labels or ()))

    def result_labels(self, many: Labels, one: Labels, *, keeps_name: bool) -> Labels:
        """Of the two series' labels; the left one's are `many` where each side has one."""
        kept = many if keeps_name else without_name(many)
        if not self.many:
            return tuple([pair for pair in kept if (pair[0] in self.names) == self.on])
        if not self.included:
            return kept
        found = dict(kept)
        other = dict(one)
        for name in self.included:
            if other.get(name):
                found[name] = other[name]
            else:
                found.pop(name, None)
        return tuple(sorted(found.items()))


def of_sets(name: str, left: Vector, right: Vector, key: Callable[[Labels], Labels]) -> Vector:
    """`and`, `or`, `unless`."""
    if name == "or":
        if not left or not right:
            return left or right
        present = {key(labels) for labels, _ in left}
        return unique(left + [pair for pair in right if key(pair[0]) not in present])
    present = {key(labels) for labels, _ in right}
    return [pair for pair in left if (key(pair[0]) in present) == (name == "and")]


def with_scalar(vector: Vector, scalar: float, apply: Apply, *, keeps_name: bool) -> Vector:
    """Each value of the vector with the scalar."""
    out = []
    for labels, value in vector:
        result = apply(value, scalar)
        if result is not None:
            out.append((labels if keeps_name else without_name(labels), result))
    return out if keeps_name else unique(out)


def of_vectors(left: Vector, right: Vector, apply: Apply, matching: Matching, *, keeps_name: bool) -> Vector:
    """One-to-one, many-to-one and one-to-many."""
    if not left or not right:
        return []
    swapped = matching.many == "right"
    many, one = (right, left) if swapped else (left, right)
    key = matching.key
    index: dict[Labels, tuple[Labels, float]] = {}
    for pair in one:
        group = key(pair[0])
        if group in index:
            raise EvaluationError(
                "found duplicate series for the match group on the "
                f"{'left' if swapped else 'right'} hand-side of the operation; many-to-many matching not allowed"
            )
        index[group] = pair
    out: Vector = []
    matched: set[Any] = set()
    for labels, value in many:
        group = key(labels)
        other = index.get(group)
        if other is None:
            continue
        told = matching.result_labels(labels, other[0], keeps_name=keeps_name)
        # A pair whose comparison does not hold counts here too.
        match = (group, told) if matching.many else group
        if match in matched:
            raise EvaluationError(
                "multiple matches for labels: grouping labels must ensure unique matches"
                if matching.many
                else "multiple matches for labels: many-to-one matching must be explicit (group_left/group_right)"
            )
        matched.add(match)
        result = apply(other[1], value) if swapped else apply(value, other[1])
        if result is not None:
            out.append((told, result))
    return unique(out)
