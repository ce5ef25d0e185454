"""A server and its runtime in virtual time, and a pipeline with its ledger beside them: one turn a second."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dsobs.config import Config
from dsobs.config.models import Mode, Remediation
from dsobs.model.alert import AlertState
from dsobs.model.observation import (
    Failure,
    Gpu,
    Health,
    Observation,
    Paused,
    Probe,
    ProbeOutcome,
    RuntimeView,
    Scrape,
    Unknown,
)
from dsobs.pipeline import Memory, Pipeline, Turn, rule_groups
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Entry, Ledger
from dsobs.rules.evaluator import Evaluator
from dsobs.series.exposition import Parser
from dsobs.series.store import Store

BEGUN = 1_000_000.0
ENFORCE = Config(remediation=Remediation(mode=Mode.ENFORCE))


@dataclass
class Server:
    """What the engine does at the moment."""

    outstanding: int = 4
    models: int = 1
    frozen: bool = False
    """Its core stands still: nothing moves, no probe is answered."""
    failure: Failure | None = None
    """Its page can't be read; refused: nobody listens."""
    answered: bool = False
    """A page that can't be read gave a first byte at least."""
    health: int | None = 200
    probe: ProbeOutcome | None = None
    """What a probe brings, whatever else; None: an answer, or a time-out where it is frozen."""
    busy: bool = False
    """One step that takes long: nothing moves and no probe is answered, and its CPU works."""
    paused: bool = False
    """By its scheduler's own word, where it can be asked."""
    says_paused: bool = False
    """It can be asked whether it is paused."""
    planned_stop: str | None = None
    """By the runtime's word."""
    stopping: str | None = None
    """Who has it paused, or asked it to end, by the runtime's word."""
    cores: float = 1.0
    """CPU that it uses while it is not frozen."""
    started_at: float = BEGUN - 100.0
    """As its runtime tells it, by the wall clock."""
    running: bool = True
    tokens: int = 0
    cpu_seconds: float = 10.0

    @property
    def stands_still(self) -> bool:
        """No request gets on."""
        return self.frozen or self.busy or self.paused


@dataclass
class World:
    """Turns, and what came of them."""

    config: Config = ENFORCE
    now: float = BEGUN
    wall: float = 0.0
    """What the wall clock was set by since."""
    server: Server = field(default_factory=Server)
    knows_runtime: bool = True
    memory: Memory | None = None
    ledger: Ledger = field(default_factory=Ledger)
    told: list[tuple[float, str, AlertState]] = field(default_factory=list)
    """(seconds from the start, alert, state)."""
    restarts: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    crashing: bool = False
    """Each instance from the next one on ends within 10 s, before it is up, and its runtime starts another."""
    gpus: tuple[Gpu, ...] | Unknown = field(default_factory=lambda: Unknown("not collected"))
    """The node's cards. XIDs are told in one turn only."""
    pids: tuple[int, ...] = ()
    """The engine's processes; empty: not known."""
    boot_id: str = ""
    scrape_seconds: float = 5.0
    """What a scrape takes that times out."""

    def __post_init__(self) -> None:
        self.store = Store()
        probes = "on" if self.config.probes_enabled else "off"
        self.evaluator = Evaluator(rule_groups(self.config), self.store)
        self.pipeline = Pipeline(
            self.config, self.store, self.evaluator, probes=probes, memory=self.memory, boot_id=self.boot_id
        )
        self.pipeline.can_restart = True
        self._parser = Parser()
        self._asked_at: float | None = None
        self._pause_asked = False
        self._scraping_until: float | None = None
        self._begun = self.now

    @property
    def at(self) -> float:
        """Seconds since the start."""
        return self.now - self._begun

    def run(self, seconds: float, until: Callable[[], object] = lambda: False, *, every: float = 1.0) -> float:
        """Turns of a second (or of `every`) for so long, or until something holds; seconds since the start."""
        end = self.now + seconds
        while self.now < end and not until():
            self.now += every
            self._turn()
        return self.at

    def again(self, memory: Memory | None = None) -> "World":
        """dsobs restarted now, beside the same server and on the same disk; `memory`: as it was saved."""
        made = replace(self, memory=memory or self.pipeline.memory(), told=[], restarts=[], refused=[], probes=[])
        saved = self.evaluator.snapshot(self.now)
        made.evaluator.restore(saved.alerts if saved is not None else (), self.now)
        return made

    def firing(self) -> set[str]:
        """Alerts of faults that fire; Watchdog is none."""
        alerts = self.evaluator.alerts()
        return {a.name for a in alerts if a.state is AlertState.FIRING and a.severity != "none"}

    def states(self, name: str) -> list[str]:
        """What became of an alert, in order."""
        return [str(state) for _, told, state in self.told if told == name]

    # The server.

    def _page(self) -> str:
        server = self.server
        if not server.stands_still and server.outstanding:
            server.tokens += 40
        lines = [f"process_start_time_seconds {server.started_at + 1}", ""]
        for model in range(server.models):
            names = f'engine="0",model_name="m{model or ""}"'
            lines[:0] = [
                f"vllm:num_requests_running{{{names}}} {server.outstanding}",
                f"vllm:num_requests_waiting{{{names}}} 0",
                f"vllm:generation_tokens_total{{{names}}} {server.tokens + 1}",
                f"vllm:iteration_tokens_total_count{{{names}}} {server.tokens + 1}",
            ]
        return "\n".join(lines)

    def _scrape(self) -> Scrape | None:
        failure = self.server.failure
        if failure is Failure.TIMEOUT:
            # In flight until its deadline, whatever the server does meanwhile.
            self._scraping_until = self._scraping_until or self.now + self.scrape_seconds
            if self.now < self._scraping_until:
                return None
            self._scraping_until = None
            took = self.scrape_seconds
            return Scrape(self.now, took, failure=failure, answered=self.server.answered)
        self._scraping_until = None
        if failure is not None:
            refused = failure is Failure.REFUSED
            return Scrape(self.now, 0.0, failure=failure, connected=not refused, answered=not failure.is_away)
        return Scrape(self.now, 0.01, page=self._parser.parse(self._page()))

    def _probe(self) -> tuple[Probe, ...]:
        asked, outcome = self._asked_at, self.server.probe
        if asked is None:
            return ()
        if outcome is None:
            outcome = ProbeOutcome.TIMEOUT if self.server.stands_still else ProbeOutcome.ANSWERED
        if outcome is ProbeOutcome.TIMEOUT and self.now < asked + self.config.hang.probe_timeout:
            return ()
        self._asked_at = None
        self.pipeline.probes_in_flight.pop(None, None)
        return (Probe(asked, self.now, outcome),)

    def _runtime(self) -> RuntimeView | Unknown:
        server = self.server
        if not self.knows_runtime:
            return Unknown("no runtime configured")
        server.cpu_seconds += 0.01 if server.frozen or server.paused else server.cores
        return RuntimeView(
            "process",
            "engine",
            server.running,
            started_at=server.started_at,
            planned_stop=server.planned_stop,
            stopping=server.stopping,
            cpu_seconds=server.cpu_seconds,
            pids=self.pids if server.running else (),
        )

    def _paused(self) -> Paused | None:
        asked, self._pause_asked = self._pause_asked, False
        if not asked:
            return None
        if not self.server.says_paused:
            return Paused.NOT_THERE
        if self.server.frozen or self.server.busy:
            return Paused.UNKNOWN
        return Paused.YES if self.server.paused else Paused.NO

    def restart_engine(self) -> None:
        """As its runtime does it: a new instance works at once."""
        self.server = Server(outstanding=self.server.outstanding, started_at=self.now + self.wall)
        if self.crashing:
            self.server.failure, self.server.running = Failure.REFUSED, True

    # One turn.

    def _turn(self) -> None:
        failure = self.server.failure
        away = failure is not None and failure.is_away
        health = Health(self.now, 0.01, status=None if away else self.server.health)
        if health.status is None:
            health = replace(health, failure=failure if away else Failure.TIMEOUT)
        if self.crashing and self.server.failure is Failure.REFUSED and int(self.at) % 10 == 0:
            self.server.running = not self.server.running
            if self.server.running:
                self.server.started_at = self.now + self.wall
        obs = Observation(
            self.now,
            self._scrape(),
            health=health,
            runtime=self._runtime(),
            probes=self._probe(),
            paused=self._paused(),
            gpus=self.gpus,
        )
        if not isinstance(self.gpus, Unknown):
            self.gpus = tuple(replace(gpu, xids=()) for gpu in self.gpus)
        turn = self.pipeline.turn(obs, self.ledger, Switches())
        # Watchdog always fires: it is no fault.
        self.told += [(self.at, t.alert.name, t.alert.state) for t in turn.transitions if t.alert.severity != "none"]
        if turn.probes_wanted and self._asked_at is None:
            self._asked_at = self.now
            self.probes.append(self.at)
            self.pipeline.probes_in_flight[None] = 1
            self.pipeline.probe_sent(self.now, None)
        self._pause_asked = turn.pause_wanted
        self._carry_out(turn)

    def _carry_out(self, turn: Turn) -> None:
        for step in turn.steps:
            if step.action == "open":
                self._write("incident", "opened", alerts=list(step.alerts))
            elif step.action == "restart" and step.refused is not None:
                self.refused.append(step.refused)
            elif step.action == "restart":
                self.restarts.append(self.at)
                started = turn.view.instance_started_at
                self._write("restart", "reserved", instance_started_at=started)
                reserved = self.ledger.entries[-1]
                self.pipeline.restarts.expect_own(self.now + 60)
                self.pipeline.lifecycle.expect_own_stop("dsobs", self.now + 60)
                self.restart_engine()
                self._write("restart", "done", attempt=reserved.id, reserved_at=self.now, instance_started_at=started)
            elif step.action in ("verified", "failed"):
                self._write("verify", "done" if step.action == "verified" else "failed")
            elif step.action == "close":
                self._write("incident", "closed")
            else:
                self._write(step.action, "done")

    def _write(self, kind: str, state: str, **detail: object) -> None:
        number = len(self.ledger.entries) + 1
        incident = f"i{sum(e.kind == 'incident' and e.state == 'opened' for e in self.ledger.entries) or 1}"
        if (kind, state) == ("incident", "opened"):
            incident = f"i{sum(e.state == 'opened' for e in self.ledger.entries) + 1}"
        self.ledger = self.ledger.with_entry(Entry(self.now, incident, kind, state, detail, number))
