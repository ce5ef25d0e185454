"""Label matchers."""

from collections.abc import Callable, Iterable
from typing import Any

from dsobs.model.samples import Labels
from dsobs.promql.errors import UnsupportedError
from dsobs.promql.patterns import compile_pattern, literals


def operation(matcher: Any) -> str:
    """Equal, NotEqual, Re or NotRe."""
    return str(matcher.op).rpartition(".")[2]


def fits(matchers: Iterable[Any]) -> Callable[[Labels], bool] | None:
    """Whether labels fit all matchers; None if there are none."""
    tests: list[tuple[str, Callable[[str], bool]]] = []
    for matcher in matchers:
        op, value = operation(matcher), matcher.value
        if op in ("Re", "NotRe"):
            pattern = compile_pattern(value)
        if op == "Equal":
            tests.append((matcher.name, lambda v, w=value: v == w))  # type: ignore[misc]
        elif op == "NotEqual":
            tests.append((matcher.name, lambda v, w=value: v != w))  # type: ignore[misc]
        elif op == "Re":
            tests.append((matcher.name, lambda v, p=pattern: p.fullmatch(v) is not None))  # type: ignore[misc]
        elif op == "NotRe":
            tests.append((matcher.name, lambda v, p=pattern: p.fullmatch(v) is None))  # type: ignore[misc]
        else:
            raise UnsupportedError(f"matcher {op}")
    if not tests:
        return None

    def fit(labels: Labels) -> bool:
        found = dict(labels)
        return all(test(found.get(name, "")) for name, test in tests)

    return fit


def metric_names(name: str | None, matchers: Iterable[Any]) -> tuple[str, ...]:
    """The metrics that a selector names; none where only its labels say which they are."""
    if name is not None:
        return (name,)
    for matcher in matchers:
        if matcher.name == "__name__":
            op = operation(matcher)
            names = (matcher.value,) if op == "Equal" else literals(matcher.value) if op == "Re" else ()
            if names:
                return tuple(dict.fromkeys(names))
    return ()


def equalities(matchers: Iterable[Any]) -> Labels:
    """The labels of `absent()`: those that an equality names and no other matcher."""
    found: dict[str, list[tuple[str, str]]] = {}
    for matcher in matchers:
        if matcher.name != "__name__":
            found.setdefault(matcher.name, []).append((operation(matcher), matcher.value))
    return tuple(sorted((k, v[0][1]) for k, v in found.items() if len(v) == 1 and v[0][0] == "Equal" and v[0][1]))
