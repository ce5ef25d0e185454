"""Finds engines, runtimes, notifiers and actions by entry points; the built-in ones are registered in the same way."""

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any


@cache
def available(group: str) -> dict[str, EntryPoint]:
    """Name → entry point of `group` ("dsobs.engines", "dsobs.runtimes", "dsobs.notifiers", "dsobs.actions")."""
    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}


def load(group: str, name: str) -> Any:
    """The object that plugin `name` of `group` registered; LookupError names those there are."""
    points = available(group)
    if name not in points:
        raise LookupError(
            f"no {group.removeprefix('dsobs.').rstrip('s')} named {name!r}; there are: {', '.join(points)}"
        )
    return points[name].load()
