"""Silences of dsobs in an Alertmanager, and those that others made there.

What is wanted is compared with what the Alertmanager has and the difference is made, so that a lost answer, a restart
on either side or a cluster that hands silences around needs no care. A mirrored silence is known by the mark in its
comment, `[dsobs NAME ID]`; its id there is looked up by it.
"""

import asyncio
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dsobs import telemetry
from dsobs.model.clock import Clock
from dsobs.model.notifier import Answer
from dsobs.notifiers.alertmanager import AlertmanagerNotifier
from dsobs.notifiers.messages import iso_time
from dsobs.silences import Matcher, Silence

log = logging.getLogger(__name__)

LOOK_SECONDS = 30.0
"""Between two looks while there is anything to keep in step."""
AGAIN_SECONDS = 5.0
"""After one that failed, and of how old one may be ahead of alerts."""
_MARK = re.compile(r"\[dsobs (\S+) (\S+)\]")
_MAX_COMMENT = 1000


@dataclass(frozen=True, slots=True)
class _Found:
    """One silence there that has not ended."""

    id: str
    silence: Silence
    mark: tuple[str, str] | None
    """(name of the dsobs, id of its silence) where it is a mirrored one."""


class SilenceMirror:
    """Keeps one Alertmanager's silences in step with those of this dsobs, whose name is `source`.

    Until `want` has said which there are, nothing there is made or ended. `complete`: they are all, those of the last
    run included; else what that left there stays until its end.
    """

    def __init__(self, notifier: AlertmanagerNotifier, source: str, clock: Clock, *, complete: bool = True) -> None:
        self._notifier = notifier
        self._source = source
        self._scope = tuple(Matcher.parse(text) for text in notifier.settings.silence_scope)
        self._clock = clock
        self._complete = complete
        self._wanted: dict[str, Silence] | None = None
        """None: not known yet."""
        self._ours: set[str] = set()
        """Ids of all that were wanted since the start."""
        self._ids: dict[str, str] = {}
        """Our id → id there, of those that are in step."""
        self._refused: set[str] = set()
        self._others: tuple[Silence, ...] = ()
        self._look_at = self._looked_at = float("-inf")
        self._seen = False
        """It was looked at since the start: what the last run left there is in step."""
        self._told = ""
        self._running = asyncio.Lock()

    @property
    def others(self) -> tuple[Silence, ...]:
        """Silences that hold there and are not of this dsobs, as last seen."""
        return self._others

    @property
    def look_at(self) -> float | None:
        """When to call `sync` again; None while there is nothing to do."""
        settings = self._notifier.settings
        if not self._seen or self._wanted or self._ids or settings.silences_stop_repair:
            return self._look_at
        return None

    def want(self, silences: Sequence[Silence]) -> bool:
        """Sets what should be there; whether that calls for a `sync` now."""
        wanted = {one.id: one for one in silences} if self._notifier.settings.mirror_silences else {}
        if self._wanted is not None and wanted.keys() == self._wanted.keys():
            return False
        self._wanted = wanted
        self._ours |= wanted.keys()
        self._look_at = self._clock.now()
        return True

    def holds(self, silence: Silence) -> bool:
        """Whether this silence is known to be there."""
        return silence.id in self._ids

    async def ahead(self, fresh: bool) -> None:
        """Before alerts are sent: a receiver that was started anew may have lost its silences, and nobody may have
        noticed that it was away (`fresh`: it was)."""
        if self._wanted and (fresh or self._clock.now() - self._looked_at >= AGAIN_SECONDS):
            self._look_at = self._clock.now()
        await self.sync()

    async def sync(self) -> bool:
        """Makes the difference, if it is time; whether the Alertmanager could be asked."""
        async with self._running:
            now = self._clock.now()
            due = self.look_at
            if due is None or now < due:
                return not self._told
            done = await self._sync(now)
            self._looked_at = now
            self._look_at = self._clock.now() + (LOOK_SECONDS if done else AGAIN_SECONDS)
            return done

    async def _sync(self, now: float) -> bool:
        found = await self._look(now)
        if found is None:
            return False
        ours = [one for one in found if one.mark is not None and one.mark[0] == self._source]
        self._others = tuple(one.silence for one in found if one not in ours)
        if self._wanted is None:
            return True
        self._ids = {one.mark[1]: one.id for one in ours if one.mark is not None and one.mark[1] in self._wanted}
        self._refused &= self._wanted.keys()
        done = True
        self._seen = True
        for one in ours:
            assert one.mark is not None
            if one.mark[1] not in self._wanted and (self._complete or one.mark[1] in self._ours):
                answer, _ = await self._notifier.request("DELETE", f"/api/v2/silence/{one.id}")
                done &= self._judged(answer, "end a silence", gone=404)
        for silence in self._wanted.values():
            if silence.id not in self._ids and silence.id not in self._refused and silence.ends_at > now:
                done &= await self._post(silence)
        return done

    async def _look(self, now: float) -> list[_Found] | None:
        answer, body = await self._notifier.request("GET", "/api/v2/silences")
        if not self._judged(answer, "list silences"):
            return None
        try:
            listed = list(json.loads(body))
        except (ValueError, TypeError) as error:
            self._tell(f"its list of silences can't be read: {error}")
            return None
        found: list[_Found] = []
        for raw in listed:
            try:
                one = found_of(raw, now)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                # It silences there, and is left out of account here.
                log.debug("%s: a silence that can't be read: %s", self._notifier.name, error)
            else:
                found += [one] if one is not None else []
        return found

    async def _post(self, silence: Silence) -> bool:
        answer, body = await self._notifier.request("POST", "/api/v2/silences", self._body(silence))
        if answer.status == 400:
            self._refused.add(silence.id)
            telemetry.NOTIFICATIONS.labels(self._notifier.name, "silence_refused").inc()
            log.error("%s refuses silence %s: %s", self._notifier.name, silence.id, answer.detail)
            return True
        if not self._judged(answer, "make a silence"):
            return False
        try:
            self._ids[silence.id] = str(json.loads(body)["silenceID"])
        except (ValueError, KeyError, TypeError) as error:
            self._tell(f"its answer to a silence can't be read: {error}")
            return False
        log.info("silence %s is mirrored to %s as %s", silence.id, self._notifier.name, self._ids[silence.id])
        return True

    def _body(self, silence: Silence) -> dict[str, Any]:
        mark = f"[dsobs {self._source} {silence.id}]"
        return {
            "matchers": [_written(matcher) for matcher in self._scoped(silence).matchers],
            "startsAt": iso_time(silence.starts_at),
            "endsAt": iso_time(silence.ends_at),
            "createdBy": silence.created_by or "dsobs",
            "comment": f"{silence.comment[:_MAX_COMMENT]} {mark}".strip(),
        }

    def _scoped(self, silence: Silence) -> Silence:
        return scoped(silence, self._scope, self._notifier.instance_of(self._source))

    def _judged(self, answer: Answer, what: str, gone: int | None = None) -> bool:
        if answer.status is not None and (answer.status == gone or 200 <= answer.status < 300):
            self._told = ""
            return True
        why = answer.detail if answer.status is None else f"HTTP {answer.status} {answer.detail}"
        self._tell(f"can't {what}: {why}")
        return False

    def _tell(self, why: str) -> None:
        log.log(logging.DEBUG if self._told else logging.WARNING, "%s: %s", self._notifier.name, why)
        self._told = why


def scoped(silence: Silence, scope: Sequence[Matcher], instance: str) -> Silence:
    """The silence for this server only: with `scope`, or else for its `instance`, with or without a port."""
    if not scope:
        scope = (Matcher("instance", "=~", f"{re.escape(instance)}(:[0-9]+)?"),)
    kept = tuple(matcher for matcher in scope if matcher not in silence.matchers)
    return Silence(
        silence.id,
        (*silence.matchers, *kept),
        silence.starts_at,
        silence.ends_at,
        silence.created_by,
        silence.comment,
    )


def found_of(raw: Mapping[str, Any], now: float) -> _Found | None:
    """A silence of `GET /api/v2/silences`; None where it has ended; ValueError and the like where it can't be read."""
    ends = _seconds(raw["endsAt"])
    if raw["status"]["state"] == "expired" or ends <= now:
        return None
    matchers = tuple(
        # Parsed anew: an expression that dsobs can't use must not come up later.
        Matcher.parse(str(Matcher(str(one["name"]), _operator(one), str(one["value"]))))
        for one in raw["matchers"]
    )
    mark = _MARK.search(str(raw.get("comment", "")))
    silence = Silence(
        str(raw["id"]),
        matchers,
        _seconds(raw["startsAt"]),
        ends,
        str(raw.get("createdBy", "")),
        str(raw.get("comment", "")),
    )
    return _Found(silence.id, silence, (mark[1], mark[2]) if mark else None)


def _operator(raw: Mapping[str, Any]) -> str:
    equal = raw.get("isEqual", True)
    if raw.get("isRegex"):
        return "=~" if equal else "!~"
    return "=" if equal else "!="


def _written(matcher: Matcher) -> dict[str, Any]:
    return {
        "name": matcher.name,
        "value": matcher.value,
        "isRegex": "~" in matcher.op,
        "isEqual": not matcher.op.startswith("!"),
    }


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
