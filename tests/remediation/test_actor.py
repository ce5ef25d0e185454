"""The one place that acts."""

import asyncio
import dataclasses
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dsobs.config.models import Coordination, Mode
from dsobs.config.models import Remediation as Settings
from dsobs.model.clock import ManualClock
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RestartResult, RestartWithoutEffect, RuntimeHeld, RuntimeRefused
from dsobs.model.view import EngineProgress, View
from dsobs.remediation import ledger as ledgers
from dsobs.remediation.actor import Actor, Hands, LedgerStore
from dsobs.remediation.plan import Step
from dsobs.remediation.turn import Alone
from dsobs.state import StateDb, StateError

RUNNING = RuntimeView("docker", "c", running=True, started_at=1000.0)
HUNG = EngineProgress(("m", "0"), 8.0, 100.0, 140.0, 40.0, 5.0, in_prefill=False, failed_at=110.0)
VIEW = View(
    at=140.0, seen=True, up=True, runtime=RUNNING, can_restart=True, engines=(HUNG,), instance_started_at=1000.0
)
RESTART = Step("restart", "i1", "no progress")
ENFORCE = Settings(mode=Mode.ENFORCE)


class Engine:
    """A runtime whose restart does what the test says."""

    name = "docker"
    can_restart = True

    def __init__(self, act: Callable[[], RestartResult]) -> None:
        self.act = act
        self.restarts: list[float | None] = []

    async def view(self) -> RuntimeView:
        return RUNNING

    async def restart(
        self, *, grace_seconds: float, expect_started_at: float | None, incident: str = ""
    ) -> RestartResult:
        self.restarts.append(expect_started_at)
        return self.act()

    async def log_tail(self, lines: int) -> list[str]:
        return []

    async def close(self) -> None:
        pass


class Scene:
    """An actor with everything about it."""

    def __init__(self, db: StateDb, settings: Settings, act: Callable[[], RestartResult]) -> None:
        self.clock = ManualClock(140.0)
        self.store = LedgerStore(db, 140.0)
        self.engine = Engine(act)
        self.pages: list[str] = []
        """What was queued; `from memory: ` where outside a transaction."""
        self.own: list[str] = []
        self.own_longer: list[float] = []
        self.dice = random.Random(0)
        self.latest = VIEW
        self.vetoes: list[int] = []
        """Reservations about which the guards were asked again."""
        self.vetoed: str | None = None

        def page(connection: sqlite3.Connection | None, incident: str, text: str | None) -> None:
            self.pages.append(("" if connection else "from memory: ") + (text or "resolved"))

        async def evidence(incident: str, view: View) -> dict[str, Any]:
            return {"folder": "x"}

        hands = Hands(
            evidence=evidence,
            page=page,
            restarting=lambda incident, until: self.own.append(incident),
            restarting_longer=self.own_longer.append,
            latest=lambda: self.latest,
            veto=self._veto,
            turn=lambda: Alone(self.actor._settings, randomness=self.dice),
        )
        self.actor = Actor(self.store, lambda: self.engine, settings, 5.0, 3600.0, hands, self.clock)

    def _veto(self, reservation: ledgers.Entry) -> str | None:
        self.vetoes.append(reservation.id)
        return self.vetoed

    async def do(self, *steps: Step) -> list[str]:
        await self.actor.carry_out(list(steps), VIEW)
        await self.actor.stop(5.0)
        return [f"{e.kind} {e.state}" for e in self.store.current.entries]


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[StateDb]:
    state = StateDb(tmp_path / "state.db", ledgers.SCHEMA)
    yield state
    state.close()


def ok() -> RestartResult:
    return RestartResult(started_at=141.0)


async def test_an_attempt_is_on_disk_before_anything_is_done(db: StateDb) -> None:
    found: list[str] = []

    def act() -> RestartResult:
        rows = db.transact(lambda c: c.execute("SELECT kind, state FROM ledger").fetchall())
        found.extend(f"{kind} {state}" for kind, state in rows)
        return ok()

    scene = Scene(db, ENFORCE, act)
    assert await scene.do(RESTART) == ["restart reserved", "restart done"]
    assert found == ["restart reserved"]
    assert scene.engine.restarts == [1000.0]
    assert scene.own == ["i1"]


async def test_observe_writes_what_enforce_would_do_and_does_nothing(db: StateDb) -> None:
    scene = Scene(db, Settings(), ok)
    assert await scene.do(RESTART) == ["restart observed"]
    assert scene.engine.restarts == []


async def test_a_runtime_that_refuses_fails_the_step_with_its_reason(db: StateDb) -> None:
    def act() -> RestartResult:
        raise RuntimeRefused("no such container")

    scene = Scene(db, ENFORCE, act)
    assert await scene.do(RESTART) == ["restart reserved", "restart failed"]
    assert scene.store.current.entries[-1].detail["why"] == "no such container"


async def test_an_escalation_and_its_line_are_committed_together_or_not_at_all(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)

    def broken(connection: sqlite3.Connection | None, incident: str, text: str | None) -> None:
        if connection is not None:
            raise sqlite3.OperationalError("disk I/O error")
        scene.pages.append(f"from memory: {text}")

    hands = scene.actor._hands
    scene.actor._hands = replace(hands, page=broken)
    step = Step("page", "i1", "restart did not help")
    assert await scene.do(step, step) == []
    assert scene.pages == ["from memory: restart did not help"]
    scene.actor._hands = hands
    assert await scene.do(step) == ["page done"]
    assert scene.pages[1:] == ["restart did not help"]


async def test_an_escalation_is_resolved_when_its_incident_is_closed(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    await scene.do(Step("page", "i1", "restart did not help"), Step("close", "i1", "its alerts are gone"))
    await scene.do(Step("close", "i2", "its alerts are gone"))
    assert scene.pages == ["restart did not help", "resolved"]


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError("gone")])
async def test_an_outcome_that_is_not_known_counts_as_done(db: StateDb, error: OSError) -> None:
    def act() -> RestartResult:
        raise error

    scene = Scene(db, ENFORCE, act)
    assert await scene.do(RESTART) == ["restart reserved", "restart unknown"]
    assert scene.store.current.last_attempt() is not None
    assert scene.store.current.attempt_in_flight() is None


async def test_sidecar_dead_between_act_and_record_counts_as_done_and_is_not_repeated(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    await scene.store.append(ledgers.Entry(139.0, "i1", "incident", "opened", {"alerts": ["EngineHung"]}))
    await scene.store.append(ledgers.Entry(139.5, "i1", "restart", "reserved", {"instance_started_at": 1000.0}))
    again = Scene(db, ENFORCE, ok)
    assert again.store.current.attempt_in_flight() is not None
    await again.actor.settle()
    assert again.store.current.attempt_in_flight() is None
    assert [e.state for e in again.store.current.entries if e.kind == "restart"] == ["reserved", "unknown"]
    assert again.engine.restarts == []


async def test_an_engine_that_moves_again_is_not_restarted(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    scene.latest = View(at=141.0, engines=(EngineProgress(HUNG.key, 8.0, 141.0, 141.0, 0.0, 5.0, in_prefill=False),),
                        instance_started_at=1000.0)  # fmt: skip
    assert (await scene.do(RESTART))[:2] == ["restart reserved", "restart failed"]
    assert scene.engine.restarts == []


async def test_somebody_who_was_faster_is_noticed(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    scene.latest = View(at=141.0, instance_started_at=1100.0)
    await scene.do(RESTART)
    assert scene.engine.restarts == []


async def test_a_ledger_that_can_not_be_written_stops_every_action(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    db.transact(lambda c: c.execute("PRAGMA query_only = 1"))
    assert await scene.do(RESTART) == []
    assert scene.engine.restarts == []
    assert not scene.store.current.writable
    with pytest.raises(StateError):
        await scene.store.append(ledgers.Entry(1.0, "i", "incident", "opened"))


async def test_a_refused_restart_is_written_once_for_each_guard(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    refused = Step("restart", "i1", "no progress", refused="cooldown: 9 s left")
    again = Step("restart", "i1", "no progress", refused="cooldown: 8 s left")
    other = Step("restart", "i1", "no progress", refused="budget: used")
    assert await scene.do(refused, again, other) == ["restart refused", "restart refused"]


async def test_evidence_that_takes_too_long_is_given_up(db: StateDb) -> None:
    scene = Scene(db, Settings(mode=Mode.ENFORCE, evidence_timeout=0.01), ok)

    async def slow(incident: str, view: View) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    scene.actor._hands = replace(scene.actor._hands, evidence=slow)
    assert await scene.do(Step("evidence", "i1", "opened")) == ["evidence failed"]


async def test_without_a_runtime_nothing_is_reserved(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    scene.actor._runtime = lambda: Unknown("gone")
    assert await scene.do(RESTART) == []


async def test_any_exception_of_a_runtime_is_an_unknown_outcome_and_pages(db: StateDb) -> None:
    def act() -> RestartResult:
        raise ValueError("no such field")

    scene = Scene(db, ENFORCE, act)
    assert await scene.do(RESTART) == ["restart reserved", "restart unknown", "page done"]
    assert scene.store.current.attempt_in_flight() is None
    assert scene.pages == ["restart ended in an error, its outcome is unknown: ValueError: no such field"]


@pytest.mark.parametrize(
    ("error", "state", "pages"),
    [
        (None, "done", []),
        (TimeoutError(), "unknown", []),
        (RuntimeRefused("no such container"), "failed", ["from memory: restart failed: no such container"]),
    ],
)
async def test_a_result_that_can_not_be_written_is_written_later_and_a_failure_paged_at_once(
    db: StateDb, error: Exception | None, state: str, pages: list[str]
) -> None:
    def act() -> RestartResult:
        db.transact(lambda c: c.execute("PRAGMA query_only = 1"))
        if error is not None:
            raise error
        return ok()

    scene = Scene(db, ENFORCE, act)
    assert await scene.do(RESTART) == ["restart reserved"]
    await scene.actor.settle()
    assert scene.store.current.attempt_in_flight() is not None
    assert db._connection is not None
    db._connection.execute("PRAGMA query_only = 0")
    await scene.store.retry(200.0)
    await scene.actor.settle()
    await scene.actor.settle()
    assert [f"{e.kind} {e.state}" for e in scene.store.current.entries] == ["restart reserved", f"restart {state}"]
    assert scene.pages == pages


class HangingDisk(StateDb):
    """A disk whose commits hang until it is `back`: they reach it, late."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ledgers.SCHEMA)
        self.back = threading.Event()
        self.back.set()

    def _transaction(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        result = super()._transaction(work)
        assert self.back.wait(30)
        return result


async def test_a_reservation_that_the_disk_takes_too_late_is_no_act_and_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HangingDisk.transact_async, "__kwdefaults__", {"deadline": 0.1, "late": None})
    db = HangingDisk(tmp_path / "state.db")
    scene = Scene(db, ENFORCE, ok)
    db.back.clear()
    assert await scene.do(RESTART, RESTART) == []
    await scene.actor.settle()
    assert not scene.store.current.writable
    db.back.set()
    async with asyncio.timeout(60):
        while not scene.store.current.writable:
            scene.clock.advance(10.0)
            await scene.store.retry(scene.clock.now())
    await scene.actor.settle()
    lines = [(e.kind, e.state, e.detail.get("withdrawn")) for e in scene.store.current.entries]
    assert lines == [("restart", "reserved", None), ("restart", "failed", True)]
    assert scene.engine.restarts == []
    db.close()


async def test_nothing_is_written_to_a_ledger_that_could_not_be_read_before_it_was(db: StateDb) -> None:
    await LedgerStore(db, 140.0).append(ledgers.Entry(139.0, "i1", "restart", "observed", {}))
    db.transact(lambda c: c.execute("ALTER TABLE ledger RENAME TO elsewhere"))
    store = LedgerStore(db, 140.0)
    assert not store.current.writable
    db.transact(lambda c: c.execute("ALTER TABLE elsewhere RENAME TO ledger"))
    with pytest.raises(StateError):
        await store.append(ledgers.Entry(141.0, "i2", "incident", "opened"))
    await store.retry(150.0)
    assert [e.incident for e in store.current.entries] == ["i1"]
    await store.append(ledgers.Entry(151.0, "i2", "incident", "opened"))


class Drawn(random.Random):
    """Says what was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.bounds: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.bounds.append((a, b))
        return 0.0


@pytest.mark.parametrize(
    ("coordination", "drawn"),
    [(Coordination.LEASE, []), (Coordination.SINGLE, [(0.0, 7.0)]), (Coordination.UNCOORDINATED, [(0.0, 7.0)])],
)
async def test_who_has_no_lease_waits_a_random_delay_before_it_acts(
    db: StateDb, coordination: Coordination, drawn: list[tuple[float, float]]
) -> None:
    scene = Scene(db, ENFORCE.model_copy(update={"coordination": coordination, "random_delay": 7.0}), ok)
    scene.dice = dice = Drawn()
    await scene.do(RESTART)
    assert dice.bounds == drawn
    assert scene.engine.restarts == [1000.0]


async def test_what_was_set_during_the_random_delay_withdraws_the_restart(db: StateDb) -> None:
    class Dice(Drawn):
        def uniform(self, a: float, b: float) -> float:
            scene.vetoed = "kill_switch: kill switch: API"
            return super().uniform(a, b)

    scene = Scene(db, ENFORCE.model_copy(update={"coordination": Coordination.SINGLE}), ok)
    scene.dice = Dice()
    assert await scene.do(RESTART) == ["restart reserved", "restart failed"]
    reserved, failed = scene.store.current.entries
    assert scene.vetoes == [reserved.id]
    assert (failed.detail["why"], failed.detail["withdrawn"]) == ("kill_switch: kill switch: API", True)
    assert (scene.engine.restarts, scene.own, scene.pages) == ([], [], [])


async def test_observe_that_was_set_during_the_random_delay_withdraws_the_restart(db: StateDb) -> None:
    class Dice(Drawn):
        def uniform(self, a: float, b: float) -> float:
            scene.actor.configure(Settings(mode=Mode.OBSERVE))
            return super().uniform(a, b)

    scene = Scene(db, ENFORCE.model_copy(update={"coordination": Coordination.SINGLE}), ok)
    scene.dice = Dice()
    assert await scene.do(RESTART) == ["restart reserved", "restart failed"]
    assert scene.store.current.entries[-1].detail["why"] == "the mode is observe by now"
    assert scene.engine.restarts == []


async def test_request_without_effect_is_a_failure_that_counts(db: StateDb) -> None:
    def act() -> RestartResult:
        raise RestartWithoutEffect("nothing came of it")

    scene = Scene(db, ENFORCE, act)
    assert await scene.do(RESTART) == ["restart reserved", "restart failed"]
    failed = scene.store.current.entries[-1]
    assert (failed.detail["why"], failed.detail["without_effect"]) == ("nothing came of it", True)
    assert scene.store.current.attempts(0.0) == 1


async def test_what_the_runtime_holds_back_is_withdrawn_and_no_failure(db: StateDb) -> None:
    def act() -> RestartResult:
        raise RuntimeHeld("a roll-out is under way")

    scene = Scene(db, ENFORCE, act)
    assert await scene.do(RESTART) == ["restart reserved", "restart failed"]
    failed = scene.store.current.entries[-1]
    assert (failed.detail["why"], failed.detail["withdrawn"]) == ("a roll-out is under way", True)
    assert (scene.store.current.attempts(0.0), scene.pages) == (0, [])


async def test_instance_that_has_yet_to_begin_is_dsobs_own_for_its_start_up_budget(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, lambda: RestartResult(started_at=None))
    await scene.do(RESTART)
    assert scene.own_longer == [140.0 + 3600.0]
    scene = Scene(db, ENFORCE, ok)
    await scene.do(RESTART)
    assert scene.own_longer == []


@pytest.mark.parametrize(
    ("fleet", "given", "bound"), [(False, None, 2.0), (True, None, 60.0), (True, 0.0, 0.0), (False, 7.0, 7.0)]
)
async def test_random_delay_is_longer_where_other_replicas_may_have_the_same_fault(
    fleet: bool, given: float | None, bound: float
) -> None:
    dice = Drawn()
    settings = Settings(coordination=Coordination.UNCOORDINATED, random_delay=given)
    async with Alone(settings, owned=False, fleet=fleet, randomness=dice).taken("i1"):
        pass
    assert dice.bounds == [(0.0, bound)]


def test_sidecar_that_is_not_alone_may_act_only_where_somebody_said_so() -> None:
    assert Alone(Settings(), owned=False).refusal() == (
        "no coordination with other sidecars: set remediation.coordination"
    )
    assert Alone(Settings()).refusal() is None
    assert Alone(Settings(coordination=Coordination.SINGLE), owned=False).refusal() is None


async def test_engine_is_replaced_where_the_plan_says_so(db: StateDb) -> None:
    class Replacing(Engine):
        replaced: ClassVar[list[str]] = []

        def cannot_replace(self) -> str | None:
            return None

        async def replace(self, *, incident: str = "") -> RestartResult:
            self.replaced.append(incident)
            return RestartResult(None, "evicted a")

    scene = Scene(db, ENFORCE, ok)
    scene.engine = Replacing(ok)
    assert await scene.do(dataclasses.replace(RESTART, how="replace")) == ["restart reserved", "restart done"]
    assert (Replacing.replaced, scene.engine.restarts) == (["i1"], [])
    reserved, done = scene.store.current.entries
    assert (reserved.detail["how"], done.detail["how"]) == ("replace", "evicted a")


async def test_runtime_that_cannot_replace_is_not_asked_to_restart_instead(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    assert await scene.do(dataclasses.replace(RESTART, how="replace")) == ["restart reserved", "restart failed"]
    assert scene.engine.restarts == []


class Draining(Engine):
    """One from which requests can be kept away."""

    def __init__(self, act: Callable[[], RestartResult], held: str = "") -> None:
        super().__init__(act)
        self.held = held
        self.drains: list[str] = []

    async def drain(self, *, seconds: float, incident: str = "") -> str:
        if self.held:
            raise RuntimeHeld(self.held)
        self.drains.append(f"{incident} {seconds:.0f} s")
        return "not ready"

    async def undrain(self) -> None:
        self.drains.append("end")


DRAIN = Step("drain", "i1", "1 other engines still work")


async def test_requests_are_kept_away_while_others_finish_and_come_again_after_the_restart(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    scene.engine = engine = Draining(ok)
    assert await scene.do(DRAIN) == ["drain reserved", "drain done"]
    assert engine.drains == ["i1 120 s"]
    done = scene.store.current.entries[-1].detail
    assert (done["how"], done["reserved_at"]) == ("not ready", 140.0)
    assert scene.vetoes == [scene.store.current.entries[0].id]
    await scene.do(RESTART)
    assert (engine.drains, engine.restarts) == (["i1 120 s", "end"], [1000.0])


async def test_drain_ends_with_its_incident_where_no_restart_follows(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    scene.engine = engine = Draining(ok)
    await scene.do(DRAIN, Step("close", "i1", "it ended by itself"))
    assert "end" in engine.drains


async def test_nothing_is_drained_in_observe_or_where_a_guard_says_no_by_then(db: StateDb) -> None:
    scene = Scene(db, Settings(), ok)
    scene.engine = engine = Draining(ok)
    assert await scene.do(DRAIN) == ["drain done"]
    assert engine.drains == []
    scene = Scene(db, ENFORCE, ok)
    scene.engine, scene.vetoed = engine, "kill_switch: kill switch: API"
    assert (await scene.do(DRAIN))[-2:] == ["drain reserved", "drain failed"]
    assert scene.store.current.entries[-1].detail["why"] == "requests still come: kill_switch: kill switch: API"
    assert engine.drains == []


async def test_drain_that_is_held_back_is_told_and_the_wait_begins_all_the_same(db: StateDb) -> None:
    scene = Scene(db, ENFORCE, ok)
    scene.engine = Draining(ok, held="pod b acts on Deployment vllm")
    assert await scene.do(DRAIN) == ["drain reserved", "drain failed"]
    assert "pod b acts on Deployment vllm" in scene.store.current.entries[-1].detail["why"]


async def test_broken_card_is_told_in_the_runtimes_own_events(db: StateDb) -> None:
    class Telling(Engine):
        told: ClassVar[list[tuple[str, str]]] = []

        async def announce(self, reason: str, message: str) -> None:
            self.told.append((reason, message))

    scene = Scene(db, ENFORCE, ok)
    scene.engine = Telling(ok)
    await scene.do(dataclasses.replace(RESTART, refused="gpu_well: XID 79"))
    await scene.do(dataclasses.replace(RESTART, refused="gpu_well: XID 79"))
    assert Telling.told == [("GPUFault", "incident i1: gpu_well: XID 79")]
