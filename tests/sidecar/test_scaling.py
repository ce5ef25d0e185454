"""Scale-out beside the loop: what is done, what is only said, and what holds it back."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from dsobs.config import Config
from dsobs.model.clock import ManualClock
from dsobs.model.observation import RuntimeView, Unknown
from dsobs.model.runtime import RuntimeHeld, RuntimeRefused
from dsobs.model.samples import Sample, labels
from dsobs.model.scaling import Autoscaler, NoRoom, Replicas
from dsobs.remediation.actor import LedgerStore
from dsobs.remediation.guard import Switches
from dsobs.remediation.ledger import SCHEMA, by_incident, said
from dsobs.remediation.turn import Alone
from dsobs.sidecar.scaling import Around, Scaling
from dsobs.state import StateDb
from dsobs.telemetry import SCALING_DESIRED


class Fake:
    """A runtime of a workload in memory."""

    name = "kubernetes"

    def __init__(self) -> None:
        self.there: Replicas | Unknown = Replicas("Deployment vllm", 1, 1, pods=1)
        self.done: list[Any] = []
        self.fails: Exception | None = None

    async def view(self) -> RuntimeView | Unknown:
        return Unknown("not looked at")

    async def replicas(self) -> Replicas | Unknown:
        return self.there

    async def scale(self, before: Replicas, to: int) -> str:
        if self.fails is not None:
            raise self.fails
        self.done.append(("scale", before.wanted, to))
        self.there = replace(before, wanted=to, ready=to, pods=to)
        return f"{to} replicas"

    async def set_minimum(self, before: Replicas, to: int, until: float | None) -> str:
        self.done.append(("minimum", to, until))
        assert before.autoscaler is not None
        raised = None if until is None else before.autoscaler.raised_from or before.autoscaler.minimum
        self.there = replace(
            before, autoscaler=replace(before.autoscaler, minimum=to, raised_from=raised, raised_until=until)
        )
        return "minimum"


class World:
    """One sidecar's scale-out, its clock and its workload."""

    def __init__(self, scaling: Scaling, ledger: LedgerStore, clock: ManualClock, fake: Fake) -> None:
        self.scaling, self.ledger, self.clock, self.fake = scaling, ledger, clock, fake
        self.demand: float | None = 2.0
        self.killed: str | None = None
        self.port = 1
        self.servers: dict[str, list[Sample] | None] = {}
        self.pages: list[tuple[str | None, str]] = []

    async def run(self, seconds: float) -> None:
        """Looks where they are due, for so long."""
        end = self.clock.now() + seconds
        while self.clock.now() < end:
            self.scaling.follow()
            if self.scaling._task is not None:
                await self.scaling._task
            self.clock.advance(5.0)

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [(e.kind, e.state) for e in self.ledger.current.entries]


@contextlib.asynccontextmanager
async def world(tmp_path: Path, mode: str = "enforce", **settings: Any) -> AsyncIterator[World]:
    config = Config.model_validate(
        {
            "remediation": {"mode": mode, "coordination": "single", "random_delay": 0},
            "scaling": {"mode": "scale", "max_replicas": 3, "sustained_for": 30, "cooldown": 120, **settings},
        }
    )
    clock, fake = ManualClock(1_795_000_000.0), Fake()

    async def made_read(url: str) -> list[Sample] | None:
        return made.servers.get(url)

    async def made_page(text: str | None, command: str) -> None:
        made.pages.append((text, command))

    with contextlib.closing(StateDb(tmp_path / "state.db", SCHEMA)) as db:
        ledger = LedgerStore(db, clock.now())
        async with aiohttp.ClientSession() as session:
            around = Around(
                runtime=lambda: fake,
                turn=lambda: Alone(config.remediation),
                switches=lambda: Switches(killed=made.killed),
                demand=lambda: made.demand,
                start_seconds=lambda: None,
                port=lambda: made.port,
                read=made_read,
                page=made_page,
            )
            made = World(Scaling(config, ledger, clock, session, around), ledger, clock, fake)
            yield made
            await made.scaling.stop()


async def test_sustained_demand_adds_one_replica_and_is_a_line_of_the_ledger(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.run(20)
        assert here.fake.done == []
        assert SCALING_DESIRED.labels("Deployment vllm")._value.get() == 2.0
        await here.run(40)
        assert here.fake.done == [("scale", 1, 2)]
        assert here.lines == [("scale", "reserved"), ("scale", "done")]
        (told,) = by_incident(here.ledger.current.entries)
        (same,) = here.ledger.current.incidents()
        assert told["closed"]
        assert same.closed
        assert said(here.ledger.current.entries[-1].detail) == (
            "scale Deployment vllm from 1 to 2: 1 replica wants 2.00; 2 replicas"
        )


async def test_a_short_time_for_which_a_replica_must_be_wanted_is_kept(tmp_path: Path) -> None:
    async with world(tmp_path, sustained_for=4) as here:
        await here.run(10)
        assert here.fake.done == [("scale", 1, 2)]


async def test_observe_says_once_what_enforce_would_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with world(tmp_path, "observe") as here:
        await here.run(600)
        assert here.fake.done == []
        assert here.lines == [("scale", "observed")]
    assert [r.getMessage() for r in caplog.records if "would" in r.getMessage()] == [
        "would scale Deployment vllm from 1 to 2 (observe): 1 replica wants 2.00"
    ]


async def test_kill_switch_refuses_and_is_noted_once(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.killed = "API"
        await here.run(600)
        assert here.fake.done == []
        assert here.lines == [("scale", "refused")]


async def test_publish_asks_nobody(tmp_path: Path) -> None:
    async with world(tmp_path, mode="enforce") as here:
        here.scaling.configure(Config())
        await here.run(600)
        assert here.scaling.replicas == Unknown("not looked at")


async def test_an_autoscaler_is_left_alone_unless_its_minimum_may_be_raised(tmp_path: Path) -> None:
    own = Autoscaler("HorizontalPodAutoscaler", "vllm", 1, 3)
    async with world(tmp_path) as here:
        here.fake.there = Replicas("Deployment vllm", 1, 1, own, pods=1)
        await here.run(600)
        assert here.fake.done == []
        assert here.lines == []
    async with world(tmp_path / "raised", raise_min_replicas=True, raise_for=300) as here:
        here.fake.there = Replicas("Deployment vllm", 1, 1, own, pods=1)
        await here.run(60)
        begun = here.fake.done[0][2]
        assert here.fake.done == [("minimum", 2, begun)]
        here.demand = 0.5
        here.fake.there = replace(here.fake.there, wanted=2, ready=2, pods=2)
        await here.run(250)
        assert len(here.fake.done) == 1
        await here.run(600)
        assert here.fake.done[1:] == [("minimum", 1, None)]


async def test_a_minimum_that_another_sidecar_raised_is_put_back_when_its_time_is_over(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        own = Autoscaler("ScaledObject", "vllm", 3, 3, raised_from=1, raised_until=here.clock.now() + 60)
        here.demand = 0.1
        here.fake.there = Replicas("Deployment vllm", 1, 1, own, pods=1)
        await here.run(60)
        assert here.fake.done == []
        await here.run(20)
        assert here.fake.done == [("minimum", 1, None)]


async def test_nothing_is_added_above_the_autoscalers_maximum(tmp_path: Path) -> None:
    async with world(tmp_path, raise_min_replicas=True) as here:
        own = Autoscaler("HorizontalPodAutoscaler", "vllm", 1, 1)
        here.fake.there = Replicas("Deployment vllm", 1, 1, own, pods=1)
        await here.run(600)
        assert here.fake.done == []


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RuntimeHeld("another"), "failed"),
        (RuntimeRefused("no right"), "failed"),
        (OSError("reset"), "unknown"),
        (TimeoutError(), "unknown"),
    ],
)
async def test_what_failed_is_noted_and_one_whose_outcome_is_unknown_counts(
    tmp_path: Path, error: Exception, state: str
) -> None:
    async with world(tmp_path) as here:
        here.fake.fails = error
        await here.run(60)
        assert here.lines[:2] == [("scale", "reserved"), ("scale", state)]
        if state == "unknown":
            await here.run(60)
            assert len(here.lines) == 2


async def test_demand_of_other_replicas_is_asked_of_their_sidecars_and_unknown_holds(tmp_path: Path) -> None:
    text = "dsobs_engine_demand_ratio 0.25\n"

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=text)

    app = web.Application()
    app.router.add_get("/metrics", page)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with world(tmp_path) as here:
            here.port = runner.addresses[0][1]
            here.fake.there = Replicas("Deployment vllm", 2, 2, peers=("127.0.0.1",), pods=2)
            await here.run(120)
            assert here.fake.done == [("scale", 2, 3)]
            assert "2 replicas want 2.25" in here.ledger.current.entries[-1].detail["reason"]
            text = "dsobs_engine_up 0\n"
            here.fake.there = Replicas("Deployment vllm", 2, 2, peers=("127.0.0.1",), pods=2)
            await here.run(1200)
            assert len(here.fake.done) == 1
            assert here.scaling.decision.desired is None
    finally:
        await runner.cleanup()


class Host(Fake):
    """One that has to find a place itself."""

    name = "docker"
    change_seconds = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.room: NoRoom | None = None
        self.cards = lambda: Unknown("no card")

    async def no_room(self) -> NoRoom | None:
        return self.room


@pytest.mark.parametrize("mode", ["enforce", "observe"])
async def test_where_there_is_no_room_people_are_told_once_what_to_run_and_when_it_is_over(
    tmp_path: Path, mode: str
) -> None:
    async with world(tmp_path, mode) as here:
        host = Host()
        host.room = NoRoom("0 of 2 cards are free, and a replica takes 1", "docker run vllm")
        here.scaling._around = replace(here.scaling._around, runtime=lambda: host)
        await here.run(600)
        assert host.done == []
        assert here.lines == [("scale", "refused")]
        (page,) = [page for page in here.pages if page[0] is not None]
        assert page == (
            "one more replica is wanted (1 replica wants 2.00), and there is no room here: 0 of 2 cards are free, and "
            "a replica takes 1",
            "docker run vllm",
        )
        assert here.ledger.current.entries[-1].detail["run"] == "docker run vllm"
        host.room = NoRoom("0 of 3 cards are free, and a replica takes 1", "docker run vllm")
        await here.run(600)
        assert len([text for text, _ in here.pages if text is not None]) == 1
        # Somebody has taken the name: the old command would fail.
        host.room = NoRoom("0 of 3 cards are free, and a replica takes 1", "docker run another")
        await here.run(600)
        assert here.pages[-1][1] == "docker run another"
        here.demand = 0.5
        await here.run(600)
        assert here.pages[-1][0] is None


async def test_where_there_is_room_a_replica_is_added_and_its_demand_is_read_from_its_own_page(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        host = Host()
        here.scaling._around = replace(here.scaling._around, runtime=lambda: host)
        here.demand = 5.0
        await here.run(60)
        assert host.done == [("scale", 1, 2)]
        host.there = Replicas("container vllm", 2, 2, pods=2, servers=("http://two",))
        await here.run(600)
        # It loads, so nothing is added however much is wanted.
        assert len(host.done) == 1
        assert "1 of 2 replicas are ready" in here.scaling.decision.reason
        here.servers["http://two"] = [Sample(labels("dsobs_engine_requests_waiting", model_name="m", engine="0"), 5.0)]
        await here.run(600)
        assert host.done[1:] == [("scale", 2, 3)]
        assert here.pages == [(None, "")]


async def test_runtime_that_starts_no_replicas_says_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "dsobs")

    class Process:
        name = "process"

    async with world(tmp_path) as here:
        here.scaling._around = replace(here.scaling._around, runtime=Process)
        await here.run(60)
    assert any(
        "the runtime process starts no further replicas; start another server" in r.message for r in caplog.records
    )
