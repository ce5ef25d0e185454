"""The one place that acts: carries out the steps of a plan, each in the ledger before it takes effect."""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dsobs.config.models import Mode
from dsobs.config.models import Remediation as Settings
from dsobs.model.clock import Clock
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import Announces, Drains, Replaces, RestartWithoutEffect, Runtime, RuntimeHeld, RuntimeRefused
from dsobs.model.turn import Turn
from dsobs.model.view import View
from dsobs.remediation import ledger as lines
from dsobs.remediation.ledger import Entry, Ledger
from dsobs.remediation.plan import Step
from dsobs.state import StateDb, StateError
from dsobs.telemetry import LEDGER_WRITABLE, STEPS

log = logging.getLogger(__name__)

DAY = 86400.0
RETRY_LEDGER_SECONDS = 10.0
DRAINED_SECONDS = 90.0
"""How much longer than its wait a drain holds, for the restart that follows it to have its turn."""
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
        self._read = False
        self.inherited = 0
        """Id of the last line that earlier runs of dsobs wrote."""
        entries: list[Entry] = []
        if db is not None:
            try:
                entries = db.transact(lambda c: lines.since(c, now - DAY))
                why_not = ""
            except StateError as error:
                why_not = str(error)
        self.current = Ledger((), writable=not why_not, why_not=why_not)
        if not why_not:
            self._have_read(entries, now)
        LEDGER_WRITABLE.set(self.current.writable)

    def _have_read(self, entries: Sequence[Entry], now: float) -> None:
        # From the future, where the wall clock was set back meanwhile: a cooldown would hold too long.
        found = tuple(replace(entry, at=min(entry.at, now)) for entry in entries)
        self.inherited = max((entry.id for entry in found), default=0)
        self.current = replace(self.current, entries=found)
        self._read = True

    async def append(self, entry: Entry, also: Callable[[sqlite3.Connection], None] | None = None) -> Entry:
        """Commits one line, and what `also` writes, or neither; StateError if it could not, and nothing may be done
        then.

        A line that a disk that hung has committed late all the same is in `current` from then on.
        """
        if self._db is None or not self._read:
            raise StateError(self.current.why_not)

        def write(connection: sqlite3.Connection) -> int:
            if also is not None:
                also(connection)
            return lines.append(connection, entry)

        try:
            id_ = await self._db.transact_async(write, late=lambda id_: self._add(entry, id_))
        except StateError as error:
            self._writable(str(error))
            raise
        # On the reserve one more line was possible; for acting there must be room.
        self._writable("the disk is full" if self._db.reserve_used else "")
        return self._add(entry, id_)

    def _add(self, entry: Entry, id_: int) -> Entry:
        written = replace(entry, id=id_)
        self.current = self.current.with_entry(written)
        self._committed(written)
        return written

    async def retry(self, now: float) -> None:
        """While the ledger could not be written: sees from time to time whether it can be again."""
        if self.current.writable or self._db is None or now < self._retry_at:
            return
        self._retry_at = now + RETRY_LEDGER_SECONDS

        def look(connection: sqlite3.Connection) -> list[Entry]:
            connection.execute("UPDATE ledger SET state = state WHERE id = 0")
            return [] if self._read else lines.since(connection, now - DAY)

        try:
            entries = await self._db.transact_async(look)
        except StateError as error:
            self._writable(str(error))
        else:
            if not self._read:
                self._have_read(entries, now)
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
    restarting_longer: Callable[[float], None]
    """Told after one whose new instance has yet to begin: until when it counts as dsobs's own."""
    latest: Callable[[], View]
    """The newest view, to look once more after a delay."""
    veto: Callable[[Entry], str | None]
    """Plans anew as if this reservation (of a restart or a drain) were not there, with the guards, silences and
    settings of now: why there would be none, or None where there still would be one."""
    turn: Callable[[], Turn]
    """How this process gets its turn to act."""


class Actor:
    """Carries out steps; restarts and evidence run beside the loop, one at a time."""

    def __init__(
        self,
        ledger: LedgerStore,
        runtime: Callable[[], Runtime | Unknown],
        settings: Settings,
        stop_grace: float,
        startup_budget: float,
        hands: Hands,
        clock: Clock,
    ) -> None:
        self._ledger = ledger
        self._runtime = runtime
        self._settings = settings
        self._stop_grace = stop_grace
        self._startup_budget = startup_budget
        self._hands = hands
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused: dict[str, str] = {}
        self._gathering: set[str] = set()
        self._draining: set[str] = set()
        self._paged_from_memory: set[str] = set()
        self._left_out: set[str] = set()
        """Actions that the ledger could not record."""
        self._acting: set[int] = set()
        """Attempts under way."""
        self._unwritten: dict[int, Entry] = {}
        """Attempt → result that could not be written yet."""

    def configure(self, settings: Settings) -> None:
        """Other settings from the next step on."""
        self._settings = settings

    async def settle(self) -> None:
        """Gives each attempt without a result one, once the ledger can be written; each turn, also the first."""
        while self._ledger.current.writable:
            entry = self._ledger.current.attempt_in_flight()
            if entry is None:
                self._unwritten.clear()
                return
            if entry.id in self._acting:
                return
            result = self._unwritten.get(entry.id) or self._result_of_lost(entry)
            try:
                await self._ledger.append(replace(result, at=self._clock.now()))
            except StateError:
                return  # The ledger has said so.
            self._unwritten.pop(entry.id, None)

    def _result_of_lost(self, entry: Entry) -> Entry:
        detail = {**entry.detail, "attempt": entry.id, "reserved_at": entry.at}
        if entry.id <= self._ledger.inherited:
            # It counts as done, and is verified like one.
            self._hands.restarting(entry.incident, self._clock.now() + 60.0)
            return replace(entry, state="unknown", detail={**detail, "why": "dsobs ended between act and record"})
        why = "the disk took its reservation too late, so nothing was done"
        return replace(entry, state="failed", detail={**detail, "why": why, "withdrawn": True})

    async def carry_out(self, steps: list[Step], view: View) -> None:
        """Does what can be done at once; starts what takes time. Never raises for a step that failed."""
        for step in steps:
            try:
                await self._carry_out(step, view)
            except StateError as error:
                STEPS.labels(step.action, "not_recorded").inc()
                # It is planned again each turn.
                level = logging.DEBUG if step.action in self._left_out else logging.WARNING
                self._left_out.add(step.action)
                log.log(level, "step %s left out, since the ledger can't record it: %s", step.action, error)
            else:
                self._left_out.discard(step.action)

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
            await self._drain_step(step, view)
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
            if isinstance(runtime := self._runtime(), Drains):
                await runtime.undrain()
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
            self._page_from_memory(incident, text)
            raise

    def _page_from_memory(self, incident: str, text: str) -> None:
        if incident not in self._paged_from_memory:
            self._paged_from_memory.add(incident)
            self._hands.page(None, incident, text)

    async def _close(self, incident: str, reason: str) -> None:
        entry = Entry(self._clock.now(), incident, "incident", "closed", {"reason": reason})
        paged = any(e.incident == incident and e.kind == "page" for e in self._ledger.current.entries)
        paged = paged or incident in self._paged_from_memory
        end = (lambda connection: self._hands.page(connection, incident, None)) if paged else None
        await self._ledger.append(entry, end)
        self._paged_from_memory.discard(incident)

    async def _drain_step(self, step: Step, view: View) -> None:
        """Waiting for what is in flight begins with the line `done`; where the runtime can, nothing new comes then."""
        assert step.incident is not None
        runtime = self._runtime()
        if self._settings.mode is Mode.OBSERVE or not isinstance(runtime, Drains):
            await self._write(step.incident, "drain", "done", reason=step.reason)
        elif step.incident not in self._draining:
            self._draining.add(step.incident)
            try:
                entry = await self._write(step.incident, "drain", "reserved", reason=step.reason)
            except StateError:
                self._draining.discard(step.incident)
                raise
            self._start(self._drain(entry, runtime, view))

    async def _drain(self, entry: Entry, runtime: Drains, before: View) -> None:
        detail = {**entry.detail, "reserved_at": entry.at}
        try:
            async with self._hands.turn().taken(entry.incident, "drain"):
                refused = self._second_look(before, entry)
                if refused is not None:
                    raise RuntimeHeld(refused)
                seconds = self._settings.drain_timeout + DRAINED_SECONDS
                detail["how"] = await runtime.drain(seconds=seconds, incident=entry.incident)
        except (RuntimeRefused, TimeoutError, OSError) as error:
            detail["why"] = f"requests still come: {error}"
        how = detail.get("how") or detail["why"]
        extra = {"event.action": "drained" if "how" in detail else "drain-failed"}
        log.warning("incident %s: drain before the restart: %s", entry.incident, how, extra=extra)
        try:
            await self._write(entry.incident, "drain", "failed" if "why" in detail else "done", **detail)
        except StateError as error:
            log.warning("incident %s: the drain can't be recorded: %s", entry.incident, error)
        finally:
            self._draining.discard(entry.incident)

    async def _restart_step(self, step: Step, view: View) -> None:
        assert step.incident is not None
        if step.refused is not None:
            guard = step.refused.partition(":")[0]
            if self._refused.get(step.incident) != guard:
                self._refused[step.incident] = guard
                STEPS.labels("restart", "refused").inc()
                log.warning("incident %s: restart refused: %s", step.incident, step.refused)
                await self._write(step.incident, "restart", "refused", reason=step.reason, guard=step.refused)
                runtime = self._runtime()
                if guard == "gpu_well" and isinstance(runtime, Announces):
                    self._start(runtime.announce("GPUFault", f"incident {step.incident}: {step.refused}"))
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
            step.incident,
            "restart",
            "reserved",
            reason=step.reason,
            instance_started_at=view.instance_started_at,
            **({"how": step.how} if step.how != "restart" else {}),
        )
        self._acting.add(entry.id)
        self._start(self._restart(entry, runtime, started, view))

    async def _restart(self, entry: Entry, runtime: Runtime, started: float | None, before: View) -> None:
        try:
            await self._attempt(entry, runtime, started, before)
        finally:
            self._acting.discard(entry.id)
            if isinstance(runtime, Drains):
                # Also of one that was withdrawn: the engine gets requests again.
                await runtime.undrain()

    async def _attempt(self, entry: Entry, runtime: Runtime, started: float | None, before: View) -> None:
        detail: dict[str, Any] = {**entry.detail, "attempt": entry.id, "reserved_at": entry.at}
        state, mistake = "failed", False
        try:
            how = str(detail.get("how", "restart"))
            async with self._hands.turn().taken(entry.incident, how):
                # Nothing is waited for between this and the act.
                refused = self._second_look(before, entry)
                if refused is not None:
                    raise RuntimeHeld(refused)
                grace = self._stop_grace
                self._hands.restarting(entry.incident, self._clock.now() + grace + RESTART_SLACK_SECONDS)
                log.warning(
                    "incident %s: %s the engine: %s",
                    entry.incident,
                    "replacing" if how == "replace" else "restarting",
                    detail["reason"],
                    extra={"event.action": "restart-begun"},
                )
                async with asyncio.timeout(grace + RESTART_SLACK_SECONDS):
                    if how == "replace":
                        if not isinstance(runtime, Replaces):
                            raise RuntimeRefused(f"{runtime.name} can't replace the engine")
                        result = await runtime.replace(incident=entry.incident)
                    else:
                        result = await runtime.restart(
                            grace_seconds=grace, expect_started_at=started, incident=entry.incident
                        )
            state = "done"
            if result.started_at is None:
                self._hands.restarting_longer(self._clock.now() + self._startup_budget)
            detail |= {"started_at": result.started_at, "how": result.detail}
        except RuntimeHeld as error:
            detail |= {"why": str(error), "withdrawn": True}
        except RuntimeRefused as error:
            detail["why"] = str(error)
        except RestartWithoutEffect as error:
            detail |= {"why": str(error), "without_effect": True}
        except (TimeoutError, OSError) as error:
            state = "unknown"
            detail["why"] = f"{type(error).__name__}: {error}"
        except Exception as error:  # A plugin's mistake; what it did before is not known.
            state, mistake = "unknown", True
            detail["why"] = f"{type(error).__name__}: {error}"
            log.exception("incident %s: the runtime raised", entry.incident)
        STEPS.labels("restart", state).inc()
        log.log(
            logging.INFO if state == "done" else logging.ERROR,
            "incident %s: restart %s%s",
            entry.incident,
            state,
            f": {detail['why']}" if "why" in detail else "",
            extra={"event.action": f"restart-{state}"},
        )
        outcome = Entry(self._clock.now(), entry.incident, "restart", state, detail)
        # Where it can't be written now, `settle` does it later. What a failure has to tell is planned from this line.
        self._unwritten[entry.id] = outcome
        text = f"restart {'ended in an error, its outcome is unknown' if mistake else state}: {detail.get('why')}"
        told = mistake or (state == "failed" and "withdrawn" not in detail)
        try:
            await self._ledger.append(outcome)
            self._unwritten.pop(entry.id)
            if mistake:
                await self._escalate(entry.incident, text)
        except StateError as error:
            log.error("incident %s: the restart's result can't be recorded now: %s", entry.incident, error)
            if told:
                self._page_from_memory(entry.incident, text)

    def _second_look(self, before: View, reservation: Entry) -> str | None:
        """What changed between planning and acting makes the plan void: the engine, or what people have set."""
        if self._settings.mode is Mode.OBSERVE:
            return "the mode is observe by now"
        now = self._hands.latest()
        if now.instance_started_at != before.instance_started_at:
            return "another instance of the engine is there already"
        moved = {e.key: e.last_moved_at for e in before.engines if e.failed_at is not None}
        if any(e.key in moved and e.last_moved_at > moved[e.key] for e in now.engines):
            return "the engine moves again"
        return self._hands.veto(reservation)

    async def _evidence(self, incident: str, view: View) -> None:
        state, detail = "done", {}
        try:
            async with asyncio.timeout(self._settings.evidence_timeout):
                detail = await self._hands.evidence(incident, view)
        except Exception as error:  # A runtime may be a plugin; evidence never holds up a repair.
            log.warning("incident %s: evidence is not complete", incident, exc_info=True)
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
