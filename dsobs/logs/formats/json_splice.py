"""ECS names put into the text of a JSON line, where nothing else of it changes: no writing of the object anew."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from dsobs.logs.formats.json_fields import CALLS, SPECIAL, TIMES, is_time, renamed, wants_more
from dsobs.logs.formats.times import iso_of

_REMEMBERED = 256
_APART = re.compile(rb'"[ \t\r\n]+:')


@dataclass(slots=True)
class _Plan:
    """What becomes of objects with certain keys."""

    names: tuple[tuple[str, type, bytes, bytes], ...]
    """Keys that are renamed: as they are, the type that their values must have, and old and new in the text."""
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
        self._zone = zone
        self._plans: dict[tuple[str, ...], _Plan | None] = {}

    def splice(self, line: bytes, fields: Mapping[str, Any]) -> bytes | None:
        """The text of a document that says what `map_fields` would; None where that needs more than new names.

        `fields` are those of `line`, which begins with `{`.
        """
        keys = tuple(fields)
        try:
            plan = self._plans[keys]
        except KeyError:
            plan = self._planned(keys)
        # With no escape in a name, a key of the outermost object that has a special name is spelt as it is here.
        if plan is None or b"\\u" in line or (line.count(b"{") > 1 and _APART.search(line)):
            return None
        if plan.message:
            message = fields[plan.message]
            if type(message) is not str or (plan.python and wants_more(fields.get("name"), message)):
                return None
        text: bytes | None = line
        if plan.time:
            text = self._timed(line, plan.time, fields[plan.time])
        elif not is_time(fields["@timestamp"]):
            return None
        for key, kind, old, new in plan.names:
            if text is None or type(fields[key]) is not kind:
                return None
            parts = text.split(old)
            text = new.join(parts) if len(parts) == 2 else None
        return text

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
