"""Builds everything from a `Config`, starts it, runs it beside the engine, stops it."""

import asyncio
import contextlib
import json
import logging
import math
import socket
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dsobs import __version__, silences
from dsobs.api.queries import Window
from dsobs.collectors.exchange import open_session
from dsobs.collectors.nvml import record_of_gpus
from dsobs.config import Config, Coordination, Loaded, ReloadError
from dsobs.indicators import INDICATORS
from dsobs.model.alert import Alert, AlertState, Transition
from dsobs.model.clock import Clock, SteadyClock
from dsobs.model.notification import Notification
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.samples import Page, Sample
from dsobs.model.status import Charts, ShownSetting, Status
from dsobs.model.turn import Turn as TurnToAct
from dsobs.model.view import View
from dsobs.notifiers import configured
from dsobs.pipeline import Memory, Pipeline, Turn
from dsobs.promql import Limits, unhurried
from dsobs.recorder.behind import RecordsBehind
from dsobs.recorder.flight import FlightRecorder
from dsobs.recorder.records import record_of
from dsobs.remediation import ledger as ledgers
from dsobs.remediation.actor import Actor, Hands, LedgerStore
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Entry
from dsobs.remediation.plan import unseen_restart
from dsobs.remediation.turn import Alone
from dsobs.rules import persistence
from dsobs.rules.evaluator import Evaluator
from dsobs.runtimes import Coordinates
from dsobs.series.exposition import Parser
from dsobs.series.store import Store
from dsobs.sidecar import telling
from dsobs.sidecar.announce import announce
from dsobs.sidecar.control import Control
from dsobs.sidecar.evidence import gather_evidence
from dsobs.sidecar.exporting import Exporting
from dsobs.sidecar.facts import Seen
from dsobs.sidecar.folder_lock import folder_lock
from dsobs.sidecar.journal import INCIDENTS_FILE, Journal
from dsobs.sidecar.keeping import Keeping
from dsobs.sidecar.kill_file import KillFile
from dsobs.sidecar.log_tails import LogTails
from dsobs.sidecar.receivers import Receivers
from dsobs.sidecar.reload import Reloader
from dsobs.sidecar.scaling import Around, Scaling
from dsobs.sidecar.settings import Placed, Plan, read_plan, unplaced
from dsobs.sidecar.shipping import Shipping
from dsobs.sidecar.snapshot import CHART_SECONDS, Held, charts, settings_shown, snapshot
from dsobs.sidecar.telling import Policy, Teller
from dsobs.sidecar.watching import Watch
from dsobs.silences import Silence
from dsobs.state import StateError
from dsobs.supervisor.processes import boot_id
from dsobs.telemetry import (
    BUILD,
    LOOP_ERRORS,
    LOOP_LAST,
    LOOP_MISSED,
    LOOP_TICKS,
    Own,
)

log = logging.getLogger(__name__)

SAVE_SECONDS = 5.0
"""Between two savings of pending alerts and of what was learned."""
RESTORE_SECONDS = 600.0
"""How much of the flight recorder is read back at the start."""
DAY = 86400.0
OWN_RESTART_SECONDS = 60.0
"""How long after its start dsobs takes a new instance for that of a restart that it made before."""
ALIVE_SECONDS = 30.0
"""A main loop without a turn for this long is dead; no turn waits longer for anything."""


class Sidecar:
    """dsobs beside one engine."""

    def __init__(
        self,
        config: Config,
        clock: Clock | None = None,
        *,
        placed: Placed = unplaced,
        reread: Callable[[], Loaded] | None = None,
        file: Path | None = None,
    ) -> None:
        """`placed` says where settings were written; `reread` gives them anew (ConfigError where they can't be used);
        `file` is the one they came from.

        ConfigError for files that the settings name and that can't be used.
        """
        plan = read_plan(config, placed)
        self.config = config
        self.clock = clock or SteadyClock()
        self.name = config.target.name or socket.gethostname()
        self.folder = config.state.directory
        self.store = Store()
        self.store.show(config.queries.keep)
        self.evaluator = Evaluator(plan.groups, self.store, spread=True)
        self.teller = Teller(Policy.of(config, self.name, plan.inhibit), self.clock)
        self.keeping: Keeping
        self.control: Control
        self.pipeline: Pipeline
        self.ledger: LedgerStore
        self.receivers: Receivers
        self.watch: Watch
        self._file = file
        self.reloader = Reloader(reread, lambda: self.config, self._watched, self._use, self.clock)
        self._running = False
        self._parser = Parser()
        self._own = Own(self.evaluator.metric_names)
        self._saved_at = 0.0
        self._shown_at = -math.inf
        """When that of dsobs's own metrics which no rule names was taken."""
        self.shipping = Shipping(self.folder, self.name)
        self._stopping = asyncio.Event()
        self._nudge = asyncio.Event()
        """Set for a turn before it is due."""
        self._turning = asyncio.Lock()
        """Held while rules are evaluated: they are not changed meanwhile."""
        self._silenced: set[str] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self._kill_file = KillFile()
        self.log_tails = LogTails(lambda: self.watch.runtime, self.clock, config.api.log_lines, config.logs)
        self._settings_of: Config | None = None
        self._settings_shown: tuple[ShownSetting, ...] = ()
        for indicator in INDICATORS.values():
            self.store.want(indicator.record, CHART_SECONDS)
        self._began_at: float | None = None
        self._turned_at: float | None = None
        """When the last turn was done, all of it."""
        self._silences_known = False
        """Those of the last run were read."""
        self.address = ""
        """Where the API listens, `host:port`, once it does."""

    # Building.

    def _restore(self) -> Memory:
        now = self.clock.now()

        def read(connection: sqlite3.Connection) -> Memory:
            self.evaluator.restore(persistence.restore(connection), now)
            self.teller.restore(connection)
            self.control.restore(connection)
            row = connection.execute("SELECT value FROM facts WHERE name = 'memory'").fetchone()
            return Memory.load(json.loads(row[0])) if row else Memory()

        try:
            found = self.keeping.recall(read)
            self._silences_known = self.keeping.set_aside() is None
            return found
        except (StateError, sqlite3.Error, ValueError, KeyError, TypeError) as error:
            log.error("what was remembered can't be read, beginning anew: %s", error)
            return Memory()

    async def run(self) -> None:
        """Until `stop`; OSError if the API's port can't be had, FolderInUseError if another dsobs has the folder."""
        with folder_lock(self.folder):
            await self._run()

    async def _run(self) -> None:
        config = self.config
        self.keeping = Keeping(self.folder)
        self.control = Control(self.keeping, self.clock, self._silences_changed)
        memory = self._restore()
        BUILD.labels(__version__).set(1)
        LOOP_MISSED.labels("main")
        self.pipeline = Pipeline(
            config, self.store, self.evaluator, probes=_probes(config), memory=memory, boot_id=_boot_id()
        )
        self._journal = Journal(self.folder / INCIDENTS_FILE)
        self.ledger = LedgerStore(
            self.keeping.db, self.clock.now(), why_not=self.keeping.error, committed=self._committed
        )
        self._journal.begin(self.ledger.current.entries)
        self.recorder = FlightRecorder(self.folder / "flight", config.state.recorder_max_bytes)
        self.records = RecordsBehind(self.recorder)
        async with contextlib.AsyncExitStack() as stack:
            session = self._session = await stack.enter_async_context(open_session(config.target))
            notifiers = configured(config.notifiers, session)
            self.watch = Watch(config, session, self.clock, self.pipeline, self._parser, self._nudge.set)
            self.watch.shipped_pool = self.shipping.kv_pool
            self.receivers = Receivers(
                self.keeping.db,
                session,
                self.clock,
                self.name,
                self._heart,
                silences_known=self._silences_known,
            )
            self.exporting = Exporting(
                config.logs.service or self.name,
                self.clock,
                session,
                samples=self.metric_samples,
                engine=lambda: self.pipeline.adapter.name if self.pipeline.adapter is not None else "",
            )
            self._actor = Actor(
                self.ledger,
                lambda: self.watch.runtime,
                config.remediation,
                config.runtime.stop_grace,
                config.startup.budget,
                Hands(
                    evidence=self._evidence,
                    page=self._page,
                    restarting=self._restarting,
                    restarting_longer=self._restarting_longer,
                    latest=lambda: self.pipeline.view,
                    veto=self._veto,
                    turn=self._turn_to_act,
                ),
                self.clock,
            )
            self.scaling = Scaling(
                config,
                self.ledger,
                self.clock,
                session,
                Around(
                    runtime=lambda: self.watch.runtime,
                    turn=self._turn_to_act,
                    switches=self._switches,
                    demand=lambda: self.pipeline.demand,
                    start_seconds=lambda: self.pipeline.start_seconds,
                    port=lambda: int(self.address.rpartition(":")[2] or 0),
                    read=self.watch.canonical_of,
                    page=self._page_scale_out,
                ),
            )
            self._restore_windows()
            self.log_tails.begin()
            announce(config, self.evaluator, self.folder, self.keeping.error)
            await self._serve(stack)
            self.receivers.use(config, notifiers)
            self.shipping.use(config)
            self.exporting.use(config.otlp)
            following = asyncio.create_task(self.reloader.follow_files(config.reload.interval))
            calendar = self._calendar()
            self._running = True
            try:
                await self._recall_own_restart()
                await self._loop()
            finally:
                self._running = False
                calendar.shutdown(wait=False)
                following.cancel()
                await self._close(following)

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
        if self.keeping.db is not None:
            try:
                await self.keeping.write(lambda c: (ledgers.prune(c, now), silences.prune(c, now)))
            except StateError as error:
                log.warning("pruning: %s", error)

    def _restore_windows(self) -> None:
        """Reads the last minutes of the flight recorder back, so that rules have their windows after a restart."""
        from dsobs.replay import observation_of

        now = self.clock.now()
        for record in self.recorder.recent(now - RESTORE_SECONDS):
            if record["t"] < now:
                self.pipeline.restore(observation_of(record, self._parser))

    # The loop.

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        interval = max(self.config.target.scrape_interval, 0.1)
        due = loop.time()
        self._began_at = self.clock.now()
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
                # A stall that passes its threshold between two turns is not left waiting for the second one.
                stall = self.pipeline.tracker.due_at(self.clock.now())
                early = stall - self.clock.now() if stall is not None else math.inf
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._nudge.wait(), max(min(due - loop.time(), early), 0.0))
                self._nudge.clear()
        finally:
            await self.watch.stop_asking()

    async def _recall_own_restart(self) -> None:
        """The new instance of a restart that dsobs made just before it ended is its own, and no crash."""
        known = self.pipeline.restarts.known
        start = known.runtime_start if known.runtime_start is not None else known.page_start
        attempt = unseen_restart(self.ledger.current, start)
        await self._actor.settle()
        if attempt is not None:
            now, begun = self.clock.now(), attempt.detail.get("started_at") is not None
            # One that has begun is there to be seen; one of which that is not known has had its time, or takes longer.
            longer = attempt.state == "done" and not begun
            self._restarting(attempt.incident, now + (self.config.startup.budget if longer else OWN_RESTART_SECONDS))

    async def _turn(self, interval: float) -> None:
        obs = await self.watch.observe(interval)
        self.store.append_samples(self._own.samples(), obs.at, source="dsobs")
        if self.config.queries.keep and obs.at - self._shown_at >= self.store.coarse_step:
            self._shown_at = obs.at
            self.store.append_samples(self._own.others(), obs.at, source="dsobs, shown")
        if isinstance(obs.runtime, RuntimeView) and obs.runtime.log_file:
            self.shipping.found(obs.runtime.log_file)
        async with self._turning:
            turn = await unhurried(
                self.pipeline.turning(obs, self.ledger.current, self._switches(), tuple(self._silenced))
            )
        await self._keep(turn)
        await self._actor.settle()
        if any(step.action == "restart" for step in turn.steps):
            self._turn_to_act().wanted()
        if turn.steps:
            await self._actor.carry_out(turn.steps, turn.view)
        for key in turn.probes_wanted[:1]:
            self.watch.probe(key[1] if self.pipeline.facts.addressable else None)
        if turn.pause_wanted:
            self.watch.ask_paused()
        await self.ledger.retry(obs.at)
        self.scaling.follow()
        self.watch.read_start_up_log(turn.view)
        if obs.scrape is not None:
            self.records.write(record_of(obs, record_of_gpus(obs.gpus), obs.health))
        self._turned_at = self.clock.now()

    def _switches(self) -> Switches:
        settings = self.config.remediation
        killed = None
        if not settings.enabled:
            killed = "setting remediation.enabled"
        elif self.control.killed:
            killed = "API"
        else:
            killed = self._kill_file.on(settings.kill_switch_file)
        aside = self.keeping.set_aside()
        turn = self._turn_to_act()
        return Switches(
            killed=killed,
            state_set_aside=str(aside) if aside is not None else None,
            uncoordinated=turn.refusal(),
            fleet=turn.fleet(),
        )

    def _turn_to_act(self) -> TurnToAct:
        """How this sidecar and others of the same workload keep out of each other's way."""
        runtime, settings = self.watch.runtime, self.config.remediation
        why = ""
        if isinstance(runtime, Coordinates) and settings.coordination is Coordination.LEASE:
            turn = runtime.turn(settings)
            if not isinstance(turn, Unknown):
                return turn
            why = turn.reason
        return Alone(
            settings,
            owned=not isinstance(runtime, Unknown) and runtime.name in ("process", "docker"),
            fleet=not isinstance(runtime, Unknown) and runtime.name == "kubernetes",
            why=why,
        )

    # Keeping and telling.

    def _committed(self, entry: Entry) -> None:
        self._journal.entry(entry)
        self.exporting.line(entry, self.ledger.current)

    async def _keep(self, turn: Turn) -> None:
        """Commits alert states and the pages that follow from them in one transaction, before they take effect."""
        now = turn.view.at
        for transition in turn.transitions:
            _tell_transition(transition)
            going_on = self.ledger.current.open_incident()
            self._journal.transition(transition, going_on.id if going_on is not None else None)
        alerts, held = self.evaluator.alerts(), self.active_silences()
        late = self.teller.catch_up(self.receivers.outbox.names, alerts, held, now)
        notifications = self.teller.turn(alerts, held, now)
        self._tell_standing(now)
        # A card that broke is on disk at once, whatever becomes of dsobs.
        news = turn.transitions or notifications or late or self.pipeline.cards.unsaved
        if not news and now - self._saved_at < SAVE_SECONDS:
            return
        self.pipeline.cards.unsaved = False
        self._saved_at = now
        self.ledger.forget_before(now - DAY)
        await self._commit(notifications, now, late)

    def _tell_standing(self, now: float) -> None:
        """What stands, and the silences that hold, for receivers and for repair."""
        alerts, held = self.evaluator.alerts(), self.active_silences()
        self.receivers.update(self.teller.standing(alerts, self.ledger.current, now), held, now)
        stopping = [*held, *self.receivers.others_silences()]
        self._silenced = {
            alert.fingerprint for alert in alerts if silences.holding(stopping, self.teller.policy.labels(alert), now)
        }

    async def _commit(
        self, notifications: list[Notification], now: float, late: Mapping[str, list[Notification]] | None = None
    ) -> None:
        """`late`: receiver → what only that one is told of."""
        memory = json.dumps(self.pipeline.memory().dump())
        snapshot = self.evaluator.snapshot(now)
        told = self.teller.unsaved

        def write(connection: sqlite3.Connection) -> None:
            if snapshot is not None:
                persistence.save(connection, snapshot)
            if told is not None:
                self.teller.save(connection, told)
            connection.execute("INSERT OR REPLACE INTO facts VALUES ('memory', ?)", (memory,))
            self.receivers.outbox.enqueue(connection, notifications)
            for name, some in (late or {}).items():
                self.receivers.outbox.enqueue(connection, some, only=name)

        try:
            await self.keeping.write(write)
        except StateError as error:
            if notifications or late:
                log.error("alerts can't be kept, paging from memory: %s", error)
                self.receivers.outbox.enqueue_in_memory(notifications)
                for name, some in (late or {}).items():
                    self.receivers.outbox.enqueue_in_memory(some, only=name)
        else:
            if snapshot is not None:
                self.evaluator.saved(snapshot)
            if told is not None:
                self.teller.saved(told)

    def _page(self, connection: sqlite3.Connection | None, incident: str, text: str | None) -> None:
        """An escalation, where the ladder is used up, or (None) its end; from memory where there is no transaction.

        It is dsobs's own, wherever alerts are evaluated.
        """
        notification = self.teller.escalation(incident, text, self.clock.now())
        if notification is None:
            return
        if connection is None:
            self.receivers.outbox.enqueue_in_memory([notification])
        else:
            self.receivers.outbox.enqueue(connection, [notification])

    async def _page_scale_out(self, text: str | None, command: str) -> None:
        notification = self.teller.scale_out(text, command, self.clock.now())
        if notification is None:
            return
        try:
            await self.keeping.write(lambda c: self.receivers.outbox.enqueue(c, [notification]))
        except StateError as error:
            log.error("a page can't be kept, paging from memory: %s", error)
            self.receivers.outbox.enqueue_in_memory([notification])

    def _restarting(self, incident: str, until: float) -> None:
        self.pipeline.restarts.expect_own(until)
        self.pipeline.lifecycle.expect_own_stop(f"dsobs, incident {incident}", until)

    def _restarting_longer(self, until: float) -> None:
        self.pipeline.restarts.expect_own_longer(until)
        self.pipeline.lifecycle.expect_own_stop_longer(until)

    def _veto(self, reservation: Entry) -> str | None:
        ledger = self.ledger.current.without(reservation.id)
        steps = self.pipeline.planned(self.clock.now(), ledger, self._switches(), self._silenced)
        again = next((step for step in steps if step.action == reservation.kind), None)
        return "no alert asks for it any more, or it is silenced" if again is None else again.refused

    async def _evidence(self, incident: str, view: View) -> dict[str, Any]:
        folder = self.folder / "incidents" / incident
        detail = await gather_evidence(
            folder,
            view,
            self.clock.now(),
            recorder=self.recorder,
            pipeline=self.pipeline,
            runtime=self.watch.runtime,
            logs=self.config.logs,
            max_bytes=self.config.state.incident_max_bytes,
        )
        log.info("incident %s: evidence saved in %s", incident, folder, extra={"event.action": "evidence-saved"})
        return detail

    def _heart(self) -> str | None:
        """None while a heartbeat may go out: the loop turns and, where there is such a rule, Watchdog fires."""
        why = self.alive() or self.prepared()
        if why is not None or not self.evaluator.has_rule(telling.WATCHDOG):
            return why
        firing = any(a.name == telling.WATCHDOG and a.state is AlertState.FIRING for a in self.evaluator.alerts())
        return None if firing else f"the alert {telling.WATCHDOG} does not fire"

    # Reload.

    def _watched(self) -> list[Path]:
        own = [self._file] if self._file is not None else []
        return [*own, *self.config.rules.files, *self.config.inhibition.files]

    def request_reload(self) -> None:
        """Reads the settings again, soon; before the start is done they have just been read."""
        if self._running:
            task = asyncio.get_running_loop().create_task(self.reloader.attempt())
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def reload(self) -> dict[str, list[str]]:
        """Reads settings and rules again and uses them from now on, all or nothing; ReloadError says why not.

        Gives the dotted names of settings that `changed`, and of those that `need_restart`.
        """
        return await self.reloader.reload()

    async def _use(self, plan: Plan) -> None:
        async with self._turning:
            self._use_now(plan)

    def _use_now(self, plan: Plan) -> None:
        """Nothing here waits, and what can fail comes first: the next turn has all of it or nothing."""
        try:
            notifiers = configured(plan.config.notifiers, self._session)
            policy = Policy.of(plan.config, self.name, plan.inhibit)
        except (LookupError, ValueError) as error:
            raise ReloadError(str(error)) from error
        self.config = plan.config
        self.watch.configure(plan.config)
        self.pipeline.reconfigure(plan.config, plan.groups, _probes(plan.config))
        self.teller.policy = policy
        self._actor.configure(plan.config.remediation)
        self.scaling.configure(plan.config)
        self._own = Own(self.evaluator.metric_names)
        self.store.show(plan.config.queries.keep)
        self.receivers.use(plan.config, notifiers)
        self.shipping.use(plan.config)
        self.exporting.use(plan.config.otlp)
        self.log_tails.configure(plan.config.api.log_lines, plan.config.logs)
        logging.getLogger("dsobs").setLevel(plan.config.log.level.upper())

    # What the API asks for.

    def _silences_changed(self) -> None:
        self._tell_standing(self.clock.now())

    async def silence(self, matchers: list[str], seconds: float, created_by: str, comment: str) -> Silence:
        """A new silence, on disk; MatcherError for a bad one, StateError if it can't be kept."""
        return await self.control.silence(matchers, seconds, created_by, comment)

    async def expire_silence(self, id_: str) -> bool:
        """Ends a silence now; False if there is none of that id."""
        return await self.control.expire(id_)

    async def clear_gpu(self, card: str) -> int:
        """Somebody says that this card is well: how many faults of it stood. StateError if that can't be kept."""
        cleared = self.pipeline.cards.clear(card)
        if cleared:
            log.warning("GPU %s is said to be well: %d faults are cleared", card, cleared)
            memory = json.dumps(self.pipeline.memory().dump())
            try:
                await self.keeping.write(
                    lambda c: c.execute("INSERT OR REPLACE INTO facts VALUES ('memory', ?)", (memory,))
                )
            except StateError as error:
                raise StateError(f"it is cleared until dsobs ends, but that can't be kept: {error}") from error
        return cleared

    async def switch(self, *, killed: bool) -> None:
        """Sets or clears the API's kill switch; it outlives dsobs."""
        await self.control.switch(killed=killed)

    # What the API shows.

    def window(self) -> Window:
        """What can be asked for in PromQL."""
        queries = self.config.queries
        limits = Limits(
            samples=queries.max_samples,
            seconds=queries.timeout,
            points=queries.max_points,
            subquery_step=queries.subquery_step,
        )
        return Window(self.store, self.clock.now(), limits)

    def metric_samples(self) -> list[Sample]:
        """Canonical signals as they stand, and ALERTS."""
        return [*self.pipeline.samples(), *self.evaluator.alert_samples()]

    def native_page(self) -> Page | None:
        """The engine's own page where it is passed through."""
        return self.pipeline.page if self.config.api.native_metrics and self.pipeline.view.up else None

    def alive(self) -> str | None:
        """None if the loop turns, else what stands still. A turn that fails is none."""
        at = self._turned_at if self._turned_at is not None else self._began_at
        if at is not None and self.clock.now() - at > ALIVE_SECONDS:
            return f"the main loop stands still for {self.clock.now() - at:.0f} s"
        return None

    def prepared(self) -> str | None:
        """None once the first turn is done."""
        return None if self._turned_at is not None else "the first turn is not done"

    def current_alerts(self) -> list[Alert]:
        """Pending and firing."""
        return [alert for alert in self.evaluator.alerts() if alert.state is not AlertState.RESOLVED]

    def alert_views(self) -> list[dict[str, Any]]:
        """In the form of Prometheus' /api/v1/alerts."""
        alerts: list[dict[str, Any]] = self.evaluator.alerts_view()["alerts"]
        return alerts

    def rule_groups(self) -> list[dict[str, Any]]:
        """In the form of Prometheus' /api/v1/rules."""
        groups: list[dict[str, Any]] = self.evaluator.rules()["groups"]
        return groups

    def active_silences(self) -> list[Silence]:
        """Those that have not ended."""
        return self.control.active()

    async def incidents(self, incident: str | None) -> list[dict[str, Any]]:
        """Ledger lines by incident, newest first."""
        if self.keeping.db is None:
            entries: list[ledgers.Entry] = list(self.ledger.current.entries)
        else:
            entries = await self.keeping.write(lambda c: ledgers.of_incident(c, incident or ""))
        return ledgers.by_incident(entries)

    def status(self) -> Status:
        """What page, events and `dsobs status` show."""
        if self._settings_of is not self.config:
            self._settings_of, self._settings_shown = self.config, settings_shown(self.config)
        now, switches, pipeline = self.clock.now(), self._switches(), self.pipeline
        ledger = self.ledger.current
        seen = Seen(
            now=now,
            config=self.config,
            view=pipeline.view,
            engine=pipeline.adapter.name if pipeline.adapter is not None else None,
            scrape=pipeline.last_scrape,
            health=pipeline.last_health,
            gpus=pipeline.gpus,
            alerts=self.current_alerts(),
            has_rules=self.evaluator.has_alert_rules,
            failing_rules=self.evaluator.failures(),
            standing=self.prepared() or self.alive(),
        )
        held = Held(
            name=self.name,
            silenced=self._silenced,
            next_step=self.teller.policy.next_step,
            ledger=ledger,
            switches=switches,
            steps=pipeline.planned(now, ledger, switches, self._silenced) if seen.standing is None else [],
            store=self.store,
            recorded=self.evaluator.metric_names,
            tails=self.log_tails.read(),
            settings=self._settings_shown,
            reload_error=self.reloader.error,
            logs=self.shipping.status,
        )
        return snapshot(seen, held)

    def charts(self) -> Charts:
        """The last 30 minutes of the indicators."""
        return charts(self.store, self.clock.now())

    def stop(self) -> None:
        """Asks the loop to end; legal before the start and twice."""
        self._stopping.set()
        self._nudge.set()

    async def _close(self, following: asyncio.Task[None]) -> None:
        await self._actor.stop(5.0)
        await self.scaling.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(following, *self._background, return_exceptions=True)
        await self._commit([], self.clock.now())
        await self.receivers.stop(5.0)
        await self.exporting.stop(3.0)
        await self.shipping.stop()
        await self.log_tails.close()
        await self.watch.close()
        self.records.close()
        self.keeping.close()
        await asyncio.to_thread(self._journal.close)
        log.info("stopped")


def _boot_id() -> str:
    try:
        return boot_id()
    except OSError as error:
        log.info("the node's boot is not known, so a broken card is broken until it is cleared by hand: %s", error)
        return ""


def _probes(config: Config) -> str:
    return "on" if config.probes_enabled else "off"


def _tell_transition(transition: Transition) -> None:
    alert = transition.alert
    log.log(
        logging.WARNING if alert.state is AlertState.FIRING else logging.INFO,
        "alert %s %s: %s",
        alert.name,
        alert.state,
        alert.annotations.get("summary", ""),
        extra={"event.action": f"alert-{alert.state}"},
    )
