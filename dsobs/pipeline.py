"""One turn of dsobs: an observation in; alert transitions, steps and wanted probes out.

The live loop and `dsobs replay` run this same code; they differ only in the clock and the source. Nothing here does
input
or output or waits.
"""

import hashlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dsobs.collectors.detect import detect, named
from dsobs.collectors.host import host_samples
from dsobs.collectors.nvml import GpuSignals, engine_pids
from dsobs.collectors.probe_offset import ProbeOffset
from dsobs.config import Config
from dsobs.model.alert import Alert, Transition
from dsobs.model.engine import EngineAdapter, EngineFacts, EngineKey
from dsobs.model.observation import (
    Failure,
    Health,
    HostView,
    Observation,
    Probe,
    ProbeOutcome,
    RuntimeView,
    Scrape,
    Unknown,
)
from dsobs.model.samples import Labels, Page, Sample, labels, metric_name
from dsobs.model.signals import is_passed
from dsobs.model.view import CANNOT_REPLACE, View, Witness
from dsobs.notifiers.inhibition import SHIPPED_FILE, InhibitRule, load_inhibition
from dsobs.promql import Limits, Sliced, finish
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import Ledger
from dsobs.remediation.plan import Step, asks_for_restart, awaits_verification, plan, under_repair
from dsobs.rules import Evaluator, Group, RuleFileError, load
from dsobs.rules.files import out_of_reach
from dsobs.rules.shipped import source, sources
from dsobs.series.store import Store
from dsobs.signals.demand import DemandMeter, demand_samples
from dsobs.signals.gaps import HealthyGaps
from dsobs.signals.gpu_cards import GpuCards
from dsobs.signals.lifecycle import Lifecycle
from dsobs.signals.memory import effective_memory
from dsobs.signals.progress import ProgressTracker, is_stalled
from dsobs.signals.restarts import Known, Restart, RestartWindow
from dsobs.signals.witness import StandstillWitness

log = logging.getLogger(__name__)

MAX_ENGINES = 256
"""Of one server: models × ranks. A page with more is not taken in."""
VERDICT_SECONDS = 5.0
"""Between two synthetic requests to an instance whose restart is to be verified."""


def rule_groups(config: Config) -> list[Group]:
    """The rules that the settings ask for; RuleFileError names everything that is wrong with the files."""
    groups = load(config.rules.files, sources(config))
    if problems := out_of_reach(groups):
        raise RuleFileError(problems)
    return groups


def inhibit_rules(config: Config) -> list[InhibitRule]:
    """Which alerts hold others back; ConfigError names everything that is wrong with the files."""
    shipped = [(SHIPPED_FILE, source(SHIPPED_FILE))] if config.inhibition.shipped else []
    return load_inhibition(config.inhibition.files, shipped)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one observation led to."""

    view: View
    transitions: list[Transition]
    steps: list[Step]
    probes_wanted: list[EngineKey]
    pause_wanted: bool = False
    """The engine is to be asked whether somebody paused it."""


@dataclass(slots=True)
class Memory:
    """What is kept over restarts of dsobs, beside alerts and ledger. A JSON object of its own, see `dump` and
    `load`."""

    seen: bool = False
    was_up: bool = False
    """The last instance answered."""
    was_ready: bool = False
    """It was ready."""
    known: Known = field(default_factory=Known)
    restarts: tuple[Restart, ...] = ()
    gaps: dict[str, tuple[dict[int, int], float]] = field(default_factory=dict)
    """Fingerprint of model and flags → (bin → count, seconds of work seen)."""
    kv_pool_bytes: int | None = None
    cards: dict[str, Any] = field(default_factory=dict)
    """As `GpuCards.dump` gives it."""
    capacity: tuple[str, float] | None = None
    """(fingerprint of models and flags, tokens per second at its limit)."""
    start_seconds: float | None = None
    """What the engine's last start took that was seen from its beginning."""

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "seen": self.seen,
            "was_up": self.was_up,
            "was_ready": self.was_ready,
            "known": [self.known.runtime_start, self.known.page_start, self.known.count],
            "restarts": [[restart.at, restart.by_dsobs] for restart in self.restarts],
            "gaps": {
                key: [{str(bin_): n for bin_, n in counts.items()}, worked]
                for key, (counts, worked) in self.gaps.items()
            },
            "kv_pool_bytes": self.kv_pool_bytes,
            "cards": self.cards,
            "capacity": list(self.capacity) if self.capacity is not None else None,
            "start_seconds": self.start_seconds,
        }

    @classmethod
    def load(cls, value: dict[str, Any]) -> "Memory":
        """From what `dump` gave."""
        return cls(
            seen=bool(value["seen"]),
            # Written by an older dsobs, it is not known: an engine that may be starting is left alone.
            was_up=bool(value.get("was_up", False)),
            was_ready=bool(value.get("was_ready", value.get("was_up", False))),
            known=Known(*value["known"]),
            restarts=tuple(Restart(at, own) for at, own in value["restarts"]),
            gaps={k: ({int(b): n for b, n in counts.items()}, worked) for k, (counts, worked) in value["gaps"].items()},
            kv_pool_bytes=value["kv_pool_bytes"],
            cards=value.get("cards", {}),
            capacity=(str(value["capacity"][0]), float(value["capacity"][1])) if value.get("capacity") else None,
            start_seconds=value.get("start_seconds"),
        )


class Pipeline:
    """All state between observations of one server."""

    def __init__(
        self,
        config: Config,
        store: Store,
        evaluator: Evaluator,
        *,
        probes: str = "off",
        memory: Memory | None = None,
        assume_restart: bool = False,
        boot_id: str = "",
    ) -> None:
        """`probes`: `on`, `off`, or `assumed` in a replay; `assume_restart`: a replay's runtime can restart; `boot_id`:
        of the node's present boot, empty if unknown."""
        memory = memory or Memory()
        self.config = config
        self.store = store
        self.evaluator = evaluator
        self.tracker = ProgressTracker(config.hang, probes)
        self.lifecycle = Lifecycle(seen=memory.seen, was_up=memory.was_up, was_ready=memory.was_ready)
        self.restarts = RestartWindow(memory.restarts, memory.known)
        self.start_seconds = memory.start_seconds
        """What the engine's last start took that was seen from its beginning."""
        self.demand: float | None = None
        """See `dsobs.signals.demand`."""
        self._meter = DemandMeter()
        self._capacity = memory.capacity
        self.kv_pool_bytes = memory.kv_pool_bytes
        """Of one card, where the engine's log told it."""
        self.adapter: EngineAdapter | None = None
        self._adapter_error = ""
        self.view = View(at=0.0)
        self.gpus: Unknown | tuple[Any, ...] = Unknown("not read yet")
        self.probe_counts = dict.fromkeys(ProbeOutcome, 0)
        self.probes_in_flight: dict[str | None, int] = {}
        self._probes = probes
        self._assume_restart = assume_restart
        self._witness = StandstillWitness()
        self._repairing = False
        """A restart is under way or not verified yet."""
        self.cards = GpuCards(boot_id)
        self.cards.load(memory.cards)
        self._fault = False
        """The engine has an alert of its own, or had one and has not been ready since."""
        self._gpu_signals = GpuSignals()
        self._offset = ProbeOffset()
        self._probes_ended: list[Probe] = []
        self._raw: Sequence[Sample] = ()
        self._learned = dict(memory.gaps)
        self._fingerprints: dict[EngineKey, str] = {}
        self._facts = EngineFacts()
        self._scrape_failures = dict.fromkeys(Failure, 0)
        self._scrape_duration: float | None = None
        self._last_failure: Failure | None = None
        """Of the scrape that ended last; None: it succeeded."""
        self.last_scrape: Scrape | None = None
        """The one that ended last, without its page; None: none has."""
        self.last_health: Health | None = None
        self._was_away = False
        """Nobody took a scrape at some time since its page was read last."""
        self._canonical: list[Sample] = []
        self._told: dict[str, list[Sample]] = {}
        """Every signal as it stands, by source."""
        self._native_names: frozenset[str] = frozenset()
        """What rules name that may be the engine's own."""
        self._kv_usage: dict[EngineKey, float] = {}
        self._answered_at: float | None = None
        self._error_at: float | None = None
        self._last_probe: Probe | None = None
        self._unrecognized = False
        self._told_too_many = False
        self._data_since: float | None = None
        self._prepare_rules()
        self.can_restart = False
        """The runtime that the sidecar found can restart the engine."""
        self.cannot_replace = CANNOT_REPLACE
        """Why it can't replace it as a whole; empty: it can."""
        self.page: Page | None = None
        """The engine's last page, for passing native metrics through."""

    # What others read.

    def samples(self) -> list[Sample]:
        """Every signal as it stands now; what is unknown is not among them."""
        return [sample for samples in self._told.values() for sample in samples]

    def _tell(self, source: str, samples: list[Sample], at: float) -> None:
        """What `source` has now, for the page and for the store alike: what is exported a rule can name.

        But for cards of others, of which no rule of this engine says anything.
        """
        self._told[source] = samples
        self.store.append_samples(self.cards.judged(samples) if source == "gpu" else samples, at, source)

    @property
    def facts(self) -> EngineFacts:
        """What the page says about the server."""
        return self._facts

    def memory(self) -> Memory:
        """What must outlive dsobs."""
        gaps = dict(self._learned)
        for key, learned in self.tracker.gaps.items():
            gaps[self._fingerprints.get(key, "/".join(key))] = (learned.counts(), learned.worked_seconds)
        return Memory(
            seen=self.lifecycle.seen,
            was_up=self.lifecycle.was_up,
            was_ready=self.lifecycle.was_ready,
            known=self.restarts.known,
            restarts=self.restarts.restarts,
            gaps=gaps,
            kv_pool_bytes=self.kv_pool_bytes,
            cards=self.cards.dump(),
            capacity=self._learned_capacity(),
            start_seconds=self.start_seconds,
        )

    def _learned_capacity(self) -> tuple[str, float] | None:
        mark = self._served()
        return (mark, self._meter.capacity) if mark and self._meter.capacity is not None else self._capacity

    def _served(self) -> str:
        """Fingerprint of what is served, whose capacity is learned; empty while it is not known."""
        return "".join(sorted(self._fingerprints.values()))

    def reconfigure(self, config: Config, groups: Sequence[Group], probes: str) -> None:
        """Other settings and rules from now on; windows, alerts and all that was learned stay."""
        self.config = config
        self._probes = probes
        self.tracker.configure(config.hang, probes)
        self.evaluator.replace_groups(groups)
        self._prepare_rules()

    def _prepare_rules(self) -> None:
        queries = self.config.queries
        self.evaluator.limits = Limits(
            samples=queries.max_samples, seconds=queries.timeout, subquery_step=queries.subquery_step
        )
        for name, seconds in self.evaluator.lookbacks.items():
            self.store.want(name, seconds)
        self._native_names = frozenset(filter(is_passed, self.evaluator.metric_names))

    # One turn.

    def turn(self, obs: Observation, ledger: Ledger, switches: Switches, silenced: Sequence[str] = ()) -> Turn:
        """`turning` in one go."""
        return finish(self.turning(obs, ledger, switches, silenced))

    def turning(
        self, obs: Observation, ledger: Ledger, switches: Switches, silenced: Sequence[str] = ()
    ) -> Sliced[Turn]:
        """Takes one observation. `silenced`: fingerprints of alerts that repair nothing now.

        Yields where rules take long, so that the caller can let others work: as `Evaluator.evaluation`.
        """
        now = obs.at
        # Nobody repairs the engine of a recording.
        self._repairing = not self._assume_restart and under_repair(ledger)
        obs = self._see(obs)
        # A page that can't be read tells nothing, so what was firing before a restart of dsobs is not over by it.
        if obs.scrape is not None and (obs.scrape.failure is None or obs.scrape.failure.is_away):
            self.evaluator.inputs_ready(now, self._data_since)
        transitions = yield from self.evaluator.evaluation(now, news=bool(obs.probes))
        self._tell_changes(self.view, self._view(obs))
        steps = self.planned(now, ledger, switches, silenced)
        probes, pause = self._probes_wanted(now, ledger), self.view.up and self.tracker.pause_wanted(now)
        return Turn(self.view, transitions, steps, probes, pause)

    def planned(self, now: float, ledger: Ledger, switches: Switches, silenced: Collection[str]) -> list[Step]:
        """The steps that are due by the last observation; changes nothing."""
        alerts = self.evaluator.alerts()
        heard = [alert for alert in alerts if alert.fingerprint not in silenced]
        going_on = ledger.open_incident() is not None and any(map(asks_for_restart, alerts))
        if going_on and not any(map(asks_for_restart, heard)):
            # Silenced in the middle of its incident, which is not over by that.
            heard, switches = alerts, replace(switches, silenced="all alerts that ask for it are silenced")
        return plan(heard, self.view, ledger, now, self.config.remediation, switches)

    def _tell_changes(self, before: View, view: View) -> None:
        """What a person following the log wants to know at once."""
        self.view = view
        if view.ready and not before.ready:
            log.info("the engine is ready", extra={"event.action": "engine-ready"})
            if before.starting_since is not None:
                self.start_seconds = view.at - before.starting_since
        elif before.up and not view.up:
            log.info("the engine does not answer its scrape", extra={"event.action": "engine-away"})
        if view.paused != before.paused:
            word = "is paused: no hang is looked for" if view.paused else "is not paused any more"
            log.info("the engine %s", word, extra={"event.action": "paused" if view.paused else "resumed"})
        stalled = {e.key for e in before.engines if is_stalled(e)}
        for engine in view.engines:
            if is_stalled(engine) and engine.key not in stalled:
                log.warning(
                    "no progress for %.0f s with %.0f requests outstanding",
                    engine.stall_seconds,
                    engine.outstanding,
                    extra={"event.action": "stall-seen", "dsobs.last_progress": engine.last_moved_at},
                )

    def restore(self, obs: Observation) -> None:
        """Takes an observation from before a restart of dsobs: it fills windows, and what moved last is known."""
        if obs.scrape is not None and obs.scrape.page is not None:
            before = self._facts.process_start_time
            if self._read_page(obs.scrape.page, obs.at) > MAX_ENGINES:
                return
            if before is not None and self._facts.process_start_time != before:
                self.tracker.forget()
            # A hang that began before dsobs was restarted must not look like a prefill that has just begun.
            self.tracker.observe(obs.at, self._raw, there=self._facts.engine_keys)
            self._tell("engine", self._canonical, obs.at)
            self._keep_native(obs.scrape.page, obs.at)
            self._data_since = obs.at if self._data_since is None else self._data_since

    def alerts(self) -> list[Alert]:
        """Pending, firing and lately resolved."""
        return self.evaluator.alerts()

    def _see(self, obs: Observation) -> Observation:
        """The observation as it is taken."""
        now, scrape = obs.at, obs.scrape
        self.gpus = obs.gpus
        self.tracker.witness = self._witness.observe(now, obs.runtime, obs.gpus, self.cards.others)
        if obs.paused is not None:
            self.tracker.pause_told(obs.paused)
        for probe in obs.probes:
            self._probe_ended(probe)
        page = scrape.page if scrape is not None and scrape.ok else None
        if scrape is not None and page is not None and (engines := self._read_page(page, now)) > MAX_ENGINES:
            detail = f"{engines} engines (models and ranks), the limit is {MAX_ENGINES}"
            scrape = replace(scrape, page=None, text=None, failure=Failure.TOO_MANY_SERIES, detail=detail)
            obs, page = replace(obs, scrape=scrape), None
        page_start = self._facts.process_start_time if page is not None else None
        fresh = self.restarts.observe(now, obs.runtime, page_start, was_away=self._was_away)
        if scrape is not None:
            away = scrape.failure is not None and scrape.failure.is_away
            self._was_away = page is None and (self._was_away or away)
        self.lifecycle.observe(obs, new_instance=bool(fresh))
        if fresh:
            self._new_instance()
        if page is not None:
            self.tracker.observe(now, self._raw, probing=self.probes_in_flight, there=self._facts.engine_keys)
            self._tell("engine", self._canonical, now)
            self._keep_native(page, now)
        elif scrape is not None:
            assert scrape.failure is not None
            if scrape.failure is Failure.TOO_MANY_SERIES and not self._told_too_many:
                self._told_too_many = True
                log.warning("the engine's metrics page is not read: %s", scrape.detail)
            self._scrape_failures[scrape.failure] += 1
            self._kv_usage = {}
            self._tell("engine", [], now)
            self._keep_native(None, now)
        if scrape is not None:
            self._scrape_duration = scrape.duration_seconds
            self._last_failure = scrape.failure
            self.last_scrape = replace(scrape, page=None, text=None)
        self.last_health = obs.health or self.last_health
        self._derive(obs)
        return obs

    def _keep_native(self, page: Page | None, at: float) -> None:
        """The engine's own metrics, of which only those are kept that a rule names."""
        if self._native_names:
            samples = [] if page is None else page.samples
            named = [sample for sample in samples if metric_name(sample.labels) in self._native_names]
            self.store.append_samples(named, at, "native")

    def _read_page(self, page: Page, now: float) -> int:
        """How many engines the page has. One with more than are followed is not taken in: what is kept of each would
        add up."""
        if self.adapter is None or not self.adapter.recognizes(page):
            name = self.config.target.engine
            self.adapter = detect(page) if name == "auto" else named(name)
            if self.adapter is None:
                if not self._unrecognized:
                    log.warning("the metrics page is of no engine that dsobs knows; set target.engine if it should be")
                self._unrecognized = True
                self.page = page
                self._raw = self._canonical = []
                self._facts = EngineFacts()
                return 0
            log.info("engine recognized: %s", self.adapter.name)
        try:
            facts = self.adapter.facts(page)
            raw = self.adapter.canonical(page) if len(facts.engine_keys) <= MAX_ENGINES else []
            self._adapter_error = ""
        except Exception as error:  # A plugin's mistake: the page tells nothing, and the rest goes on.
            reason = f"{type(error).__name__}: {error}"
            if reason != self._adapter_error:
                log.exception("the metrics page can't be read as one of %s: %s", self.adapter.name, reason)
            self._adapter_error = reason
            facts, raw = EngineFacts(), []
        engines = len(facts.engine_keys)
        if engines > MAX_ENGINES:
            return engines
        self.page = page
        self._facts, self._raw = facts, raw
        self._recall_gaps()
        self._canonical = self._offset.corrected(
            self._raw,
            now,
            ended=self._probes_ended,
            in_flight=bool(self.probes_in_flight),
            engine=next(iter(self.probes_in_flight), None),
        )
        self._probes_ended = []
        usage: dict[EngineKey, float] = {}
        for series, value, _ in self._raw:
            if ("__name__", "dsobs_engine_kv_cache_usage_ratio") in series:
                names = dict(series)
                usage[names.get("model_name", ""), names.get("engine", "")] = value
        self._kv_usage = usage
        return len(facts.engine_keys)

    def _recall_gaps(self) -> None:
        """What was learned is kept by model and flags: another model on the same port begins anew."""
        for key in self._facts.engine_keys:
            if key in self._fingerprints:
                continue
            text = "\x00".join((*key, self._facts.flags))
            mark = self._fingerprints[key] = hashlib.sha256(text.encode()).hexdigest()[:16]
            learned = self._learned.get(mark)
            if learned is not None:
                self.tracker.gaps[key] = HealthyGaps(*learned)

    def _new_instance(self) -> None:
        self._learned = self.memory().gaps
        self.tracker.forget()
        self.tracker.gaps.clear()
        self._capacity = self._learned_capacity()
        self._meter.forget(model=True)
        self._fingerprints.clear()
        self._offset = ProbeOffset()
        self.cards.new_instance()
        self.kv_pool_bytes = None
        # What the old one answered is no proof of this one.
        self._answered_at = self._error_at = self._last_probe = None
        log.info("a new instance of the engine")

    def _probe_ended(self, probe: Probe) -> None:
        self.probe_counts[probe.outcome] += 1
        self._last_probe = probe
        if probe.outcome is ProbeOutcome.ANSWERED:
            self._answered_at = probe.ended_at
        elif probe.outcome is ProbeOutcome.ERROR:
            self._error_at = probe.ended_at
        self._probes_ended.append(probe)
        self.tracker.probe_ended(probe)

    def probe_sent(self, now: float, rank: str | None) -> None:
        """The caller has just sent a synthetic request to engine `rank` (None: not addressed)."""
        self.tracker.probe_sent(now, rank)

    def _probes_wanted(self, now: float, ledger: Ledger) -> list[EngineKey]:
        # One whose hang is held is asked on, since its answer would end that.
        held = self._last_failure is not None and self._holds_hang(self.view.runtime)
        if self._probes != "on" or not (self.view.up or held):
            return []
        wanted = self.tracker.probe_wanted(now)
        if not wanted and self._verdict_wanted(now, ledger):
            wanted = [engine.key for engine in self.view.engines][:1]
        return wanted

    def _verdict_wanted(self, now: float, ledger: Ledger) -> bool:
        """A restarted or a sick instance is asked once in a while whether it answers."""
        if self.tracker.paused or now - (self.tracker.last_probe_at or 0.0) < VERDICT_SECONDS:
            return False
        return self.lifecycle.sick_since is not None or (self.view.ready and awaits_verification(ledger))

    def _derive(self, obs: Observation) -> None:
        now = obs.at
        derived = self.lifecycle.samples(now, self.config.startup.budget)
        if self._last_failure is None or self._holds_hang(obs.runtime):
            derived += self.tracker.samples()
        derived += self._unverified()
        derived.append(Sample(labels("dsobs_engine_fault"), float(self._in_fault(now))))
        derived.append(Sample(labels("dsobs_engine_paused"), float(self.tracker.paused)))
        derived += [Sample(_WITNESS[verdict], float(verdict is self.tracker.witness)) for verdict in Witness]
        derived += self._demand_samples(now)
        if self._scrape_duration is not None:
            derived.append(Sample(labels("dsobs_engine_scrape_duration_seconds"), self._scrape_duration))
        derived += [Sample(_FAILURES[reason], count) for reason, count in self._scrape_failures.items()]
        derived += [Sample(_PROBES[outcome], count) for outcome, count in self.probe_counts.items()]
        self._tell("derived", derived, now)
        pids = engine_pids(obs.runtime)
        for fault in self.cards.observe(obs.gpus, now, pids, ready=self.lifecycle.ready):
            log.warning("%s: that is over, the card was initialised anew since and is well", fault)
        gpu = self._gpu_signals.samples(obs.gpus, now) + self.cards.foreign_memory(obs.gpus, pids)
        reserves = self.adapter.reserves_memory if self.adapter is not None else None
        pool = max(self._facts.kv_cache_bytes.values(), default=None) or self.kv_pool_bytes
        gpu += self.cards.signals_up(obs.gpus) if self.config.gpu.enabled else []
        gpu += effective_memory(obs.gpus, self._kv_usage, pool, reserves, self.cards.others)
        self._tell("gpu", gpu, now)
        self._tell("container", self._container_samples(obs), now)

    def _demand_samples(self, now: float) -> list[Sample]:
        """Of a server that takes requests; one that starts, sleeps or stands still says nothing of demand."""
        self.demand = None
        if self._canonical and self.lifecycle.ready and not (self.tracker.paused or self.tracker.asleep):
            mark = self._served()
            if self._meter.capacity is None and self._capacity is not None and self._capacity[0] == mark:
                self._meter.capacity = self._capacity[1]
            late = self.config.rules.objectives.ttft_threshold
            self.demand = self._meter.observe(now, self._canonical, self.config.scaling, late)
        else:
            self._meter.forget()
        return demand_samples(self.demand, self._meter)

    def _unverified(self) -> list[Sample]:
        """What was firing when the engine was restarted is not over by that: not before the repair is verified."""
        if not self._repairing:
            return []
        return [
            Sample(
                labels(
                    "dsobs_engine_repair_unverified",
                    alert=alert.name,
                    **{name: alert.labels[name] for name in ("model_name", "engine") if name in alert.labels},
                ),
                1.0,
            )
            for alert in self._asking()
        ]

    def _asking(self) -> list[Alert]:
        """Firing alerts that ask for a restart."""
        return list(filter(asks_for_restart, self.evaluator.alerts()))

    def _in_fault(self, now: float) -> bool:
        """What the server's users feel meanwhile, and what windows show of it afterwards, is told by that alert."""
        life = self.lifecycle
        slow = life.starting_since is not None and now - life.starting_since > self.config.startup.budget
        self._fault = slow or bool(self._asking()) or (self._fault and not life.ready)
        return self._fault

    def _holds_hang(self, runtime: RuntimeView | Unknown) -> bool:
        """A hang stays as it was last seen until something disproves it: progress, an answered probe, another instance,
        or nobody there that could hang. A page that can't be read proves nothing."""
        ended = isinstance(runtime, RuntimeView) and runtime.running is False
        return self.tracker.hung and not ended and self._last_failure is not Failure.REFUSED

    def _container_samples(self, obs: Observation) -> list[Sample]:
        now, runtime = obs.at, obs.runtime
        name, kind = "", ""
        out: list[Sample] = []
        if isinstance(runtime, RuntimeView):
            name, kind = runtime.name, runtime.runtime
            # It is the engine's if dsobs, too, has seen one here.
            told = runtime.running is not None and (self.lifecycle.seen or not runtime.last_word)
            readings: dict[str, float | None] = {
                "dsobs_container_running": float(bool(runtime.running)) if told else None,
                "dsobs_container_start_time_seconds": runtime.started_at,
                "dsobs_container_last_exit_code": runtime.exit_code,
                "dsobs_container_oom_killed": None if runtime.oom_killed is None else float(runtime.oom_killed),
                "dsobs_container_cpu_seconds_total": runtime.cpu_seconds,
            }
            out += [Sample(labels(n, runtime=kind, name=name), v) for n, v in readings.items() if v is not None]
        known = self.restarts.known
        if known.runtime_start is not None or known.page_start is not None:
            count = float(self.restarts.in_24h(now))
            out.append(Sample(labels("dsobs_container_restarts_24h", runtime=kind, name=name), count))
        return out + host_samples(obs.host, now, self.config.host.interval, kind, name)

    def _view(self, obs: Observation) -> View:
        life, now = self.lifecycle, obs.at
        runtime = obs.runtime
        known = self.restarts.known
        has_page = life.up and known.page_start is not None
        if isinstance(runtime, RuntimeView) and runtime.started_at is not None:
            started: float | None = runtime.started_at
        else:
            started = known.page_start if has_page else None
        counted = known.runtime_start is not None or known.page_start is not None
        return View(
            at=now,
            seen=life.seen,
            up=life.up,
            ready=life.ready,
            was_ready=life.was_ready,
            asleep=self.tracker.asleep,
            paused=self.tracker.paused,
            starting_since=life.starting_since,
            down_since=life.down_since,
            down_reason=life.down_reason,
            planned_stop=life.planned_stop,
            unresponsive_since=life.unresponsive_since,
            runtime=runtime,
            # What can restart it must be there to be asked now.
            can_restart=self._assume_restart or (self.can_restart and isinstance(runtime, RuntimeView)),
            cannot_replace=self.cannot_replace,
            shm_left_over=_left_over(obs.host)
            if isinstance(runtime, RuntimeView) and runtime.running is False
            else None,
            witness=self.tracker.witness,
            still_since=self._witness.still_since,
            worked_at=self._witness.worked_at,
            engines=self.tracker.progress(),
            restarts_24h=self.restarts.in_24h(now) if counted else None,
            own_restarts_24h=self.restarts.own_in_24h(now),
            instance_started_at=started,
            probe_answered_at=self._answered_at,
            probe_error_at=self._error_at,
            probe_ended_at=self._last_probe.ended_at if self._last_probe is not None else None,
            probe_outcome=str(self._last_probe.outcome) if self._last_probe is not None else "",
            probes_enabled=self._probes == "on",
            gpu_faults=self.cards.faults(),
            others_gpus=tuple(sorted(self.cards.others)),
        )


def _left_over(host: HostView | Unknown) -> float | None:
    if isinstance(host, Unknown) or not host.shm_size_bytes or host.shm_used_bytes is None:
        return None
    return host.shm_used_bytes / host.shm_size_bytes


_FAILURES: dict[Failure, Labels] = {f: labels("dsobs_engine_scrape_failures_total", reason=f.value) for f in Failure}
_WITNESS: dict[Witness, Labels] = {w: labels("dsobs_engine_standstill_witness", verdict=w.value) for w in Witness}
_PROBES: dict[ProbeOutcome, Labels] = {o: labels("dsobs_engine_probes_total", outcome=o.value) for o in ProbeOutcome}
