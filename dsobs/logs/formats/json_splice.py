"""ECS names put into the text of JSON lines, where nothing else of them changes: no writing of objects anew.

It is done with all lines of the same keys at once, which costs a fraction of doing it line by line.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from itertools import repeat
from operator import contains, itemgetter
from typing import Any, cast

from dsobs.logs.formats.json_fields import CALLS, SPECIAL, TIMES, are_times, renamed, wants_more
from dsobs.logs.formats.times import iso_of

_REMEMBERED = 256
_APART = re.compile(rb'"[ \t\r\n]+:')


@dataclass(slots=True)
class _Plan:
    """What becomes of objects with certain keys."""

    names: tuple[tuple[str, type, bytes, bytes], ...]
    """Keys that change their names: as they are, the type that their values must have, and old and new in the text."""
    time: str
    """The key that is made `@timestamp`; empty: it is there."""
    message: str
    """The key of the message; empty: there is none."""
    python: bool
    """Of Python's logging."""


class Splicer:
    """Lines of one file. What it can't do is `map_fields`' work; what it does is the same document."""

    def __init__(self, reserved: frozenset[str], zone: tzinfo | None) -> None:
        """`reserved`: names that a document of text must not have (`record.Common.reserved`)."""
        self._reserved = reserved
        self._special = SPECIAL | reserved
        self._zone = zone
        self._plans: dict[tuple[str, ...], _Plan | None] = {}

    def splice(self, lines: Sequence[bytes], objects: Sequence[Mapping[str, Any]]) -> list[bytes | None]:
        """Of each line the text of a document that says what `map_fields` would; None where that needs more than names.

        `objects` are the fields of `lines`, of which each begins with `{`.
        """
        keys = list(map(tuple, objects))
        kinds = set(keys)
        if len(kinds) == 1:
            return self._alike(keys[0], lines, objects)
        texts: list[bytes | None] = [None] * len(lines)
        for kind in kinds:
            numbers = [number for number, one in enumerate(keys) if one == kind]
            made = self._alike(kind, [lines[number] for number in numbers], [objects[number] for number in numbers])
            for number, text in zip(numbers, made, strict=True):
                texts[number] = text
        return texts

    def _alike(
        self, keys: tuple[str, ...], lines: Sequence[bytes], objects: Sequence[Mapping[str, Any]]
    ) -> list[bytes | None]:
        """The same of lines with the same keys."""
        try:
            plan = self._plans[keys]
        except KeyError:
            plan = self._planned(keys)
        if plan is None:
            return [None] * len(lines)
        texts = self._together(plan, lines, objects)
        if texts is not None:
            return texts
        if len(lines) == 1:
            return [None]
        # One of them is at fault, or some are.
        singles = (self._together(plan, (line,), (fields,)) for line, fields in zip(lines, objects, strict=True))
        return [one[0] if one is not None else None for one in singles]

    def _together(
        self, plan: _Plan, lines: Sequence[bytes], objects: Sequence[Mapping[str, Any]]
    ) -> list[bytes | None] | None:
        """Their texts, or None for all where one of them needs more."""
        if plan.message:
            messages = list(map(itemgetter(plan.message), objects))
            if set(map(type, messages)) != {str}:
                return None
            if plan.python and any(wants_more(fields.get("name"), fields[plan.message]) for fields in objects):
                return None
        if not plan.time and not are_times(list(map(itemgetter("@timestamp"), objects))):
            return None
        for key, kind, _, _ in plan.names:
            if set(map(type, map(itemgetter(key), objects))) != {kind}:
                return None
        if not plan.time and not plan.names:
            return list(lines)
        joined = b"\n".join(lines)
        # With no escape in a name, a key of the outermost object that has a special name is spelt as it is here.
        if b"\\" in joined and b"\\u" in joined:
            return None
        if joined.count(b"{") > len(lines) and _APART.search(joined):
            return None
        if plan.time:
            timed = [
                self._timed(line, plan.time, fields[plan.time]) for line, fields in zip(lines, objects, strict=True)
            ]
            if None in timed:
                return None
            joined = b"\n".join(cast("list[bytes]", timed))
        for _, _, old, new in plan.names:
            parts = joined.split(old)
            if len(parts) != len(lines) + 1 or not all(map(contains, parts[1:-1], repeat(b"\n"))):
                # Not once in each line.
                return None
            joined = new.join(parts)
        return cast("list[bytes | None]", joined.split(b"\n"))

    def _timed(self, line: bytes, key: str, value: Any) -> bytes | None:
        """With `@timestamp` in place of `key`."""
        if type(value) is not str:
            return None
        time, taken = iso_of(value, self._zone)
        old_key, old = b'"%b":' % key.encode(), b'"%b"' % value.encode("utf-8", "replace")
        if not time or line.count(old_key) != 1 or line.count(old) != 1:
            return None
        line = line.replace(old_key, b'"@timestamp":').replace(old, b'"%b"' % time.encode())
        if not taken:
            return line
        return b'{"event.timezone":"%b","labels.time_inferred":"zone",%b' % (taken.encode(), line[1:])

    def _planned(self, keys: tuple[str, ...]) -> _Plan | None:
        if len(self._plans) >= _REMEMBERED:
            self._plans.clear()
        self._plans[keys] = plan = self._plan(keys)
        return plan

    def _plan(self, keys: tuple[str, ...]) -> _Plan | None:
        """For objects with these keys; None where one of them needs more."""
        if "@timestamp" in keys and self._special.isdisjoint(keys):
            return _Plan((), "", "message" if "message" in keys else "", python=False)
        times = [key for key in keys if key in TIMES]
        if len(times) > 1 or ("@timestamp" in keys) == bool(times) or "error.stack_trace" in keys:
            return None
        python = "levelname" in keys
        names: list[tuple[str, type, bytes, bytes]] = []
        after = {key for key in keys if key not in SPECIAL}
        for key in keys:
            if '"' in key or "\\" in key or key in self._reserved:
                return None
            target, kind = renamed(key, python=python)
            if key in TIMES or key not in SPECIAL or (key in CALLS and not target):
                continue
            if not target or target in after or target in self._reserved or target.startswith("error."):
                return None
            after.add(target)
            names.append((key, kind, b'"%b":' % key.encode(), b'"%b":' % target.encode()))
        added = {"@timestamp", "event.timezone", "labels.time_inferred"}
        if times and not added.isdisjoint(after | self._reserved):
            return None
        message = "message" if "message" in keys else "msg" if "msg" in keys else ""
        return _Plan(tuple(names), times[0] if times else "", message, python)
