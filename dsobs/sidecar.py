"""Builds everything from a `Config`, starts it, runs it beside the engine, stops it."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import math
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import aiohttp

from dsobs import __version__, silences
from dsobs.collectors.exchange import open_session
from dsobs.collectors.health import HealthCheck
from dsobs.collectors.nvml import NvmlCollector, record_of_gpus
from dsobs.collectors.probe import Prober
from dsobs.collectors.scrape import Scraper
from dsobs.config import Config, Coordination, Mode, SecretError
from dsobs.model.alert import Alert, AlertState, Transition
from dsobs.model.clock import Clock, SteadyClock
from dsobs.model.engine import EngineAdapter
from dsobs.model.notification import Event, Notification
from dsobs.model.observation import Gpu, Observation, Probe, RuntimeView, Scrape, Unknown
from dsobs.model.runtime import Runtime
from dsobs.model.samples import Page, Sample
from dsobs.model.view import View
from dsobs.notifiers import configured
from dsobs.notifiers import outbox as outboxes
from dsobs.notifiers.messages import dedup_key, notification_of
from dsobs.notifiers.outbox import Outbox
from dsobs.pipeline import Memory, Pipeline, Turn, rule_groups
from dsobs.recorder.flight import FlightRecorder, prune_bundles
from dsobs.recorder.records import record_of
from dsobs.remediation import ledger as ledgers
from dsobs.remediation.actor import Actor, Hands, LedgerStore
from dsobs.remediation.guard import Switches
from dsobs.rules import persistence
from dsobs.rules.evaluator import Evaluator
from dsobs.runtimes import select
from dsobs.series.exposition import Parser
from dsobs.series.store import Store
from dsobs.signals.memory import kv_pool_of_log
from dsobs.silences import Silence
from dsobs.state import StateDb, StateError
from dsobs.telemetry import BUILD, LOOP_ERRORS, LOOP_LAST, LOOP_MISSED, LOOP_TICKS

log = logging.getLogger(__name__)

T = TypeVar("T")

FACTS_SCHEMA = ("CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL)",)
SCHEMA = (
    *FACTS_SCHEMA,
    *silences.SCHEMA,
    *ledgers.SCHEMA,
    *outboxes.SCHEMA,
    *persistence.SCHEMA,
)
STATE_FILE = "state.db"
HEALTH_SECONDS = 5.0
"""Between two `/health` requests to an engine that is up; each second else."""
SAVE_SECONDS = 5.0
"""Between two savings of pending alerts and of what was learned."""
LOOK_FOR_RUNTIME_SECONDS = 5.0
RESTORE_SECONDS = 600.0
"""How much of the flight recorder is read back at the start."""
EVIDENCE_SECONDS = 600.0
DAY = 86400.0
ALIVE_SECONDS = 30.0
"""A main loop without a turn for this long is dead; no turn waits longer for anything."""
LOG_TAIL_LINES = 500


class Latest(Generic[T]):
    """Runs one question at a time and keeps the last answer."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._task: asyncio.Task[T] | None = None
        self.value: T | None = None

    def start(self) -> asyncio.Task[T]:
        """The question in flight, asked now if there is none."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._ask())
        return self._task

    def take(self) -> T | None:
        """The answer if it has just come, else None."""
        if self._task is None or not self._task.done():
            return None
        task, self._task = self._task, None
        self.value = task.result()
        return self.value

    async def cancel(self) -> None:
        """Gives the question up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


class Sidecar:
    """dsobs beside one engine."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SteadyClock()
        self.name = config.target.name or socket.gethostname()
        self.folder = config.state.directory
        self.db: StateDb | None = None
        self.killed_by_api = False
        self.silences: list[Silence] = []
        self.store = Store()
        self.evaluator = Evaluator(rule_groups(config), self.store)
        self.runtime: Runtime | Unknown = Unknown("not looked for yet")
        self.pipeline: Pipeline
        self.ledger: LedgerStore
        self.outbox: Outbox
        self._state_error = ""
        self._set_aside: Path | None = None
        self._parser = Parser()
        self._probes: list[Probe] = []
        self._prober: Prober | None = None
        self._prober_for: EngineAdapter | None = None
        self._probe_tasks: set[asyncio.Task[None]] = set()
        self._runtime_looked_at = float("-inf")
        self._saved_at = 0.0
        self._health_at = float("-inf")
        self._log_read_for: float | None = None
        self._stopping = asyncio.Event()
        self._nudge = asyncio.Event()
        """Set for a turn before it is due."""
        self._silenced: set[str] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._turned_at: float | None = None
        self.address = ""
        """Where the API listens, `host:port`, once it does."""

    # Building.

    def _open_state(self) -> None:
        try:
            self.db = StateDb(self.folder / STATE_FILE, SCHEMA)
        except (StateError, OSError) as error:
            self._state_error = str(error)
            log.error("no state on disk: alerts and pages go on from memory, nothing is repaired: %s", error)
            return
        self._set_aside = self.db.set_aside or next(iter(sorted(self.folder.glob(STATE_FILE + ".corrupt-*"))), None)
        if self._set_aside is not None:
            log.error(
                "unreadable state was set aside as %s; nothing is repaired while that file is there", self._set_aside
            )

    def _restore(self) -> Memory:
        now = self.clock.now()
        if self.db is None:
            return Memory()

        def read(connection: sqlite3.Connection) -> tuple[Memory, list[Silence]]:
            row = connection.execute("SELECT value FROM facts WHERE name = 'memory'").fetchone()
            self.evaluator.restore(persistence.restore(connection), now)
            killed = connection.execute("SELECT value FROM facts WHERE name = 'killed'").fetchone()
            self.killed_by_api = bool(killed and json.loads(killed[0]))
            return (Memory.load(json.loads(row[0])) if row else Memory()), silences.load(connection, now)

        try:
            memory, self.silences = self.db.transact(read)
        except (StateError, ValueError, KeyError, TypeError) as error:
            log.error("what was remembered can't be read, beginning anew: %s", error)
            return Memory()
        return memory

    async def run(self) -> None:
        """Until `stop`; raises OSError if the API's port can't be had."""
        config = self.config
        self._open_state()
        memory = self._restore()
        BUILD.labels(__version__).set(1)
        probes = "on" if config.probes_enabled else "off"
        self.pipeline = Pipeline(config, self.store, self.evaluator, probes=probes, memory=memory)
        self.ledger = LedgerStore(self.db, self.clock.now(), why_not=self._state_error)
        self.recorder = FlightRecorder(self.folder / "flight", config.state.recorder_max_bytes)
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(open_session(config.target))
            self.outbox = Outbox(self.db, configured(config.notifiers, session), self.clock, source=self.name)
            self._actor = Actor(
                self.ledger,
                lambda: self.runtime,
                config.remediation,
                config.runtime.stop_grace,
                Hands(self._evidence, self._page, self._restarting, lambda: self.pipeline.view),
                self.clock,
            )
            self._restore_windows()
            self._announce()
            await self._serve(stack)
            delivery = asyncio.create_task(self.outbox.run())
            calendar = self._calendar()
            try:
                await self._recover()
                await self._loop(session)
            finally:
                calendar.shutdown(wait=False)
                await self._close(delivery)

    async def _serve(self, stack: contextlib.AsyncExitStack) -> None:
        from dsobs.api.server import serve

        host, port = await stack.enter_async_context(serve(self, self.config.api.listen, self.config.api.control_token))
        self.address = f"{host}:{port}"
        log.info("serving on http://%s (api.listen)", self.address)

    def _calendar(self) -> Any:
        """Calendar work: pruning once a night, at a time of its own for each host."""
        from apscheduler.schedulers.asyncio import AsyncIOScheduler

        scheduler = AsyncIOScheduler(timezone="UTC")
        scheduler.add_job(
            self._prune, "cron", hour=3, minute=hash(self.name) % 60, misfire_grace_time=3600, coalesce=True
        )
        scheduler.start()
        return scheduler

    async def _prune(self) -> None:
        now = self.clock.now()
        if self.db is not None:
            try:
                await self.db.transact_async(lambda c: (ledgers.prune(c, now), silences.prune(c, now)))
            except StateError as error:
                log.warning("pruning: %s", error)

    def _announce(self) -> None:
        """What is on and what is off, each with the setting that changes it."""
        config = self.config
        log.info("dsobs %s beside %s (target.url)", __version__, config.target.url)
        log.info("GPU readings: %s (gpu.enabled)", "NVML, if there is a driver" if config.gpu.enabled else "off")
        groups = self.evaluator.rules()["groups"]
        rules = sum(len(group["rules"]) for group in groups)
        log.info("rules: %d in %d groups (rules.shipped, rules.files)", rules, len(groups))
        told = sorted(n for n in config.notifiers.model_fields_set if getattr(config.notifiers, n) is not None)
        log.info("pages: %s (notifiers)", ", ".join(told) if told else "nobody is paged")
        log.info("synthetic requests: %s (hang.probe)", "on" if config.probes_enabled else "none are sent")
        mode = config.remediation.mode
        log.info("repair: %s (remediation.mode)", "enforce" if mode is Mode.ENFORCE else "observe: nothing is changed")
        log.info("logs: none are tailed")
        log.info("control endpoints: %s (api.control_token)", "on" if config.api.control_token else "off")
        log.info("state in %s (state.directory)", self.folder if self.db else f"memory: {self._state_error}")

    def _restore_windows(self) -> None:
        """Reads the last minutes of the flight recorder back, so that rules have their windows after a restart."""
        from dsobs.replay import observation_of

        now = self.clock.now()
        for record in self.recorder.recent(now - RESTORE_SECONDS):
            if record["t"] < now:
                self.pipeline.restore(observation_of(record, self._parser))

    async def _recover(self) -> None:
        try:
            await self._actor.recover()
        except StateError as error:
            log.error("the ledger can't be written: %s", error)

    # The loop.

    async def _loop(self, session: aiohttp.ClientSession) -> None:
        target = self.config.target
        self._scrapes = Latest(Scraper(session, target, "/metrics", self.clock, self._parser).scrape)
        health = HealthCheck(session, target, self.clock)
        self._healths = Latest(health.check)
        self._session = session
        nvml = NvmlCollector(self.config.gpu, self.clock)
        self._gpus: Latest[tuple[Gpu, ...] | Unknown] = Latest(nvml.read)
        self._views: Latest[RuntimeView | Unknown] = Latest(self._view_runtime)
        loop = asyncio.get_running_loop()
        interval = max(target.scrape_interval, 0.1)
        due = loop.time()
        try:
            while not self._stopping.is_set():
                try:
                    await self._turn(interval)
                except Exception:
                    # One turn that fails must not end alerting; it is counted, shown and alerted on.
                    LOOP_ERRORS.labels("main").inc()
                    log.exception("a turn of the main loop failed")
                LOOP_TICKS.labels("main").inc()
                LOOP_LAST.labels("main").set(self.clock.now())
                if loop.time() >= due:
                    due += interval
                    late = loop.time() - due
                    if late > 0:
                        missed = int(late / interval)
                        LOOP_MISSED.labels("main").inc(missed)
                        due += missed * interval
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._nudge.wait(), max(due - loop.time(), 0.0))
                self._nudge.clear()
        finally:
            for latest in (self._scrapes, self._healths, self._gpus, self._views):
                await latest.cancel()
            await nvml.close()

    async def _turn(self, interval: float) -> None:
        obs = await self._observe(interval)
        self._turned_at = obs.at
        turn = self.pipeline.turn(obs, self.ledger.current, self._switches(), tuple(self._silenced))
        await self._keep(turn)
        if turn.steps:
            await self._actor.carry_out(turn.steps, turn.view)
        for key in turn.probes_wanted[:1]:
            if not self._probe_tasks:
                task = asyncio.create_task(self._probe(key[1] if self.pipeline.facts.addressable else None))
                self._probe_tasks.add(task)
                task.add_done_callback(self._probe_tasks.discard)
        await self.ledger.retry(obs.at)
        self._read_start_up_log(turn.view)
        if obs.scrape is not None:
            self.recorder.write(record_of(obs, record_of_gpus(obs.gpus), obs.health))

    async def _observe(self, interval: float) -> Observation:
        now = self.clock.now()
        questions: set[asyncio.Task[Any]] = {self._scrapes.start(), self._views.start()}
        if self.config.gpu.enabled:
            questions.add(self._gpus.start())
        if not self.pipeline.view.ready or now - self._health_at >= HEALTH_SECONDS:
            questions.add(self._healths.start())
        await asyncio.wait(questions, timeout=interval)
        scrape: Scrape | None = self._scrapes.take()
        self._views.take()
        if self._gpus.take() is None and isinstance(self._gpus.value, tuple):
            # The same reading once more: its XIDs are counted already.
            self._gpus.value = tuple(dataclasses.replace(gpu, xids=()) for gpu in self._gpus.value)
        health = self._healths.take()
        if health is not None:
            self._health_at = self.clock.now()
        probes, self._probes = tuple(self._probes), []
        disabled = Unknown("switched off (gpu.enabled)")
        return Observation(
            at=self.clock.now(),
            scrape=scrape,
            health=health,
            gpus=(self._gpus.value or Unknown("not read yet")) if self.config.gpu.enabled else disabled,
            runtime=self._views.value
            or (self.runtime if isinstance(self.runtime, Unknown) else Unknown("asked just now")),
            probes=probes,
        )

    async def _view_runtime(self) -> RuntimeView | Unknown:
        now = self.clock.now()
        if isinstance(self.runtime, Unknown) and now - self._runtime_looked_at >= LOOK_FOR_RUNTIME_SECONDS:
            self._runtime_looked_at = now
            found = await select(self.config.runtime, self.config.target)
            if type(found) is not type(self.runtime) or found != self.runtime:
                log.info("runtime: %s", found.reason if isinstance(found, Unknown) else found.name)
            self.runtime = found
            self.pipeline.can_restart = not isinstance(found, Unknown) and found.can_restart
        if isinstance(self.runtime, Unknown):
            return self.runtime
        view = await self.runtime.view()
        self.pipeline.can_restart = self.runtime.can_restart
        return view

    async def _probe(self, rank: str | None) -> None:
        if self.pipeline.adapter is None:
            return
        if self._prober is None or self._prober_for is not self.pipeline.adapter:
            self._prober_for = self.pipeline.adapter
            timeout = self.config.hang.probe_timeout
            self._prober = Prober(self._session, self.config.target, self._prober_for, self.clock, timeout)
        self.pipeline.probes_in_flight[rank] = 1
        self.pipeline.probe_sent(self.clock.now(), rank)
        log.info("a synthetic request of one token", extra={"event.action": "probe-sent"})
        try:
            probe = await self._prober.probe(rank)
            took = probe.ended_at - probe.started_at
            extra = {"event.action": f"probe-{probe.outcome}"}
            log.info("probe %s after %.1f s %s", probe.outcome, took, probe.detail, extra=extra)
            self._probes.append(probe)
            # The verdict needs a scrape from after the probe: not a second later, now.
            self._nudge.set()
        except SecretError as error:
            log.error("probe: %s", error)
        finally:
            self.pipeline.probes_in_flight.pop(rank, None)

    def _switches(self) -> Switches:
        settings = self.config.remediation
        killed = None
        if not settings.enabled:
            killed = "setting remediation.enabled"
        elif self.killed_by_api:
            killed = "API"
        elif settings.kill_switch_file.exists():
            killed = f"file {settings.kill_switch_file}"
        owned = not isinstance(self.runtime, Unknown) and self.runtime.name in ("process", "docker")
        aside = self._set_aside
        if aside is not None and not aside.exists():
            self._set_aside = aside = None
            log.info("the set-aside state is gone: the operator agrees to go on")
        return Switches(
            killed=killed,
            state_set_aside=str(aside) if aside is not None else None,
            coordinated=owned or settings.coordination is not Coordination.LEASE,
        )

    # Keeping and telling.

    async def _keep(self, turn: Turn) -> None:
        """Commits alert states and the pages that follow from them in one transaction, before they take effect."""
        now = turn.view.at
        self._silenced = {
            alert.fingerprint for alert in self.evaluator.alerts() if silences.holding(self.silences, alert.labels, now)
        }
        for transition in turn.transitions:
            alert = transition.alert
            level = logging.WARNING if alert.state is AlertState.FIRING else logging.INFO
            log.log(
                level,
                "alert %s %s: %s",
                alert.name,
                alert.state,
                alert.annotations.get("summary", ""),
                extra={"event.action": f"alert-{alert.state}"},
            )
        notifications = [n for t in turn.transitions if (n := self._notification(t)) is not None]
        if not turn.transitions and now - self._saved_at < SAVE_SECONDS:
            return
        self._saved_at = now
        self.ledger.forget_before(now - DAY)
        await self._commit(notifications, now)

    def _notification(self, transition: Transition) -> Notification | None:
        alert = transition.alert
        if self.config.rules.evaluation != "sidecar" or alert.state is AlertState.PENDING:
            return None
        if alert.state is AlertState.FIRING and alert.fingerprint in self._silenced:
            return None
        if alert.state is AlertState.RESOLVED and transition.before is not AlertState.FIRING:
            return None
        return notification_of(transition, source=self.name, next_step=self._next_step(alert.labels.get("action", "")))

    def _next_step(self, action: str) -> str:
        if action != "restart":
            return "nothing; this is for a person"
        if self.config.remediation.mode is Mode.OBSERVE:
            return "nothing: remediation.mode is observe"
        return "restarts the engine once it is confirmed and no guard refuses"

    async def _commit(self, notifications: list[Notification], now: float) -> None:
        memory = json.dumps(self.pipeline.memory().dump())
        snapshot = self.evaluator.snapshot(now)

        def write(connection: sqlite3.Connection) -> None:
            if snapshot is not None:
                persistence.save(connection, snapshot)
            connection.execute("INSERT OR REPLACE INTO facts VALUES ('memory', ?)", (memory,))
            self.outbox.enqueue(connection, notifications)

        try:
            if self.db is None:
                raise StateError(self._state_error)
            await self.db.transact_async(write)
        except StateError as error:
            if notifications:
                log.error("alerts can't be kept, paging from memory: %s", error)
                self.outbox.enqueue_in_memory(notifications)
        else:
            if snapshot is not None:
                self.evaluator.saved(snapshot)

    def _page(self, connection: sqlite3.Connection | None, incident: str, text: str | None) -> None:
        """An escalation, where the ladder is used up, or (None) its end; from memory where there is no transaction."""
        if self.config.rules.evaluation != "sidecar":
            return
        notification = Notification(
            at=self.clock.now(),
            event=Event.RESOLVE if text is None else Event.TRIGGER,
            dedup_key=dedup_key(self.name, f"incident-{incident}"),
            summary=f"[critical] {self.name}: {text}" if text else f"[resolved] {self.name}: incident {incident}",
            severity="critical",
            source=self.name,
            component="dsobs",
            details={"incident": incident, "do": f"dsobs incidents {incident}"},
        )
        if connection is None:
            self.outbox.enqueue_in_memory([notification])
        else:
            self.outbox.enqueue(connection, [notification])

    def _restarting(self, incident: str, until: float) -> None:
        self.pipeline.restarts.expect_own(until)
        self.pipeline.lifecycle.expect_own_stop(f"dsobs, incident {incident}", until)

    # Evidence.

    async def _evidence(self, incident: str, view: View) -> dict[str, Any]:
        folder = self.folder / "incidents" / incident
        now = self.clock.now()

        def gather() -> int:
            folder.mkdir(parents=True, exist_ok=True)
            size = self.recorder.copy_recent(now - EVIDENCE_SECONDS, folder / "recording.jsonl.gz")
            state = {"view": _plain(view), "gpus": _plain(self.pipeline.gpus), "alerts": _plain(self.pipeline.alerts())}
            (folder / "state.json").write_text(json.dumps(state, indent=1, default=str), encoding="utf-8")
            return size

        size = await asyncio.to_thread(gather)
        detail: dict[str, Any] = {"folder": str(folder), "recording_bytes": size}
        if not isinstance(self.runtime, Unknown):
            tail = await self.runtime.log_tail(LOG_TAIL_LINES)
            if isinstance(tail, Unknown):
                detail["log"] = tail.reason
            else:
                text = "\n".join(tail) + "\n"
                await asyncio.to_thread((folder / "engine.log").write_text, text, "utf-8")
                detail["log_lines"] = len(tail)
        await asyncio.to_thread(prune_bundles, folder.parent, self.config.state.incident_max_bytes)
        extra = {"event.action": "evidence-saved"}
        log.info("incident %s: evidence saved in %s", incident, folder, extra=extra)
        return detail

    def _read_start_up_log(self, view: View) -> None:
        """The size of the KV pool stands in the engine's start-up log and nowhere else on CUDA."""
        started = view.instance_started_at
        if not view.ready or started is None or started == self._log_read_for or isinstance(self.runtime, Unknown):
            return
        self._log_read_for = started
        task = asyncio.create_task(self._kv_pool(self.runtime))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _kv_pool(self, runtime: Runtime) -> None:
        tail = await runtime.log_tail(2000)
        if not isinstance(tail, Unknown):
            pool = kv_pool_of_log(tail)
            if pool is not None:
                self.pipeline.kv_pool_bytes = pool
                log.info("KV cache pool of %d bytes, by the engine's log", pool)

    # Control.

    async def silence(self, matchers: list[str], seconds: float, created_by: str, comment: str) -> Silence:
        """A new silence, on disk; MatcherError for a bad one, StateError if it can't be kept."""
        made = silences.new(matchers, self.clock.now(), seconds, created_by, comment)
        if self.db is None:
            raise StateError(self._state_error)
        await self.db.transact_async(lambda c: silences.save(c, made))
        self.silences.append(made)
        return made

    async def expire_silence(self, id_: str) -> bool:
        """Ends a silence now; False if there is none of that id."""
        now = self.clock.now()
        for index, silence in enumerate(self.silences):
            if silence.id == id_ and silence.ends_at > now:
                if self.db is None:
                    raise StateError(self._state_error)
                ended = dataclasses.replace(silence, ends_at=now)
                await self.db.transact_async(functools.partial(silences.save, silence=ended))
                del self.silences[index]
                return True
        return False

    async def switch(self, *, killed: bool) -> None:
        """Sets or clears the API's kill switch; it outlives dsobs."""
        self.killed_by_api = killed
        log.warning("kill switch by API: %s", "on" if killed else "off")
        if self.db is None:
            raise StateError(f"the switch holds until dsobs ends, but can't be kept: {self._state_error}")
        value = json.dumps(killed)
        await self.db.transact_async(lambda c: c.execute("INSERT OR REPLACE INTO facts VALUES ('killed', ?)", (value,)))

    # What the API shows.

    def metric_samples(self) -> list[Sample]:
        """Canonical signals as they stand, and ALERTS."""
        return [*self.pipeline.samples(), *self.evaluator.alert_samples()]

    def native_page(self) -> Page | None:
        """The engine's own page where it is passed through."""
        return self.pipeline.page if self.config.api.native_metrics and self.pipeline.view.up else None

    def alive(self) -> str | None:
        """None if the loop turns, else what stands still."""
        at = self._turned_at
        if at is not None and self.clock.now() - at > ALIVE_SECONDS:
            return f"the main loop stands still for {self.clock.now() - at:.0f} s"
        return None

    def prepared(self) -> str | None:
        """None once the first turn is done."""
        return None if self._turned_at is not None else "the first turn is not done"

    def current_alerts(self) -> list[Alert]:
        """Pending and firing."""
        return [alert for alert in self.evaluator.alerts() if alert.state is not AlertState.RESOLVED]

    def rule_groups(self) -> list[dict[str, Any]]:
        """In the form of Prometheus' /api/v1/rules."""
        groups: list[dict[str, Any]] = self.evaluator.rules()["groups"]
        return groups

    def active_silences(self) -> list[Silence]:
        """Those that have not ended."""
        now = self.clock.now()
        return [silence for silence in self.silences if silence.ends_at > now]

    async def incidents(self, incident: str | None) -> list[dict[str, Any]]:
        """Ledger lines by incident, newest first."""
        if self.db is None:
            entries: list[ledgers.Entry] = list(self.ledger.current.entries)
        else:
            entries = await self.db.transact_async(lambda c: ledgers.of_incident(c, incident or ""))
        return ledgers.by_incident(entries)

    def status(self) -> dict[str, Any]:
        """The engine, the guards and what is unknown."""
        view = self.pipeline.view
        ledger = self.ledger.current
        going_on = ledger.open_incident()
        return {
            "name": self.name,
            "version": __version__,
            "target": self.config.target.url,
            "engine": self.pipeline.adapter.name if self.pipeline.adapter is not None else None,
            "view": _plain(view),
            "guards": {
                "mode": self.config.remediation.mode.value,
                "killed": self._switches().killed,
                "restarts_24h": view.restarts_24h,
                "max_restarts_24h": self.config.remediation.max_restarts_24h,
                "ledger_writable": ledger.writable,
                "incident": going_on.id if going_on is not None else None,
            },
            "unknown": {
                name: value.reason
                for name, value in (("gpu", self.pipeline.gpus), ("runtime", view.runtime))
                if isinstance(value, Unknown)
            },
        }

    def stop(self) -> None:
        """Asks the loop to end; legal before the start and twice."""
        self._stopping.set()
        self._nudge.set()

    async def _close(self, delivery: asyncio.Task[None]) -> None:
        await self._actor.stop(5.0)
        for task in {*self._probe_tasks, *self._background}:
            task.cancel()
        await asyncio.gather(*self._probe_tasks, *self._background, return_exceptions=True)
        await self._commit([], self.clock.now())
        await self.outbox.stop(5.0)
        delivery.cancel()
        await asyncio.gather(delivery, return_exceptions=True)
        if not isinstance(self.runtime, Unknown):
            await self.runtime.close()
        self.recorder.close()
        if self.db is not None:
            self.db.close()
        log.info("stopped")


def _plain(value: Any) -> Any:
    """Dataclasses as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
