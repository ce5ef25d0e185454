"""The one place that acts: carries out the steps of a plan, each in the ledger before it takes effect."""

import asyncio
import logging
import random
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from dsobs.config.models import Coordination, Mode
from dsobs.config.models import Remediation as Settings
from dsobs.model.clock import Clock
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import Runtime, RuntimeRefused
from dsobs.model.view import View
from dsobs.remediation import ledger as lines
from dsobs.remediation.ledger import Entry, Ledger
from dsobs.remediation.plan import Step
from dsobs.state import StateDb, StateError
from dsobs.telemetry import LEDGER_WRITABLE, STEPS

log = logging.getLogger(__name__)

DAY = 86400.0
RETRY_LEDGER_SECONDS = 10.0
RESTART_SLACK_SECONDS = 30.0
"""A runtime that has not answered by grace + this is an unknown outcome."""


class LedgerStore:
    """The ledger on disk and what planning sees of it."""

    def __init__(
        self,
        db: StateDb | None,
        now: float,
        *,
        why_not: str = "no state directory",
        committed: Callable[[Entry], None] = lambda _: None,
    ) -> None:
        """`committed` is told of each line once it is on disk."""
        self._db = db
        self._committed = committed
        self._retry_at = float("-inf")
        entries: tuple[Entry, ...] = ()
        if db is not None:
            try:
                # From the future, where the wall clock was set back meanwhile: a cooldown would hold too long.
                entries = tuple(replace(e, at=min(e.at, now)) for e in db.transact(lambda c: lines.since(c, now - DAY)))
                why_not = ""
            except StateError as error:
                why_not = str(error)
        self.current = Ledger(entries, writable=not why_not, why_not=why_not)
        LEDGER_WRITABLE.set(self.current.writable)

    async def append(self, entry: Entry, also: Callable[[sqlite3.Connection], None] | None = None) -> Entry:
        """Commits one line, and what `also` writes, or neither; StateError if it could not, and nothing may be done
        then."""
        if self._db is None:
            raise StateError(self.current.why_not)

        def write(connection: sqlite3.Connection) -> int:
            if also is not None:
                also(connection)
            return lines.append(connection, entry)

        try:
            id_ = await self._db.transact_async(write)
        except StateError as error:
            self._writable(str(error))
            raise
        # On the reserve one more line was possible; for acting there must be room.
        self._writable("the disk is full" if self._db.reserve_used else "")
        entry = Entry(entry.at, entry.incident, entry.kind, entry.state, entry.detail, id_)
        self.current = self.current.with_entry(entry)
        self._committed(entry)
        return entry

    async def retry(self, now: float) -> None:
        """While the ledger could not be written: sees from time to time whether it can be again."""
        if self.current.writable or self._db is None or now < self._retry_at:
            return
        self._retry_at = now + RETRY_LEDGER_SECONDS
        try:
            await self._db.transact_async(lambda c: c.execute("UPDATE ledger SET state = state WHERE id = 0"))
        except StateError as error:
            self._writable(str(error))
        else:
            self._writable("the disk is full" if self._db.reserve_used else "")

    def forget_before(self, at: float) -> None:
        """Drops from memory what neither the budget nor an open incident needs."""
        going_on = self.current.open_incident()
        keep = tuple(e for e in self.current.entries if e.at >= at or (going_on and e.incident == going_on.id))
        if len(keep) != len(self.current.entries):
            self.current = Ledger(keep, self.current.writable, self.current.why_not)

    def _writable(self, why_not: str) -> None:
        if why_not and self.current.writable:
            log.error("the ledger can't be written, nothing will be repaired: %s", why_not)
        elif not why_not and not self.current.writable:
            log.info("the ledger can be written again")
        self.current = Ledger(self.current.entries, not why_not, why_not)
        LEDGER_WRITABLE.set(not why_not)


@dataclass(frozen=True, slots=True)
class Hands:
    """What the actor may use."""

    evidence: Callable[[str, View], Awaitable[dict[str, Any]]]
    """Gathers evidence into the incident's folder; what was gathered."""
    page: Callable[[sqlite3.Connection | None, str, str | None], None]
    """Queues an incident's escalation page, or its end: (transaction or None for memory only, incident, text or None
    for the end)."""
    restarting: Callable[[str, float], None]
    """Told before a restart: (incident, until when its new instance counts as dsobs's own)."""
    latest: Callable[[], View]
    """The newest view, to look once more after a delay."""


class Actor:
    """Carries out steps; restarts and evidence run beside the loop, one at a time."""

    def __init__(
        self,
        ledger: LedgerStore,
        runtime: Callable[[], Runtime | Unknown],
        settings: Settings,
        stop_grace: float,
        hands: Hands,
        clock: Clock,
        randomness: random.Random | None = None,
    ) -> None:
        self._ledger = ledger
        self._runtime = runtime
        self._settings = settings
        self._stop_grace = stop_grace
        self._hands = hands
        self._clock = clock
        self._random = randomness or random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused: dict[str, str] = {}
        self._gathering: set[str] = set()
        self._paged_from_memory: set[str] = set()

    def configure(self, settings: Settings) -> None:
        """Other settings from the next step on."""
        self._settings = settings

    async def recover(self) -> None:
        """After dsobs was restarted: an attempt with no result counts as done, and is verified like one."""
        entry = self._ledger.current.attempt_in_flight()
        if entry is not None:
            detail = {
                **entry.detail,
                "attempt": entry.id,
                "reserved_at": entry.at,
                "why": "dsobs ended between act and record",
            }
            self._hands.restarting(entry.incident, self._clock.now() + 60.0)
            await self._ledger.append(Entry(self._clock.now(), entry.incident, "restart", "unknown", detail))

    async def carry_out(self, steps: list[Step], view: View) -> None:
        """Does what can be done at once; starts what takes time. Never raises for a step that failed."""
        for step in steps:
            try:
                await self._carry_out(step, view)
            except StateError as error:
                STEPS.labels(step.action, "not_recorded").inc()
                log.warning("step %s left out, since the ledger can't record it: %s", step.action, error)

    async def _carry_out(self, step: Step, view: View) -> None:
        now = self._clock.now()
        if step.action == "open":
            id_ = lines.incident_id(now)
            await self._write(id_, "incident", "opened", alerts=list(step.alerts), reason=step.reason)
            log.warning("incident %s opened: %s", id_, step.reason, extra={"event.action": "incident-opened"})
            return
        assert step.incident is not None
        if step.action == "evidence":
            if step.incident not in self._gathering:
                self._gathering.add(step.incident)
                self._start(self._evidence(step.incident, view))
        elif step.action == "drain":
            await self._write(step.incident, "drain", "done", reason=step.reason)
        elif step.action == "restart":
            await self._restart_step(step, view)
        elif step.action in ("verified", "failed"):
            await self._write(
                step.incident, "verify", "done" if step.action == "verified" else "failed", reason=step.reason
            )
            STEPS.labels("verify", step.action).inc()
            extra = {"event.action": step.action}
            log.info("incident %s: %s: %s", step.incident, step.action, step.reason, extra=extra)
        elif step.action == "page":
            await self._escalate(step.incident, step.reason)
        elif step.action == "close":
            await self._close(step.incident, step.reason)
            self._refused.pop(step.incident, None)
            self._gathering.discard(step.incident)
            extra = {"event.action": "incident-closed"}
            log.info("incident %s closed: %s", step.incident, step.reason, extra=extra)

    async def _write(self, incident: str, kind: str, state: str, **detail: Any) -> Entry:
        return await self._ledger.append(Entry(self._clock.now(), incident, kind, state, detail))

    async def _escalate(self, incident: str, text: str) -> None:
        """A page and its line, both or neither; from memory, once, where the ledger can't be written."""
        entry = Entry(self._clock.now(), incident, "page", "done", {"reason": text})
        try:
            await self._ledger.append(entry, lambda connection: self._hands.page(connection, incident, text))
        except StateError:
            if incident not in self._paged_from_memory:
                self._paged_from_memory.add(incident)
                self._hands.page(None, incident, text)
            raise

    async def _close(self, incident: str, reason: str) -> None:
        entry = Entry(self._clock.now(), incident, "incident", "closed", {"reason": reason})
        paged = any(e.incident == incident and e.kind == "page" for e in self._ledger.current.entries)
        paged = paged or incident in self._paged_from_memory
        end = (lambda connection: self._hands.page(connection, incident, None)) if paged else None
        await self._ledger.append(entry, end)
        self._paged_from_memory.discard(incident)

    async def _restart_step(self, step: Step, view: View) -> None:
        assert step.incident is not None
        if step.refused is not None:
            guard = step.refused.partition(":")[0]
            if self._refused.get(step.incident) != guard:
                self._refused[step.incident] = guard
                STEPS.labels("restart", "refused").inc()
                log.warning("incident %s: restart refused: %s", step.incident, step.refused)
                await self._write(step.incident, "restart", "refused", reason=step.reason, guard=step.refused)
            return
        if self._settings.mode is Mode.OBSERVE:
            log.warning("incident %s: would restart the engine (observe): %s", step.incident, step.reason)
            STEPS.labels("restart", "observed").inc()
            await self._write(step.incident, "restart", "observed", reason=step.reason)
            return
        runtime = self._runtime()
        if isinstance(runtime, Unknown):
            return
        started = view.runtime.started_at if isinstance(view.runtime, RuntimeView) else None
        entry = await self._write(
            step.incident, "restart", "reserved", reason=step.reason, instance_started_at=view.instance_started_at
        )
        self._start(self._restart(entry, runtime, started, view))

    async def _restart(self, entry: Entry, runtime: Runtime, started: float | None, before: View) -> None:
        detail: dict[str, Any] = {**entry.detail, "attempt": entry.id, "reserved_at": entry.at}
        state = "failed"
        try:
            if self._settings.coordination is Coordination.UNCOORDINATED:
                await asyncio.sleep(self._random.uniform(0.0, self._settings.random_delay))
            refused = self._second_look(before)
            if refused is not None:
                detail["why"] = refused
            else:
                grace = self._stop_grace
                self._hands.restarting(entry.incident, self._clock.now() + grace + RESTART_SLACK_SECONDS)
                log.warning(
                    "incident %s: restarting the engine: %s",
                    entry.incident,
                    detail["reason"],
                    extra={"event.action": "restart-begun"},
                )
                async with asyncio.timeout(grace + RESTART_SLACK_SECONDS):
                    result = await runtime.restart(grace_seconds=grace, expect_started_at=started)
                state = "done"
                detail |= {"started_at": result.started_at, "how": result.detail}
        except RuntimeRefused as error:
            detail["why"] = str(error)
        except (TimeoutError, OSError) as error:
            state = "unknown"
            detail["why"] = f"{type(error).__name__}: {error}"
        STEPS.labels("restart", state).inc()
        log.log(
            logging.INFO if state == "done" else logging.ERROR,
            "incident %s: restart %s%s",
            entry.incident,
            state,
            f": {detail['why']}" if "why" in detail else "",
            extra={"event.action": f"restart-{state}"},
        )
        try:
            # What a failure has to tell is planned from this line.
            await self._ledger.append(Entry(self._clock.now(), entry.incident, "restart", state, detail))
        except StateError as error:
            log.error("incident %s: the restart's result can't be recorded: %s", entry.incident, error)
            if state == "failed":
                self._paged_from_memory.add(entry.incident)
                self._hands.page(None, entry.incident, f"restart failed: {detail['why']}")

    def _second_look(self, before: View) -> str | None:
        """What changed between planning and acting makes the plan void."""
        now = self._hands.latest()
        if now.instance_started_at != before.instance_started_at:
            return "another instance of the engine is there already"
        moved = {e.key: e.last_moved_at for e in before.engines if e.failed_at is not None}
        if any(e.key in moved and e.last_moved_at > moved[e.key] for e in now.engines):
            return "the engine moves again"
        return f"planned stop: {now.planned_stop}" if now.planned_stop else None

    async def _evidence(self, incident: str, view: View) -> None:
        state, detail = "done", {}
        try:
            async with asyncio.timeout(self._settings.evidence_timeout):
                detail = await self._hands.evidence(incident, view)
        except (TimeoutError, OSError, ValueError) as error:
            state, detail = "failed", {"why": f"{type(error).__name__}: {error}"}
        STEPS.labels("evidence", state).inc()
        try:
            await self._write(incident, "evidence", state, **detail)
        except StateError as error:
            log.warning("incident %s: evidence can't be recorded: %s", incident, error)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self, deadline: float) -> None:
        """Lets what was begun end, for `deadline` seconds; an attempt cut off then counts as done at the next start."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=deadline)
        for task in set(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
